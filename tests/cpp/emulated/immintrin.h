#pragma once
// Stands in for the compiler's header: the same intrinsics in portable C, from SIMDe, and those it lacks.
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#include <simde/x86/gfni.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace lcs::emulated {

inline uint32_t tzcnt(uint32_t x) { return uint32_t(std::countr_zero(x)); }
inline uint32_t blsr(uint32_t x) { return x & (x - 1); }

inline void stream(float* to, simde__m512 x) {
  if (reinterpret_cast<uintptr_t>(to) % 64 != 0) std::abort();  // as the instruction would fault
  std::memcpy(to, &x, sizeof x);
}

// Rounded half to even; a NaN turns quiet and keeps the top of its payload.
inline uint16_t half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00 | (size >> 13 & 0x3ff));
  if (size >= 0x47800000) return uint16_t(sign | 0x7c00);
  if (size < 0x33000000) return uint16_t(sign);
  const int exponent = int(size >> 23) - 127, shift = exponent < -14 ? -1 - exponent : 13;
  const uint32_t digits = (size & 0x7fffff) | 0x800000, kept = digits >> shift, rest = digits - (kept << shift);
  const uint32_t rounded = kept + (rest > 1u << (shift - 1) || (rest == 1u << (shift - 1) && (kept & 1)));
  return uint16_t(sign | (exponent < -14 ? rounded : rounded + (uint32_t(exponent + 14) << 10)));
}

inline simde__m256i halves(simde__m512 x) {
  float from[16];
  uint16_t to[16];
  std::memcpy(from, &x, sizeof x);
  for (int i = 0; i < 16; ++i) to[i] = half(from[i]);
  simde__m256i packed;
  std::memcpy(&packed, to, sizeof packed);
  return packed;
}

// SIMDe's reads what the mask leaves out, too.
inline simde__m512i masked_words(uint32_t mask, const void* from) {
  uint16_t words[32] = {};
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) std::memcpy(words + i, static_cast<const char*>(from) + 2 * i, 2);
  simde__m512i x;
  std::memcpy(&x, words, sizeof x);
  return x;
}

inline simde__m512 masked_floats(uint16_t mask, const float* from) {
  float lanes[16] = {};
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) lanes[i] = from[i];
  simde__m512 x;
  std::memcpy(&x, lanes, sizeof x);
  return x;
}

// Likewise its stores write.
template <class T, class Mask, class Vector>
inline void masked_store(T* to, Mask mask, Vector x) {
  T lanes[64 / sizeof(T)];
  std::memcpy(lanes, &x, sizeof x);
  for (size_t i = 0; i < 64 / sizeof(T); ++i)
    if (mask >> i & 1) to[i] = lanes[i];
}

// Rounded half to even, subnormal numbers to 0.
inline simde__m256i bfloat16s(simde__m512 x) {
  uint32_t from[16];
  uint16_t to[16];
  std::memcpy(from, &x, sizeof x);
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = from[i], size = bits & 0x7fffffff;
    const uint32_t kept = size > 0x7f800000 ? bits | 0x400000
                          : size < 0x800000 ? bits & 0x80000000
                                            : bits + 0x7fff + (bits >> 16 & 1);
    to[i] = uint16_t(kept >> 16);
  }
  simde__m256i packed;
  std::memcpy(&packed, to, sizeof packed);
  return packed;
}

inline simde__m512i shifted_right(simde__m512i x, simde__m512i by) {
  int32_t lanes[16];
  uint32_t shift[16];
  std::memcpy(lanes, &x, sizeof x);
  std::memcpy(shift, &by, sizeof by);
  for (int i = 0; i < 16; ++i) lanes[i] >>= std::min(shift[i], 31u);
  std::memcpy(&x, lanes, sizeof x);
  return x;
}

// Masked, which SIMDe's do not read or write in part.
template <class T, class Vector>
Vector masked_eight(unsigned mask, const void* from) {
  T all[8] = {};
  for (int i = 0; i < 8; ++i)
    if (mask >> i & 1) all[i] = static_cast<const T*>(from)[i];
  Vector x;
  std::memcpy(&x, all, sizeof x);
  return x;
}
template <class T, class Vector>
void masked_store_eight(void* to, unsigned mask, Vector x) {
  T all[8];
  std::memcpy(all, &x, sizeof x);
  for (int i = 0; i < 8; ++i)
    if (mask >> i & 1) static_cast<T*>(to)[i] = all[i];
}

// Which bytes share a bit.
inline uint32_t tested(simde__m256i a, simde__m256i b) {
  uint8_t x[32], y[32];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  uint32_t mask = 0;
  for (int i = 0; i < 32; ++i) mask |= uint32_t((x[i] & y[i]) != 0) << i;
  return mask;
}

}  // namespace lcs::emulated

#ifndef _mm256_test_epi8_mask
#define _mm256_test_epi8_mask lcs::emulated::tested
#endif
#ifndef _MM_PERM_DBCA
#define _MM_PERM_DBCA 0xd8
#endif
#ifndef _MM_FROUND_NO_EXC
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps lcs::emulated::masked_floats
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps lcs::emulated::masked_store
#undef _mm512_mask_storeu_epi32
#define _mm512_mask_storeu_epi32 lcs::emulated::masked_store
#undef _mm512_mask_storeu_epi8
#define _mm512_mask_storeu_epi8 lcs::emulated::masked_store
#undef _mm512_maskz_loadu_epi16
#define _mm512_maskz_loadu_epi16 lcs::emulated::masked_words
#undef _mm256_maskz_loadu_ps
#define _mm256_maskz_loadu_ps lcs::emulated::masked_eight<float, __m256>
#undef _mm256_mask_storeu_ps
#define _mm256_mask_storeu_ps lcs::emulated::masked_store_eight<float>
#undef _mm_maskz_loadu_epi16
#define _mm_maskz_loadu_epi16 lcs::emulated::masked_eight<short, __m128i>
#undef _mm_mask_storeu_epi16
#define _mm_mask_storeu_epi16 lcs::emulated::masked_store_eight<short>
#define _mm512_srav_epi32 lcs::emulated::shifted_right
#define _tzcnt_u32 lcs::emulated::tzcnt
#define _blsr_u32 lcs::emulated::blsr
#define _mm512_stream_ps lcs::emulated::stream
#define _mm512_cvtps_ph(x, rounding) lcs::emulated::halves(x)
#define _mm512_cvtneps_pbh lcs::emulated::bfloat16s
// SIMDe's macro shifts `how` without parentheses around it.
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(x, how) simde_mm512_roundscale_ps(x, (how))
