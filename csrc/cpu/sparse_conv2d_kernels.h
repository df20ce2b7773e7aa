#pragma once
#include <cstdint>

#include "block_copy.h"
#include "dispatch.h"

// What each instruction set implements of the sparse convolution.
namespace lcs {

// Sums of `rows` rows of one block of the weight, over a tile of `vectors` vectors of positions:
// acc[row * acc_stride + position] = start + sum over the row's values of value * x[distance + step * position].
// Positions may lie in two lines of as many vectors, whose taps have more of x in common.
struct SparseTile {
  const float* x;
  float* acc;
  int64_t acc_stride;
  int vectors;                // of all lines
  int step;                   // vectors of x from one of acc to the next: 1 or 2
  const float *scale, *bias;  // of each row; null: 1 and 0
  bool relu;
  float cap;              // that ReLU ends at
  const float* residual;  // added before ReLU; laid out as acc but for its stride; null: none
  int64_t residual_stride;
  float* y;  // takes what becomes of acc, laid out likewise; may be acc, or the residual where each row is at its own
             // place
  int64_t y_stride;
  int lines = 1;                                                    // at most max_lines
  int64_t x_line = 0, acc_line = 0, residual_line = 0, y_line = 0;  // floats from the first to the second
  const int32_t* distance = nullptr;                                // of each value; null: offset[index]
  const int64_t* offset = nullptr;
  const int32_t* count = nullptr;
  const uint16_t* index = nullptr;
  const float* values = nullptr;
  int64_t rows = 0;
  int64_t block = 0, blocks = 1;  // the first one's start is 0, or the bias of no scale, and the others' is what acc
                                  // holds; behind the last follow scale, bias, residual and ReLU
};

struct SparseConv2dKernels {
  int lanes, max_vectors, max_lines;
  int ordered_vectors;  // tiles of at least so many add a row's values up in their order
  int stream_lanes;     // that are stored past the caches at once
  void (*accumulate)(const SparseTile& tile);
  void (*load)(const BlockCopy& copy);        // to float32
  void (*store)(const BlockCopy& copy);       // from float32
  void (*load_lanes)(const LaneCopy& copy);   // to a panel; null where there is a single lane
  void (*store_lanes)(const LaneCopy& copy);  // from a panel; likewise
  void (*share)(const LaneShare& share);      // likewise
  void (*normalise)(const LaneNorm& norm);    // likewise
  void (*add)(const float* residual, int64_t n, float floor, float cap, float* sums);  // and clamp them
  void (*stream_end)();  // after stores past the caches, before another thread reads them
};

namespace scalar {
SparseConv2dKernels sparse_conv2d_kernels();
}
namespace avx2 {
SparseConv2dKernels sparse_conv2d_kernels();
}
namespace avx512 {
SparseConv2dKernels sparse_conv2d_kernels();
}

// Of the best instruction set in use, and those of 8 or 16 lanes.
inline SparseConv2dKernels sparse_conv2d_kernels() {
  return best(scalar::sparse_conv2d_kernels, avx2::sparse_conv2d_kernels, avx512::sparse_conv2d_kernels);
}
inline SparseConv2dKernels sparse_conv2d_kernels(int64_t lanes) {
  return lanes == 8 ? avx2::sparse_conv2d_kernels() : avx512::sparse_conv2d_kernels();
}

}  // namespace lcs
