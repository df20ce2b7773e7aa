// Equal to loops over bits and codes, for every way to split the work; a page that faults lies next to each array.
#include "lcs/nested_pack.h"

#include "sparse_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

void fill_codes(const Guarded& codes, int64_t n, int depth) {
  std::mt19937 random(uint32_t(n + depth));
  for (int64_t i = 0; i < n; ++i) codes.as<uint8_t>()[i] = uint8_t(random() % (1u << depth));
}

void check_planes(int64_t n, int depth, Guard guard) {
  const int64_t words = plane_words(n);
  const Guarded codes(size_t(n), guard), planes(size_t(depth * words * 4), guard), top(size_t(n), guard);
  fill_codes(codes, n, depth);
  for (const Parallel& parallel : ways(Isa::avx2)) {
    std::memset(planes.as(), 0xff, size_t(depth * words * 4));
    nested_pack(codes.as<uint8_t>(), n, depth, planes.as<uint32_t>(), parallel);
    for (int p = 0; p < depth; ++p)
      for (int64_t i = 0; i < words * 32; ++i) {
        const int bit = planes.as<uint32_t>()[p * words + i / 32] >> (i % 32) & 1;
        CHECK(bit == (i < n ? codes.as<uint8_t>()[i] >> (depth - 1 - p) & 1 : 0));
      }
    for (int bits = 1; bits <= depth; ++bits) {
      std::memset(top.as(), 0xff, size_t(n));
      nested_codes(planes.as<uint32_t>(), n, bits, top.as<uint8_t>(), parallel);
      for (int64_t i = 0; i < n; ++i) CHECK(top.as<uint8_t>()[i] == codes.as<uint8_t>()[i] >> (depth - bits));
    }
  }
}

// In double, which holds all but the rounding to float32.
void check_values(const NestedLayout& l, bool per_row, int depth, Guard guard) {
  const int64_t n = l.rows * l.columns, scales = (per_row ? l.rows : 1) * l.groups();
  const Guarded codes(size_t(n), guard), w(size_t(n * 4), guard), scale(size_t(scales * 4), guard),
      zero_points(size_t(scales), guard);
  fill_codes(zero_points, scales, depth);
  std::mt19937 random(uint32_t{3});
  for (int64_t i = 0; i < scales; ++i) scale.as<float>()[i] = float(random() % 10000) / 7000;
  const NestedPrepack weight{l, nullptr, scale.as<float>(), zero_points.as<uint8_t>(), per_row, depth};
  for (int bits = 1; bits <= depth; ++bits) {
    const int step = 1 << (depth - bits);
    fill_codes(codes, n, bits);
    for (const Parallel& parallel : ways(Isa::avx2)) {
      std::memset(w.as(), 0xff, size_t(n * 4));
      nested_values(weight, codes.as<uint8_t>(), bits, w.as<float>(), parallel);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = (per_row ? i / l.columns : 0) * l.groups() + i % l.columns / l.segment();
        const double code = codes.as<uint8_t>()[i] * step + (step - 1) / 2.0 - zero_points.as<uint8_t>()[at];
        CHECK(w.as<float>()[i] == float(code * scale.as<float>()[at]));
      }
    }
  }
}

// Where each code's bits lie in what the kernels read.
void check_prepack(const NestedLayout& l, int depth, Guard guard) {
  const int64_t n = l.rows * l.columns, plane = l.plane_bytes(), channels = l.columns / l.taps;
  const Guarded codes(size_t(n), guard), found(size_t(depth * plane), guard);
  fill_codes(codes, n, depth);
  std::vector<uint8_t> wanted(size_t(depth * plane));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = i / l.columns, column = i % l.columns, tap = column % l.taps;
    const int64_t block = row / l.part_rows() * l.part_blocks() + row % l.part_rows() / NestedLayout::kBlock;
    const int64_t segment = l.taps > 1 ? tap / l.joined : column / l.segment();
    const int64_t inside = l.taps > 1 ? tap % l.joined * channels + column / l.taps : column % l.segment();
    const int64_t step = block * l.steps() + segment * l.segment_steps() + inside / NestedLayout::kStep;
    for (int p = 0; p < depth; ++p)
      wanted[size_t(p * plane + step * NestedLayout::kBlock + row % l.part_rows() % NestedLayout::kBlock)] |=
          uint8_t((codes.as<uint8_t>()[i] >> (depth - 1 - p) & 1) << inside % NestedLayout::kStep);
  }
  for (const Parallel& parallel : ways(Isa::avx2)) {
    std::memset(found.as(), 0xff, size_t(depth * plane));
    nested_prepack(l, codes.as<uint8_t>(), depth, found.as<uint8_t>(), parallel);
    CHECK(std::equal(wanted.begin(), wanted.end(), found.as<uint8_t>()));
  }
}

}  // namespace

int main() {
  isas();
  constexpr NestedLayout kMatrices[] = {{1, 1, 1, 1, 1},    {9, 60, 60, 1, 1}, {70, 33, 8, 1, 1},
                                        {33, 37, 16, 1, 1}, {6, 8, 100, 1, 1}, {0, 8, 8, 1, 1}};
  constexpr NestedLayout kTaps[] = {{40, 45, 45, 9, 1}, {72, 18, 18, 9, 2}, {33, 27, 27, 9, 1, 3}, {5, 0, 1, 9, 1}};
  for (const Guard guard : kGuards)
    for (const int depth : {1, 4, 8}) {
      for (const int64_t n : {0, 1, 31, 32, 33, 100, 16384, 49211}) check_planes(n, depth, guard);
      for (const NestedLayout& layout : kMatrices) {
        for (const bool per_row : {false, true}) check_values(layout, per_row, depth, guard);
        check_prepack(layout, depth, guard);
      }
      for (const NestedLayout& layout : kTaps) check_prepack(layout, depth, guard);
    }
}
