// Equal to a loop over dense integers, whose float32 sums are exact, on every instruction set and for every way to
// split the work; a page that faults lies next to each array.
#include "lcs/width_conv2d.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "conv_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

// A weight of full_out x full_in channels, of which `out` and the input's are used.
struct Case {
  int64_t n, in, height, width, out, groups, full_in, full_out;
  Axis vertical, horizontal;
};

constexpr Case kCases[] = {
    {2, 5, 7, 9, 6, 1, 8, 40, {1, 0, 1, 1}, {1, 0, 1, 1}},       // 1 x 1
    {1, 3, 9, 11, 37, 1, 5, 50, {1, 1, 1, 3}, {1, 1, 1, 3}},     // 3 x 3
    {1, 60, 5, 6, 17, 1, 60, 17, {1, 1, 1, 3}, {1, 1, 1, 3}},    // several chunks of terms
    {1, 2, 17, 15, 3, 1, 2, 3, {2, 3, 1, 7}, {2, 3, 1, 7}},      // 7 x 7, strided
    {1, 97, 1, 6, 18, 1, 98, 18, {1, 0, 1, 1}, {1, 42, 1, 85}},  // several chunks of pairs, the last of part of a block
    {1, 64, 1, 70, 33, 1, 64, 64, {1, 0, 1, 1}, {2, 0, 1, 1}},   // whole tiles
    {2, 3, 8, 13, 33, 1, 4, 33, {3, 2, 1, 5}, {2, 0, 2, 3}},     // 5 x 3
    {2, 2, 6, 5, 3, 1, 2, 9, {1, 5, 1, 3}, {3, 4, 1, 3}},        // padding beyond the kernel
    {2, 2, 7, 8, 3, 1, 2, 9, {3, 4, 1, 1}, {2, 5, 1, 1}},        // 1 x 1, strided and padded
    {1, 2, 14, 13, 3, 1, 3, 3, {2, 4, 3, 3}, {3, 1, 2, 4}},      // dilated and strided
    {2, 12, 6, 5, 30, 3, 5, 60, {1, 1, 1, 3}, {1, 1, 1, 3}},     // groups
    {2, 21, 5, 7, 21, 21, 1, 40, {1, 1, 1, 3}, {2, 1, 1, 3}},    // depthwise
    {3, 16, 7, 7, 16, 16, 1, 16, {1, 1, 1, 3}, {1, 1, 1, 3}},    // depthwise, whole blocks of lanes
    {1, 9, 4, 19, 9, 9, 2, 9, {2, 2, 2, 2}, {1, 5, 3, 4}},       // depthwise, lanes of one channel
    {2, 5, 5, 7, 10, 5, 1, 16, {1, 1, 1, 3}, {1, 1, 1, 3}},      // depthwise, two each
    {1, 3, 40, 150, 3, 3, 1, 3, {1, 1, 1, 3}, {1, 1, 1, 3}},     // depthwise, several bands and tiles
    {2, 3, 9, 35, 3, 3, 1, 4, {2, 3, 1, 7}, {2, 2, 1, 5}},       // depthwise, by two columns
    {2, 3, 9, 35, 3, 3, 2, 4, {3, 2, 2, 2}, {3, 4, 2, 4}},       // depthwise, by three, of two inputs
    {9, 4, 1, 1, 5, 1, 4, 5, {1, 1, 1, 3}, {1, 1, 1, 3}},        // one pixel
    {90, 3, 2, 3, 4, 1, 3, 4, {1, 1, 1, 3}, {1, 1, 1, 3}},       // tiny images
    {1, 2, 1, 430, 3, 1, 2, 3, {1, 1, 1, 3}, {1, 1, 1, 3}},      // one row
    {1, 40, 18, 200, 2, 1, 40, 2, {1, 1, 1, 3}, {1, 1, 1, 3}},   // several bands
    {9, 2, 17, 26, 3, 1, 2, 3, {1, 1, 1, 3}, {1, 1, 1, 3}},      // many panels
    {2, 70, 13, 8, 35, 1, 72, 40, {1, 1, 1, 3}, {1, 1, 1, 3}},   // Winograd's tiles of all sizes, several chunks
    {5, 20, 26, 22, 20, 1, 20, 33, {1, 1, 1, 3}, {1, 1, 1, 3}},  // several blocks of them
    {2, 3, 35, 40, 40, 1, 5, 70, {2, 3, 1, 7}, {2, 3, 1, 7}},    // 7 x 7, strided, of many outputs
    {1, 8, 9, 170, 18, 1, 9, 18, {2, 0, 1, 8}, {2, 9, 1, 7}},    // 8 x 7, strided, several blocks of tiles
    {0, 2, 7, 6, 3, 1, 2, 3, {1, 1, 1, 3}, {1, 1, 1, 3}},        // no images
    {2, 0, 7, 6, 3, 1, 2, 3, {1, 1, 1, 3}, {1, 1, 1, 3}},        // no inputs
    {2, 2, 7, 6, 0, 1, 2, 3, {1, 1, 1, 3}, {1, 1, 1, 3}},        // no outputs
    {2, 2, 0, 6, 3, 1, 2, 3, {1, 1, 1, 1}, {1, 1, 1, 1}},        // no pixels
};

std::vector<float> convolved(const Case& c, const WidthConv2dArgs& a) {
  const int64_t columns = c.in / c.groups * a.weight.taps;
  std::vector<double> weights;
  for (int64_t o = 0; o < c.out; ++o)
    for (int64_t k = 0; k < columns; ++k)
      weights.push_back(get(a.weight.data, o * c.full_in * a.weight.taps + k, a.weight.dtype));
  const Padded x(a.x, a.dtype, a.vertical, a.horizontal);
  std::vector<float> found(size_t(count(a.y)));
  convolve(x, weights, a.y, c.in / c.groups, c.groups, a.vertical, a.horizontal, [&](int64_t i, int64_t o, double sum) {
    const float y = float(sum) * (a.scale ? a.scale[o] : 1.0f) + (a.bias ? a.bias[o] : 0.0f);
    found[size_t(i)] = a.relu && y < 0.0f ? 0.0f : std::min(y, a.cap);
  });
  return found;
}

// Sums that bfloat16 does not hold are rounded here as there.
float held(float x, DType dtype) {
  if (dtype == DType::float32) return x;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u);
}

bool strided(const Case& c) {
  const auto is = [](const Axis& axis) {
    return axis.stride == 2 && axis.dilation == 1 && (axis.kernel == 7 || axis.kernel == 8);
  };
  return is(c.vertical) && is(c.horizontal);
}

// Winograd's sums at six points have no exact quotients.
bool near(float found, float wanted, DType dtype) {
  return std::abs(found - wanted) <= 0.25f + (dtype == DType::bfloat16 ? std::abs(wanted) / 128 : 0.0f);
}

// The same with a residual, next to that of the sums alone.
void check_residual(WidthConv2dArgs args, const void* residual, const Parallel& parallel) {
  const int64_t outputs = count(args.y);
  const bool relu = args.relu;
  const float cap = args.cap;
  args.relu = false, args.cap = std::numeric_limits<float>::infinity();
  width_conv2d(args, parallel);
  std::vector<float> wanted;
  for (int64_t i = 0; i < outputs; ++i) {
    const float sum = held(get(args.y.data, i, args.dtype) + get(residual, i, args.dtype), args.dtype);
    wanted.push_back(relu && sum < 0.0f ? 0.0f : std::min(sum, cap));
  }
  std::memset(args.y.data, 0xff, size_t(outputs * size_of(args.dtype)));
  args.relu = relu, args.cap = cap, args.residual = residual;
  width_conv2d(args, parallel);
  for (int64_t i = 0; i < outputs; ++i) CHECK(get(args.y.data, i, args.dtype) == wanted[size_t(i)]);
}

void check(const Case& c, DType dtype, DType weight_dtype, bool last, Guard guard) {
  const int64_t taps = c.vertical.kernel * c.horizontal.kernel, weights = c.full_out * c.full_in * taps;
  const int64_t height = output_size(c.vertical, c.height), width = output_size(c.horizontal, c.width);
  const int64_t inputs = c.n * c.in * c.height * c.width, outputs = c.n * c.out * height * width;
  const int64_t floats = width_blocks(c.full_out) * c.full_in * taps * kWidthBlock;
  const Guarded x(inputs * size_of(dtype), guard), y(outputs * size_of(dtype), guard), bias(c.out * 4, guard),
      residual(outputs * size_of(dtype), guard), weight(weights * size_of(weight_dtype), guard),
      packed(floats * 4, guard),
      pairs(width_blocks(c.full_out) * ((c.full_in + 1) / 2) * taps * kWidthBlock * 4, guard);
  fill(x, inputs, dtype, uint32_t(inputs));
  fill(weight, weights, weight_dtype, uint32_t(weights));
  fill(bias, c.out, DType::float32, 3);
  fill(residual, outputs, dtype, 5);
  WidthConv2dArgs args{images(x.as(), c.n, c.in, c.height, c.width, last),
                       images(y.as(), c.n, c.out, height, width, last),
                       dtype,
                       c.vertical,
                       c.horizontal,
                       c.groups,
                       {weight.as(), weight_dtype, c.full_out, c.full_in, taps},
                       nullptr,
                       nullptr,
                       last ? bias.as<float>() : nullptr,
                       last ? nullptr : bias.as<float>(),
                       guard == Guard::behind};
  if (guard == Guard::behind && !last) args.cap = 6.0f;
  const std::vector<float> wanted = convolved(c, args);
  const auto check_all = [&](const Parallel& parallel) {
    for (const WidthProducts products : {WidthProducts::direct, WidthProducts::winograd, WidthProducts::cheapest}) {
      if (products != WidthProducts::cheapest && taps != 9 && !strided(c)) continue;
      const bool six = strided(c) || (dtype == DType::float32 && taps == 9),
                 exact = products == WidthProducts::direct || !six;
      args.products = products;
      std::memset(y.as(), 0xff, size_t(outputs * size_of(dtype)));
      width_conv2d(args, parallel);
      for (int64_t i = 0; i < outputs; ++i) {
        const float found = get(y.as(), i, dtype);
        CHECK(exact ? found == held(wanted[i], dtype) : near(found, wanted[i], dtype));
      }
    }
    check_residual(args, residual.as(), parallel);
  };
  const bool of_pairs = dtype == DType::bfloat16 && weight_dtype == DType::bfloat16;
  for (const Isa isa : of_pairs ? isas(kPairs) : isas())
    for (const Parallel& parallel : ways(isa))
      for (const float* from : {static_cast<const float*>(nullptr), static_cast<const float*>(packed.as<float>())}) {
        set_max_isa(isa);
        std::memset(packed.as(), 0xff, size_t(floats) * 4);
        if (from) width_pack(args.weight, packed.as<float>(), parallel);
        args.packed = from;
        const bool multiplies_pairs = of_pairs && isa >= Isa::avx512_bf16;
        if (multiplies_pairs) width_pack_pairs(args.weight, pairs.as<BFloat16>(), parallel);
        args.pairs = multiplies_pairs ? pairs.as<BFloat16>() : nullptr;
        check_all(parallel);
      }
}

}  // namespace

int main() {
  isas(kPairs);
  for (const Case& c : kCases)
    for (const bool last : {false, true})
      for (const Guard guard : kGuards) {
        check(c, DType::float32, DType::bfloat16, last, guard);
        check(c, DType::bfloat16, DType::float32, last, guard);
        check(c, DType::bfloat16, DType::bfloat16, last, guard);
      }
}
