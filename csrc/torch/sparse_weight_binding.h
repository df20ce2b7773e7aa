#pragma once
#include "binding.h"
#include "lcs/sparse_pack.h"

// The fields of a SparseWeight as the sparse ops' schemas take them, checked.
namespace lcs::binding {

// The words of a bitmap of `n` weights.
std::span<const uint32_t> bitmap(const char* op, const Tensor& mask_bits, int64_t n);

// A prepack and what keeps it alive. `parts` is what sparse_prepack returned for this weight; empty: made here.
struct Prepacked {
  SparsePrepack prepack;
  std::vector<Tensor> parts;
};

Prepacked prepacked(const char* op, const Tensor& mask_bits, const Tensor& values, int64_t rows, int64_t columns,
                    int64_t block, const std::vector<Tensor>& parts);

// `parts` is what sparse_prepack_tiles returned for this weight.
SparseTiles tiles_of(const char* op, const Tensor& mask_bits, const Tensor& values, int64_t rows, int64_t columns,
                     const std::vector<Tensor>& parts);

}  // namespace lcs::binding
