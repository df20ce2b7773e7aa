#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "keys.h"
#include "packed_conv2d_kernels.h"
#include "packed_gemm_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
namespace eight {
#include "lanes_avx2.inl"
}
// After the lanes it is written in.
#include "transpose_avx2.inl"

// Codes as 32-bit integers, less their zero point.
class Coder {
 public:
  explicit Coder(const PackedCodes& c)
      : inverse_(_mm256_set1_ps(c.inverse)),
        lowest_(_mm256_set1_ps(float(c.lowest - c.zero))),
        highest_(_mm256_set1_ps(float(c.highest - c.zero))),
        zero_(_mm256_set1_epi16(int16_t(c.zero))),
        nan_(_mm256_setzero_ps()) {}

  __m256i operator()(__m256 x) {
    nan_ = _mm256_or_ps(nan_, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256 value = _mm256_max_ps(_mm256_mul_ps(x, inverse_), lowest_);  // a NaN is taken for the lowest
    return _mm256_cvtps_epi32(_mm256_min_ps(value, highest_));
  }
  // Per 128 bits four of a, b, c and d each, as bytes.
  __m256i bytes(__m256i a, __m256i b, __m256i c, __m256i d) const {
    return _mm256_packs_epi16(_mm256_add_epi16(_mm256_packs_epi32(a, b), zero_),
                              _mm256_add_epi16(_mm256_packs_epi32(c, d), zero_));
  }
  bool nan() const { return _mm256_movemask_ps(nan_) != 0; }

 private:
  __m256 inverse_, lowest_, highest_;
  __m256i zero_;
  __m256 nan_;
};

inline void store_low(int8_t* to, __m128i x, int64_t n) {
  if (n > 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x);
  else
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), x);
}

// Bytes [0, n) of 16.
inline __m128i first_bytes(__m128i x, int64_t n) {
  const __m128i at = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm_and_si128(x, _mm_cmpgt_epi8(_mm_set1_epi8(char(n)), at));
}

constexpr int64_t kAhead = 512;  // bytes

// 8 pixels of up to 16 channels.
template <class T>
void quantize_planes(const PackedPixels& p, Coder& coder, int64_t c0, int64_t i0) {
  const int64_t channels = std::min<int64_t>(16, p.channels - c0), pixels = std::min<int64_t>(8, p.pixels - i0);
  const T* const x = static_cast<const T*>(p.x) + c0 * p.channel_stride + i0 * p.pixel_stride;
  const __m256i turn = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m256i fours[4];  // pixels 0 to 3 and 4 to 7, four channels of each
  for (int64_t k = 0; k < 4; ++k) {
    __m256i codes[4];
    for (int64_t j = 0; j < 4; ++j)
      codes[j] = 4 * k + j < channels ? coder(load_apart(x + (4 * k + j) * p.channel_stride, pixels, p.pixel_stride))
                                      : _mm256_setzero_si256();
    fours[k] = _mm256_shuffle_epi8(coder.bytes(codes[0], codes[1], codes[2], codes[3]), turn);
  }
  const __m256i a = _mm256_unpacklo_epi32(fours[0], fours[1]), b = _mm256_unpackhi_epi32(fours[0], fours[1]),
                c = _mm256_unpacklo_epi32(fours[2], fours[3]), d = _mm256_unpackhi_epi32(fours[2], fours[3]);
  const __m256i all[4] = {_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c), _mm256_unpacklo_epi64(b, d),
                          _mm256_unpackhi_epi64(b, d)};
  for (int64_t i = 0; i < pixels; ++i) {
    __m128i bytes = i < 4 ? _mm256_castsi256_si128(all[i % 4]) : _mm256_extracti128_si256(all[i % 4], 1);
    if (channels < 16) bytes = first_bytes(bytes, channels);
    store_low(p.to + (i0 + i) * p.to_stride + c0, bytes, channels);
  }
}

// All channels of a pixel, which lie next to each other.
template <class T>
void quantize_pixel(const T* x, int64_t channels, Coder& coder, int8_t* to) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) {
    const __m256i bytes = coder.bytes(coder(eight::load(x + c)), coder(eight::load(x + c + 8)),
                                      coder(eight::load(x + c + 16)), coder(eight::load(x + c + 24)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + c), _mm256_permutevar8x32_epi32(bytes, order));
  }
  for (; c < channels; c += 32) {
    __m256i codes[4];
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t left = channels - c - 8 * j;
      codes[j] = left > 0 ? coder(load_first(x + c + 8 * j, std::min<int64_t>(left, 8))) : _mm256_setzero_si256();
    }
    const __m256i bytes = _mm256_permutevar8x32_epi32(coder.bytes(codes[0], codes[1], codes[2], codes[3]), order);
    for (int64_t half = 0; half < 2 && c + 16 * half < channels; ++half) {
      const int64_t n = std::min<int64_t>(16, channels - c - 16 * half);
      __m128i part = half ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
      if (n < 16) part = first_bytes(part, n);
      store_low(to + c + 16 * half, part, n);
    }
  }
}

template <class T>
bool quantize_of(const PackedPixels& p) {
  Coder coder(p.codes);
  if (p.channel_stride == 1) {
    for (int64_t i = 0; i < p.pixels; ++i)
      quantize_pixel(static_cast<const T*>(p.x) + i * p.pixel_stride, p.channels, coder, p.to + i * p.to_stride);
  } else {
    for (int64_t c = 0; c < p.channels; c += 16)
      for (int64_t i = 0; i < p.pixels; i += 8) quantize_planes<T>(p, coder, c, i);
  }
  return coder.nan();
}

bool quantize(const PackedPixels& pixels) {
  return pixels.dtype == DType::bfloat16 ? quantize_of<BFloat16>(pixels) : quantize_of<float>(pixels);
}

// Of the bytes of x, each as if it were 128 more: sums of every eight. Masked ones are 0.
inline __m256i sums_of_eight(const int8_t* x, int64_t n, __m256i last) {
  const __m256i turned = _mm256_set1_epi8(char(0x80)), zero = _mm256_setzero_si256();
  __m256i sum = zero;
  int64_t c = 0;
  for (; c + 32 < n; c += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + c));
    sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_xor_si256(bytes, turned), zero));
  }
  const __m256i bytes = _mm256_maskload_epi32(reinterpret_cast<const int*>(x + c), last);
  return _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_xor_si256(bytes, turned), zero));
}

// Of eight positions of 16 bytes each, which follow each other.
inline void sums_of_sixteen(const int8_t* x, int32_t* to) {
  const __m256i all = _mm256_set1_epi8(-1), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i sum[2];  // of positions 0, 2, 1, 3 and 4, 6, 5, 7
  for (int64_t j = 0; j < 2; ++j) {
    const __m256i a = sums_of_eight(x + 64 * j, 32, all), b = sums_of_eight(x + 64 * j + 32, 32, all);
    sum[j] = _mm256_add_epi64(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
  }
  const __m256 low = _mm256_shuffle_ps(_mm256_castsi256_ps(sum[0]), _mm256_castsi256_ps(sum[1]), 0x88);
  const __m256i eight = _mm256_permutevar8x32_epi32(_mm256_castps_si256(low), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_sub_epi32(eight, _mm256_set1_epi32(128 * 16)));
}

// Of four positions of 24 bytes each, which follow each other: three eights each.
inline void sums_of_twenty_four(const int8_t* x, int32_t* to) {
  const __m256i all = _mm256_set1_epi8(-1);
  const __m256i a = sums_of_eight(x, 32, all), b = sums_of_eight(x + 32, 32, all), c = sums_of_eight(x + 64, 32, all);
  // One of each position, in the order of 0, 1, 2, 3; of 1, 0, 3, 2; and of 2, 3, 0, 1.
  const __m256i ordered = _mm256_blend_epi32(_mm256_blend_epi32(a, b, 0x3c), c, 0xc0),
                swapped = _mm256_blend_epi32(_mm256_blend_epi32(b, a, 0x0c), c, 0x30),
                turned = _mm256_blend_epi32(c, a, 0xf0);
  const __m256i sum = _mm256_add_epi64(_mm256_add_epi64(ordered, _mm256_shuffle_epi32(swapped, 0x4e)),
                                       _mm256_permute4x64_epi64(turned, 0x4e));
  const __m128i four =
      _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(sum, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_sub_epi32(four, _mm_set1_epi32(128 * 24)));
}

// Of four positions at once.
void sums(const int8_t* x, int64_t stride, int64_t n, int64_t count, int32_t* to) {
  for (; n == 16 && stride == 16 && count >= 8; count -= 8, x += 8 * stride, to += 8) sums_of_sixteen(x, to);
  for (; n == 24 && stride == 24 && count >= 4; count -= 4, x += 4 * stride, to += 4) sums_of_twenty_four(x, to);
  const int64_t whole = std::max<int64_t>((n + 31) / 32 * 32, 32);
  const __m256i last =
      _mm256_cmpgt_epi32(_mm256_set1_epi32(int((n - whole + 32) / 4)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m128i turned = _mm_set1_epi32(int32_t(128 * whole));
  for (int64_t i = 0; i < count; i += 4) {
    __m256i sum[4];
    for (int64_t j = 0; j < 4; ++j) sum[j] = sums_of_eight(x + std::min(i + j, count - 1) * stride, n, last);
    const __m256i a = _mm256_add_epi64(_mm256_unpacklo_epi64(sum[0], sum[1]), _mm256_unpackhi_epi64(sum[0], sum[1])),
                  b = _mm256_add_epi64(_mm256_unpacklo_epi64(sum[2], sum[3]), _mm256_unpackhi_epi64(sum[2], sum[3]));
    const __m256i four = _mm256_add_epi64(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    const __m128i of = _mm_sub_epi32(_mm256_castsi256_si128(_mm256_permutevar8x32_epi32(four, order)), turned);
    if (count - i >= 4)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), of);
    else
      _mm_maskstore_epi32(to + i, _mm_cmpgt_epi32(_mm_set1_epi32(int(count - i)), _mm_setr_epi32(0, 1, 2, 3)), of);
  }
}

inline __m256i load_ints(const void* p, int i) { return _mm256_loadu_si256(static_cast<const __m256i*>(p) + i); }

template <bool kInts>
void output_of(const PackedOutput& o) {
  const __m256 floor = _mm256_set1_ps(o.relu ? 0.0f : -__builtin_inff());
  const __m128i shift = _mm_cvtsi32_si128(o.shift);
  __m256 scale[4], bias[4];
  __m256i center[4];
  for (int v = 0; v < 4; ++v) {
    scale[v] = _mm256_loadu_ps(o.scale + 8 * v);
    bias[v] = o.bias ? _mm256_loadu_ps(o.bias + 8 * v) : _mm256_set1_ps(-0.0f);  // which changes nothing
    center[v] = load_ints(o.center, v);
  }
  for (int64_t m = 0; m < o.rows; ++m) {
    const __m256 row_scale = _mm256_set1_ps(o.row_scale[m]);
    const void* const acc = static_cast<const int32_t*>(o.acc) + m * kBlockRows;
    __m256 value[4];
    for (int v = 0; v < 4; ++v) {
      __m256 sum;
      if constexpr (kInts) {
        const __m256i moved = _mm256_mullo_epi32(center[v], _mm256_set1_epi32(o.sums[m]));
        sum = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_sll_epi32(load_ints(acc, v), shift), moved));
      } else {
        sum = _mm256_loadu_ps(static_cast<const float*>(acc) + 8 * v);
      }
      value[v] = _mm256_mul_ps(_mm256_mul_ps(sum, scale[v]), row_scale);
    }
    // From the order of places to that of rows.
    const __m256 rows[4] = {
        _mm256_permute2f128_ps(value[0], value[1], 0x20), _mm256_permute2f128_ps(value[2], value[3], 0x20),
        _mm256_permute2f128_ps(value[0], value[1], 0x31), _mm256_permute2f128_ps(value[2], value[3], 0x31)};
    for (int v = 0; v < 4; ++v) {
      __m256 sum = _mm256_add_ps(rows[v], bias[v]);
      if (o.residual) sum = _mm256_add_ps(sum, _mm256_loadu_ps(o.residual + m * o.residual_stride + 8 * v));
      _mm256_storeu_ps(o.y + m * o.stride + 8 * v, _mm256_max_ps(floor, sum));  // a NaN stays
    }
  }
}

void output(const PackedOutput& o) { o.sums ? output_of<true>(o) : output_of<false>(o); }

}  // namespace

PackedConv2dKernels packed_conv2d_kernels() { return {quantize, sums, output}; }

}  // namespace lcs::avx2
LCS_TARGET_END
