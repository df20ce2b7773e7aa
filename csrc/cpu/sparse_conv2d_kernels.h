#pragma once
#include <cstdint>

#include "block_copy.h"

// What each instruction set implements of the sparse convolution.
namespace lcs {

// Sums of `rows` rows of one block of the weight, over a tile of `vectors` vectors of positions:
// acc[row * acc_stride + position] = start + sum over the row's values of value * x[distance + position].
struct SparseTile {
  const float* x;
  const int32_t* distance;  // of each value; null: offset[index]
  const int64_t* offset;
  const int32_t* count;
  const uint16_t* index;
  const float* values;
  float* acc;
  int64_t acc_stride, rows;
  const float *scale, *bias;  // of each row; null: 1 and 0
  int vectors;
  bool first, last;  // start is 0, or the bias of no scale, else what acc holds; `last`: scale, bias and ReLU follow
  bool relu;
  float cap;  // that ReLU ends at
};

struct SparseConv2dKernels {
  int lanes, max_vectors;
  int stream_lanes;  // that are stored past the caches at once
  void (*accumulate)(const SparseTile& tile);
  void (*load)(const BlockCopy& copy);        // to float32
  void (*store)(const BlockCopy& copy);       // from float32
  void (*load_lanes)(const LaneCopy& copy);   // to a panel; null where there is a single lane
  void (*store_lanes)(const LaneCopy& copy);  // from a panel; likewise
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

}  // namespace lcs
