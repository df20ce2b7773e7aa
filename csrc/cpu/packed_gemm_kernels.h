#pragma once
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/nested_pack.h"

// What each instruction set implements of the product of quantised or float rows with the first planes of a weight.
namespace lcs {

constexpr int kBlockRows = int(NestedLayout::kBlock), kStepColumns = int(NestedLayout::kStep);

// Sums of a block's 32 rows lie in the order that unpacking bytes to 32-bit lanes leaves: place i is that of this row.
constexpr int panel_row(int place) { return place % 8 / 4 * 16 + place / 8 * 4 + place % 4; }

// A panel holds the codes of a block, unpacked for `multiply`. x beside it: int8; for `words` int16, of every four
// columns first the even, then the odd ones; for `floats` float32.
enum class Panel { bytes, words, floats };

constexpr int64_t panel_bytes(Panel panel) {  // of a step
  return kBlockRows * kStepColumns * (panel == Panel::floats ? 4 : panel == Panel::words ? 2 : 1);
}
constexpr int64_t element_bytes(Panel panel) { return panel == Panel::floats ? 4 : panel == Panel::words ? 2 : 1; }

struct PackedExpand {
  const uint8_t* planes;  // of this block at its first step
  int64_t plane_bytes;    // between planes
  int64_t steps;
  int bits, shift;
  void* panel;
  const int32_t* center;  // for floats, in place order: a code becomes code * 2^shift + center
};

// acc[row][place] += the sum over the panel's columns of code * x.
struct PackedMultiply {
  const void* panel;
  int64_t steps;
  int bits;
  const char* x;
  const int64_t* row;   // distance in bytes from x to each row
  const int64_t* step;  // and, added to it, to each step's columns
  int64_t rows;
  void* acc;  // rows x 32, int32 (float32 for floats)
};

// Like it, for a single row of x, of which `tables` holds the sums of every subset of each four columns.
struct PackedLookup {
  const uint8_t* planes;  // of the first block at its first step
  int64_t plane_bytes, block_bytes;
  int64_t blocks, steps;
  int bits;
  const uint8_t* tables;
  int64_t correction;  // what `tables` left out of each plane's sum
  int32_t* acc;        // blocks x 32
};

// y[row][place] (+)= (acc * 2^shift + center[place] * sums[row]) * scale[place]; float sums are multiplied alone.
struct PackedScale {
  const void* acc;
  const int32_t* sums;  // null: acc is float32
  int64_t sums_stride;
  int64_t rows;
  int shift;
  const int32_t* center;
  const float* scale;
  bool first;  // y is written, not added to
  float* y;
};

// y = y * row_scale[row] + bias, then ReLU on request; from the order of places to that of rows.
struct PackedFinish {
  float* y;  // rows x 32
  int64_t rows;
  const float* row_scale;
  const float* bias;  // 32; null: none
  bool relu;
};

// Codes are clamp(nearest(x * inverse) + zero, lowest, highest), within int8.
struct PackedCodes {
  float inverse;
  int zero, lowest, highest;
};

// Two blocks at once, where x is int8 and the columns share a scale. Of their 64 sums places 16v to 16v + 7 are places
// 8v to 8v + 7 of the first block, and the next eight those of the second.
constexpr int kPairRows = 2 * kBlockRows;
constexpr int64_t kPairStepBytes = kPairRows * kStepColumns;

struct PackedPair {
  const uint8_t* planes;  // of the first block at its first step
  int64_t plane_bytes, block_bytes;
  int64_t steps;
  int bits;
  void* panel;    // kPairStepBytes each step, on a cache line's border
  int32_t* sums;  // 64, in the order of places: of the codes; null: none
};

// y[row][channel] = ((sum * 2^shift + center[place] * sums[row]) * scale[place]) * row_scale[row] + bias + residual,
// then ReLU on request.
struct PackedPairOutput {
  const int64_t* place;  // in rows of y, and of the residual, of each row; null: one after the other
  const int32_t* sums;
  int shift;
  const int32_t* center;  // 64
  const float* scale;
  const float* row_scale;
  const float* bias;      // 64, in the order of rows; null: none
  const float* residual;  // null: none
  int64_t residual_stride;
  bool relu;
  int channels;  // at most 64, from 1
  float* y;
  int8_t* codes;  // null: y is written, else what it rounds to
  int64_t stride;
  PackedCodes grid;
};

struct PackedRun {
  int64_t begin, end;  // steps
};

struct PackedPairMultiply {
  const void* panel;
  const PackedRun* runs;  // of steps that are multiplied
  int64_t run_count;
  const char* x;
  const int64_t* row;
  const int64_t* step;
  int64_t rows;
  const int32_t* start;  // 64: where the sums start
  PackedPairOutput output;
  const uint8_t* next;  // the blocks' planes that come next, to be loaded meanwhile
  int64_t plane_bytes;
  int planes;  // 0: none
};

struct PackedGemmKernels {
  Panel (*panel)(int bits);  // which one integers take

  // The largest magnitude: 0 of none, NaN or infinity if there is one.
  float (*largest)(const void* x, DType dtype, int64_t n);
  // to = x * inverse, rounded half to even; returns the sum.
  int32_t (*quantize)(const void* x, DType dtype, int64_t n, float inverse, int8_t* to);
  void (*widen)(const int8_t* x, int64_t n, int16_t* to);  // to the order of words; n is a multiple of 4

  // Writes 64 bytes a step, and returns the sum of what was left out of all tables (see PackedLookup).
  int32_t (*tables)(const int8_t* x, int64_t steps, uint8_t* tables);
  void (*lookup)(const PackedLookup& lookup);  // null: not implemented
  void (*expand)(const PackedExpand& expand, Panel panel);
  void (*multiply)(const PackedMultiply& multiply, Panel panel);
  void (*scale)(const PackedScale& scale);
  void (*finish)(const PackedFinish& finish);

  // `expand` and `multiply` in one, for panels of bytes. acc holds rows x 64 sums meanwhile, which `settle` makes rows
  // x 32 of. null: not implemented
  void (*multiply_planes)(const PackedExpand& expand, const PackedMultiply& multiply) = nullptr;
  void (*settle)(int32_t* acc, int64_t rows, int bits) = nullptr;

  // Both or neither.
  void (*expand_pair)(const PackedPair& pair) = nullptr;
  void (*multiply_pair)(const PackedPairMultiply& multiply) = nullptr;
};

constexpr int64_t kTableBytes = 64;      // of a step
constexpr int64_t kMaxLookupSteps = 64;  // at once: their sums fit 16 bits
constexpr int64_t kMaxLookupBlocks = 2;  // at once

namespace scalar {
PackedGemmKernels packed_gemm_kernels();
}
namespace avx2 {
PackedGemmKernels packed_gemm_kernels();
}
namespace avx512 {
PackedGemmKernels packed_gemm_kernels();
}
namespace vnni {
PackedGemmKernels packed_gemm_kernels();
}
namespace amx {
PackedGemmKernels packed_gemm_kernels();
}

}  // namespace lcs
