#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "lcs/isa.h"
#include "packed_gemm_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_VNNI)
namespace lcs::vnni {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
namespace eight {
#include "lanes_avx2.inl"
}
#include "lanes_avx512.inl"

#include "packed_gemm_512.inl"

template <int>
inline void add_dot_bytes(Wide& sum, const Wide* w, const Wide* x) {
  sum = _mm512_dpbusd_epi32(sum, *w, *x);
  LCS_OPAQUE(sum);  // see LCS_ADD
}
inline void add_dot_words(Wide& sum, Wide w, Wide x) {
  sum = _mm512_dpwssd_epi32(sum, w, x);
  LCS_OPAQUE(sum);
}
// Four products are added to 32 bits at once, at every width.
Panel panel_of(int) { return Panel::bytes; }
constexpr int64_t chain_of(int) { return 0; }
constexpr int kChainBits = 0, kDeepBits = 0;
constexpr bool kTiles = false;

// After the vocabulary it is written in.
#include "packed_gemm.inl"
// After what it is written in.
#include "packed_gemm_vnni.inl"
#include "packed_pair_finish.inl"
// After what it is written in.
#include "packed_gemm_pair.inl"
// After what it is written in.
#include "packed_gemm_pair_largest.inl"
// After what it is written in.
#include "packed_gemm_winograd_2x2.inl"
// After what it shares with it.
#include "packed_gemm_winograd_4x4.inl"
}  // namespace

PackedGemmKernels packed_gemm_kernels() {
  PackedGemmKernels kernels = table();
  kernels.lookup = nullptr;  // a few rows are multiplied from registers instead
  kernels.multiply_planes = multiply_planes;
  kernels.settle = settle;
  kernels.expand_pair = expand_pair;
  kernels.multiply_pair = multiply_pair;
  kernels.multiply_pair_largest = multiply_pair_largest;
  kernels.finish_pair_largest = finish_pair_largest;
  kernels.winograd_2x2 = {2, 1, 0, 1, bytes::weights, bytes::input, bytes::multiply, [](int) {
                            return starts_two_products() ? WinogradCosts{16, 600, 250} : WinogradCosts{16, 400, 90};
                          }};
  kernels.winograd_4x4 = {
      4, 2, kWinogradChannels, words::kPieces, words::weights, words::input, words::multiply, [](int) {
        return starts_two_products() ? WinogradCosts{72, 2200, 900} : WinogradCosts{72, 1100, 450};
      }};
  return kernels;
}

}  // namespace lcs::vnni
LCS_TARGET_END
