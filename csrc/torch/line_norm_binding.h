#pragma once
#include "binding.h"
#include "lcs/line_norm.h"

// A norm's vectors, its scale and shift on a line, and a norm behind a convolution, checked.
namespace lcs::binding {

constexpr const char* kLineNorm = "line_norm";

struct LineVectors {
  const std::optional<Tensor>&weight0, &weight1, &bias0, &bias1, &alpha;
  const std::optional<Tensor>&mean, &var;  // of each channel, where they are given
};

// A norm's arguments but for x, y and statistics, and what keeps the residual alive.
struct NormBehind {
  LineNormArgs args;
  std::optional<Tensor> residual;
};

// Behind a convolution whose result has such a shape, channels last or NCHW.
NormBehind norm_behind(const char* op, const std::vector<int64_t>& shape, ScalarType type, bool last,
                       const LineVectors& line, const std::optional<Tensor>& residual, int64_t groups, double eps,
                       bool relu);

}  // namespace lcs::binding
