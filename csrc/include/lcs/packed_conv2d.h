#pragma once
#include <cstdint>
#include <optional>

#include "lcs/dtype.h"
#include "lcs/images.h"
#include "lcs/nested_pack.h"
#include "lcs/parallel.h"

namespace lcs {

// Values as quantize() rounds them to 2^bits codes over a range that is given.
struct ActivationRange {
  float low, high;
  int bits;
};

// y = the convolution of x with the weight at `bits` bits, plus bias and residual, then ReLU on request. x is first
// rounded to int8: over `range`, or each image symmetrically, its largest magnitude to 127; sums are exact. An image
// that holds NaN (or, without a range, infinity) becomes NaN. `exact`: x stays float32, and so are the sums.
struct PackedConv2dArgs {
  Images x, y;
  DType dtype;  // of x, y and the residual, but of codes, which are int8 and lie channels last
  Axis vertical, horizontal;
  NestedPrepack weight;  // as `packed_conv2d_layout` lays it out; one scale for all columns of a row
  int bits;
  const float* bias;             // of each row; null: none
  const ActivationRange* range;  // null: of each image its own
  bool relu, exact;
  bool x_codes = false;                      // x holds codes over `range`
  const ActivationRange* y_range = nullptr;  // y holds codes over it, NaN the lowest; null: y is of `dtype`
  const void* residual = nullptr;            // laid out as y; null: none
  const bool* spoilt = nullptr;   // of each image, whether it counts as one that holds NaN; null: those that do
  std::optional<int> winograd{};  // the side of Winograd's tiles, 2 or 4, 0: directly; none: what is fastest
  bool depthwise = false;         // whether the weight is laid out as that of a depthwise convolution
  int8_t* y_codes = nullptr;      // with y_range, laid out as y: codes go here, and y is of `dtype`; null: they are y
  int32_t* largest = nullptr;     // where packed_pool_fits: what PackedPool finishes goes here, and nothing to y
};

// Whether a weight of `out` channels, which read `in` channels of each of `groups`, reads a channel of its own for
// each.
constexpr bool packed_conv2d_depthwise(int64_t out, int64_t in, int64_t groups) {
  return in == 1 && groups > 1 && out == groups;
}

// Its taps are the kernel's, joined in a row of it where channels are few, and its parts the groups; a depthwise one is
// a matrix of channels x taps.
NestedLayout packed_conv2d_layout(int64_t out, int64_t in, int64_t height, int64_t width, int64_t groups);

// Not `exact`: the same bits on every instruction set. `exact`: the order of each sum depends on shapes and instruction
// set alone.
void packed_conv2d(const PackedConv2dArgs& args, const Parallel& parallel);

// The side of the tiles by which it multiplies with Winograd's F(2 x 2, 3 x 3) or F(4 x 4, 3 x 3), 0 where it does not:
// the latter take a dense 3 x 3 weight of an even number of blocks at stride 1, with AVX2 and no more or with AVX-512
// VNNI and without AMX; the former VNNI, 4 bits or fewer, and x over a range at 5 bits or fewer.
int packed_conv2d_winograd(const PackedConv2dArgs& args);

// Twice a sum of so many products, with its offsets, fits 32 bits: of values of 7 bits and a sign, or of any 8 bits.
constexpr int64_t kMaxPackedTerms = 32768, kMaxRangedTerms = 16384;

}  // namespace lcs
