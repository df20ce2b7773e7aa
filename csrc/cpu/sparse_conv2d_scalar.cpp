#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "sparse_conv2d_kernels.h"

namespace lcs::scalar {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
using namespace single;

constexpr int kSquare = 1, kMaxVectors = 8, kMaxLines = 1;
template <class From, class To>
inline void copy_first(const From* from, int64_t, To* to, int64_t) {
  store(to, rounded<To>(load(from)));
}
template <class From, class To>
inline void transpose(const From* from, int64_t, int64_t, To* to, int64_t, int64_t, int64_t) {
  store(to, rounded<To>(load(from)));
}
template <class From, class To>
inline void stream_square(const From* from, To* to) {
  stream(to, rounded<To>(load(from)));
}
// One lane: no blocks share positions.
constexpr void (*load_lanes)(const LaneCopy&) = nullptr;
constexpr void (*store_lanes)(const LaneCopy&) = nullptr;
constexpr void (*share_lanes)(const LaneShare&) = nullptr;
constexpr void (*normalise_lanes)(const LaneNorm&) = nullptr;
// After the lanes they are written in.
#include "block_copy.inl"
#include "sparse_conv2d.inl"
}  // namespace

SparseConv2dKernels sparse_conv2d_kernels() { return table(); }

}  // namespace lcs::scalar
