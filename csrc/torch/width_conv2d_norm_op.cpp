#include "lcs/width_conv2d_norm.h"

#include "images_binding.h"
#include "line_norm_binding.h"
#include "sparse_weight_binding.h"
#include "width_weight_binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kWidthConv2dNorm = "width_conv2d_norm";

// Of windows: kernel, stride and padding, a number for each direction.
lcs::MaxPoolArgs max_pool(const std::vector<int64_t>& pool, const lcs::Images& x, lcs::DType dtype) {
  STD_TORCH_CHECK(pool.size() == 6, kWidthConv2dNorm, ": pool must hold no or 6 numbers, got ", pool.size());
  const std::vector<int64_t> stride = {pool[2], pool[3]}, padding = {pool[4], pool[5]}, dilation = {1, 1};
  lcs::MaxPoolArgs args{x,
                        {},
                        axis(kWidthConv2dNorm, stride, padding, dilation, pool[0], 0),
                        axis(kWidthConv2dNorm, stride, padding, dilation, pool[1], 1),
                        dtype};
  for (const lcs::Axis& a : {args.vertical, args.horizontal})
    STD_TORCH_CHECK(a.kernel >= 1 && 2 * a.padding <= a.kernel, kWidthConv2dNorm, ": a padding of ", a.padding,
                    " is more than half of a window of ", a.kernel);
  return args;
}

// Of `shape`, laid out as the result.
std::optional<Tensor> laid_out(const std::optional<Tensor>& residual, const std::vector<int64_t>& shape,
                               ScalarType type, bool last) {
  if (!residual) return residual;
  STD_TORCH_CHECK(residual->is_cpu() && has_shape(*residual, shape) && residual->scalar_type() == type,
                  kWidthConv2dNorm, ": residual must be of the norm's shape and of x's dtype on the CPU, got shape ",
                  shape_of(*residual));
  if (!last) return torch::stable::contiguous(*residual);
  if (is_channels_last(*residual)) return residual;
  Tensor copy = empty_images(shape, type, true);
  return torch::stable::copy_(copy, *residual);
}

Tensor width_conv2d_norm_cpu(Tensor x, Tensor weight, int64_t out_channels, std::optional<Tensor> bias,
                             std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                             int64_t groups, std::optional<Tensor> packed, std::optional<Tensor> weight0,
                             std::optional<Tensor> weight1, std::optional<Tensor> bias0, std::optional<Tensor> bias1,
                             std::optional<Tensor> alpha, std::optional<Tensor> residual, int64_t norm_groups,
                             double eps, bool relu, std::vector<int64_t> pool) {
  const lcs::DType dtype = activation_dtype(kWidthConv2dNorm, x);
  const WidthConv2dCall call =
      width_conv2d_call(kWidthConv2dNorm, x, weight, out_channels, stride, padding, dilation, groups, packed);
  STD_TORCH_CHECK(norm_groups >= 1 && out_channels % norm_groups == 0, kWidthConv2dNorm, ": ", norm_groups,
                  " groups do not divide ", out_channels, " channels of the convolution");
  STD_TORCH_CHECK(eps >= 0, kWidthConv2dNorm, ": eps must be at least 0, got ", eps);
  const bool last = wants_channels_last(x);
  const Tensor input = last ? x : torch::stable::contiguous(x);
  const std::vector<int64_t> made = {x.size(0), out_channels, output_size(kWidthConv2dNorm, call.vertical, x.size(2)),
                                     output_size(kWidthConv2dNorm, call.horizontal, x.size(3))};
  const bool between_last = last || !pool.empty();
  const std::optional<Tensor> other = laid_out(residual, made, x.scalar_type(), between_last);
  const lcs::Images out = images(made, nullptr, between_last);
  std::optional<lcs::MaxPoolArgs> pooled;
  std::vector<int64_t> shape = made;
  if (!pool.empty()) {
    pooled = max_pool(pool, out, dtype);
    shape[2] = output_size(kWidthConv2dNorm, pooled->vertical, shape[2]);
    shape[3] = output_size(kWidthConv2dNorm, pooled->horizontal, shape[3]);
  }
  Tensor y = empty_images(shape, x.scalar_type(), last);
  if (pooled) pooled->y = images(shape, y.mutable_data_ptr(), last);
  lcs::LineNormArgs norm{};
  norm.residual = other ? other->const_data_ptr() : nullptr;
  norm.y = pooled ? nullptr : y.mutable_data_ptr();
  norm.n = out.n, norm.channels = out.channels, norm.pixels = out.height * out.width, norm.groups = norm_groups;
  norm.last = (between_last && out.channels > 1) || norm.pixels == 1;  // as line_norm takes the convolution's result
  norm.eps = eps, norm.relu = relu, norm.dtype = dtype;
  take_line(kWidthConv2dNorm, norm, x.scalar_type(), {weight0, weight1, bias0, bias1, alpha});
  lcs::width_conv2d_norm({{images(input, const_cast<void*>(input.const_data_ptr()), last), out, dtype, call.vertical,
                           call.horizontal, groups, call.weight, call.packed, call.pairs, nullptr,
                           vector_of(kWidthConv2dNorm, "bias", bias, call.weight.out_channels), false},
                          norm,
                          pooled ? &*pooled : nullptr},
                         parallel);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("width_conv2d_norm", TORCH_BOX(&width_conv2d_norm_cpu)); }
