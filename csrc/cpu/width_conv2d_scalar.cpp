#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "width_conv2d_kernels.h"

namespace lcs::scalar {
namespace {
namespace single {
#include "lanes_scalar.inl"
}
using namespace single;

constexpr int kSquare = 1, kTileVectors = 16, kMaxVectors = 16, kTogetherAtMost = 1, kAddresses = 1;
constexpr int pixels_of(int) { return 1; }
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
inline Float term(Float x, Float weight, Float sum) { return fmadd(x, weight, sum); }
inline Float term_of_all(const float& x, Float weight, Float sum) { return fmadd(set1(x), weight, sum); }
template <class T>
inline void put(T* to, Float x) {
  store(to, rounded<T>(x));
}
// After the lanes they are written in.
#include "block_copy.inl"
#include "width_conv2d.inl"
}  // namespace

WidthConv2dKernels width_conv2d_kernels() { return table(); }

}  // namespace lcs::scalar
