#pragma once
#include <cstdint>

#include "lcs/ceil_div.h"
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

// Rows of x are multiplied in tiles of at most `most`, of about the same size.
struct RowTiles {
  int64_t rows, most;

  constexpr int64_t count() const { return ceil_div(rows, most); }
  constexpr int64_t begin(int64_t tile) const { return rows * tile / count(); }
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
  // Not 0: `row` and `step` are null. A tile begins this often its first row behind x, four bytes of each of its rows
  // and then the next four of each; the panel's first step is `first`.
  int64_t row_bytes = 0, first = 0;
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

// Two blocks at once, or one and whatever `block_bytes` of 0 makes of the other, where x is int8 and the columns share
// a scale. Each instruction set has an order of its own of their 64 sums, until they are finished.
constexpr int kPairRows = 2 * kBlockRows;
constexpr int64_t kPairStepBytes = kPairRows * kStepColumns;

struct PackedPair {
  const uint8_t* planes;  // of the first block at its first step
  int64_t plane_bytes, block_bytes;
  int64_t steps;
  int bits;
  void* panel;    // kPairStepBytes each step, on a cache line's border
  int32_t* sums;  // 64, of the codes; null: none
};

// y[row][channel] = ((sum * 2^shift + center * sums[row]) * scale) * row_scale[row] + bias + residual, then ReLU on
// request.
struct PackedPairOutput {
  const int64_t* place;  // in rows of y, and of the residual, of each row; null: one after the other
  const int32_t* sums;   // of so many values of x, each within 255 of its zero point
  int64_t terms;
  int shift;
  const int32_t* center;  // 64, in the order of channels, as all that follow
  const float* scale;
  const float* row_scale;
  const float* bias;      // null: none
  const float* residual;  // null: none
  int64_t residual_stride;
  bool relu;
  int channels;   // at most 64, from 1
  float* y;       // null: not written
  int8_t* codes;  // what y rounds to; null: not written
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

// Rows of sums as `multiply_pair_largest` makes them, the largest of which are finished: output.shift, output.terms and
// all of output.sums are 0.
struct PackedPairLargest {
  const int32_t* rows[3];
  int count;  // of rows
  int64_t n;  // windows
  PackedPairOutput output;
};

// Winograd's F(2 x 2, 3 x 3) and F(4 x 4, 3 x 3) [A. Lavin, S. Gray: Fast algorithms for convolutional neural networks,
// 2015] of a 3 x 3 kernel w at stride 1, in integers: a tile of outputs is, but for factors, A^T ((B^T d B) * (G w
// G^T)) A, the product in the middle element by element and summed over the channels; d is the window that the tile
// reads.
//
// F(2 x 2, 3 x 3) takes 16 products a channel where there were 36, and gives 4 times the outputs, by
//
//   B^T = [1  0 -1  0    G = [2  0  0    A^T = [1  1  1  0
//          0  1  1  0         1  1  1           0  1 -1 -1].
//          0 -1  1  0         1 -1  1
//          0  1  0 -1],       0  0  2],
//
// All fits the bytes that VNNI multiplies: x of 5 bits less its zero point lies within 31 of 0, so that B^T d B lies
// within 4 * 31 = 124, and becomes unsigned by adding 128; codes of 4 bits less 8 lie in [-8, 7], so that what becomes
// of nine of them lies in [-72, 69]. Of the sums, 128 times those of the weights are taken off beforehand; they fit 32
// bits many times: at most 9 * 124 * 72 a channel, and fewer than kMaxRangedTerms / 9 channels.
//
// F(4 x 4, 3 x 3) takes 36 products where there were 144. All of 8 bits fits words of 16, of which VNNI multiplies half
// as many at once. With x as it is and codes less half of what they may be, both within 128 of 0,
//
//   B^T = [4  0 -5  0  1  0    G = [6  0  0    A^T = [1 -4 -4  1  1  0     rows of A^T give 24, 12, 6 and 6 times
//          0 -4 -4  1  1  0         1  1  1           0 -2  2  1 -1  0     the outputs.
//          0  4 -4 -1  1  0         1 -1  1           0 -1 -1  1  1  0
//          0 -2 -1  2  1  0         1  2  4           0 -1  1  2 -2  1],
//          0  2 -1 -2  1  0         1 -2  4
//          0  4  0 -5  0  1],       0  0  6],
//
// B^T d B lies within 10 * 10 * 128 = 12800, and G w G^T within 7 * 7 * 128 = 6272. The sums are taken modulo 2^32,
// which is enough: they end as 9 * 2^k times an output, where k <= 6; times the inverse of 9 and shifted right by k,
// they are the outputs if these lie within 2^25, as those of kWinogradChannels channels do: 9 * 128 * 128 * 128 is
// less.
constexpr int64_t kWinogradChannels = 128;                // of F(4 x 4, 3 x 3), at once
constexpr int kWinogradBits = 4, kWinogradInputBits = 5;  // of F(2 x 2, 3 x 3)

constexpr int64_t winograd_codes_bytes(int64_t steps) { return 9 * steps * kPairStepBytes; }

// Of the rows of two blocks, which some kernels take piece by piece, from the first on. Their shares of a panel and of
// 64 sums follow each other.
struct WinogradPieces {
  int begin, end;
};

// Two blocks of a weight whose segments are the taps of 3 x 3. Codes are less 2^(bits - 1).
struct WinogradWeights {
  const uint8_t* planes;  // of the first block
  int64_t plane_bytes, block_bytes;
  int64_t tap_steps;       // of a tap
  int64_t steps, columns;  // of each tap, those that are transformed
  int bits;
  void* panel;       // positions, on a cache line's border
  int64_t position;  // bytes from one to the next
  int zero;          // of x
  bool more;         // whether these are not the first of a tap
  int32_t* start;    // where sums start: of F(2 x 2, 3 x 3) 64 for each position; else 64, less those of earlier steps
  WinogradPieces pieces;
  void* codes;  // winograd_codes_bytes(steps) of memory, from piece to piece; unused where there is but one
};

// A row of tiles, next to each other.
struct WinogradInput {
  const int8_t* rows[6];  // of the windows
  int64_t column;         // bytes from a column to the next
  int64_t columns;        // of which the last one stands for those behind it, which no output reads
  int64_t channels;       // a multiple of 8
  int zero, lowest, bits;
  int64_t tiles;
  char* to;                // of the first tile
  int64_t position, tile;  // bytes from one to the next
};

struct WinogradMultiply {
  const void* panel;
  WinogradPieces pieces;   // of the panel
  int64_t panel_position;  // bytes from one to the next
  const int32_t* start;
  int64_t steps;
  const char* x;
  int64_t position, tile;
  int64_t tiles;
  PackedPairOutput output;  // of the outputs of each tile, row by row; of a negative place nothing is written
  int32_t* sums;            // 64 of each output, of what channels there are before; null: none
  bool more, last;          // whether there are channels before, and none behind, which only then are finished
};

// What Winograd's products of two blocks take, measured in what a direct product of 64 rows and a channel takes: of a
// channel at all positions; what a tile takes beyond that and beyond what others do; and a channel of the weight.
struct WinogradCosts {
  int64_t products, tile, weight;
};

// All is null where there is none.
struct WinogradKernels {
  int side = 0;          // of a tile of outputs
  int64_t element = 0;   // bytes of what x becomes
  int64_t channels = 0;  // at once; 0: all
  int pieces = 1;        // of the rows of two blocks
  void (*weights)(const WinogradWeights& weights) = nullptr;
  bool (*input)(const WinogradInput& input) = nullptr;  // whether all codes are of these bits
  void (*multiply)(const WinogradMultiply& multiply) = nullptr;
  WinogradCosts (*costs)(int bits) = nullptr;

  int window() const { return side + 2; }
  int positions() const { return window() * window(); }
  int outputs() const { return side * side; }
};

struct PackedGemmKernels {
  Panel (*panel)(int bits);  // which one integers take
  int tile_rows;             // of x, that may lie in tiles (see PackedMultiply); 0: may not

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

  // `expand` and `multiply` in one, for panels of bytes; at most kFewRows of x need no panel. acc holds rows x 64 sums
  // meanwhile, which `settle` makes rows x 32 of. null: not implemented
  void (*multiply_planes)(const PackedExpand& expand, const PackedMultiply& multiply) = nullptr;
  void (*settle)(int32_t* acc, int64_t rows, int bits) = nullptr;

  // Both or neither.
  void (*expand_pair)(const PackedPair& pair) = nullptr;
  void (*multiply_pair)(const PackedPairMultiply& multiply) = nullptr;

  // Both or neither. A row of outputs less its scales: to[i][64] = the largest of sum * 2^shift + center * sums[row] in
  // columns 2i - 1, 2i and 2i + 1, as far as there are any. `before`: 64, what the column before the first holds, at
  // the end what the last one does if its number is odd.
  void (*multiply_pair_largest)(const PackedPairMultiply& multiply, int32_t* before, int32_t* to) = nullptr;
  void (*finish_pair_largest)(const PackedPairLargest& largest) = nullptr;

  WinogradKernels winograd_2x2{}, winograd_4x4{};
};

constexpr int64_t kFewRows = 3;          // of x, multiplied as they are unpacked
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
