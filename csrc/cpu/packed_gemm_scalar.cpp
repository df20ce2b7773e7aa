#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "keys.h"
#include "packed_gemm_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"

Panel panel(int) { return Panel::bytes; }

template <class T>
float largest_of(const void* x, int64_t n) {
  Key key = 0;
  for (int64_t i = 0; i < n; ++i) key = std::max(key, magnitude(load(static_cast<const T*>(x) + i)));
  return std::bit_cast<float>(key);
}

float largest(const void* x, DType dtype, int64_t n) {
  return dtype == DType::bfloat16 ? largest_of<BFloat16>(x, n) : largest_of<float>(x, n);
}

template <class T>
int32_t quantize_of(const void* x, int64_t n, float inverse, int8_t* to) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += to[i] = int8_t(std::lrint(load(static_cast<const T*>(x) + i) * inverse));
  return sum;
}

int32_t quantize(const void* x, DType dtype, int64_t n, float inverse, int8_t* to) {
  return dtype == DType::bfloat16 ? quantize_of<BFloat16>(x, n, inverse, to) : quantize_of<float>(x, n, inverse, to);
}

// Here a panel holds column after column, each in place order.
template <class T>
void expand_to(const PackedExpand& e) {
  T* to = static_cast<T*>(e.panel);
  for (int64_t step = 0; step < e.steps; ++step)
    for (int k = 0; k < kStepColumns; ++k)
      for (int i = 0; i < kBlockRows; ++i) {
        int code = 0;
        for (int p = 0; p < e.bits; ++p)
          code = 2 * code + (e.planes[p * e.plane_bytes + step * kBlockRows + panel_row(i)] >> k & 1);
        if constexpr (std::is_same_v<T, float>) code = (code << e.shift) + e.center[i];
        *to++ = T(code);
      }
}

void expand(const PackedExpand& e, Panel panel) {
  panel == Panel::floats ? expand_to<float>(e) : expand_to<uint8_t>(e);
}

template <class W, class X, class Sum>
void multiply_as(const PackedMultiply& p) {
  for (int64_t m = 0; m < p.rows; ++m) {
    const W* w = static_cast<const W*>(p.panel);
    Sum* const acc = static_cast<Sum*>(p.acc) + m * kBlockRows;
    for (int64_t step = 0; step < p.steps; ++step)
      for (int k = 0; k < kStepColumns; ++k, w += kBlockRows) {
        const X x = reinterpret_cast<const X*>(p.x + p.row[m] + p.step[step])[k];
        for (int i = 0; i < kBlockRows; ++i) acc[i] += Sum(w[i]) * Sum(x);
      }
  }
}

void multiply(const PackedMultiply& p, Panel panel) {
  panel == Panel::floats ? multiply_as<float, float, float>(p) : multiply_as<uint8_t, int8_t, int32_t>(p);
}

void scale(const PackedScale& s) {
  for (int64_t m = 0; m < s.rows; ++m)
    for (int i = 0; i < kBlockRows; ++i) {
      const int64_t at = m * kBlockRows + i;
      const float sum =
          s.sums ? float((static_cast<const int32_t*>(s.acc)[at] << s.shift) + s.center[i] * s.sums[m * s.sums_stride])
                 : static_cast<const float*>(s.acc)[at];
      s.y[at] = s.first ? sum * s.scale[i] : s.y[at] + sum * s.scale[i];
    }
}

void finish(const PackedFinish& f) {
  for (int64_t m = 0; m < f.rows; ++m) {
    float rows[kBlockRows];
    float* const y = f.y + m * kBlockRows;
    for (int i = 0; i < kBlockRows; ++i) rows[panel_row(i)] = y[i] * f.row_scale[m];
    for (int i = 0; i < kBlockRows; ++i) {
      const float value = f.bias ? rows[i] + f.bias[i] : rows[i];
      y[i] = raised_to(value, f.relu ? 0.0f : -std::numeric_limits<float>::infinity());
    }
  }
}

}  // namespace

PackedGemmKernels packed_gemm_kernels() {
  return {panel, 0, largest, quantize, nullptr, nullptr, nullptr, expand, multiply, scale, finish};
}

}  // namespace lcs::scalar
