#pragma once
#include <cstdint>
#include <vector>

#include "lcs/dtype.h"

namespace lcs {

// Copies a rows x columns block between activations of `dtype` and float32. At the source the columns of a row lie
// `from_step` apart. `transposed`: at the target the columns lie `to_stride` apart, and the rows next to each other.
struct BlockCopy {
  const void* from;
  void* to;
  int64_t from_stride, from_step, to_stride, rows, columns;
  DType dtype;
  bool transposed;
  bool stream = false;  // past the caches; rows of whole squares' sides at such addresses, `step` 1, not transposed
};

constexpr int64_t kLaneSquare = 8;  // lanes and columns, or channels, of a LaneSquare

// The next columns of the rows that eight lanes go along.
struct LaneSquare {
  int64_t row[8];    // where each lane's first column is, in elements
  uint8_t exist[8];  // its columns that exist, a bit each
  int64_t panel;     // where the first lane of the first column is, in floats
  int64_t columns;   // at most 8
};

// Copies squares between activations of `dtype`, whose columns lie `step` apart, and a float32 panel, where the lanes
// of a column lie next to each other and the columns `panel_step` apart; `repeats` times, `stride` elements and
// `panel_stride` floats further each. Columns that do not exist are 0 in the panel, and not written to activations.
// To these, what lies at the same places of a residual is added, and the sums are clamped, where there is one.
struct LaneCopy {
  void* rows;
  float* panel;
  const LaneSquare* squares;
  int64_t count, step, panel_step, repeats, stride, panel_stride;
  DType dtype;
  const void* residual = nullptr;
  float floor = 0, cap = 0;
};

// Copies `vectors` vectors of `channels` channels, `stride` floats apart, lane by lane from others: lane l is what
// `lanes` says of it, or 0 where that is -1.
struct LaneShare {
  const float* from;
  float* to;
  const int32_t* lanes;
  int64_t vectors, channels, stride;
};

// Normalises `vectors` vectors of `channels` channels, some floats apart:
// y = (x - mean) * scale + shift, + residual where there is one, and no less than `floor`.
struct LaneNorm {
  const float *x, *residual;
  float* y;
  int64_t vectors, channels, x_stride, residual_stride, y_stride;
  const float *mean, *scale, *shift;  // of each channel
  float floor;
};

// Channels last: copies all channels of one square after the other, kLaneSquare of them at a time.
inline void each_channel_square(const std::vector<LaneSquare>& squares, LaneCopy copy, int64_t channels,
                                void (*run)(const LaneCopy&)) {
  const int64_t whole = channels / kLaneSquare, rest = channels % kLaneSquare;
  LaneCopy tail = copy;
  tail.rows = advance(copy.rows, whole * kLaneSquare, copy.dtype);
  tail.residual = advance(copy.residual, whole * kLaneSquare, copy.dtype);
  tail.panel += whole * copy.panel_stride, tail.repeats = 1;
  copy.repeats = whole;
  for (const LaneSquare& square : squares) {
    copy.squares = &square;
    run(copy);
    if (rest == 0) continue;
    LaneSquare last = square;
    last.columns = rest;
    for (uint8_t& bits : last.exist) bits &= uint8_t((1 << rest) - 1);
    tail.squares = &last;
    run(tail);
  }
}

}  // namespace lcs
