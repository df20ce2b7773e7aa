#include "lcs/sparse_conv2d_norm.h"

#include "line_norm_binding.h"
#include "replay_binding.h"
#include "sparse_conv2d_binding.h"

namespace lcs::binding {

Tensor sparse_conv2d_norm_cpu(Tensor x, Tensor mask_bits, Tensor values, std::vector<int64_t> weight_shape,
                              std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                              std::vector<int64_t> dilation, int64_t groups, int64_t block, std::vector<Tensor> prepack,
                              std::optional<Tensor> weight0, std::optional<Tensor> weight1, std::optional<Tensor> bias0,
                              std::optional<Tensor> bias1, std::optional<Tensor> alpha, std::optional<Tensor> residual,
                              int64_t norm_groups, double eps, bool relu) {
  for (auto* vector : {&weight0, &weight1, &bias0, &bias1}) make_contiguous(*vector);
  const std::optional<Tensor> none;
  SparseConv2dCall conv(kSparseConv2dNorm, images_kind(kSparseConv2dNorm, x),
                        {mask_bits, values, weight_shape, bias, stride, padding, dilation, groups, false, block,
                         prepack, none, std::nullopt});
  Tensor y = conv.result_of(x);
  NormBehind norm = norm_behind(kSparseConv2dNorm, conv.y.size, conv.y.type, conv.y.last,
                                {weight0, weight1, bias0, bias1, alpha, none, none}, residual, norm_groups, eps, relu);
  norm.args.x = norm.args.y = y.mutable_data_ptr();
  lcs::sparse_conv2d_norm({conv.args, norm.args}, parallel);
  return y;
}

}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("sparse_conv2d_norm", TORCH_BOX(&lcs::binding::sparse_conv2d_norm_cpu));
}
