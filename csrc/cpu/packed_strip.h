#pragma once
#include <cstdint>

#include "lcs/packed_conv2d.h"
#include "packed_conv2d_kernels.h"
#include "packed_gemm.h"
#include "sparse_conv2d_kernels.h"
#include "walk.h"

namespace lcs {

PackedCodes codes_of(const ActivationRange& range);
float scale_of(const ActivationRange& range);  // what a code counts for

// Of a strip; distances are in elements of it.
struct StripGeometry {
  bool is_input;  // whether it is x itself
  Walk rows, columns;
  int64_t groups, inputs, segment;  // channels of a group, and with their padding; all in one of a depthwise weight
  int64_t element;                  // bytes
  bool joined;
  int64_t row_taps, stride;    // taps of a row of the kernel, and between columns of outputs
  int64_t lines, line;         // rows and columns of an image
  int64_t column, row, image;  // distances
  int64_t images;              // at once

  StripGeometry(const PackedConv2dArgs& args, Panel panel);
};

// The input of a packed convolution as it is multiplied: int8 (or what the panel takes), channels last, each group's
// channels padded to whole steps, with the padding of the convolution, so that each tap of each output position is at a
// fixed distance. Where taps are joined, its columns are those of the output, each with all that a row of the kernel
// reads there. Codes that lie like that already stay where they are.
class PackedStrip {
 public:
  // For `panel`. Its memory is the calling thread's, until that makes the next one.
  PackedStrip(const PackedConv2dArgs& args, const PackedGemm& gemm, Panel panel, const Parallel& parallel);

  // Images [first, first + n), of at most geometry().images. `adds`: whether `sums` will be asked for, without which x
  // itself needs nothing.
  void fill(int64_t first, int64_t n, bool adds);

  const StripGeometry& geometry() const { return g_; }
  const char* data() const { return data_; }
  const int64_t* steps() const { return steps_; }  // bytes from where a window begins to its elements of a step
  // Of the columns of a row, from `column` on: sums of the elements of a group that a row of the kernel reads there.
  // None of a depthwise weight.
  const int32_t* sums(int64_t group, int64_t image, int64_t line, int64_t column) const {
    return sums_ + ((group * g_.images + image) * g_.lines + line) * g_.line + column;
  }
  const PackedCodes& codes() const { return codes_; }
  int32_t zero() const { return codes_.zero; }
  float scale(int64_t image) const { return scale_[first_ + image]; }  // half of what a unit of x is worth

 private:
  bool sums() const { return !a_.exact && !a_.depthwise; }
  bool reads_all() const;
  void find_steps();
  void find_scales();

  // The columns of a row, with the convolution's padding, that lie inside the image; none where the row does not.
  struct Inside {
    int64_t begin, end, from;  // `from`: of the first one's element of x
  };
  Inside inside(int64_t image, int64_t row) const;

  // Where the rows of x are written, each column's elements of it: the strip, or lines that are joined afterwards.
  struct Lines {
    int64_t column, group, row;  // distances
  };
  Lines lines() const;

  template <class T>
  void join(const T* from, T* to) const;
  void join_words(const char* from, char* to) const;
  void copy(int64_t image, int64_t row) const;
  void quantize(int64_t image, int64_t begin, int64_t end);
  void add_up(const char* codes, int64_t image, int64_t begin, int64_t end) const;
  void add_taps(int32_t* sums) const;
  void pad(const Inside& in, int8_t* to) const;
  void quantize_row(int64_t image, int64_t row, int64_t channel, int64_t channels, int8_t* to);

  const PackedConv2dArgs& a_;
  const PackedGemm& gemm_;
  const Parallel& parallel_;
  const Panel panel_;
  const PackedConv2dKernels run_;
  const SparseConv2dKernels copies_;
  const StripGeometry g_;
  PackedCodes codes_{0.0f, 0, -127, 127};
  int64_t first_ = 0;  // of the images
  char* own_;          // memory for a strip that is not x itself
  const char* data_;
  int32_t* sums_;
  int64_t* steps_;
  float *inverse_, *scale_;  // of each image of x
};

}  // namespace lcs
