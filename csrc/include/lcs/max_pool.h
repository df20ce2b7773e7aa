#pragma once
#include <algorithm>
#include <cstdint>

#include "lcs/dtype.h"
#include "lcs/images.h"
#include "lcs/parallel.h"

namespace lcs {

// y = the largest of each window of x, no more than half of which is padding; NaN is the largest. Dilations are 1.
struct MaxPoolArgs {
  Images x, y;  // of as many channels, both compact; x channels last
  Axis vertical, horizontal;
  DType dtype;
  bool numbers = false;  // that each window holds either no NaN or nothing else is known
};

// Rows [begin, end) of x.
struct PooledRows {
  int64_t begin, end;
};

// Those that row `row` of y is the largest of.
inline PooledRows pooled_rows(const MaxPoolArgs& a, int64_t row) {
  const int64_t first = row * a.vertical.stride - a.vertical.padding;
  return {std::max<int64_t>(first, 0), std::min(first + a.vertical.kernel, a.x.height)};
}

void max_pool(const MaxPoolArgs& args, const Parallel& parallel);

// Rows [begin, end) of an image of y, as of max_pool. `from` is row `first` of that image of x, which may lack others
// that they have no need of.
void max_pool_rows(const MaxPoolArgs& args, int64_t image, int64_t begin, int64_t end, const void* from, int64_t first);

// Row `row` of y's first image, channels last, written to `to`. `from` is row `begin` of x, which may lack others that
// it has no need of.
void max_pool_row(const MaxPoolArgs& args, int64_t row, const void* from, int64_t begin, void* to);

}  // namespace lcs
