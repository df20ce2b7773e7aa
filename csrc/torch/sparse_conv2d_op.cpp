#include "lcs/sparse_conv2d.h"

#include "images_binding.h"
#include "sparse_weight_binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kSparseConv2d = "sparse_conv2d";

Tensor sparse_conv2d_cpu(Tensor x, Tensor mask_bits, Tensor values, std::vector<int64_t> weight_shape,
                         std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation, int64_t groups, bool relu, int64_t block,
                         std::vector<Tensor> prepack) {
  STD_TORCH_CHECK(x.dim() == 4 && weight_shape.size() == 4, kSparseConv2d, ": x must be (n, c, h, w), got shape ",
                  shape_of(x));
  const int64_t out = weight_shape[0], taps = weight_shape[2] * weight_shape[3], columns = weight_shape[1] * taps;
  STD_TORCH_CHECK(groups >= 1 && x.size(1) == groups * weight_shape[1] && out % groups == 0, kSparseConv2d, ": x has ",
                  x.size(1), " channels, a weight of ", out, " x ", weight_shape[1], " in ", groups, " groups takes ",
                  groups * weight_shape[1]);
  STD_TORCH_CHECK(weight_shape[2] >= 1 && weight_shape[3] >= 1 && block % taps == 0, kSparseConv2d, ": block ", block,
                  " is not whole channels of ", taps, " taps");
  const Prepacked weight = prepacked(kSparseConv2d, mask_bits, values, out, columns, block, prepack);
  const lcs::DType dtype = activation_dtype(kSparseConv2d, x);
  const lcs::Axis vertical = axis(kSparseConv2d, stride, padding, dilation, weight_shape[2], 0),
                  horizontal = axis(kSparseConv2d, stride, padding, dilation, weight_shape[3], 1);
  const bool last = wants_channels_last(x);
  const Tensor input = last ? x : torch::stable::contiguous(x);
  Tensor y = empty_images({x.size(0), out, output_size(kSparseConv2d, vertical, x.size(2)),
                           output_size(kSparseConv2d, horizontal, x.size(3))},
                          x.scalar_type(), last);
  lcs::sparse_conv2d(
      {images(input, const_cast<void*>(input.const_data_ptr()), last), images(y, y.mutable_data_ptr(), last), dtype,
       vertical, horizontal, groups, weight.prepack, vector_of(kSparseConv2d, "bias", bias, out), relu},
      parallel);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("sparse_conv2d", TORCH_BOX(&sparse_conv2d_cpu)); }
