#pragma once
#include <cstdint>

#include "block_copy.h"

// What each instruction set implements of the convolution at a width.
namespace lcs {

constexpr int64_t kWidthPixels = 16;  // that a tile has at most

// Of a position or a tap, or the two added up: how far from x, and in which row and column.
struct WidthPlace {
  int64_t offset, row, column;
};

// Sums of `vectors` vectors of output channels at the positions [from, to): sums[position][channel] = what it holds (0
// in the first call) + sum over input channels [begin, end) and taps of weight * x, a depthwise convolution's x being
// that of each channel.
struct WidthTile {
  const float* x;
  const float* zeros;       // as many as x has channels, which taps outside of the image read
  const WidthPlace* place;  // of each position
  int64_t from, to;
  const WidthPlace* tap;
  int64_t taps;
  int64_t first_row, rows, first_column, columns;  // inside the image
  const float** at;                                // room for kWidthPixels of each tap
  int64_t begin, end;
  int64_t block;         // input channels that the weight keeps together
  int64_t stored;        // input channels of the weight
  const float* weight;   // of the first of these output channels and of channel `begin`
  int64_t block_stride;  // floats from one block of output channels to the next
  int vectors;
  float* sums;
  int64_t sums_stride;        // floats from position to position
  const float *scale, *bias;  // of each channel; applied in the last call, as is ReLU
  bool first, last, relu, depthwise;
};

struct WidthConv2dKernels {
  int lanes, max_vectors;  // max_vectors * lanes channels are whole blocks
  int pixels;              // of a whole tile of so many vectors
  void (*accumulate)(const WidthTile& tile);
  void (*load)(const BlockCopy& copy);   // to float32
  void (*store)(const BlockCopy& copy);  // from float32
};

namespace scalar {
WidthConv2dKernels width_conv2d_kernels();
}
namespace avx2 {
WidthConv2dKernels width_conv2d_kernels();
}
namespace avx512 {
WidthConv2dKernels width_conv2d_kernels();
}
namespace bf16 {  // x and the weight are pairs of bfloat16 where the others' are floats; not depthwise
WidthConv2dKernels width_conv2d_kernels();
}

}  // namespace lcs
