#pragma once
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/parallel.h"

namespace lcs {

// to = x rounded to the nearest of the 2^bits values, one of them 0, that spread evenly over [low, high] and 0.
struct QuantizeArgs {
  const void* x;
  void* to;
  int64_t n;
  float low, high;
  int64_t bits;  // clamped to [2, 8]
  DType dtype;   // of x and of `to`
};

void quantize(const QuantizeArgs& args, const Parallel& parallel);

}  // namespace lcs
