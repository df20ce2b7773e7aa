#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "packed_gemm_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX512)
namespace lcs::avx512 {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
namespace eight {
#include "lanes_avx2.inl"
}
#include "lanes_avx512.inl"

#include "packed_gemm_512.inl"
#include "packed_gemm_words.inl"
// After the vocabulary it is written in.
#include "packed_gemm.inl"
}  // namespace

PackedGemmKernels packed_gemm_kernels() { return table(); }

}  // namespace lcs::avx512
LCS_TARGET_END
