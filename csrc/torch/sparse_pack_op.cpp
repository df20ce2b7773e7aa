#include <tuple>

#include "sparse_weight_binding.h"

namespace lcs::binding {
namespace {

constexpr int64_t kMaxBlock = 65536;

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

std::span<const int64_t> check_values(const char* op, const Tensor& values, const std::vector<int64_t>& rank) {
  STD_TORCH_CHECK(values.is_cpu() && values.dim() == 1 && values.is_contiguous() && values.size(0) == rank.back(), op,
                  ": values must be a contiguous vector of the ", rank.back(), " weights that mask_bits names, got ",
                  shape_of(values));
  return rank;
}

std::vector<Tensor> prepack(const char* op, const Tensor& mask_bits, const Tensor& values, int64_t rows,
                            int64_t columns, int64_t block) {
  STD_TORCH_CHECK(rows >= 0 && columns >= 0 && block >= 1 && block <= kMaxBlock, op, ": rows ", rows, ", columns ",
                  columns, " and block ", block, " must not be negative, nor block 0 or above ", kMaxBlock);
  const auto bits = bitmap(op, mask_bits, rows * columns);
  const DType dtype = factor_dtype(values.scalar_type(), op, "values");
  const int64_t blocks = sparse_blocks(columns, block);
  Tensor count = torch::stable::empty({blocks, rows}, ScalarType::Int);
  Tensor start = torch::stable::empty({blocks + 1}, ScalarType::Long);
  sparse_prepack_count(rows, columns, block, bits, data<int32_t>(count), data<int64_t>(start), parallel);
  const int64_t n = data<int64_t>(start)[blocks];
  check_values(op, values, {n});
  Tensor index = torch::stable::empty({n}, ScalarType::Short), widened = torch::stable::empty({n}, ScalarType::Float);
  const SparsePrepack counted{rows, columns, block, data<int32_t>(count), data<int64_t>(start), nullptr, nullptr};
  sparse_prepack_fill(counted, bits, values.const_data_ptr(), dtype, data<uint16_t>(index), data<float>(widened),
                      parallel);
  return {count, start, index, widened};
}

std::tuple<Tensor, Tensor> sparse_pack_cpu(Tensor w, std::optional<Tensor> mask_bits) {
  constexpr const char* kOp = "sparse_pack";
  const DType dtype = factor_dtype(w.scalar_type(), kOp, "w");
  w = torch::stable::contiguous(w);
  const int64_t n = w.numel();
  Tensor found = mask_bits ? *mask_bits : torch::stable::empty({(n + 31) / 32}, ScalarType::Int);
  if (!mask_bits) nonzero_bits(w.const_data_ptr(), dtype, n, data<uint32_t>(found), parallel);
  const auto bits = bitmap(kOp, found, n);
  const std::vector<int64_t> rank = ranks(bits, parallel);
  Tensor values = torch::stable::empty({rank.back()}, w.scalar_type());
  sparse_pack(w.const_data_ptr(), dtype, bits, rank, values.mutable_data_ptr(), parallel);
  return {mask_bits ? torch::stable::clone(found) : found, values};
}

Tensor sparse_unpack_cpu(Tensor mask_bits, Tensor values, std::vector<int64_t> shape) {
  constexpr const char* kOp = "sparse_unpack";
  int64_t n = 1;
  for (int64_t size : shape) {
    STD_TORCH_CHECK(size >= 0, kOp, ": shape holds ", size);
    n *= size;
  }
  const DType dtype = factor_dtype(values.scalar_type(), kOp, "values");
  const auto bits = bitmap(kOp, mask_bits, n);
  const std::vector<int64_t> rank = ranks(bits, parallel);
  Tensor w = torch::stable::empty(shape, values.scalar_type());
  sparse_unpack(bits, check_values(kOp, values, rank), values.const_data_ptr(), dtype, n, w.mutable_data_ptr(),
                parallel);
  return w;
}

std::vector<Tensor> sparse_prepack_cpu(Tensor mask_bits, Tensor values, int64_t rows, int64_t columns, int64_t block) {
  return prepack("sparse_prepack", mask_bits, values, rows, columns, block);
}

std::vector<Tensor> sparse_prepack_tiles_cpu(Tensor mask_bits, Tensor values, int64_t rows, int64_t columns) {
  constexpr const char* kOp = "sparse_prepack_tiles";
  STD_TORCH_CHECK(rows >= 0 && columns >= 0, kOp, ": rows ", rows, " and columns ", columns, " must not be negative");
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::BFloat16, kOp, ": values must be bfloat16, got dtype ",
                  int(values.scalar_type()));
  const auto mask = bitmap(kOp, mask_bits, rows * columns);
  SparseTiles tiles{rows, columns, nullptr, nullptr, nullptr};
  Tensor bits = torch::stable::empty({tiles.row_tiles(), tiles.column_tiles(), SparseTiles::kWords}, ScalarType::Int);
  Tensor start = torch::stable::empty({tiles.row_tiles() + 1}, ScalarType::Long);
  sparse_tiles_count(tiles, mask, data<uint32_t>(bits), data<int64_t>(start), parallel);
  tiles.bits = data<uint32_t>(bits);
  tiles.start = data<int64_t>(start);
  const int64_t n = tiles.start[tiles.row_tiles()];
  check_values(kOp, values, {n});
  Tensor ordered = torch::stable::empty({n + SparseTiles::kPadding}, ScalarType::BFloat16);
  sparse_tiles_fill(tiles, mask, static_cast<const uint16_t*>(values.const_data_ptr()), data<uint16_t>(ordered),
                    parallel);
  return {bits, start, ordered};
}

}  // namespace

SparseTiles tiles_of(const char* op, const Tensor& mask_bits, const Tensor& values, int64_t rows, int64_t columns,
                     const std::vector<Tensor>& parts) {
  bitmap(op, mask_bits, rows * columns);
  SparseTiles tiles{rows, columns, nullptr, nullptr, nullptr};
  STD_TORCH_CHECK(parts.size() == 3 && parts[0].scalar_type() == ScalarType::Int && parts[0].dim() == 3 &&
                      parts[0].size(0) == tiles.row_tiles() && parts[0].size(1) == tiles.column_tiles() &&
                      parts[0].size(2) == SparseTiles::kWords && parts[1].scalar_type() == ScalarType::Long &&
                      parts[1].numel() == tiles.row_tiles() + 1 && parts[2].scalar_type() == ScalarType::BFloat16 &&
                      parts[2].numel() == values.numel() + SparseTiles::kPadding,
                  op, ": prepack is not what sparse_prepack_tiles makes of this weight");
  for (const Tensor& part : parts)
    STD_TORCH_CHECK(part.is_cpu() && part.is_contiguous(), op, ": prepack must be contiguous, on the CPU");
  tiles.bits = data<uint32_t>(parts[0]);
  tiles.start = data<int64_t>(parts[1]);
  tiles.values = data<uint16_t>(parts[2]);
  return tiles;
}

std::span<const uint32_t> bitmap(const char* op, const Tensor& mask_bits, int64_t n) {
  STD_TORCH_CHECK(mask_bits.is_cpu() && mask_bits.scalar_type() == ScalarType::Int && mask_bits.dim() == 1 &&
                      mask_bits.is_contiguous() && mask_bits.size(0) == (n + 31) / 32,
                  op, ": mask_bits must be ", (n + 31) / 32, " contiguous int32 words for ", n, " weights, got shape ",
                  shape_of(mask_bits));
  const std::span bits(static_cast<const uint32_t*>(mask_bits.const_data_ptr()), size_t(mask_bits.size(0)));
  STD_TORCH_CHECK(n % 32 == 0 || bits.back() >> (n % 32) == 0, op, ": mask_bits names weights past the last of ", n);
  return bits;
}

Prepacked prepacked(const char* op, const Tensor& mask_bits, const Tensor& values, int64_t rows, int64_t columns,
                    int64_t block, const std::vector<Tensor>& parts) {
  bitmap(op, mask_bits, rows * columns);
  Prepacked made{{}, parts.empty() ? prepack(op, mask_bits, values, rows, columns, block) : parts};
  const auto& p = made.parts;
  const int64_t blocks = block >= 1 ? sparse_blocks(columns, block) : -1;
  STD_TORCH_CHECK(p.size() == 4 && p[0].scalar_type() == ScalarType::Int && p[0].numel() == blocks * rows &&
                      p[1].scalar_type() == ScalarType::Long && p[1].numel() == blocks + 1 &&
                      p[2].scalar_type() == ScalarType::Short && p[3].scalar_type() == ScalarType::Float &&
                      p[2].numel() == values.numel() && p[3].numel() == values.numel(),
                  op, ": prepack is not what sparse_prepack makes of this weight with block ", block);
  for (const Tensor& part : p)
    STD_TORCH_CHECK(part.is_cpu() && part.is_contiguous(), op, ": prepack must be contiguous, on the CPU");
  made.prepack = {
      rows, columns, block, data<int32_t>(p[0]), data<int64_t>(p[1]), data<uint16_t>(p[2]), data<float>(p[3])};
  return made;
}

}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("sparse_pack", TORCH_BOX(&lcs::binding::sparse_pack_cpu));
  m.impl("sparse_unpack", TORCH_BOX(&lcs::binding::sparse_unpack_cpu));
  m.impl("sparse_prepack", TORCH_BOX(&lcs::binding::sparse_prepack_cpu));
  m.impl("sparse_prepack_tiles", TORCH_BOX(&lcs::binding::sparse_prepack_tiles_cpu));
}
