#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "target.h"
#include "width_depthwise_kernels.h"

namespace lcs::scalar {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
using namespace single;

template <class T>
inline Float evens(const T* p) {
  return load(p);
}

// One lane: no channels share a vector.
constexpr void (*load_lanes)(const LaneCopy&) = nullptr;
constexpr void (*store_lanes)(const LaneCopy&) = nullptr;
namespace channels = single;
// After the lanes they are written in.
#include "width_depthwise_lanes.inl"
// After that.
#include "width_depthwise.inl"
}  // namespace

WidthDepthwiseKernels width_depthwise_kernels() { return table(); }

}  // namespace lcs::scalar
