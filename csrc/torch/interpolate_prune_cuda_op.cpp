#include "lcs/interpolate_prune_cuda.h"

#include <tuple>

#include "cuda_binding.h"

namespace {

using namespace lcs::binding;
using lcs::InterpolatePruneBackwardLayer;
using lcs::InterpolatePruneLayer;

constexpr const char* kPruneCuda = "interpolate_prune";
constexpr const char* kPruneForeachCuda = "interpolate_prune_foreach";

// Raises unless `t`, a tensor of layer i, fits.
void check_layer(const char* op, const char* name, size_t i, const Tensor& t, const Tensor& like, ScalarType type) {
  check_device(op, name, t, like);
  STD_TORCH_CHECK(same_shape(t, like), op, ": ", name, " of layer ", i, " has shape ", shape_of(t), ", expected ",
                  shape_of(like));
  STD_TORCH_CHECK(t.scalar_type() == type, op, ": ", name, " of layer ", i, " has dtype ", int(t.scalar_type()),
                  ", expected ", int(type));
}

// Contiguous tensors, kept alive until the launch is queued: the allocator reuses their memory in the stream's order.
class Held {
 public:
  const void* operator()(const Tensor& t) {
    return tensors_.emplace_back(torch::stable::contiguous(t)).const_data_ptr();
  }
  void* bytes(const Tensor& like, int64_t count) {
    return tensors_.emplace_back(torch::stable::new_empty(like, {count}, ScalarType::Byte)).mutable_data_ptr();
  }

 private:
  std::vector<Tensor> tensors_;
};

using Lists = std::tuple<std::vector<Tensor>, std::vector<Tensor>>;

Lists prune(const char* op, const std::vector<Tensor>& w0s, const std::vector<Tensor>& w1s, const Tensor& alpha,
            const Tensor& keep, std::optional<ScalarType> dtype) {
  Lists result;
  if (w0s.empty()) return result;
  auto& [ws, masks] = result;
  const Tensor& like = w0s[0];
  const ScalarType in = like.scalar_type(), out = dtype.value_or(in);
  const bool together = keep.dim() == 0 && w0s.size() != 1;
  STD_TORCH_CHECK(w1s.empty() || w1s.size() == w0s.size(), op, ": ", w0s.size(), " layers have ", w1s.size(),
                  " other ends");
  check_device(op, "keep", keep, like);
  STD_TORCH_CHECK(keep.scalar_type() == ScalarType::Long && keep.dim() <= 1 &&
                      (keep.dim() == 0 || keep.size(0) == int64_t(w0s.size())),
                  op, ": keep must be int64, one count or one for each of ", w0s.size(), " layers, got shape ",
                  shape_of(keep));
  Held hold;
  std::vector<InterpolatePruneLayer> layers;
  for (size_t i = 0; i < w0s.size(); ++i) {
    const int64_t n = w0s[i].numel();
    check_device(op, "w0", w0s[i], like);
    check_layer(op, "w0", i, w0s[i], w0s[i], in);
    if (!w1s.empty()) check_layer(op, "w1", i, w1s[i], w0s[i], in);
    ws.push_back(empty_like(w0s[i], out));
    masks.push_back(torch::stable::new_empty(like, {(n + 31) / 32}, ScalarType::Int));
    layers.push_back({hold(w0s[i]), w1s.empty() ? nullptr : hold(w1s[i]), ws.back().mutable_data_ptr(),
                      static_cast<uint32_t*>(masks.back().mutable_data_ptr()), n});
  }
  const lcs::cuda::InterpolatePruneArgs args{layers,
                                             static_cast<const int64_t*>(hold(keep)),
                                             together,
                                             scalar_on<float>(alpha, ScalarType::Float, like, op, "alpha"),
                                             dtype_of(in, op, "w0"),
                                             dtype_of(out, op, "dtype")};
  const torch::stable::accelerator::DeviceGuard guard(like.get_device());
  void* const workspace = hold.bytes(like, lcs::cuda::interpolate_prune_workspace(args));
  check_cuda(lcs::cuda::interpolate_prune(args, workspace, current_stream(like.get_device())), op,
             lcs::cuda::error_text);
  return result;
}

using Gradients = std::tuple<std::vector<Tensor>, std::vector<Tensor>, Tensor>;

Gradients prune_backward(const char* op, const std::vector<Tensor>& grads, const std::vector<Tensor>& w0s,
                         const std::vector<Tensor>& w1s, const Tensor& alpha, const std::vector<Tensor>& mask_bits,
                         bool line, ScalarType dtype) {
  std::vector<Tensor> grad_w0s, grad_w1s;
  const std::vector<int64_t> scalar, none{0};
  Tensor grad_alpha = torch::stable::new_empty(alpha, w0s.empty() ? none : scalar, ScalarType::Float);
  if (grads.empty()) return {grad_w0s, grad_w1s, grad_alpha};
  const Tensor& like = grads[0];
  const ScalarType out = like.scalar_type();
  STD_TORCH_CHECK(mask_bits.size() == grads.size(), op, ": ", grads.size(), " gradients have ", mask_bits.size(),
                  " masks");
  STD_TORCH_CHECK(w0s.size() == w1s.size() && (w0s.empty() || (line && w0s.size() == grads.size())), op,
                  ": the ends must come for every layer of a line, or for none");
  Held hold;
  std::vector<InterpolatePruneBackwardLayer> layers;
  for (size_t i = 0; i < grads.size(); ++i) {
    const int64_t n = grads[i].numel();
    check_device(op, "grad", grads[i], like);
    check_layer(op, "grad", i, grads[i], grads[i], out);
    check_device(op, "mask_bits", mask_bits[i], like);
    STD_TORCH_CHECK(mask_bits[i].scalar_type() == ScalarType::Int && mask_bits[i].dim() == 1 &&
                        mask_bits[i].size(0) == (n + 31) / 32,
                    op, ": mask_bits of layer ", i, " must be ", (n + 31) / 32, " int32 words, got shape ",
                    shape_of(mask_bits[i]));
    for (const auto* ends : {&w0s, &w1s})
      if (!ends->empty()) check_layer(op, "an end", i, (*ends)[i], grads[i], dtype);
    grad_w0s.push_back(empty_like(grads[i], dtype));
    if (line) grad_w1s.push_back(empty_like(grads[i], dtype));
    layers.push_back({hold(grads[i]), w0s.empty() ? nullptr : hold(w0s[i]), w1s.empty() ? nullptr : hold(w1s[i]),
                      static_cast<const uint32_t*>(hold(mask_bits[i])), grad_w0s.back().mutable_data_ptr(),
                      line ? grad_w1s.back().mutable_data_ptr() : nullptr, n});
  }
  const lcs::cuda::InterpolatePruneBackwardArgs args{
      layers, scalar_on<float>(alpha, ScalarType::Float, like, op, "alpha"),
      w0s.empty() ? nullptr : static_cast<float*>(grad_alpha.mutable_data_ptr()), dtype_of(dtype, op, "dtype"),
      dtype_of(out, op, "grad")};
  const torch::stable::accelerator::DeviceGuard guard(like.get_device());
  void* const workspace = hold.bytes(like, lcs::cuda::interpolate_prune_backward_workspace(args));
  check_cuda(lcs::cuda::interpolate_prune_backward(args, workspace, current_stream(like.get_device())), op,
             lcs::cuda::error_text);
  return {grad_w0s, grad_w1s, grad_alpha};
}

std::vector<Tensor> as_list(const std::optional<Tensor>& t) { return t ? std::vector{*t} : std::vector<Tensor>{}; }

std::tuple<Tensor, Tensor> interpolate_prune_cuda(Tensor w0, std::optional<Tensor> w1, Tensor alpha, Tensor keep,
                                                  std::optional<ScalarType> dtype) {
  const auto [ws, masks] = prune(kPruneCuda, {w0}, as_list(w1), alpha, keep, dtype);
  return {ws[0], masks[0]};
}

std::tuple<Tensor, Tensor, Tensor> interpolate_prune_backward_cuda(Tensor grad, std::optional<Tensor> w0,
                                                                   std::optional<Tensor> w1, Tensor alpha,
                                                                   Tensor mask_bits, bool line, ScalarType dtype) {
  const auto [grad_w0s, grad_w1s, grad_alpha] =
      prune_backward(kPruneCuda, {grad}, as_list(w0), as_list(w1), alpha, {mask_bits}, line, dtype);
  return {grad_w0s[0], line ? grad_w1s[0] : torch::stable::new_empty(grad, {0}, dtype), grad_alpha};
}

Lists interpolate_prune_foreach_cuda(std::vector<Tensor> w0s, std::vector<Tensor> w1s, Tensor alpha, Tensor keep,
                                     std::optional<ScalarType> dtype) {
  return prune(kPruneForeachCuda, w0s, w1s, alpha, keep, dtype);
}

Gradients interpolate_prune_foreach_backward_cuda(std::vector<Tensor> grads, std::vector<Tensor> w0s,
                                                  std::vector<Tensor> w1s, Tensor alpha, std::vector<Tensor> mask_bits,
                                                  bool line, ScalarType dtype) {
  return prune_backward(kPruneForeachCuda, grads, w0s, w1s, alpha, mask_bits, line, dtype);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CUDA, m) {
  m.impl("interpolate_prune", TORCH_BOX(&interpolate_prune_cuda));
  m.impl("interpolate_prune_backward", TORCH_BOX(&interpolate_prune_backward_cuda));
  m.impl("interpolate_prune_foreach", TORCH_BOX(&interpolate_prune_foreach_cuda));
  m.impl("interpolate_prune_foreach_backward", TORCH_BOX(&interpolate_prune_foreach_backward_cuda));
}
