// Equal to a loop over integers on every instruction set, at every width and for every way to split the work; a page
// that faults lies next to each array. Scales are powers of two, and images hold 127 or a range has whole steps, so
// that no step rounds.
#include "lcs/packed_conv2d.h"

#include "conv_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

constexpr std::initializer_list<Isa> kMore{Isa::avx512_vnni, Isa::amx};

struct Case {
  int64_t n, in, height, width, out, groups;
  Axis vertical, horizontal;
};

constexpr Case kCases[] = {
    {2, 5, 7, 9, 6, 1, {1, 0, 1, 1}, {1, 0, 1, 1}},        // 1 x 1
    {2, 9, 7, 9, 6, 1, {2, 0, 1, 1}, {2, 0, 1, 1}},        // 1 x 1, strided
    {2, 4, 7, 8, 3, 1, {3, 4, 1, 1}, {2, 5, 1, 1}},        // and padded
    {1, 17, 9, 11, 37, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},     // 3 x 3
    {1, 2, 17, 15, 3, 1, {2, 3, 1, 7}, {2, 3, 1, 7}},      // 7 x 7, strided
    {2, 3, 8, 13, 33, 1, {3, 2, 1, 5}, {2, 0, 2, 3}},      // 5 x 3
    {2, 2, 6, 5, 3, 1, {1, 5, 1, 3}, {3, 4, 1, 3}},        // padding beyond the kernel
    {1, 2, 14, 13, 3, 1, {2, 4, 3, 3}, {3, 1, 2, 4}},      // dilated and strided
    {2, 12, 6, 5, 30, 3, {1, 1, 1, 3}, {1, 1, 1, 3}},      // groups
    {2, 5, 5, 7, 10, 5, {1, 1, 1, 3}, {1, 1, 1, 3}},       // depthwise, two each
    {2, 45, 9, 12, 45, 45, {2, 1, 1, 3}, {1, 2, 2, 3}},    // and one
    {1, 8, 6, 135, 8, 8, {1, 2, 1, 5}, {1, 2, 1, 4}},      // of many columns
    {2, 48, 5, 7, 48, 48, {1, 1, 1, 3}, {1, 1, 1, 3}},     // spans over positions
    {1, 144, 4, 9, 144, 144, {2, 1, 1, 3}, {1, 2, 1, 5}},  // and of many phases
    {2, 200, 5, 6, 200, 200, {1, 1, 1, 3}, {2, 1, 1, 3}},  // in spans of a position
    {3, 10, 7, 6, 70, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},      // two blocks and a part of one
    {2, 18, 6, 5, 130, 2, {2, 1, 1, 3}, {1, 1, 1, 3}},     // the same, in groups
    {9, 24, 1, 1, 5, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},       // one pixel
    {90, 3, 2, 3, 4, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},       // tiny images
    {3, 65, 80, 150, 2, 1, {4, 1, 1, 3}, {4, 1, 1, 3}},    // more than are quantised at once
    {0, 2, 7, 6, 3, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},        // no images
    {2, 0, 7, 6, 3, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},        // no inputs
    {2, 2, 7, 6, 0, 1, {1, 1, 1, 3}, {1, 1, 1, 3}},        // no outputs
    {2, 2, 0, 6, 3, 1, {1, 1, 1, 1}, {1, 1, 1, 1}},        // no pixels
};

// What x becomes: itself; or, over this range, at half a unit a step, at most the range's ends.
constexpr ActivationRange kRange{-60.0f, 67.5f, 8};

// Weights at every width, in units of a quarter.
struct Dense {
  const Case& c;
  NestedLayout layout;
  Guarded codes, planes, scales, zero_points;

  Dense(const Case& c, bool per_row, Guard guard)
      : c(c),
        layout(packed_conv2d_layout(c.out, c.in / c.groups, c.vertical.kernel, c.horizontal.kernel, c.groups)),
        codes(c.out * layout.columns, guard),
        planes(kPlanes * layout.plane_bytes(), guard),
        scales((per_row ? c.out : 1) * 4, guard),
        zero_points(per_row ? c.out : 1, guard) {
    std::mt19937 random(uint32_t(c.in * 31 + c.out));
    for (int64_t i = 0; i < c.out * layout.columns; ++i) codes.as<uint8_t>()[i] = uint8_t(i % 7 ? random() : 255);
    for (int64_t i = 0; i < (per_row ? c.out : 1); ++i) {
      scales.as<float>()[i] = 1.0f / float(1 << random() % 2);
      zero_points.as<uint8_t>()[i] = uint8_t(random());
    }
    nested_prepack(layout, codes.as<uint8_t>(), kPlanes, planes.as<uint8_t>(), backwards);
  }

  float value(int64_t row, int64_t column, int bits, bool per_row) const {
    const int code = codes.as<uint8_t>()[row * layout.columns + column] >> (8 - bits) << (8 - bits);
    const int doubled = 2 * code + (1 << (8 - bits)) - 1 - 2 * zero_points.as<uint8_t>()[per_row ? row : 0];
    return float(doubled) * 0.5f * scales.as<float>()[per_row ? row : 0];
  }
};

std::vector<float> convolved(const Dense& w, const PackedConv2dArgs& a) {
  const Case& c = w.c;
  std::vector<double> weights;
  for (int64_t o = 0; o < c.out; ++o)
    for (int64_t k = 0; k < w.layout.columns; ++k) weights.push_back(w.value(o, k, a.bits, a.weight.per_row));
  const float limits[] = {a.range ? a.range->low : 0.0f, a.range ? a.range->high : 0.0f};
  const Padded x(a.x, a.dtype, a.vertical, a.horizontal, a.range ? limits : nullptr);
  std::vector<float> found(size_t(count(a.y)));
  convolve(x, weights, a.y, c.in / c.groups, c.groups, a.vertical, a.horizontal, [&](int64_t i, int64_t o, double sum) {
    const float y = float(sum) + (a.bias ? a.bias[o] : 0.0f);
    found[size_t(i)] = a.relu && y < 0.0f ? 0.0f : y;
  });
  return found;
}

void check(const Case& c, bool last, Guard guard) {
  const bool per_row = guard == Guard::behind;
  const Dense w(c, per_row, guard);
  const int64_t height = output_size(c.vertical, c.height), width = output_size(c.horizontal, c.width);
  const int64_t inputs = c.n * c.in * c.height * c.width, outputs = c.n * c.out * height * width;
  const Guarded x(size_t(inputs * 4), guard), y(size_t(outputs * 4), guard), bias(size_t(c.out * 4), guard);
  std::mt19937 random{uint32_t(inputs)};
  for (int64_t i = 0; i < inputs; ++i)
    x.as<float>()[i] = i % (c.in * c.height * c.width) == 0 ? 127.0f : float(int(random() % 255) - 127);
  fill(bias, c.out, DType::float32, 3);
  for (int bits = 2; bits <= 8; bits += inputs > 1 << 20 ? 5 : 1) {
    if (kOnlyThreads && bits % 2 == 0) continue;
    for (const ActivationRange* range : {static_cast<const ActivationRange*>(nullptr), &kRange}) {
      PackedConv2dArgs args{
          images(x.as(), c.n, c.in, c.height, c.width, last),
          images(y.as(), c.n, c.out, height, width, last),
          DType::float32,
          c.vertical,
          c.horizontal,
          {w.layout, w.planes.as<uint8_t>(), w.scales.as<float>(), w.zero_points.as<uint8_t>(), per_row},
          bits,
          last ? bias.as<float>() : nullptr,
          range,
          !last,
          false};
      args.depthwise = packed_conv2d_depthwise(c.out, c.in / c.groups, c.groups);
      const std::vector<float> wanted = convolved(w, args);
      for (const Isa isa : isas(kMore))
        for (const bool exact : {false, true}) {
          if (exact && range) continue;
          set_max_isa(isa);
          args.exact = exact;
          std::memset(y.as(), 0xff, size_t(outputs * 4));
          packed_conv2d(args, bits % 2 ? Parallel(fork_join(3)) : Parallel(backwards));
          for (int64_t i = 0; i < outputs; ++i) CHECK(y.as<float>()[i] == wanted[size_t(i)]);
        }
    }
  }
}

constexpr Axis padded(int64_t padding) { return {1, padding, 1, 3}; }

// Of 3 x 3 kernels by Winograd's products: of one pixel to several bands of tiles, and more channels than at once.
constexpr Case kWinograd[] = {
    {2, 9, 1, 1, 64, 1, padded(1), padded(1)},    {3, 8, 3, 4, 33, 1, padded(0), padded(2)},
    {2, 17, 7, 9, 40, 1, padded(1), padded(1)},   {1, 72, 6, 7, 100, 1, padded(2), padded(0)},
    {3, 16, 12, 14, 64, 1, padded(1), padded(1)}, {1, 12, 4, 71, 128, 1, padded(1), padded(1)},
    {1, 66, 9, 16, 33, 1, padded(1), padded(1)},  {1, 300, 5, 9, 100, 1, padded(1), padded(1)}};

// Those that it doesn't fit: one block, three blocks, strided, dilated, in groups, of few channels, 3 x 1.
constexpr Case kOthers[] = {
    {1, 64, 20, 20, 32, 1, padded(1), padded(1)},    {1, 64, 20, 20, 96, 1, padded(1), padded(1)},
    {1, 64, 20, 20, 64, 1, {2, 1, 1, 3}, padded(1)}, {1, 64, 20, 20, 64, 1, padded(1), {1, 1, 2, 3}},
    {1, 128, 20, 20, 128, 2, padded(1), padded(1)},  {1, 7, 20, 20, 64, 1, padded(1), padded(1)},
    {1, 64, 20, 20, 64, 1, padded(1), {1, 0, 1, 1}}};

// In steps of 1: of few bits, which fit the smaller tiles; and of many.
constexpr ActivationRange kFew[] = {{-7.0f, 8.0f, 4},  {0.0f, 15.0f, 4}, {-15.0f, 0.0f, 4}, {-14.0f, 17.0f, 5},
                                    {-31.0f, 0.0f, 5}, {-3.0f, 4.0f, 3}, {0.0f, 3.0f, 2}};
constexpr ActivationRange kMany[] = {{-100.0f, 155.0f, 8}, {0.0f, 255.0f, 8}, {-255.0f, 0.0f, 8}, {-20.0f, 43.0f, 6}};

PackedConv2dArgs winograd_args(const Dense& w, void* x, void* y, bool last, int bits, const ActivationRange* range) {
  const Case& c = w.c;
  const int64_t height = output_size(c.vertical, c.height), width = output_size(c.horizontal, c.width);
  PackedConv2dArgs args{images(x, c.n, c.in, c.height, c.width, last),
                        images(y, c.n, c.out, height, width, last),
                        DType::float32,
                        c.vertical,
                        c.horizontal,
                        {w.layout, w.planes.as<uint8_t>(), w.scales.as<float>(), w.zero_points.as<uint8_t>(), true},
                        bits,
                        nullptr,
                        range,
                        last,
                        false};
  return args;
}

bool has_winograd(Isa isa, int side) {
  return isa == Isa::avx512_vnni || isa == Isa::avx512_bf16 || (isa == Isa::avx2 && side == 4);
}

// At a width and over a range, or that of each image, by the tiles that fit; on `others` too, which have none.
void check_products(const Dense& w, PackedConv2dArgs args, std::initializer_list<int> sides, bool others) {
  if (kOnlyThreads && args.bits % 2 == 0) return;
  const size_t outputs = size_t(count(args.y));
  const std::vector<float> wanted = convolved(w, args);
  for (const Isa isa : isas(kMore))
    for (const int side : sides) {
      if (!has_winograd(isa, side) && !(others && side == *sides.begin())) continue;
      set_max_isa(isa);
      args.winograd = side;
      CHECK(packed_conv2d_winograd(args) == (has_winograd(isa, side) ? side : 0));
      std::memset(args.y.data, 0xff, outputs * 4);
      packed_conv2d(args, args.bits % 2 ? Parallel(fork_join(3)) : Parallel(backwards));
      for (size_t i = 0; i < outputs; ++i) CHECK(static_cast<float*>(args.y.data)[i] == wanted[i]);
      args.winograd = 0;
      CHECK(packed_conv2d_winograd(args) == 0);
    }
}

void check_winograd(const Case& c, bool last, Guard guard) {
  const Dense w(c, true, guard);
  const int64_t inputs = c.n * c.in * c.height * c.width;
  const int64_t outputs = c.n * c.out * output_size(c.vertical, c.height) * output_size(c.horizontal, c.width);
  const Guarded x(size_t(inputs * 4), guard), y(size_t(outputs * 4), guard);
  const auto fill = [&](int most) {
    std::mt19937 random{uint32_t(inputs)};
    for (int64_t i = 0; i < inputs; ++i) x.as<float>()[i] = float(int(random() % uint32_t(2 * most + 1)) - most);
    for (int64_t i = 0; i < c.n; ++i) x.as<float>()[i * inputs / c.n] = float(most);
  };
  fill(40);
  for (int bits = kOnlyThreads ? 3 : 2; bits <= 4; bits += kOnlyThreads ? 2 : 1)
    for (const ActivationRange& range : kFew) {
      const PackedConv2dArgs args = winograd_args(w, x.as(), y.as(), last, bits, &range);
      &range == kFew ? check_products(w, args, {2, 4}, true) : check_products(w, args, {2}, false);
    }
  fill(300);
  for (const ActivationRange& range : kMany)
    check_products(w, winograd_args(w, x.as(), y.as(), last, &range == kMany ? 8 : 5, &range), {4}, &range == kMany);
  fill(127);
  for (const int bits : {8, 3}) check_products(w, winograd_args(w, x.as(), y.as(), last, bits, nullptr), {4}, false);
}

// Codes and values at their ends, in patterns that the transforms add up, of as many channels as are summed at once.
void check_ends() {
  if (kOnlyThreads) return;
  const Case c{1, 256, 6, 7, 64, 1, padded(1), padded(1)};
  const Dense w(c, true, Guard::behind);
  const Guarded x(size_t(256 * 42 * 4), Guard::behind), y(size_t(64 * 42 * 4), Guard::behind);
  for (int64_t row = 0; row < 64; ++row) {
    w.zero_points.as<uint8_t>()[row] = row % 2 ? 255 : 0;
    for (int64_t i = 0; i < w.layout.columns; ++i) {
      const int64_t tap = i % 9, flip = row % 3 == 0 ? 0 : row % 3 == 1 ? tap % 2 : tap / 3 % 2;
      w.codes.as<uint8_t>()[row * w.layout.columns + i] = (row / 3 + flip) % 2 ? 255 : 0;
    }
  }
  nested_prepack(w.layout, w.codes.as<uint8_t>(), kPlanes, w.planes.as<uint8_t>(), backwards);
  for (const ActivationRange* range : {kMany, kMany + 2})
    for (int pattern = 0; pattern < 4; ++pattern)
      for (const int sign : {1, -1}) {
        for (int64_t i = 0; i < 256 * 42; ++i) {
          const int64_t row = i / 7 % 6, column = i % 7;
          const bool flip = (pattern & 1 && row % 2) != (pattern & 2 && column % 2);
          x.as<float>()[i] = float(flip ? -300 * sign : 300 * sign);
        }
        check_products(w, winograd_args(w, x.as(), y.as(), false, 8, range), {4}, false);
      }
}

// Which products are taken: Winograd's where they fit and there are tiles enough to pay for the weight.
void check_choice() {
  const auto taken = [](const Case& c, int bits, const ActivationRange* range, std::optional<int> asked) {
    const Dense w(c, true, Guard::behind);
    PackedConv2dArgs args = winograd_args(w, nullptr, nullptr, true, bits, range);
    args.winograd = asked;
    return packed_conv2d_winograd(args);
  };
  const Case images{16, 64, 56, 56, 64, 1, padded(1), padded(1)}, pixel{1, 64, 1, 1, 64, 1, padded(1), padded(1)};
  constexpr ActivationRange many{-31.0f, 32.0f, 6};
  for (const Isa isa : isas(kMore)) {
    set_max_isa(isa);
    const auto side = [&](int wanted) { return has_winograd(isa, wanted) ? wanted : 0; };
    CHECK(taken(images, 4, kFew, {}) == (side(2) ? 2 : side(4)) && taken(images, 4, &many, {}) == side(4));
    CHECK(taken(images, 5, kFew, {}) == side(4) && taken(images, 8, nullptr, {}) == side(4));
    CHECK(!taken(images, 5, kFew, 2) && !taken(images, 4, &many, 2) && !taken(images, 4, nullptr, 2));
    CHECK(!taken(pixel, 4, kFew, {}) && taken(pixel, 4, kFew, 2) == side(2) && taken(pixel, 4, kFew, 4) == side(4));
    for (const Case& c : kOthers)
      for (const int asked : {2, 4}) CHECK(!taken(c, 4, kFew, asked));
  }
}

}  // namespace

int main() {
  isas(kMore);
  check_choice();
  check_ends();
  for (const Case& c : kWinograd)
    for (const bool last : {false, true})
      for (const Guard guard : kGuards) check_winograd(c, last, guard);
  for (const Case& c : kCases)
    for (const bool last : {false, true})
      for (const Guard guard : kGuards) check(c, last, guard);
}
