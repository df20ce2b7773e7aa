// Within what float32 may round of the gradient in double, and the same bits for every way to split the work and to lay
// out grad and x, on every instruction set; a page that faults lies next to each array.
#include "lcs/width_gradient.h"

#include <cmath>

#include "conv_case.h"
#include "lcs/width_conv2d.h"

namespace {

using namespace lcs;
using namespace lcs::test;

constexpr int64_t kTaps = 9, kTile = 4;

// Of x and its padding; `out`: channels of grad.
struct Case {
  int64_t n, out, in, height, width, above, left;

  int64_t rows() const { return height + 2 * above - 2; }  // of grad
  int64_t columns() const { return width + 2 * left - 2; }
  int64_t tiles() const { return n * ceil_div(rows(), kTile) * ceil_div(columns(), kTile); }
};

constexpr int64_t kChannels[] = {1, 3, 8, 17, 33, 64, 70};
constexpr int64_t kPaddings[][2] = {{0, 0}, {1, 1}, {2, 2}, {0, 2}};
constexpr int64_t kSizes[][2] = {{1, 1}, {2, 5}, {7, 9}, {13, 4}, {16, 18}};
constexpr Case kCases[] = {
    {1, 5, 9, 45, 50, 1, 1},                             // 156 tiles, summed in several rounds
    {3, 33, 17, 27, 29, 0, 1}, {300, 3, 2, 3, 2, 1, 1},  // a tile each
    {1, 2, 3, 1, 700, 1, 1},                             // one row
    {1, 2, 3, 550, 2, 1, 1},   {1, 1, 2, 35, 60, 2, 2},  // of one channel
    {1, 100, 40, 9, 8, 1, 1},                            // several blocks of grad's channels
    {1, 40, 100, 9, 8, 1, 1},  {2, 5, 6, 4, 7, 5, 3},    // padding beyond the kernel
    {0, 5, 6, 4, 7, 1, 1},                               // no images
    {2, 0, 6, 4, 7, 1, 1},                               // no channels of grad
    {2, 5, 0, 4, 7, 1, 1},                               // no channels of x
    {2, 5, 6, 0, 0, 2, 2},                               // no pixels of x
    {2, 5, 6, 2, 7, 0, 1},                               // none of grad
};

constexpr Case kToX[] = {
    {2, 33, 40, 9, 10, 1, 1}, {1, 70, 17, 13, 8, 0, 2}, {1, 17, 1, 5, 6, 2, 2},
    {3, 1, 48, 4, 3, 1, 0},   {1, 64, 64, 17, 1, 0, 1}, {0, 5, 6, 4, 7, 1, 1},
};

std::vector<float> drawn(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> found;
  for (int64_t i = 0; i < n; ++i) found.push_back(float(int32_t(random())) * 0x1p-31f);
  return found;
}

double most(const std::vector<float>& values) {
  double found = 0.0;
  for (const float value : values) found = std::max(found, double(std::abs(value)));
  return found;
}

// A convolution of x by grad, images being its channels, and channels its images.
std::vector<double> gradient(const Case& c, std::vector<float>& grad, std::vector<float>& x) {
  const int64_t size = c.height * c.width, pixels = c.rows() * c.columns();
  const Images turned{x.data(), c.in, c.n, c.height, c.width, size, c.in * size, c.width, 1};
  const Images to{nullptr, c.in, c.out, 3, 3, kTaps, c.in * kTaps, 3, 1};
  const Axis vertical{1, c.above, 1, c.rows()}, horizontal{1, c.left, 1, c.columns()};
  std::vector<double> weights, found(size_t(c.out * c.in * kTaps));
  for (int64_t o = 0; o < c.out; ++o)
    for (int64_t n = 0; n < c.n; ++n)
      for (int64_t i = 0; i < pixels; ++i) weights.push_back(grad[size_t((n * c.out + o) * pixels + i)]);
  convolve(Padded(turned, DType::float32, vertical, horizontal), weights, to, c.n, 1, vertical, horizontal,
           [&](int64_t i, int64_t, double sum) { found[size_t(i)] = sum; });
  return found;
}

void lay_out(const std::vector<float>& values, const Images& to) {
  const float* from = values.data();
  for (int64_t n = 0; n < to.n; ++n)
    for (int64_t c = 0; c < to.channels; ++c)
      for (int64_t h = 0; h < to.height; ++h)
        for (int64_t w = 0; w < to.width; ++w) static_cast<float*>(to.data)[at(to, n, c, h, w)] = *from++;
}

// An element is rounded at most 10 times in A g A^T, with its constants, and 6 in B^T d B, a product at most once and
// as often as there are tiles, a sum 8 times in G^T m G: each by 2^-24 of the magnitudes, of which |A|, |B| and |G|
// make 1250 max |grad| max |x| of a tile at most.
double bound(double tiles, double grad, double x) {
  const double second_order = 1 + 0x1p-10;
  return (tiles + 30) * 1250 * tiles * 0x1p-24 * grad * x * second_order;
}

// On the instruction set in use.
void check(const Case& c, const std::vector<float>& grad_values, const std::vector<float>& x_values,
           const std::vector<double>& wanted, int64_t tiles, Isa isa) {
  const double limit = bound(double(tiles), most(grad_values), most(x_values));
  const size_t bytes = wanted.size() * 4;
  std::vector<float> first;
  for (const Guard guard : kGuards)
    for (const bool grad_last : {false, true})
      for (const bool x_last : {false, true}) {
        const Guarded grad(grad_values.size() * 4, guard), x(x_values.size() * 4, guard), to(bytes, guard);
        const WidthGradientArgs args{images(grad.as(), c.n, c.out, c.rows(), c.columns(), grad_last),
                                     images(x.as(), c.n, c.in, c.height, c.width, x_last), c.above, c.left,
                                     to.as<float>()};
        lay_out(grad_values, args.grad);
        lay_out(x_values, args.x);
        for (const Parallel& parallel : ways(isa)) {
          std::memset(to.as(), 0xff, bytes);
          width_gradient(args, parallel);
          if (first.empty()) {
            first.assign(args.to, args.to + wanted.size());
            for (size_t i = 0; i < wanted.size(); ++i) CHECK(std::abs(first[i] - wanted[i]) <= limit);
          }
          CHECK(bytes == 0 || std::memcmp(args.to, first.data(), bytes) == 0);
        }
      }
}

void check(const Case& c, std::vector<float>& grad, int64_t tiles) {
  std::vector<float> x = drawn(c.n * c.in * c.height * c.width, 2);
  const std::vector<double> wanted = gradient(c, grad, x);
  for (const Isa isa : isas()) {
    set_max_isa(isa);
    check(c, grad, x, wanted, tiles, isa);
  }
}

void check(const Case& c) {
  std::vector<float> grad = drawn(c.n * c.out * c.rows() * c.columns(), 1);
  check(c, grad, c.tiles());
}

// With a gradient at the tile of one pixel alone, to which the bound of a tile applies.
void check_tile(const Case& c, int64_t image, int64_t row, int64_t column) {
  std::vector<float> grad = drawn(c.n * c.out * c.rows() * c.columns(), 1);
  for (int64_t i = 0; i < int64_t(grad.size()); ++i) {
    const int64_t at = i / c.columns() % c.rows(), n = i / (c.columns() * c.rows() * c.out);
    const bool inside = n == image && at / kTile == row / kTile && i % c.columns() / kTile == column / kTile;
    grad[size_t(i)] = inside ? grad[size_t(i)] : 0.0f;
  }
  check(c, grad, 1);
}

// That to x: the bits of a convolution of grad with the turned weight.
void check_to_x(const Case& c) {
  const int64_t height = c.height, width = c.width, weights = c.out * c.in * kTaps;
  std::vector<float> grad_values = drawn(c.n * c.out * c.rows() * c.columns(), 3), weight = drawn(weights, 4),
                     turned(weight.size());
  for (int64_t o = 0; o < c.out; ++o)
    for (int64_t i = 0; i < c.in; ++i)
      for (int64_t k = 0; k < kTaps; ++k)
        turned[size_t((i * c.out + o) * kTaps + kTaps - 1 - k)] = weight[size_t((o * c.in + i) * kTaps + k)];
  const WidthWeight whole{turned.data(), DType::float32, c.in, c.out, kTaps};
  std::vector<float> lines(size_t(width_blocks(c.in) * kWidthBlock * c.out * kTaps + 16));
  float* const packed = lines.data() + (64 - reinterpret_cast<uintptr_t>(lines.data()) % 64) % 64 / 4;
  for (const Isa isa : isas()) {
    set_max_isa(isa);
    width_pack(whole, packed, serial);
    for (const Guard guard : kGuards)
      for (const bool last : {false, true}) {
        const size_t bytes = size_t(c.n * c.in * height * width) * 4;
        const Guarded grad(grad_values.size() * 4, guard), from(weight.size() * 4, guard), to(bytes, guard);
        std::vector<float> wanted(bytes / 4);
        const Images gradients = images(grad.as(), c.n, c.out, c.rows(), c.columns(), last),
                     expected = images(wanted.data(), c.n, c.in, height, width, last);
        lay_out(grad_values, gradients);
        std::memcpy(from.as(), weight.data(), weight.size() * 4);
        width_conv2d({gradients, expected, DType::float32, Axis{1, 2 - c.above, 1, 3}, Axis{1, 2 - c.left, 1, 3}, 1,
                      whole, packed, nullptr, nullptr, nullptr, false},
                     serial);
        for (const Parallel& parallel : ways(isa)) {
          std::memset(to.as(), 0xff, bytes);
          width_input_gradient(
              {gradients, images(to.as(), c.n, c.in, height, width, last), c.above, c.left, from.as<float>()},
              parallel);
          CHECK(bytes == 0 || std::memcmp(to.as(), wanted.data(), bytes) == 0);
        }
      }
  }
}

}  // namespace

int main() {
  isas();
  for (const Case& c : kToX) check_to_x(c);
  for (const Case& c : kCases) {
    check(c);
    if (c.tiles() < 2) continue;
    check_tile(c, 0, 0, 0);
    check_tile(c, c.n / 2, c.rows() / 2, c.columns() / 2);
    check_tile(c, c.n - 1, c.rows() - 1, c.columns() - 1);
  }
  check({1, 830, 650, 2, 3, 1, 1});  // whose sums are made of some channels of grad after others
  for (const int64_t out : kChannels)
    for (const int64_t in : kChannels) check({1, out, in, 7, 9, 1, 1});
  size_t draw = 0;
  for (const auto& [height, width] : kSizes)
    for (const auto& [above, left] : kPaddings)
      for (const int64_t n : {1, 3}) {
        const Case c{n, kChannels[draw % 7], kChannels[(draw * 3 + 1) % 7], height, width, above, left};
        if (c.rows() > 0 && c.columns() > 0) check(c);
        ++draw;
      }
}
