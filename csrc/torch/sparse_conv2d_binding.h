#pragma once
#include "lcs/sparse_conv2d.h"
#include "sparse_weight_binding.h"

namespace lcs::binding {

constexpr const char *kSparseConv2d = "sparse_conv2d", *kSparseConv2dNorm = "sparse_conv2d_norm";

// What a sparse convolution is given besides its images.
struct SparseConv2dGiven {
  Tensor mask_bits, values;
  std::vector<int64_t> weight_shape;
  std::optional<Tensor> bias;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
  bool relu;
  int64_t block;
  std::vector<Tensor> prepack;
  std::optional<Tensor> scale;
  std::optional<double> cap;
};

// Of images: their sizes, dtype, and whether they are channels last, else NCHW.
struct ImagesKind {
  std::vector<int64_t> size;
  ScalarType type;
  bool last;
};

ImagesKind images_kind(const char* op, const Tensor& x);

// A sparse convolution's arguments, checked, with what they read. Its images have sizes and strides, but no data.
struct SparseConv2dCall {
  ImagesKind x, y;
  SparseConv2dGiven given;
  Prepacked weight;
  SparseConv2dArgs args;

  SparseConv2dCall(const char* op, const ImagesKind& kind, SparseConv2dGiven all);

  // The result of `input`, which is yet to be computed; both take their places in `args`.
  Tensor result_of(Tensor& input);
};

}  // namespace lcs::binding
