#pragma once
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/nested_pack.h"
#include "lcs/parallel.h"

namespace lcs {

// y = x times the weight at `bits` bits transposed, plus bias, then ReLU on request. Each row of x is first rounded to
// int8, symmetrically, its largest magnitude to 127; sums are exact. `exact`: x stays float32, and so are the sums.
struct PackedLinearArgs {
  const void* x;  // rows x columns of the weight
  void* y;        // rows x rows of the weight
  DType dtype;    // of both
  int64_t rows;
  NestedPrepack weight;  // of one part and one tap; groups of at most kMaxPackedColumns columns, unless `exact`
  int bits;
  const float* bias;  // null: none
  bool relu, exact;
};

// Not `exact`: the same bits on every instruction set. `exact`: the order of each sum depends on shapes and instruction
// set alone.
void packed_linear(const PackedLinearArgs& args, const Parallel& parallel);

// Twice a sum of so many products, with its offsets, fits 32 bits.
constexpr int64_t kMaxPackedColumns = 32768;

}  // namespace lcs
