#include "lcs/interpolate_quantize.h"

#include <tuple>

#include "binding.h"
#include "lcs/interpolate_prune.h"

namespace {

using namespace lcs::binding;
constexpr const char* kInterpolateQuantize = "interpolate_quantize";

// A contiguous copy where t is none.
Tensor checked(const Tensor& t, const Tensor& like, ScalarType type, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), kInterpolateQuantize, ": ", name, " is not on the CPU like alpha");
  STD_TORCH_CHECK(same_shape(t, like), kInterpolateQuantize, ": ", name, " has shape ", shape_of(t), ", expected ",
                  shape_of(like));
  STD_TORCH_CHECK(t.scalar_type() == type, kInterpolateQuantize, ": ", name, " has another dtype than is expected");
  return torch::stable::contiguous(t);
}

Tensor interpolate_quantize_cpu(Tensor w0, std::optional<Tensor> w1, Tensor alpha, Tensor bits, int64_t group_size,
                                bool nested, std::optional<ScalarType> dtype) {
  const ScalarType in = w0.scalar_type(), out = dtype.value_or(in);
  STD_TORCH_CHECK(group_size >= 0 && (group_size == 0 || w0.dim() > 0), kInterpolateQuantize,
                  ": group_size must be 0, or positive for weights of one or more dimensions, got ", group_size);
  const Tensor end0 = checked(w0, w0, in, "w0");
  const std::optional<Tensor> end1 = w1 ? std::optional(checked(*w1, w0, in, "w1")) : std::nullopt;
  Tensor w = empty_as(w0, out);
  const int64_t n = w0.numel(), rows = n == 0 ? 0 : group_size == 0 ? 1 : w0.size(0), columns = rows ? n / rows : 0;
  lcs::interpolate_quantize(
      {end0.const_data_ptr(), end1 ? end1->const_data_ptr() : nullptr, w.mutable_data_ptr(), rows, columns,
       group_size ? group_size : columns, scalar_of<float>(alpha, ScalarType::Float, kInterpolateQuantize, "alpha"),
       scalar_of<int64_t>(bits, ScalarType::Long, kInterpolateQuantize, "bits"), nested,
       dtype_of(in, kInterpolateQuantize, "w0"), dtype_of(out, kInterpolateQuantize, "dtype")},
      parallel);
  return w;
}

std::tuple<Tensor, Tensor, Tensor> interpolate_quantize_backward_cpu(Tensor grad, std::optional<Tensor> w0,
                                                                     std::optional<Tensor> w1, Tensor alpha,
                                                                     ScalarType dtype) {
  STD_TORCH_CHECK(w0.has_value() == w1.has_value(), kInterpolateQuantize, ": both ends must be given, or none");
  const ScalarType type = grad.scalar_type();
  const Tensor g = checked(grad, grad, type, "grad");
  const std::optional<Tensor> end0 = w0 ? std::optional(checked(*w0, grad, dtype, "w0")) : std::nullopt;
  const std::optional<Tensor> end1 = w1 ? std::optional(checked(*w1, grad, dtype, "w1")) : std::nullopt;
  Tensor grad_w0 = empty_as(grad, dtype), grad_w1 = empty_as(grad, dtype);
  const lcs::InterpolatePruneBackwardLayer layer{g.const_data_ptr(),
                                                 end0 ? end0->const_data_ptr() : nullptr,
                                                 end1 ? end1->const_data_ptr() : nullptr,
                                                 nullptr,
                                                 grad_w0.mutable_data_ptr(),
                                                 grad_w1.mutable_data_ptr(),
                                                 grad.numel()};
  const double grad_alpha =
      lcs::interpolate_prune_backward({{&layer, 1},
                                       scalar_of<float>(alpha, ScalarType::Float, kInterpolateQuantize, "alpha"),
                                       dtype_of(dtype, kInterpolateQuantize, "dtype"),
                                       dtype_of(type, kInterpolateQuantize, "grad")},
                                      parallel);
  return {grad_w0, grad_w1, w0 ? scalar_tensor(grad_alpha) : torch::stable::empty({0}, ScalarType::Float)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("interpolate_quantize", TORCH_BOX(&interpolate_quantize_cpu));
  m.impl("interpolate_quantize_backward", TORCH_BOX(&interpolate_quantize_backward_cpu));
}
