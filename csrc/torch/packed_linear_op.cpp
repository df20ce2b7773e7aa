#include "lcs/packed_linear.h"

#include "nested_weight_binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kPackedLinear = "packed_linear";

Tensor packed_linear_cpu(Tensor x, Tensor planes, Tensor scales, Tensor zero_points, int64_t out_features,
                         int64_t group, int64_t bits, std::optional<Tensor> bias, bool relu, bool exact,
                         std::vector<Tensor> prepack) {
  make_contiguous(bias);
  STD_TORCH_CHECK(x.dim() >= 1, kPackedLinear, ": x must have a last dimension of in_features, got shape ",
                  shape_of(x));
  const int64_t columns = x.size(x.dim() - 1);
  const Nested weight =
      nested(kPackedLinear, planes, scales, zero_points, {out_features, columns, group, 1, 1}, prepack);
  STD_TORCH_CHECK(exact || weight.prepack.layout.segment() <= lcs::kMaxPackedColumns, kPackedLinear, ": groups of ",
                  weight.prepack.layout.segment(), " columns run by the reference, above ", lcs::kMaxPackedColumns);
  const lcs::DType dtype = activation_dtype(kPackedLinear, x);
  const Tensor input = torch::stable::contiguous(x);
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end());
  size.back() = out_features;
  Tensor y = torch::stable::empty(size, x.scalar_type());
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < size.size(); ++d) rows *= size[d];
  lcs::packed_linear({input.const_data_ptr(), y.mutable_data_ptr(), dtype, rows, weight.prepack,
                      width_of(kPackedLinear, bits, weight.prepack.depth),
                      vector_of(kPackedLinear, "bias", bias, out_features), relu, exact},
                     parallel);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("packed_linear", TORCH_BOX(&packed_linear_cpu)); }
