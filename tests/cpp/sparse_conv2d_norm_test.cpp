// The bits of sparse_conv2d and line_norm, one after the other, on every instruction set and for every way to split the
// work; a page that faults lies next to each array.
#include "lcs/sparse_conv2d_norm.h"

#include "conv_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

struct Case {
  int64_t n, in, height, width, out, groups, norm_groups;
  Axis axis;
};

constexpr Case kCases[] = {
    {1, 5, 15, 19, 12, 1, 3, {1, 1, 1, 3}},    // threads share an image
    {9, 3, 7, 7, 9, 1, 9, {1, 1, 1, 3}},       // take images of their own
    {37, 4, 4, 5, 8, 2, 1, {2, 1, 1, 3}},      // or several
    {16, 2, 8, 7, 17, 1, 17, {1, 1, 1, 3}},    // whole vectors of images
    {3, 6, 14, 28, 6, 6, 2, {1, 1, 1, 3}},     // depthwise
    {2, 8, 9, 9, 10, 1, 5, {1, 0, 1, 1}},      // 1 x 1
    {1, 1, 120, 120, 32, 1, 4, {1, 0, 1, 1}},  // large
    {0, 3, 7, 7, 9, 1, 3, {1, 1, 1, 3}},       // no images
};

// n bell-shaped values, which bfloat16 holds.
void fill_normal(const Guarded& to, int64_t n, DType dtype, uint32_t seed) {
  std::mt19937 random(seed);
  for (int64_t i = 0; i < n; ++i)
    put(to.as(), i, dtype, float(int(random() % 8 + random() % 8 + random() % 8) - 10) / 8);
}

void check(const Case& c, DType dtype, bool last, Guard guard) {
  const int64_t taps = c.axis.kernel * c.axis.kernel, columns = c.in / c.groups * taps;
  const int64_t height = output_size(c.axis, c.height), width = output_size(c.axis, c.width);
  const int64_t inputs = c.n * c.in * c.height * c.width, outputs = c.n * c.out * height * width;
  const Weight weight(c.out, columns, 2 * taps, 40, dtype, guard, uint32_t(columns));
  const Guarded x(inputs * size_of(dtype), guard), y(outputs * size_of(dtype), guard),
      residual(outputs * size_of(dtype), guard), bias(c.out * 4, guard), ends(3 * c.out * 4, guard),
      statistics(2 * c.n * c.norm_groups * 4, guard);
  fill_normal(x, inputs, dtype, 1);
  fill_normal(residual, outputs, dtype, 2);
  fill_normal(bias, c.out, DType::float32, 3);
  fill_normal(ends, 3 * c.out, DType::float32, 4);
  SparseConv2dNormArgs args{};
  args.conv = {images(x.as(), c.n, c.in, c.height, c.width, last),
               images(y.as(), c.n, c.out, height, width, last),
               dtype,
               c.axis,
               c.axis,
               c.groups,
               weight.prepack,
               last ? bias.as<float>() : nullptr,
               false};
  LineNormArgs& norm = args.norm;
  norm.x = norm.y = y.as();
  norm.residual = guard == Guard::behind ? residual.as() : nullptr;
  norm.n = c.n, norm.channels = c.out, norm.pixels = height * width, norm.groups = c.norm_groups, norm.last = last;
  norm.weight = {ends.as<float>(), ends.as<float>() + c.out, DType::float32}, norm.alpha = 0.25f;
  norm.bias = {ends.as<float>() + 2 * c.out, nullptr, DType::float32};
  norm.eps = 1e-5, norm.relu = c.n % 2 == 1, norm.dtype = dtype;
  const size_t bytes = size_t(outputs * size_of(dtype));
  for (const Isa isa : isas()) {
    set_max_isa(isa);
    LineNormArgs apart = norm;
    apart.means = statistics.as<float>(), apart.rstds = apart.means + c.n * c.norm_groups;
    sparse_conv2d(args.conv, serial);
    line_norm(apart, serial);
    const std::vector<char> wanted(y.as<char>(), y.as<char>() + bytes);
    for (const Parallel& parallel : ways(isa)) {
      std::memset(y.as(), 0xff, bytes);
      sparse_conv2d_norm(args, parallel);
      CHECK(std::equal(wanted.begin(), wanted.end(), y.as<char>()));
    }
  }
}

}  // namespace

int main() {
  isas();
  for (const Case& c : kCases)
    for (const bool last : {false, true})
      for (const Guard guard : kGuards)
        for (const DType dtype : kDTypes) check(c, dtype, last, guard);
}
