#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "lcs/ceil_div.h"
#include "lcs/dtype.h"
#include "lcs/parallel.h"

// A weight as a bitmap and the values that it names: bit i % 32 of mask_bits[i / 32] tells whether weight i is stored,
// bits past the last weight are 0, and the stored values stand in the order of their weights.
namespace lcs {

// Sets the bits of the n weights that are not 0 (NaN is not).
void nonzero_bits(const void* w, DType dtype, int64_t n, uint32_t* mask_bits, const Parallel& parallel);

// How many weights stand before each piece of 2^14 weights; the last element is the number of all.
std::vector<int64_t> ranks(std::span<const uint32_t> mask_bits, const Parallel& parallel);

// Gathers the stored values of w, and scatters them among zeros to the n weights of w.
void sparse_pack(const void* w, DType dtype, std::span<const uint32_t> mask_bits, std::span<const int64_t> rank,
                 void* values, const Parallel& parallel);
void sparse_unpack(std::span<const uint32_t> mask_bits, std::span<const int64_t> rank, const void* values, DType dtype,
                   int64_t n, void* w, const Parallel& parallel);

// At least one, in which the sums of a weight without columns begin and end.
constexpr int64_t sparse_blocks(int64_t columns, int64_t block) {
  return columns > block ? ceil_div(columns, block) : 1;
}

// What the kernels read in place of the bitmap. The columns of a weight of rows x columns are cut into blocks; within
// a block the rows follow each other, so that a sweep over a block is one stream.
struct SparsePrepack {
  int64_t rows, columns;
  int64_t block;          // columns; at most 65536
  const int32_t* count;   // blocks x rows: the values in this block and row
  const int64_t* start;   // blocks + 1: where a block's values begin
  const uint16_t* index;  // of each value: its column, counted from the block's first
  const float* values;

  int64_t blocks() const { return sparse_blocks(columns, block); }
  int64_t stored() const { return start[blocks()]; }
};

// Step one fills `count` and `start`, whose last element says how many values there are.
void sparse_prepack_count(int64_t rows, int64_t columns, int64_t block, std::span<const uint32_t> mask_bits,
                          int32_t* count, int64_t* start, const Parallel& parallel);

// Step two fills `index` and `values` of a counted prepack from the packed values.
void sparse_prepack_fill(const SparsePrepack& counted, std::span<const uint32_t> mask_bits, const void* packed,
                         DType dtype, uint16_t* index, float* values, const Parallel& parallel);

// What kernels with matrix tiles read instead: bfloat16 weights of rows x columns, still compressed, in tiles of 16
// rows and 32 columns, an even number of tiles for the rows. Bit 2 * r + c of word i of a tile tells whether its row r
// has a weight in column 2 * i + c; the values stand in the order of the bits, row tile after row tile.
struct SparseTiles {
  static constexpr int64_t kRows = 16, kColumns = 32, kWords = 16;  // of a tile
  static constexpr int64_t kPadding = 32;                           // values behind the last one, which may be read

  int64_t rows, columns;
  const uint32_t* bits;    // row tiles x column tiles x 16
  const int64_t* start;    // row tiles + 1: where a row tile's values begin
  const uint16_t* values;  // bfloat16

  int64_t blocks() const { return (rows + 2 * kRows - 1) / (2 * kRows); }  // of two row tiles
  int64_t row_tiles() const { return 2 * blocks(); }
  int64_t column_tiles() const { return ceil_div(columns, kColumns); }
};

// Step one fills `bits` and `start` for the rows and columns of `sizes`; step two the values from the packed ones.
void sparse_tiles_count(const SparseTiles& sizes, std::span<const uint32_t> mask_bits, uint32_t* bits, int64_t* start,
                        const Parallel& parallel);
void sparse_tiles_fill(const SparseTiles& counted, std::span<const uint32_t> mask_bits, const uint16_t* packed,
                       uint16_t* values, const Parallel& parallel);

}  // namespace lcs
