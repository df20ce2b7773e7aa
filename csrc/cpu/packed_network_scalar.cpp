#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "keys.h"
#include "lcs/dtype.h"
#include "packed_network_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"

inline Float largest_of(Float x, Float y) { return x > y || x != x ? x : y; }

// After the lanes it is written in.
#include "packed_network.inl"
}  // namespace

PackedNetworkKernels packed_network_kernels() { return {nan, larger, columns}; }

}  // namespace lcs::scalar
