#include "interpolate_prune_binding.h"

namespace lcs::binding {
namespace {

void check_layer(const char* op, size_t i, const Tensor& t, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), op, ": ", name, " of layer ", i, " is not on the CPU like the others");
  STD_TORCH_CHECK(same_shape(t, like), op, ": ", name, " of layer ", i, " has shape ", shape_of(t), ", expected ",
                  shape_of(like));
}

void check_bits(const char* op, size_t i, const Tensor& bits, int64_t n) {
  STD_TORCH_CHECK(bits.is_cpu() && bits.scalar_type() == ScalarType::Int && bits.dim() == 1 &&
                      bits.size(0) == (n + 31) / 32 && bits.is_contiguous(),
                  op, ": mask_bits of layer ", i, " must be ", (n + 31) / 32, " contiguous int32 words, got shape ",
                  shape_of(bits));
}

}  // namespace

Pruned prune(const char* op, const std::vector<Tensor>& w0s, const std::vector<Tensor>& w1s, const Tensor& alpha,
             std::span<const int64_t> keep, std::optional<ScalarType> dtype) {
  Pruned result;
  if (w0s.empty()) return result;
  STD_TORCH_CHECK(w1s.empty() || w1s.size() == w0s.size(), op, ": ", w0s.size(), " layers have ", w1s.size(),
                  " other ends");
  const ScalarType in = w0s[0].scalar_type(), out = dtype.value_or(in);
  std::vector<Tensor> inputs;  // keeps contiguous copies alive
  std::vector<InterpolatePruneLayer> layers;
  for (size_t i = 0; i < w0s.size(); ++i) {
    STD_TORCH_CHECK(w0s[i].scalar_type() == in, op, ": w0 of layer ", i, " differs in dtype from layer 0");
    check_layer(op, i, w0s[i], w0s[i], "w0");
    inputs.push_back(torch::stable::contiguous(w0s[i]));
    const void *w0 = inputs.back().const_data_ptr(), *w1 = nullptr;
    if (!w1s.empty()) {
      check_layer(op, i, w1s[i], w0s[i], "w1");
      STD_TORCH_CHECK(w1s[i].scalar_type() == in, op, ": w1 of layer ", i, " differs in dtype from w0");
      inputs.push_back(torch::stable::contiguous(w1s[i]));
      w1 = inputs.back().const_data_ptr();
    }
    const int64_t n = w0s[i].numel();
    result.w.push_back(empty_as(w0s[i], out));
    result.mask_bits.push_back(torch::stable::empty({(n + 31) / 32}, ScalarType::Int));
    layers.push_back({w0, w1, result.w.back().mutable_data_ptr(),
                      static_cast<uint32_t*>(result.mask_bits.back().mutable_data_ptr()), n});
  }
  interpolate_prune({layers, keep, scalar_of<float>(alpha, ScalarType::Float, op, "alpha"), dtype_of(in, op, "w0"),
                     dtype_of(out, op, "dtype")},
                    parallel);
  return result;
}

PruneGradients prune_backward(const char* op, const std::vector<Tensor>& grads, const std::vector<Tensor>& w0s,
                              const std::vector<Tensor>& w1s, const Tensor& alpha, const std::vector<Tensor>& mask_bits,
                              bool line, ScalarType dtype) {
  PruneGradients result{};
  if (grads.empty()) return result;
  STD_TORCH_CHECK(mask_bits.size() == grads.size(), op, ": ", grads.size(), " gradients have ", mask_bits.size(),
                  " masks");
  STD_TORCH_CHECK(w0s.size() == w1s.size() && (w0s.empty() || (line && w0s.size() == grads.size())), op,
                  ": the ends must come for every layer of a line, or for none");
  std::vector<Tensor> inputs;
  std::vector<InterpolatePruneBackwardLayer> layers;
  const auto hold = [&](const Tensor& t) { return inputs.emplace_back(torch::stable::contiguous(t)).const_data_ptr(); };
  for (size_t i = 0; i < grads.size(); ++i) {
    check_layer(op, i, grads[i], grads[i], "grad");
    check_bits(op, i, mask_bits[i], grads[i].numel());
    STD_TORCH_CHECK(grads[i].scalar_type() == grads[0].scalar_type(), op, ": grad of layer ", i,
                    " differs in dtype from layer 0");
    if (!w0s.empty())
      for (const Tensor* w : {&w0s[i], &w1s[i]}) {
        check_layer(op, i, *w, grads[i], "an end");
        STD_TORCH_CHECK(w->scalar_type() == dtype, op, ": an end of layer ", i, " is not of `dtype`");
      }
    result.w0.push_back(empty_as(grads[i], dtype));
    if (line) result.w1.push_back(empty_as(grads[i], dtype));
    layers.push_back({hold(grads[i]), w0s.empty() ? nullptr : hold(w0s[i]), w0s.empty() ? nullptr : hold(w1s[i]),
                      static_cast<const uint32_t*>(mask_bits[i].const_data_ptr()), result.w0.back().mutable_data_ptr(),
                      line ? result.w1.back().mutable_data_ptr() : nullptr, grads[i].numel()});
  }
  result.alpha =
      interpolate_prune_backward({layers, scalar_of<float>(alpha, ScalarType::Float, op, "alpha"),
                                  dtype_of(dtype, op, "dtype"), dtype_of(grads[0].scalar_type(), op, "grad")},
                                 parallel);
  return result;
}

}  // namespace lcs::binding

namespace {

using namespace lcs::binding;
constexpr const char* kInterpolatePrune = "interpolate_prune";

std::vector<Tensor> list(const std::optional<Tensor>& t) { return t ? std::vector{*t} : std::vector<Tensor>{}; }

std::tuple<Tensor, Tensor> interpolate_prune_cpu(Tensor w0, std::optional<Tensor> w1, Tensor alpha, Tensor keep,
                                                 std::optional<ScalarType> dtype) {
  const int64_t count = scalar_of<int64_t>(keep, ScalarType::Long, kInterpolatePrune, "keep");
  Pruned result = prune(kInterpolatePrune, {w0}, list(w1), alpha, {&count, 1}, dtype);
  return {result.w[0], result.mask_bits[0]};
}

std::tuple<Tensor, Tensor, Tensor> interpolate_prune_backward_cpu(Tensor grad, std::optional<Tensor> w0,
                                                                  std::optional<Tensor> w1, Tensor alpha,
                                                                  Tensor mask_bits, bool line, ScalarType dtype) {
  PruneGradients result =
      prune_backward(kInterpolatePrune, {grad}, list(w0), list(w1), alpha, {mask_bits}, line, dtype);
  return {result.w0[0], line ? result.w1[0] : torch::stable::empty({0}, dtype),
          w0 ? scalar_tensor(result.alpha) : torch::stable::empty({0}, ScalarType::Float)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("interpolate_prune", TORCH_BOX(&interpolate_prune_cpu));
  m.impl("interpolate_prune_backward", TORCH_BOX(&interpolate_prune_backward_cpu));
}
