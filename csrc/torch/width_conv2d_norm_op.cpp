#include "lcs/width_conv2d_norm.h"

#include "images_binding.h"
#include "line_norm_binding.h"
#include "sparse_weight_binding.h"
#include "width_weight_binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kWidthConv2dNorm = "width_conv2d_norm";

Tensor width_conv2d_norm_cpu(Tensor x, Tensor weight, int64_t out_channels, std::optional<Tensor> bias,
                             std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                             int64_t groups, std::optional<Tensor> packed, std::optional<Tensor> weight0,
                             std::optional<Tensor> weight1, std::optional<Tensor> bias0, std::optional<Tensor> bias1,
                             std::optional<Tensor> alpha, std::optional<Tensor> residual, int64_t norm_groups,
                             double eps, bool relu) {
  const lcs::DType dtype = activation_dtype(kWidthConv2dNorm, x);
  const WidthConv2dCall call =
      width_conv2d_call(kWidthConv2dNorm, x, weight, out_channels, stride, padding, dilation, groups, packed);
  STD_TORCH_CHECK(norm_groups >= 1 && out_channels % norm_groups == 0, kWidthConv2dNorm, ": ", norm_groups,
                  " groups do not divide ", out_channels, " channels of the convolution");
  STD_TORCH_CHECK(eps >= 0, kWidthConv2dNorm, ": eps must be at least 0, got ", eps);
  const bool last = wants_channels_last(x);
  const Tensor input = last ? x : torch::stable::contiguous(x);
  Tensor y = empty_images({x.size(0), out_channels, output_size(kWidthConv2dNorm, call.vertical, x.size(2)),
                           output_size(kWidthConv2dNorm, call.horizontal, x.size(3))},
                          x.scalar_type(), last);
  STD_TORCH_CHECK(
      !residual || (residual->is_cpu() && same_shape(*residual, y) && residual->scalar_type() == x.scalar_type()),
      kWidthConv2dNorm, ": residual must be of the result's shape ", shape_of(y), " and of x's dtype on the CPU, got ",
      "shape ", residual ? shape_of(*residual) : "");
  std::optional<Tensor> other = residual;
  if (residual && last && !is_channels_last(*residual)) {
    Tensor copy = empty_laid_out_as(y);
    other = torch::stable::copy_(copy, *residual);
  } else if (residual && !last) {
    other = torch::stable::contiguous(*residual);
  }
  const lcs::Images out = images(y, y.mutable_data_ptr(), last);
  lcs::LineNormArgs norm{};
  norm.residual = other ? other->const_data_ptr() : nullptr;
  norm.y = out.data;
  norm.n = out.n, norm.channels = out.channels, norm.pixels = out.height * out.width, norm.groups = norm_groups;
  norm.last = last || norm.pixels == 1;
  norm.eps = eps, norm.relu = relu, norm.dtype = dtype;
  take_line(kWidthConv2dNorm, norm, x.scalar_type(), {weight0, weight1, bias0, bias1, alpha});
  lcs::width_conv2d_norm({{images(input, const_cast<void*>(input.const_data_ptr()), last), out, dtype, call.vertical,
                           call.horizontal, groups, call.weight, call.packed, call.pairs, nullptr,
                           vector_of(kWidthConv2dNorm, "bias", bias, call.weight.out_channels), false},
                          norm},
                         parallel);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("width_conv2d_norm", TORCH_BOX(&width_conv2d_norm_cpu)); }
