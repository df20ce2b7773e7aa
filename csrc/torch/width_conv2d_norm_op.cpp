#include "lcs/width_conv2d_norm.h"

#include "images_binding.h"
#include "line_norm_binding.h"
#include "replay_binding.h"
#include "width_weight_binding.h"

namespace lcs::binding {
namespace {

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
    STD_TORCH_CHECK(2 * a.padding <= a.kernel, kWidthConv2dNorm, ": a padding of ", a.padding,
                    " is more than half of a window of ", a.kernel);
  return args;
}

}  // namespace

Tensor width_conv2d_norm_cpu(Tensor x, Tensor weight, int64_t out_channels, std::optional<Tensor> bias,
                             std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                             int64_t groups, std::optional<Tensor> packed, std::optional<Tensor> weight0,
                             std::optional<Tensor> weight1, std::optional<Tensor> bias0, std::optional<Tensor> bias1,
                             std::optional<Tensor> alpha, std::optional<Tensor> residual, int64_t norm_groups,
                             double eps, bool relu, std::vector<int64_t> pool, std::optional<Tensor> mean,
                             std::optional<Tensor> var) {
  for (auto* vector : {&bias, &weight0, &weight1, &bias0, &bias1, &mean, &var}) make_contiguous(*vector);
  const lcs::DType dtype = activation_dtype(kWidthConv2dNorm, x);
  const WidthConv2dCall call =
      width_conv2d_call(kWidthConv2dNorm, x, weight, out_channels, stride, padding, dilation, groups, packed);
  const bool last = wants_channels_last(x);
  const Tensor input = last ? x : torch::stable::contiguous(x);
  const std::vector<int64_t> made = {x.size(0), out_channels, output_size(kWidthConv2dNorm, call.vertical, x.size(2)),
                                     output_size(kWidthConv2dNorm, call.horizontal, x.size(3))};
  const bool between_last = last || !pool.empty();
  NormBehind norm = norm_behind(kWidthConv2dNorm, made, x.scalar_type(), between_last,
                                {weight0, weight1, bias0, bias1, alpha, mean, var}, residual, norm_groups, eps, relu);
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
  if (!pooled) norm.args.y = y.mutable_data_ptr();
  lcs::width_conv2d_norm({{images(input, const_cast<void*>(input.const_data_ptr()), last), out, dtype, call.vertical,
                           call.horizontal, groups, call.weight, call.packed, call.pairs, nullptr,
                           vector_of(kWidthConv2dNorm, "bias", bias, call.weight.out_channels), false},
                          norm.args,
                          pooled ? &*pooled : nullptr},
                         parallel);
  return y;
}

}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("width_conv2d_norm", TORCH_BOX(&lcs::binding::width_conv2d_norm_cpu)); }
