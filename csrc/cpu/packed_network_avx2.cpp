#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "packed_network_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"

// After the lanes it is written in.
#include "packed_network.inl"
}  // namespace

PackedNetworkKernels packed_network_kernels() { return {sums, dense}; }

}  // namespace lcs::avx2
LCS_TARGET_END
