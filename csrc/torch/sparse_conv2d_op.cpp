#include "lcs/sparse_conv2d.h"

#include "sparse_weight_binding.h"

namespace {

using namespace lcs::binding;
using torch::headeronly::MemoryFormat;
constexpr const char* kSparseConv2d = "sparse_conv2d";

bool channels_last(const Tensor& x) {
  const int64_t c = x.size(1), h = x.size(2), w = x.size(3);
  const auto stride = x.strides();
  return (c == 1 || stride[1] == 1) && (w == 1 || stride[3] == c) && (h == 1 || stride[2] == w * c) &&
         (x.size(0) == 1 || stride[0] == h * w * c);
}

lcs::Images images(const Tensor& t, void* data, bool last) {
  const int64_t n = t.size(0), c = t.size(1), h = t.size(2), w = t.size(3);
  if (last) return {data, n, c, h, w, c * h * w, 1, w * c, c};
  return {data, n, c, h, w, c * h * w, h * w, w, 1};
}

lcs::Axis axis(const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
               const std::vector<int64_t>& dilation, int64_t kernel, size_t d) {
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, kSparseConv2d,
                  ": stride, padding and dilation must hold 2 numbers each");
  STD_TORCH_CHECK(stride[d] >= 1 && padding[d] >= 0 && dilation[d] >= 1, kSparseConv2d, ": stride ", stride[d],
                  ", padding ", padding[d], " or dilation ", dilation[d], " is out of range");
  return {stride[d], padding[d], dilation[d], kernel};
}

int64_t output_size(const lcs::Axis& a, int64_t size) {
  const int64_t left = size + 2 * a.padding - a.dilation * (a.kernel - 1) - 1;
  STD_TORCH_CHECK(left >= 0, kSparseConv2d, ": the kernel of ", a.kernel, " does not fit the padded input of ",
                  size + 2 * a.padding);
  return left / a.stride + 1;
}

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
  const lcs::Axis vertical = axis(stride, padding, dilation, weight_shape[2], 0),
                  horizontal = axis(stride, padding, dilation, weight_shape[3], 1);
  const bool last = !x.is_contiguous() && channels_last(x);
  const Tensor input = last ? x : torch::stable::contiguous(x);
  Tensor y = torch::stable::empty(
      {x.size(0), out, output_size(vertical, x.size(2)), output_size(horizontal, x.size(3))}, x.scalar_type(),
      std::nullopt, std::nullopt, std::nullopt, last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  lcs::sparse_conv2d(
      {images(input, const_cast<void*>(input.const_data_ptr()), last), images(y, y.mutable_data_ptr(), last), dtype,
       vertical, horizontal, groups, weight.prepack, bias_of(kSparseConv2d, bias, out), relu},
      parallel);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("sparse_conv2d", TORCH_BOX(&sparse_conv2d_cpu)); }
