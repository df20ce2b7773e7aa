#pragma once
#include <cstdint>

#include "dispatch.h"
#include "lcs/dtype.h"
#include "packed_gemm_kernels.h"

// What each instruction set implements of the packed convolution beside the product itself (packed_gemm_kernels.h).
namespace lcs {

// The codes of a run of pixels: to[i * to_stride + c] of x[c * channel_stride + i * pixel_stride]. One of the strides
// of x is 1, unless the pixels are `step` apart. Behind the channels, to the next multiple of 8, come zeros.
struct PackedPixels {
  const void* x;
  DType dtype;
  int64_t channel_stride, pixel_stride;
  int64_t pixels, channels;
  int8_t* to;
  int64_t to_stride;
  PackedCodes codes;
};

// y[row][place's row] = ((acc * 2^shift + center[place] * sums[row]) * scale[place]) * row_scale[row] + bias +
// residual, then ReLU on request.
struct PackedOutput {
  const void* acc;      // rows x 32
  const int32_t* sums;  // null: acc is float32, and scaled alone
  int64_t rows;
  int shift;
  const int32_t* center;
  const float* scale;
  const float* row_scale;
  const float* bias;      // 32, in the order of rows; null: none
  const float* residual;  // null: none
  int64_t residual_stride;
  bool relu;
  float* y;
  int64_t stride;
};

struct PackedConv2dKernels {
  bool (*quantize)(const PackedPixels& pixels);  // whether a NaN was among them
  // to[i] = the sum of x[i * stride] and the n - 1 after it; n is a multiple of 8
  void (*sums)(const int8_t* x, int64_t stride, int64_t n, int64_t count, int32_t* to);
  void (*output)(const PackedOutput& output);
};

namespace scalar {
PackedConv2dKernels packed_conv2d_kernels();
}
namespace avx2 {
PackedConv2dKernels packed_conv2d_kernels();
}
namespace avx512 {
PackedConv2dKernels packed_conv2d_kernels();
}

// Of the best instruction set in use.
inline PackedConv2dKernels packed_conv2d_kernels() {
  return best(scalar::packed_conv2d_kernels, avx2::packed_conv2d_kernels, avx512::packed_conv2d_kernels);
}

}  // namespace lcs
