#pragma once
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/parallel.h"
#include "lcs/sparse_pack.h"

namespace lcs {

// y = x times a sparse weight transposed, plus bias, then ReLU on request; accumulated in float32, rounded once.
struct SparseLinearArgs {
  const void* x;  // rows x weight.columns
  void* y;        // rows x weight.rows
  DType dtype;    // of both
  int64_t rows;
  SparsePrepack weight;
  const float* bias;  // null: none
  bool relu;
};

// The order of each sum depends on shapes and instruction set alone.
void sparse_linear(const SparseLinearArgs& args, const Parallel& parallel);

// Up to so many rows of x are multiplied one by one; a prepack of a single block suits that best.
constexpr int64_t kSparseLinearSingleRows = 2;

// The same of bfloat16 x, y and weight, the weight unpacked on the way into matrix tiles. Returns false, with nothing
// of worth in y, where AMX is not in use, or where x holds infinity or NaN, which would reach weights that are not
// stored.
struct SparseLinearTilesArgs {
  const BFloat16* x;
  BFloat16* y;
  int64_t rows;
  SparseTiles weight;
  const float* bias;  // null: none
  bool relu;
};
bool sparse_linear_tiles(const SparseLinearTilesArgs& args, const Parallel& parallel);

}  // namespace lcs
