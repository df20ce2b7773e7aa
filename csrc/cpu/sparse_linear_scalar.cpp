#include <algorithm>
#include <bit>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "sparse_linear_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"
// After the lanes it is written in.
#include "sparse_linear.inl"
}  // namespace

SparseLinearKernels sparse_linear_kernels() { return {dots}; }

}  // namespace lcs::scalar
