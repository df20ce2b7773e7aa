#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "max_pool_kernels.h"
#include "target.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"

inline Float largest_of(Float x, Float y) { return x > y || x != x ? x : y; }

// After the lanes it is written in.
#include "max_pool.inl"
}  // namespace

MaxPoolKernels max_pool_kernels() { return {nan, rows, columns}; }

}  // namespace lcs::scalar
