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

// After the lanes it is written in.
#include "packed_network.inl"
}  // namespace

PackedNetworkKernels packed_network_kernels() { return {sums, dense}; }

}  // namespace lcs::scalar
