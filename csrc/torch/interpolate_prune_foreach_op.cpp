#include "interpolate_prune_binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kInterpolatePruneForeach = "interpolate_prune_foreach";

std::tuple<std::vector<Tensor>, std::vector<Tensor>> interpolate_prune_foreach_cpu(std::vector<Tensor> w0s,
                                                                                   std::vector<Tensor> w1s,
                                                                                   Tensor alpha, Tensor keep,
                                                                                   std::optional<ScalarType> dtype) {
  STD_TORCH_CHECK(keep.is_cpu() && keep.scalar_type() == ScalarType::Long && keep.dim() <= 1, kInterpolatePruneForeach,
                  ": keep must be an int64 CPU tensor of 0 or 1 dimensions, got shape ", shape_of(keep));
  STD_TORCH_CHECK(keep.dim() == 0 || keep.size(0) == int64_t(w0s.size()), kInterpolatePruneForeach, ": keep has ",
                  keep.numel(), " counts for ", w0s.size(), " layers");
  keep = torch::stable::contiguous(keep);
  const std::span counts(static_cast<const int64_t*>(keep.const_data_ptr()), size_t(keep.numel()));
  Pruned result = prune(kInterpolatePruneForeach, w0s, w1s, alpha, counts, dtype);
  return {result.w, result.mask_bits};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, Tensor> interpolate_prune_foreach_backward_cpu(
    std::vector<Tensor> grads, std::vector<Tensor> w0s, std::vector<Tensor> w1s, Tensor alpha,
    std::vector<Tensor> mask_bits, bool line, ScalarType dtype) {
  PruneGradients result = prune_backward(kInterpolatePruneForeach, grads, w0s, w1s, alpha, mask_bits, line, dtype);
  return {result.w0, result.w1,
          w0s.empty() ? torch::stable::empty({0}, ScalarType::Float) : scalar_tensor(result.alpha)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("interpolate_prune_foreach", TORCH_BOX(&interpolate_prune_foreach_cpu));
  m.impl("interpolate_prune_foreach_backward", TORCH_BOX(&interpolate_prune_foreach_backward_cpu));
}
