#pragma once
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/parallel.h"

namespace lcs {

// w = fl(fl(1 - alpha) * w0) + fl(alpha * w1) in float32, quantised to `bits` and back, rounded to `out`. Every `group`
// consecutive weights of a row, whose last group may be shorter, share the scale that their least and greatest give.
struct InterpolateQuantizeArgs {
  const void* w0;
  const void* w1;  // null: a point, w = w0
  void* w;
  int64_t rows, columns, group;  // group >= 1
  float alpha;
  int64_t bits;   // clamped to [2, 8]
  bool nested;    // the leading bits of an unsigned 8-bit code, read at the middle of what they leave open
  DType in, out;  // of w0 and w1; of w
};

void interpolate_quantize(const InterpolateQuantizeArgs& args, const Parallel& parallel);

}  // namespace lcs
