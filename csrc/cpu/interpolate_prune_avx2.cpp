#include <immintrin.h>

#include <type_traits>

#include "interpolate_prune_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_AVX2)
namespace lcs::avx2 {
namespace {
#include "lanes_avx2.inl"
// After the lanes it is written in.
#include "blend.inl"
// And what blends two ends.
#include "interpolate_prune.inl"
}  // namespace

InterpolatePruneKernels interpolate_prune_kernels() { return {keys, classify, inside, backward}; }

}  // namespace lcs::avx2
LCS_TARGET_END
