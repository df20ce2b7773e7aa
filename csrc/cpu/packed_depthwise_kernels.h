#pragma once
#include <cstdint>

#include "packed_gemm_kernels.h"

// What each instruction set implements of a depthwise packed convolution.
namespace lcs {

constexpr int64_t kDepthwiseChannels = 32;  // at most, at once

// y[position][channel] = ((start + the sum over the taps of x * weight) * scale) * row_scale + bias + residual, then
// ReLU on request. Behind the channels, to the next multiple of 8, x may be read, and the other arrays hold 32.
struct PackedDepthwise {
  const char* x;        // of the first position: int8, or float32
  const int64_t* taps;  // from there to each tap's, in bytes
  int64_t count;        // of taps; an even number
  int64_t step;         // from a position to the next, in bytes
  int64_t positions, channels;
  const int16_t* weight;  // of each two taps 32 pairs; null: x is float32, and so is the weight
  const float* floats;    // of each tap 32
  const int32_t* start;   // of integers
  const float* scale;
  float row_scale;
  const float* bias;      // null: none
  const float* residual;  // null: none
  int64_t residual_stride;
  bool relu;
  float* y;       // null: not written
  int8_t* codes;  // what y rounds to; null: not written
  int64_t stride;
  PackedCodes grid;
};

struct PackedDepthwiseKernels {
  void (*multiply)(const PackedDepthwise& args);
};

namespace scalar {
PackedDepthwiseKernels packed_depthwise_kernels();
}
namespace avx2 {
PackedDepthwiseKernels packed_depthwise_kernels();
}

}  // namespace lcs
