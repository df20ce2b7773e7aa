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

// A span: 64 outputs next to each other, of a position or of several.
constexpr int kSpan = kPairRows;

// Where of a span the kernel keeps an output: vector q holds four of every 16, from 4 q on.
constexpr int span_place(int output) { return output % 16 / 4 * 16 + output / 16 * 4 + output % 4; }

constexpr int64_t kMostSpanTaps = 255;  // whose sum of x fits 16 bits

// y[output] = (((sum over the taps of code * x) * 2^shift + center * (sum over the taps of x) + start) * scale) *
// row_scale + bias + residual, then ReLU on request, of rows of spans that all have the same weight.
struct PackedDepthwiseSpans {
  const char* x;            // of the first span: int8, 64 of which may be read
  const int64_t* taps;      // from there to each tap's, in bytes
  int64_t count, used;      // of taps: a multiple of four, of which the first ones count
  int64_t rows, spans;      // of each row
  int64_t x_row, x_span;    // bytes from one to the next
  int64_t y_row, y_span;    // likewise of y and of the residual, in positions
  const uint8_t* weight;    // of each four taps, by places: codes of the four
  const int32_t* start;     // by places
  const int32_t* center;    // likewise, of 16 bits, above which it is 0
  PackedPairOutput output;  // its scale and bias by places; row_scale of all; `place` and sums unused
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
namespace vnni {
void packed_depthwise_spans(const PackedDepthwiseSpans& spans);
// A column's codes after each other, of a block's 32 rows, of `steps` times 8 columns.
void packed_depthwise_codes(const uint8_t* planes, int64_t plane_bytes, int bits, int64_t steps, uint8_t* codes);
// The weight of spans, from a span's codes of each tap, a multiple of four; and the sum of each output's.
void packed_depthwise_weight(const uint8_t* codes, int64_t taps, uint8_t* weight, int32_t* sums);
}  // namespace vnni

}  // namespace lcs
