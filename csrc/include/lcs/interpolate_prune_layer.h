#pragma once
#include <cstdint>

#include "lcs/dtype.h"

namespace lcs {

// One layer of n weights. Bit i % 32 of mask_bits[i / 32] tells whether weight i was kept; bits past n are 0.
struct InterpolatePruneLayer {
  const void* w0;
  const void* w1;  // null: a point, w = w0
  void* w;
  uint32_t* mask_bits;  // ceil(n / 32) words
  int64_t n;
};

struct InterpolatePruneBackwardLayer {
  const void* grad;
  const void* w0;  // w0 and w1 null: no gradient to alpha is wanted
  const void* w1;
  const uint32_t* mask_bits;  // null: every weight was kept
  void* grad_w0;
  void* grad_w1;  // null: a point
  int64_t n;
};

}  // namespace lcs
