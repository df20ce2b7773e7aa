#include <immintrin.h>

#include "packed_depthwise_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_VNNI)
namespace lcs::vnni {
namespace {
#include "packed_pair_finish.inl"

inline __m512i load(const void* p) { return _mm512_loadu_si512(p); }

// Of each output its bytes of four taps, in groups by places.
inline void by_fours(__m512i a, __m512i b, __m512i c, __m512i d, __m512i (&to)[kPairVectors]) {
  const __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b),
                other_low = _mm512_unpacklo_epi8(c, d), other_high = _mm512_unpackhi_epi8(c, d);
  to[0] = _mm512_unpacklo_epi16(low, other_low), to[1] = _mm512_unpackhi_epi16(low, other_low);
  to[2] = _mm512_unpacklo_epi16(high, other_high), to[3] = _mm512_unpackhi_epi16(high, other_high);
}

// `kFours`: a quarter of the taps; 0: any number.
template <int kFours>
void multiply(const PackedDepthwiseSpans& s) {
  const PairFinish finish(s.output);
  const PairFinish::Results results = finish.results();
  const __m512 row_scale = _mm512_set1_ps(*s.output.row_scale);
  const int64_t *const taps = s.taps, fours = kFours ? kFours : s.count / 4;
  const uint8_t* const weight = s.weight;
  const int32_t *const start = s.start, *const center = s.center;
  const __m512i all = _mm512_set1_epi8(1), shift = _mm512_set1_epi32(s.output.shift),
                last = _mm512_set1_epi32(int32_t(0x01010101u >> 8 * (s.count - s.used)));
  for (int64_t row = 0; row < s.rows; ++row)
    for (int64_t i = 0, spans = s.spans; i < spans; ++i) {
      const char* const x = s.x + row * s.x_row + i * s.x_span;
      __m512i sum[kPairVectors], ones[kPairVectors];
      LCS_UNROLL
      for (int v = 0; v < kPairVectors; ++v) sum[v] = ones[v] = _mm512_setzero_si512();
      LCS_UNROLL
      for (int64_t four = 0; four < fours; ++four) {
        __m512i values[kPairVectors];
        const int64_t* const tap = taps + 4 * four;
        by_fours(load(x + tap[0]), load(x + tap[1]), load(x + tap[2]), load(x + tap[3]), values);
        LCS_UNROLL
        for (int v = 0; v < kPairVectors; ++v) {
          sum[v] = _mm512_dpbusd_epi32(sum[v], load(weight + (four * kPairVectors + v) * 64), values[v]);
          ones[v] = _mm512_dpbusd_epi32(ones[v], four + 1 < fours ? all : last, values[v]);
        }
      }
      __m512i whole[kPairVectors];
      LCS_UNROLL
      for (int v = 0; v < kPairVectors; ++v)  // of `ones` the low words
        whole[v] = _mm512_add_epi32(_mm512_sllv_epi32(sum[v], shift),
                                    _mm512_dpwssd_epi32(load(start + 16 * v), load(center + 16 * v), ones[v]));
      finish.put<true>(results, row * s.y_row + i * s.y_span, row_scale, whole);
    }
}

}  // namespace

void packed_depthwise_spans(const PackedDepthwiseSpans& spans) {
  spans.count == 12 ? multiply<3>(spans) : multiply<0>(spans);
}

void packed_depthwise_codes(const uint8_t* planes, int64_t plane_bytes, int bits, int64_t steps, uint8_t* codes) {
  for (int64_t step = 0; step < steps; ++step, planes += kBlockRows, codes += kStepColumns * kBlockRows) {
    __m256i code[kStepColumns];
    LCS_UNROLL
    for (int i = 0; i < kStepColumns; ++i) code[i] = _mm256_setzero_si256();
    for (int p = 0; p < bits; ++p) {
      const __m256i plane = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(planes + p * plane_bytes));
      LCS_UNROLL
      for (int i = 0; i < kStepColumns; ++i) {
        const __m256i bit = _mm256_movm_epi8(_mm256_test_epi8_mask(plane, _mm256_set1_epi8(char(1 << i))));  // 0 or -1
        code[i] = _mm256_sub_epi8(_mm256_add_epi8(code[i], code[i]), bit);
      }
    }
    LCS_UNROLL
    for (int i = 0; i < kStepColumns; ++i)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i * kBlockRows), code[i]);
  }
}

void packed_depthwise_weight(const uint8_t* codes, int64_t taps, uint8_t* weight, int32_t* sums) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum[kPairVectors];
  LCS_UNROLL
  for (int v = 0; v < kPairVectors; ++v) sum[v] = _mm512_setzero_si512();
  for (int64_t tap = 0; tap < taps; tap += 4, codes += 4 * kSpan) {
    __m512i fours[kPairVectors];
    by_fours(load(codes), load(codes + kSpan), load(codes + 2 * kSpan), load(codes + 3 * kSpan), fours);
    LCS_UNROLL
    for (int v = 0; v < kPairVectors; ++v, weight += 64) {
      _mm512_storeu_si512(weight, fours[v]);
      sum[v] = _mm512_dpbusd_epi32(sum[v], fours[v], ones);
    }
  }
  LCS_UNROLL
  for (int v = 0; v < kPairVectors; ++v) _mm512_storeu_si512(sums + 16 * v, sum[v]);
}

}  // namespace lcs::vnni
LCS_TARGET_END
