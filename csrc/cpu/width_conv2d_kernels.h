#pragma once
#include <cstdint>

#include "block_copy.h"

// What each instruction set implements of the convolution at a width.
namespace lcs {

// Sums of `vectors` vectors of output channels at `pixels` output positions: sums[pixel][channel] = what it holds (0 in
// the first call) + sum over terms of weight[term][channel] * x[pixel + offset of the term], a depthwise convolution's
// x being that of each channel.
struct WidthTile {
  const float* x;
  const int64_t* pixel;  // where each position begins in x
  int64_t pixels;
  const int64_t* offset;  // of each term
  int64_t terms;
  const float* weight;   // blocks of 16 channels, terms next to each other
  int64_t block_stride;  // floats from block to block
  int vectors;
  float* sums;
  int64_t sums_stride;        // floats from position to position
  const float *scale, *bias;  // of each channel; applied in the last call, as is ReLU
  bool first, last, relu, depthwise;
};

struct WidthConv2dKernels {
  int lanes, max_vectors;  // max_vectors * lanes channels are whole blocks
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

}  // namespace lcs
