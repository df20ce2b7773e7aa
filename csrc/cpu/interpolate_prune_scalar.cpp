#include <algorithm>
#include <bit>
#include <type_traits>

#include "interpolate_prune_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"
// After the lanes it is written in.
#include "blend.inl"
// And what blends two ends.
#include "interpolate_prune.inl"
}  // namespace

InterpolatePruneKernels interpolate_prune_kernels() { return {keys, classify, inside, backward}; }

}  // namespace lcs::scalar
