#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "packed_depthwise_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
namespace eight {
#include "lanes_avx2.inl"
}
// After the lanes it is written in.
#include "transpose_avx2.inl"

#include "packed_codes_avx2.inl"

constexpr int64_t kAtOnce = 4;  // positions

inline __m128i eight_bytes(const char* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
inline __m256i load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Sums of channels [c, c + 8) at positions x, x + step, ...
template <int kPositions>
inline void add_up(const PackedDepthwise& a, const char* x, int64_t c, __m256* value) {
  if (!a.weight) {
    LCS_UNROLL
    for (int i = 0; i < kPositions; ++i) value[i] = _mm256_setzero_ps();
    for (int64_t tap = 0; tap < a.count; ++tap) {
      const __m256 w = _mm256_loadu_ps(a.floats + tap * kDepthwiseChannels + c);
      LCS_UNROLL
      for (int i = 0; i < kPositions; ++i)
        value[i] = _mm256_fmadd_ps(w, _mm256_loadu_ps(reinterpret_cast<const float*>(x + i * a.step + a.taps[tap]) + c),
                                   value[i]);
    }
    return;
  }
  __m256i sum[kPositions];
  LCS_UNROLL
  for (int i = 0; i < kPositions; ++i) sum[i] = load_ints(a.start + c);
  for (int64_t tap = 0; tap < a.count; tap += 2) {
    const __m256i w = load_ints(a.weight + (tap / 2 * kDepthwiseChannels + c) * 2);
    const char *const first = x + a.taps[tap] + c, *const second = x + a.taps[tap + 1] + c;
    LCS_UNROLL
    for (int i = 0; i < kPositions; ++i) {
      const __m128i pairs = _mm_unpacklo_epi8(eight_bytes(first + i * a.step), eight_bytes(second + i * a.step));
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(w, _mm256_cvtepi8_epi16(pairs)));
    }
  }
  LCS_UNROLL
  for (int i = 0; i < kPositions; ++i) value[i] = _mm256_cvtepi32_ps(sum[i]);
}

template <int kPositions>
inline void multiply_positions(const PackedDepthwise& a, const EightCodes& codes, int64_t m, int64_t c) {
  const int64_t channels = std::min<int64_t>(a.channels - c, 8);
  const __m256 floor = _mm256_set1_ps(a.relu ? 0.0f : -__builtin_inff()), row_scale = _mm256_set1_ps(a.row_scale);
  const __m256 scale = _mm256_loadu_ps(a.scale + c);
  __m256 value[kPositions];
  add_up<kPositions>(a, a.x + m * a.step, c, value);
  LCS_UNROLL
  for (int i = 0; i < kPositions; ++i) {
    __m256 y = _mm256_mul_ps(_mm256_mul_ps(value[i], scale), row_scale);
    if (a.bias) y = _mm256_add_ps(y, _mm256_loadu_ps(a.bias + c));
    if (a.residual) y = _mm256_add_ps(y, load_first(a.residual + (m + i) * a.residual_stride + c, channels));
    y = _mm256_max_ps(floor, y);  // a NaN stays
    if (a.codes) codes.put(y, a.codes + (m + i) * a.stride + c, channels);
    if (a.y) store_first(a.y + (m + i) * a.stride + c, y, channels);
  }
}

void multiply(const PackedDepthwise& args) {
  const PackedDepthwise a = args;  // which codes that are written cannot change
  const EightCodes codes(a.grid);
  for (int64_t c = 0; c < a.channels; c += 8) {
    if (a.positions < kAtOnce)
      for (int64_t m = 0; m < a.positions; ++m) multiply_positions<1>(a, codes, m, c);
    else  // the last ones once more where the others do not fill up
      for (int64_t m = 0; m < a.positions; m += kAtOnce)
        multiply_positions<kAtOnce>(a, codes, std::min(m, a.positions - kAtOnce), c);
  }
}

}  // namespace

PackedDepthwiseKernels packed_depthwise_kernels() { return {multiply}; }

}  // namespace lcs::avx2
LCS_TARGET_END
