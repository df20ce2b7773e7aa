#include "lcs/sparse_linear.h"

#include "sparse_weight_binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kSparseLinear = "sparse_linear";

Tensor sparse_linear_cpu(Tensor x, Tensor mask_bits, Tensor values, int64_t out_features, std::optional<Tensor> bias,
                         bool relu, int64_t block, std::vector<Tensor> prepack) {
  make_contiguous(bias);
  STD_TORCH_CHECK(x.dim() >= 1, kSparseLinear, ": x must have a last dimension of in_features, got shape ",
                  shape_of(x));
  const int64_t columns = x.size(x.dim() - 1);
  const bool in_tiles = prepack.size() == 3;
  lcs::SparseTiles tiles{};
  Prepacked weight{};
  if (in_tiles)
    tiles = tiles_of(kSparseLinear, mask_bits, values, out_features, columns, prepack);
  else
    weight = prepacked(kSparseLinear, mask_bits, values, out_features, columns, block, prepack);
  const lcs::DType dtype = activation_dtype(kSparseLinear, x);
  const Tensor input = torch::stable::contiguous(x);
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end());
  size.back() = out_features;
  Tensor y = torch::stable::empty(size, x.scalar_type());
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < size.size(); ++d) rows *= size[d];
  const float* const start = vector_of(kSparseLinear, "bias", bias, out_features);
  if (in_tiles) {
    STD_TORCH_CHECK(dtype == lcs::DType::bfloat16, kSparseLinear, ": x must be bfloat16 for a prepack of tiles");
    if (lcs::sparse_linear_tiles({static_cast<const lcs::BFloat16*>(input.const_data_ptr()),
                                  static_cast<lcs::BFloat16*>(y.mutable_data_ptr()), rows, tiles, start, relu},
                                 parallel))
      return y;
    weight = prepacked(kSparseLinear, mask_bits, values, out_features, columns, block, {});
  }
  lcs::sparse_linear({input.const_data_ptr(), y.mutable_data_ptr(), dtype, rows, weight.prepack, start, relu},
                     parallel);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("sparse_linear", TORCH_BOX(&sparse_linear_cpu)); }
