#pragma once
#include <cstdint>

#include "lcs/ceil_div.h"
#include "lcs/parallel.h"

// Codes of `depth` bits, at most 8, as bit planes, most significant first: bit i % 32 of word i / 32 of plane p is bit
// depth - 1 - p of code i, and bits past the last code are 0. The top b bits of all codes are the first b planes.
namespace lcs {

constexpr int kPlanes = 8;  // at most

constexpr int64_t plane_words(int64_t n) { return (n + 31) / 32; }

// `planes` holds depth * plane_words(n) words.
void nested_pack(const uint8_t* codes, int64_t n, int depth, uint32_t* planes, const Parallel& parallel);

// codes[i] = the top `bits` bits of code i.
void nested_codes(const uint32_t* planes, int64_t n, int bits, uint8_t* codes, const Parallel& parallel);

// How the kernels cut a weight of rows x columns. The columns form segments, each padded to whole steps: `group`
// columns that share a scale, or, where there are several taps, the channels of a tap, column channel * taps + tap; so
// many taps after each other are `joined` to one segment. The rows form parts of equal size, each padded to whole
// blocks.
struct NestedLayout {
  static constexpr int64_t kBlock = 32;  // rows
  static constexpr int64_t kStep = 8;    // columns

  int64_t rows, columns, group, taps, parts, joined = 1;

  int64_t groups() const { return taps > 1 ? 1 : segments(); }  // of scales
  int64_t segments() const { return taps > 1 ? taps / joined : columns > group ? ceil_div(columns, group) : 1; }
  int64_t segment() const { return taps > 1 ? columns / taps * joined : group < columns ? group : columns; }
  int64_t segment_steps() const { return ceil_div(segment(), kStep); }
  int64_t steps() const { return segments() * segment_steps(); }
  int64_t part_rows() const { return rows / parts; }
  int64_t part_blocks() const { return ceil_div(part_rows(), kBlock); }
  int64_t blocks() const { return parts * part_blocks(); }
  int64_t plane_bytes() const { return blocks() * steps() * kBlock; }
};

// What the kernels read in place of the planes: plane, block, step and row follow each other, a byte each, whose bit i
// belongs to the step's column i. The first b planes are still all that b bits take. Padding is 0.
struct NestedPrepack {
  NestedLayout layout;
  const uint8_t* planes;
  const float* scales;         // layout.rows x layout.groups(), or one row for all
  const uint8_t* zero_points;  // likewise
  bool per_row;
  int depth = kPlanes;  // planes

  // w = scale / 2 * (code * 2^shift(bits) + center(zero_point, bits)), of codes of `bits` bits.
  int shift(int bits) const { return depth + 1 - bits; }
  int32_t center(uint8_t zero_point, int bits) const { return (1 << (depth - bits)) - 1 - 2 * int32_t{zero_point}; }
};

// w = scale * (code * 2^(depth - bits) + (2^(depth - bits) - 1) / 2 - zero_point), rounded once, from codes of `bits`
// bits. The layout has one tap; of the prepack only the scales are read.
void nested_values(const NestedPrepack& weight, const uint8_t* codes, int bits, float* w, const Parallel& parallel);

// Fills `prepack` from all `depth` bits.
void nested_prepack(const NestedLayout& layout, const uint8_t* codes, int depth, uint8_t* prepack,
                    const Parallel& parallel);

}  // namespace lcs
