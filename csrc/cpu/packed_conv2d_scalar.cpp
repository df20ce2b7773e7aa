#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>

#include "keys.h"
#include "packed_conv2d_kernels.h"
#include "packed_gemm_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"

#include "packed_codes_scalar.inl"

template <class T>
bool quantize_of(const PackedPixels& p) {
  bool nan = false;
  for (int64_t i = 0; i < p.pixels; ++i) {
    int8_t* const to = p.to + i * p.to_stride;
    for (int64_t c = 0; c < p.channels; ++c) {
      const float x = load(static_cast<const T*>(p.x) + c * p.channel_stride + i * p.pixel_stride);
      nan |= x != x;
      to[c] = code_of(x, p.codes);
    }
    std::fill(to + p.channels, to + (p.channels + 7) / 8 * 8, int8_t{0});
  }
  return nan;
}

bool quantize(const PackedPixels& pixels) {
  return pixels.dtype == DType::bfloat16 ? quantize_of<BFloat16>(pixels) : quantize_of<float>(pixels);
}

void sums(const int8_t* x, int64_t stride, int64_t n, int64_t count, int32_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = std::accumulate(x + i * stride, x + i * stride + n, int32_t{0});
}

void output(const PackedOutput& o) {
  const float floor = o.relu ? 0.0f : -std::numeric_limits<float>::infinity();
  for (int64_t m = 0; m < o.rows; ++m)
    for (int i = 0; i < kBlockRows; ++i) {
      const int64_t at = m * kBlockRows + i;
      float value;
      if (o.sums) {  // modulo 2^32 on the way
        const uint32_t acc = uint32_t(static_cast<const int32_t*>(o.acc)[at]) << o.shift;
        value = float(int32_t(acc + uint32_t(o.center[i]) * uint32_t(o.sums[m])));
      } else {
        value = static_cast<const float*>(o.acc)[at];
      }
      const int row = panel_row(i);
      value = value * o.scale[i] * o.row_scale[m];
      if (o.bias) value = value + o.bias[row];
      if (o.residual) value = value + o.residual[m * o.residual_stride + row];
      o.y[m * o.stride + row] = raised_to(value, floor);
    }
}

}  // namespace

PackedConv2dKernels packed_conv2d_kernels() { return {quantize, sums, output}; }

}  // namespace lcs::scalar
