#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "target.h"
#include "width_winograd6_kernels.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"
// After the lanes they are written in.
#include "width_winograd6_floats.inl"
// After how it loads and stores.
#include "width_winograd6.inl"
}  // namespace

WidthWinograd6Kernels width_winograd6_kernels() { return {weights, input, output}; }

}  // namespace lcs::avx2
LCS_TARGET_END
