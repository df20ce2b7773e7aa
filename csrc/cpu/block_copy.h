#pragma once
#include <cstdint>

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

}  // namespace lcs
