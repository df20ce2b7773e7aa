#include <algorithm>
#include <bit>
#include <type_traits>

#include "interpolate_quantize_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"
// After the lanes it is written in.
#include "blend.inl"
// And what blends two ends.
#include "interpolate_quantize.inl"
}  // namespace

InterpolateQuantizeKernels interpolate_quantize_kernels() { return {range, write, groups}; }

}  // namespace lcs::scalar
