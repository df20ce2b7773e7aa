#include "lcs/cosine_squared.h"

#include <tuple>

#include "binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kCosineSquared = "cosine_squared";

// The layers' ends, with contiguous copies kept alive in `inputs`.
std::vector<lcs::CosineSquaredLayer> checked_ends(const std::vector<Tensor>& w0s, const std::vector<Tensor>& w1s,
                                                  std::vector<Tensor>& inputs) {
  STD_TORCH_CHECK(!w0s.empty() && w0s.size() == w1s.size(), kCosineSquared,
                  ": needs one or more layers with two ends each, got ", w0s.size(), " and ", w1s.size());
  std::vector<lcs::CosineSquaredLayer> layers;
  const auto hold = [&](const Tensor& t) {
    STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == w0s[0].scalar_type(), kCosineSquared,
                    ": all ends must be of one dtype and on the CPU");
    return inputs.emplace_back(torch::stable::contiguous(t)).const_data_ptr();
  };
  for (size_t i = 0; i < w0s.size(); ++i) {
    STD_TORCH_CHECK(same_shape(w0s[i], w1s[i]), kCosineSquared, ": w1 of layer ", i, " has shape ", shape_of(w1s[i]),
                    ", expected ", shape_of(w0s[i]));
    layers.push_back({hold(w0s[i]), hold(w1s[i]), nullptr, nullptr, w0s[i].numel()});
  }
  return layers;
}

std::tuple<Tensor, Tensor> cosine_squared_cpu(std::vector<Tensor> w0s, std::vector<Tensor> w1s) {
  std::vector<Tensor> inputs;
  const auto layers = checked_ends(w0s, w1s, inputs);
  const lcs::CosineSums sums =
      lcs::cosine_sums(layers, dtype_of(w0s[0].scalar_type(), kCosineSquared, "w0s"), parallel);
  Tensor saved = torch::stable::empty({3}, ScalarType::Double);
  auto* p = static_cast<double*>(saved.mutable_data_ptr());
  p[0] = sums.dot, p[1] = sums.norm0, p[2] = sums.norm1;
  return {scalar_tensor(lcs::cosine_squared(sums)), saved};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> cosine_squared_backward_cpu(Tensor grad, std::vector<Tensor> w0s,
                                                                                 std::vector<Tensor> w1s, Tensor sums) {
  STD_TORCH_CHECK(
      sums.is_cpu() && sums.scalar_type() == ScalarType::Double && sums.numel() == 3 && sums.is_contiguous(),
      kCosineSquared, ": sums must be the 3 float64 values of the forward");
  std::vector<Tensor> inputs, grad_w0s, grad_w1s;
  auto layers = checked_ends(w0s, w1s, inputs);
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].grad_w0 = grad_w0s.emplace_back(empty_as(w0s[i], w0s[i].scalar_type())).mutable_data_ptr();
    layers[i].grad_w1 = grad_w1s.emplace_back(empty_as(w1s[i], w1s[i].scalar_type())).mutable_data_ptr();
  }
  const auto* p = static_cast<const double*>(sums.const_data_ptr());
  lcs::cosine_squared_backward(layers, {p[0], p[1], p[2]},
                               scalar_of<float>(grad, ScalarType::Float, kCosineSquared, "grad"),
                               dtype_of(w0s[0].scalar_type(), kCosineSquared, "w0s"), parallel);
  return {grad_w0s, grad_w1s};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("cosine_squared", TORCH_BOX(&cosine_squared_cpu));
  m.impl("cosine_squared_backward", TORCH_BOX(&cosine_squared_backward_cpu));
}
