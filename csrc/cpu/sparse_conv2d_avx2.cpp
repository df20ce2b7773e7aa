#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "sparse_conv2d_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
namespace eight {
#include "lanes_avx2.inl"
}
using namespace eight;
#include "transpose_avx2.inl"
constexpr int kMaxVectors = 14, kMaxLines = 2;
// After the lanes they are written in.
#include "block_copy.inl"
#include "masked_avx2.inl"
// After what it loads and stores with.
#include "lane_copy.inl"
#include "lane_norm.inl"
#include "lane_share.inl"
#include "sparse_conv2d.inl"
}  // namespace

SparseConv2dKernels sparse_conv2d_kernels() { return table(); }

}  // namespace lcs::avx2
LCS_TARGET_END
