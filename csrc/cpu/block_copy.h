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

}  // namespace lcs
