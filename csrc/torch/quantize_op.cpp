#include "lcs/quantize.h"

#include "binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kQuantize = "quantize";

bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

Tensor quantize_cpu(Tensor x, Tensor low, Tensor high, Tensor bits) {
  STD_TORCH_CHECK(x.is_cpu(), kQuantize, ": x is not on the CPU like the range");
  const lcs::DType dtype = dtype_of(x.scalar_type(), kQuantize, "x");
  Tensor to = torch::stable::empty_like(x);
  // Elements are taken as they lie in memory, which both share unless x has gaps.
  const Tensor from = same_strides(x, to) ? x : torch::stable::clone(x);
  STD_TORCH_CHECK(same_strides(from, to), kQuantize, ": x of shape ", shape_of(x), " has strides that cannot be kept");
  lcs::quantize({from.const_data_ptr(), to.mutable_data_ptr(), x.numel(),
                 scalar_of<float>(low, ScalarType::Float, kQuantize, "low"),
                 scalar_of<float>(high, ScalarType::Float, kQuantize, "high"),
                 scalar_of<int64_t>(bits, ScalarType::Long, kQuantize, "bits"), dtype},
                parallel);
  return to;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("quantize", TORCH_BOX(&quantize_cpu)); }
