#pragma once
#include <cstdint>

#include "lcs/sparse_conv2d.h"
#include "sparse_conv2d_kernels.h"
#include "walk.h"

namespace lcs {

// How y is cut into blocks of rows x columns positions: down x across of them an image, row after row of blocks, image
// after image. A panel holds what `lanes` blocks that follow each other read, as float32: position after position, a
// float of every lane in each, which all taps read whole. Or a panel holds one block of whole rows, and vectors span
// neighbours along them: then most loads cross a cache line, but nothing is transposed.
struct SparseLayout {
  int64_t lanes = 1, rows, columns, down, across = 1;  // of the last blocks, some rows and columns may not exist
  int64_t tile_rows, tile_columns;                     // whose sums are written at once; that are summed at once
  int64_t least_tile = 0;                              // vectors that are summed at once, at least
  bool large = false;                                  // y goes past the caches

  int64_t blocks() const { return down * across; }
  int64_t panels(int64_t images) const { return ceil_div(images * blocks(), lanes); }
};

// Depends on the shapes, how many weights are stored and the kernels, which it may exchange for narrower ones.
SparseLayout sparse_layout(const SparseConv2dArgs& args, const Phases& vertical, const Phases& horizontal,
                           SparseConv2dKernels& kernels);

// From row to row where vectors span neighbours: zeros right of a row may serve as those left of the next.
int64_t sparse_pitch(const SparseConv2dArgs& args, const Phases& horizontal);

}  // namespace lcs
