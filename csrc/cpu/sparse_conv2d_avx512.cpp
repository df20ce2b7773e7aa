#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "sparse_conv2d_kernels.h"
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
#include "transpose_avx2.inl"
constexpr int kMaxVectors = 15;  // the sums of more gcc keeps in memory
constexpr int kMaxLines = 1;     // two are no faster
// After the lanes they are written in.
#include "block_copy.inl"
#include "masked_avx512.inl"
// After what it loads and stores with.
#include "lane_copy.inl"
#include "lane_norm.inl"
#include "lane_share.inl"
#include "sparse_conv2d.inl"
}  // namespace

SparseConv2dKernels sparse_conv2d_kernels() { return table(); }

}  // namespace lcs::avx512
LCS_TARGET_END
