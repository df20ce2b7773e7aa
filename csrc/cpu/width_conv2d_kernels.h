#pragma once
#include <cstdint>

#include "block_copy.h"
#include "dispatch.h"

// What each instruction set implements of the convolution at a width.
namespace lcs {

constexpr int64_t kWidthPixels = 32;  // that a tile has at most

// A tap of the kernel: how far its input is from that of the first one, and its place in the weight.
struct WidthTap {
  int64_t offset, index;
};

// Sums of `vectors` vectors of output channels at `pixels` positions that the same taps reach: what the call before
// left (0 in the first one) + sum over input channels [begin, end) and taps of weight * x. The last call makes results
// of them.
struct WidthTile {
  const float* at[kWidthPixels];  // x at the first tap of each position, were x as large as its padding
  void* to[kWidthPixels];         // results of each position, of `dtype`
  float* sums;                    // between calls, one position's after the other's
  DType dtype;
  int pixels, vectors;
  const WidthTap* tap;
  int64_t taps;
  int64_t begin, end;
  int64_t block;                // input channels that the weight keeps together
  int64_t stored, weight_taps;  // input channels and taps of the weight
  const float* weight;          // of the first of these output channels and of channel `begin`
  int64_t block_stride;         // floats from one block of output channels to the next
  const float *scale, *bias;    // of each channel; applied in the last call, as is ReLU
  const float* ahead;           // what later tiles read first, from which each tap prefetches so many cache lines
  int ahead_lines;
  bool first, last, relu;
};

struct WidthConv2dKernels {
  int lanes;
  int vectors, max_vectors;    // of a tile where there are many, and where it has all; lanes of either: whole blocks
  int (*pixels)(int vectors);  // of a whole tile
  void (*accumulate)(const WidthTile& tile);
  void (*load)(const BlockCopy& copy);   // to float32
  void (*store)(const BlockCopy& copy);  // from float32
  int rows = 1;                          // positions that take no longer than one
  // Around a thread's calls of accumulate(), which then have as many input channels each, whole blocks or less than
  // one; null: not needed.
  void (*begin)(int64_t channels) = nullptr;
  void (*end)() = nullptr;
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
namespace bf16 {  // x and the weight are pairs of bfloat16 where the others' are floats
WidthConv2dKernels width_conv2d_kernels();
}
namespace amx {  // as bf16
WidthConv2dKernels width_conv2d_kernels();
}

// Of the best instruction set in use.
inline WidthConv2dKernels width_conv2d_kernels() {
  return best(scalar::width_conv2d_kernels, avx2::width_conv2d_kernels, avx512::width_conv2d_kernels);
}

}  // namespace lcs
