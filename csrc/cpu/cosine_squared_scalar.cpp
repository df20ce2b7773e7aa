#include <algorithm>
#include <bit>
#include <type_traits>

#include "cosine_squared_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"
// After the lanes it is written in.
#include "cosine_squared.inl"
}  // namespace

CosineSquaredKernels cosine_squared_kernels() { return {sums, backward}; }

}  // namespace lcs::scalar
