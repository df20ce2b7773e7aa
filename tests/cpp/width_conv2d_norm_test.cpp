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
  int64_t conv_groups = 1;
};

constexpr Case kCases[] = {
    {1, 3, 21, 23, 24, 8, {2, 3, 1, 7}, 3, 2, 1},      // a first layer
    {9, 3, 11, 14, 5, 5, {1, 1, 1, 3}, 2, 2, 0},       // many images
    {90, 2, 4, 5, 6, 2, {1, 1, 1, 3}, 3, 1, 1},        // groups of images
    {2, 4, 6, 5, 1, 1, {1, 0, 1, 1}, 3, 3, 1},         // one channel
    {2, 4, 6, 5, 17, 1, {1, 0, 1, 1}, 1, 1, 0},        // the values themselves
    {2, 3, 5, 5, 9, 3, {1, 0, 1, 3}, 3, 1, 0},         // one window
    {0, 3, 5, 5, 9, 3, {1, 0, 1, 3}, 2, 1, 0},         // no images
    {2, 21, 9, 11, 21, 3, {1, 1, 1, 3}, 3, 2, 1, 21},  // depthwise
    {9, 6, 12, 14, 6, 2, {2, 1, 1, 3}, 2, 2, 0, 6},    // depthwise, many images
};

bool same(float a, float b) { return a == b || (a != a && b != b); }

// Of integers, whose sums the dtype holds.
void check_convolved(const WidthConv2dArgs& a) {
  std::vector<double> weights;
  for (int64_t i = 0; i < a.weight.out_channels * a.weight.in_channels * a.weight.taps; ++i)
    weights.push_back(get(a.weight.data, i, a.dtype));
  convolve(Padded(a.x, a.dtype, a.vertical, a.horizontal), weights, a.y, a.weight.in_channels, a.groups, a.vertical,
           a.horizontal, [&](int64_t i, int64_t, double sum) { CHECK(same(get(a.y.data, i, a.dtype), float(sum))); });
}

void check(const Case& c, DType dtype, bool last, Guard guard) {
  const int64_t taps = c.conv.kernel * c.conv.kernel, weights = c.out * c.in / c.conv_groups * taps;
  const int64_t height = output_size(c.conv, c.height), width = output_size(c.conv, c.width);
  const Axis window{c.stride, c.padding, 1, c.kernel};
  const int64_t rows = output_size(window, height), columns = output_size(window, width);
  const int64_t inputs = c.n * c.in * c.height * c.width, outputs = c.n * c.out * height * width,
                pooled = c.n * c.out * rows * columns;
  const size_t each = size_of(dtype);
  const Guarded x(inputs * each, guard), between(outputs * each, guard), residual(outputs * each, guard),
      y(pooled * each, guard), weight(weights * each, guard), scale(c.out * 4, guard),
      statistics(2 * c.n * c.groups * 4, guard),
      pairs(width_blocks(c.out) * ((c.in / c.conv_groups + 1) / 2) * taps * 64, guard);
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
               c.conv_groups,
               {weight.as(), dtype, c.out, c.in / c.conv_groups, taps},
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
    if (c.conv_groups > 1) check_convolved(args.conv);
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
      for (int64_t i = 0; i < pooled; ++i) CHECK(same(get(y.as(), i, dtype), wanted[size_t(i)]));
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
