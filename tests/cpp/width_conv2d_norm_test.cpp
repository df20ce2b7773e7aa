// The bits of the convolution, the norm and a loop that pools, one after the other, on every instruction set and for
// every way to split the work; a page that faults lies next to each array.
#include "lcs/width_conv2d_norm.h"

#include "conv_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

struct Case {
  int64_t n, in, height, width, out, groups;  // groups: of the norm
  Axis conv;
  int64_t kernel, stride, padding;  // of the pooling
};

constexpr Case kCases[] = {
    {1, 3, 21, 23, 24, 8, {2, 3, 1, 7}, 3, 2, 1},  // a first layer
    {9, 3, 11, 14, 5, 5, {1, 1, 1, 3}, 2, 2, 0},   // many images
    {90, 2, 4, 5, 6, 2, {1, 1, 1, 3}, 3, 1, 1},    // groups of images
    {2, 4, 6, 5, 1, 1, {1, 0, 1, 1}, 3, 3, 1},     // one channel
    {2, 4, 6, 5, 17, 1, {1, 0, 1, 1}, 1, 1, 0},    // the values themselves
    {2, 3, 5, 5, 9, 3, {1, 0, 1, 3}, 3, 1, 0},     // one window
    {0, 3, 5, 5, 9, 3, {1, 0, 1, 3}, 2, 1, 0},     // no images
};

// NaN is the largest, as it is larger than nothing else.
float largest(const MaxPoolArgs& a, int64_t n, int64_t c, int64_t row, int64_t column) {
  float most = -__builtin_inff();
  for (int64_t i = 0; i < a.vertical.kernel; ++i)
    for (int64_t j = 0; j < a.horizontal.kernel; ++j) {
      const int64_t h = row * a.vertical.stride - a.vertical.padding + i,
                    w = column * a.horizontal.stride - a.horizontal.padding + j;
      if (h < 0 || h >= a.x.height || w < 0 || w >= a.x.width) continue;
      const float x = get(a.x.data, at(a.x, n, c, h, w), a.dtype);
      if (!(x <= most) && most == most) most = x;
    }
  return most;
}

void check(const Case& c, DType dtype, bool last, Guard guard) {
  const int64_t taps = c.conv.kernel * c.conv.kernel, weights = c.out * c.in * taps;
  const int64_t height = output_size(c.conv, c.height), width = output_size(c.conv, c.width);
  const Axis window{c.stride, c.padding, 1, c.kernel};
  const int64_t rows = output_size(window, height), columns = output_size(window, width);
  const int64_t inputs = c.n * c.in * c.height * c.width, outputs = c.n * c.out * height * width,
                pooled = c.n * c.out * rows * columns;
  const size_t each = size_of(dtype);
  const Guarded x(inputs * each, guard), between(outputs * each, guard), residual(outputs * each, guard),
      y(pooled * each, guard), weight(weights * each, guard), scale(c.out * 4, guard),
      statistics(2 * c.n * c.groups * 4, guard), pairs(width_blocks(c.out) * ((c.in + 1) / 2) * taps * 64, guard);
  fill(x, inputs, dtype, uint32_t(inputs));
  fill(residual, outputs, dtype, 5);
  fill(weight, weights, dtype, uint32_t(weights));
  fill(scale, c.out, DType::float32, 3);
  if (inputs > 0) put(x.as(), inputs - 1, dtype, __builtin_nanf(""));
  WidthConv2dNormArgs args{};
  args.conv = {images(x.as(), c.n, c.in, c.height, c.width, last),
               images(between.as(), c.n, c.out, height, width, true),
               dtype,
               c.conv,
               c.conv,
               1,
               {weight.as(), dtype, c.out, c.in, taps},
               nullptr,
               nullptr,
               nullptr,
               nullptr,
               false};
  if (dtype == DType::bfloat16) {
    width_pack_pairs(args.conv.weight, pairs.as<BFloat16>(), serial);
    args.conv.pairs = pairs.as<BFloat16>();
  }
  LineNormArgs& norm = args.norm;
  norm.x = norm.y = between.as();
  norm.residual = residual.as();
  norm.n = c.n, norm.channels = c.out, norm.pixels = height * width, norm.groups = c.groups;
  norm.last = true;
  norm.weight = {scale.as(), nullptr, DType::float32};
  norm.means = statistics.as<float>(), norm.rstds = norm.means + c.n * c.groups;
  norm.eps = 1e-5, norm.relu = guard == Guard::behind, norm.dtype = dtype;
  const MaxPoolArgs pool{args.conv.y, images(y.as(), c.n, c.out, rows, columns, last), window, window, dtype};
  for (const Isa isa : dtype == DType::bfloat16 ? isas(kPairs) : isas()) {
    set_max_isa(isa);
    width_conv2d(args.conv, serial);
    line_norm(norm, serial);
    std::vector<float> wanted(static_cast<size_t>(pooled));
    for (int64_t n = 0; n < c.n; ++n)
      for (int64_t o = 0; o < c.out; ++o)
        for (int64_t row = 0; row < rows; ++row)
          for (int64_t column = 0; column < columns; ++column)
            wanted[size_t(at(pool.y, n, o, row, column))] = largest(pool, n, o, row, column);
    WidthConv2dNormArgs fused = args;
    fused.norm.x = fused.norm.means = fused.norm.rstds = nullptr;
    fused.pool = &pool;
    for (const Parallel& parallel : ways(isa)) {
      std::memset(y.as(), 0xff, size_t(pooled) * each);
      width_conv2d_norm(fused, parallel);
      for (int64_t i = 0; i < pooled; ++i) {
        const float found = get(y.as(), i, dtype);
        CHECK(found == wanted[size_t(i)] || (found != found && wanted[size_t(i)] != wanted[size_t(i)]));
      }
    }
  }
}

}  // namespace

int main() {
  isas(kPairs);
  for (const Case& c : kCases)
    for (const bool last : {false, true})
      for (const Guard guard : kGuards)
        for (const DType dtype : kDTypes) check(c, dtype, last, guard);
}
