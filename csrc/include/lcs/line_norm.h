#pragma once
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/parallel.h"

namespace lcs {

// A vector on a line, fl(fl(1 - alpha) * end0) + fl(alpha * end1) in float32, rounded to its dtype. end1 null: a point;
// end0 too: there is none.
struct LineVector {
  const void *end0, *end1;
  DType dtype;
};

// y = (x - mean) / sqrt(var + eps) * weight + bias, rounded, then + residual, then ReLU. Mean and variance are those of
// each sample's groups of consecutive channels, or given.
struct LineNormArgs {
  const void* x;         // n x channels x pixels, or with `last` n x pixels x channels
  const void* residual;  // laid out likewise; may be null
  void* y;               // likewise; may be x
  int64_t n, channels, pixels, groups;
  bool last;
  LineVector weight, bias;  // their first `channels` count
  float alpha;
  const float *mean, *var;  // given: of each channel; else null
  float *means, *rstds;     // else written: n x groups
  double eps;
  bool relu;
  DType dtype;
};

void line_norm(const LineNormArgs& args, const Parallel& parallel);

// Of a norm of given statistics, (x - mean) * scale + shift: both, of each channel.
void line_norm_lines(const LineNormArgs& args, float* scale, float* shift);

// Of any norm, of each channel: the weight and the bias; and of n elements of a group that follow each other, as
// line_norm of contiguous x has them.
void line_norm_affine(const LineNormArgs& args, float* weight, float* bias);
struct GroupStatistics {
  float mean, rstd;
};
GroupStatistics line_norm_statistics(const float* x, int64_t n, double eps);

// The norm of samples [begin, end) alone.
LineNormArgs samples_of(const LineNormArgs& args, int64_t begin, int64_t end);

// The gradients to both ends of a vector, `full` long, 0 behind `channels`. Null where there is no such end.
struct LineVectorGrad {
  float *end0, *end1;
  int64_t full;
};

struct LineNormBackwardArgs {
  LineNormArgs forward;  // y and residual are not read; means and rstds are
  const void* grad;      // laid out as x
  void* grad_x;
  LineVectorGrad weight, bias;
};

// Returns the gradient to alpha.
double line_norm_backward(const LineNormBackwardArgs& args, const Parallel& parallel);

}  // namespace lcs
