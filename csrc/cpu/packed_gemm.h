#pragma once
#include <cstdint>

#include "lcs/nested_pack.h"
#include "packed_gemm_kernels.h"

// What the packed ops share: rows of x, quantised or float, times blocks of a weight at some width.
namespace lcs {

constexpr int64_t kMaxPackedRows = 128;  // of x, at once

// Rows of x, row m of them at x + row[m], its columns of step s at x + row[m] + step[s]; or, where `row_bytes` is not
// 0, in tiles (see PackedMultiply).
struct PackedRows {
  const char* x;
  const int64_t* row;
  const int64_t* step;
  int64_t n;
  const int32_t* sums;  // n x groups, of quantised x
  const float* scale;   // n: half of what a unit of quantised x is worth; of float x 0.5
  int64_t row_bytes = 0;
};

// How a row is quantised: x becomes x * inverse, which counts 2 * half_scale each. NaN where x is not finite.
struct Quantization {
  float inverse, half_scale;

  explicit Quantization(float largest);
};

class PackedGemm {
 public:
  PackedGemm(const NestedPrepack& weight, int bits, const float* bias, bool relu, bool exact);

  const PackedGemmKernels& kernels() const { return run_; }
  Panel panel() const { return panel_; }

  // Rows of a block, from `first` on.
  int64_t first_row(int64_t block) const;
  int64_t rows(int64_t block) const;
  int64_t rows(int64_t block, int64_t blocks) const { return (blocks - 1) * kBlockRows + rows(block + blocks - 1); }

  // What a doubled code of each place of a block counts for, and from where.
  struct Factors {
    float scale[kBlockRows];
    int32_t center[kBlockRows];
  };
  Factors factors(int64_t block, int64_t group) const;

  // Likewise of the rows of two blocks, in order; of one, and zeros.
  struct PairFactors {
    alignas(64) float scale[kPairRows];
    alignas(64) int32_t center[kPairRows];
  };
  PairFactors pair_factors(int64_t block, int64_t blocks) const;
  // Whether up to two blocks of a part are multiplied at once: int8 x, whose columns share a scale.
  bool pairs() const { return !exact_ && run_.multiply_pair && w_.layout.groups() == 1; }
  int shift() const { return w_.shift(bits_); }  // of a code, to be doubled

  // The codes of a block from its step `step` on, unpacked: panel_bytes(panel()) each step.
  void expand(int64_t block, int64_t step, int64_t steps, const Factors& factors, void* panel) const;

  // Of the block and the next one, or of it alone, with anything in place of the other. `sums`: 64, of the codes; null:
  // none.
  void expand_pair(int64_t block, int64_t blocks, int64_t step, int64_t steps, void* panel, int32_t* sums) const;
  const uint8_t* planes(int64_t block) const { return planes(block, 0); }

  // tile[m][row] = the finished result, for at most kMaxPackedRows rows of x.
  void multiply(int64_t block, const PackedRows& x, float* tile) const;

  // The same for one row of x, of which tables were made, and one or two blocks.
  void look_up(int64_t block, int64_t blocks, const uint8_t* tables, const int64_t* corrections, const int32_t* sums,
               float scale, float* tile) const;

 private:
  void finish(int64_t block, int64_t rows, const float* scale, float* tile) const;
  const uint8_t* planes(int64_t block, int64_t step) const {
    return w_.planes + (block * w_.layout.steps() + step) * kBlockRows;
  }

  const NestedPrepack& w_;
  const int bits_;
  const float* const bias_;
  const bool relu_, exact_;
  const PackedGemmKernels run_;
  const Panel panel_;
};

}  // namespace lcs
