#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "packed_depthwise_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"

#include "packed_codes_scalar.inl"

float sum_of(const PackedDepthwise& a, const char* x, int64_t c) {
  if (!a.weight) {
    float sum = 0.0f;
    for (int64_t tap = 0; tap < a.count; ++tap)
      sum = fmadd(a.floats[tap * kDepthwiseChannels + c], reinterpret_cast<const float*>(x + a.taps[tap])[c], sum);
    return sum;
  }
  int32_t sum = a.start[c];
  for (int64_t tap = 0; tap < a.count; ++tap)
    sum += a.weight[(tap / 2 * kDepthwiseChannels + c) * 2 + tap % 2] *
           reinterpret_cast<const int8_t*>(x + a.taps[tap])[c];
  return float(sum);
}

void multiply(const PackedDepthwise& a) {
  const float floor = a.relu ? 0.0f : -std::numeric_limits<float>::infinity();
  for (int64_t m = 0; m < a.positions; ++m)
    for (int64_t c = 0; c < a.channels; ++c) {
      float value = sum_of(a, a.x + m * a.step, c) * a.scale[c] * a.row_scale;
      if (a.bias) value = value + a.bias[c];
      if (a.residual) value = value + a.residual[m * a.residual_stride + c];
      value = raised_to(value, floor);
      if (a.codes) a.codes[m * a.stride + c] = code_of(value, a.grid);
      if (a.y) a.y[m * a.stride + c] = value;
    }
}

}  // namespace

PackedDepthwiseKernels packed_depthwise_kernels() { return {multiply}; }

}  // namespace lcs::scalar
