#pragma once
#include "lcs/sparse_conv2d.h"
#include "sparse_weight_binding.h"

namespace lcs::binding {

// A sparse convolution's arguments, checked, with its result, which is yet to be computed, and what they read.
struct SparseConv2dCall {
  bool last;  // x and y: channels last, else NCHW
  Tensor x, y;
  Prepacked weight;
  SparseConv2dArgs args;
};

SparseConv2dCall sparse_conv2d_call(const char* op, const Tensor& x, const Tensor& mask_bits, const Tensor& values,
                                    const std::vector<int64_t>& weight_shape, const std::optional<Tensor>& bias,
                                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                    const std::vector<int64_t>& dilation, int64_t groups, bool relu, int64_t block,
                                    const std::vector<Tensor>& prepack);

}  // namespace lcs::binding
