// Equal to a loop over integers on every instruction set, at every width and for every way to split the work; a page
// that faults lies next to each array. Scales are powers of two and rows hold 127, so that no step rounds.
#include "lcs/packed_linear.h"

#include "sparse_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

constexpr std::initializer_list<Isa> kMore{Isa::avx512_vnni, Isa::amx};

struct Case {
  int64_t rows, in, out, group;
  bool per_row;
};

// A weight of any codes and zero points.
struct Nested {
  NestedLayout layout;
  Guarded codes, planes, scales, zero_points;

  Nested(const Case& c, Guard guard)
      : layout{c.out, c.in, c.group, 1, 1},
        codes(c.out * c.in, guard),
        planes(kPlanes * layout.plane_bytes(), guard),
        scales((c.per_row ? c.out : 1) * layout.groups() * 4, guard),
        zero_points((c.per_row ? c.out : 1) * layout.groups(), guard) {
    std::mt19937 random(uint32_t(c.in * 31 + c.out));
    for (int64_t i = 0; i < c.out * c.in; ++i) codes.as<uint8_t>()[i] = uint8_t(i % 7 == 0 ? 255 : random());
    for (int64_t i = 0; i < (c.per_row ? c.out : 1) * layout.groups(); ++i) {
      scales.as<float>()[i] = 1.0f / float(1 << random() % 3);
      zero_points.as<uint8_t>()[i] = uint8_t(random());
    }
    nested_prepack(layout, codes.as<uint8_t>(), kPlanes, planes.as<uint8_t>(), backwards);
  }

  NestedPrepack prepack(bool per_row) const {
    return {layout, planes.as<uint8_t>(), scales.as<float>(), zero_points.as<uint8_t>(), per_row};
  }
};

float product(const Case& c, const Nested& w, const float* x, int64_t row, int bits) {
  const int64_t groups = w.layout.groups();
  float sum = 0.0f;
  for (int64_t k = 0; k < c.in; ++k) {
    const int64_t at = (c.per_row ? row : 0) * groups + k / w.layout.segment();
    const int doubled = 2 * (w.codes.as<uint8_t>()[row * c.in + k] >> (8 - bits) << (8 - bits)) + (1 << (8 - bits)) -
                        1 - 2 * w.zero_points.as<uint8_t>()[at];
    sum += float(doubled) * w.scales.as<float>()[at] * 0.5f * x[k];
  }
  return sum;
}

void check(const Case& c, Guard guard) {
  const Nested w(c, guard);
  const Guarded x(c.rows * c.in * 4, guard), y(c.rows * c.out * 4, guard), bias(c.out * 4, guard);
  std::mt19937 random(uint32_t(c.rows));
  for (int64_t i = 0; i < c.rows * c.in; ++i)
    x.as<float>()[i] = i % c.in == 0 ? 127.0f : float(int(random() % 255) - 127);
  fill(bias, c.out, DType::float32, 3);
  for (int bits = 2; bits <= 8; ++bits) {
    std::vector<float> wanted;
    for (int64_t i = 0; i < c.rows; ++i)
      for (int64_t o = 0; o < c.out; ++o)
        wanted.push_back(std::max(product(c, w, x.as<float>() + i * c.in, o, bits) + bias.as<float>()[o], 0.0f));
    for (const Isa isa : isas(kMore))
      for (const bool exact : {false, true}) {
        set_max_isa(isa);
        std::memset(y.as(), 0xff, size_t(c.rows * c.out * 4));
        packed_linear(
            {x.as(), y.as(), DType::float32, c.rows, w.prepack(c.per_row), bits, bias.as<float>(), true, exact},
            guard == Guard::behind ? Parallel(fork_join(3)) : Parallel(backwards));
        for (size_t i = 0; i < wanted.size(); ++i) CHECK(y.as<float>()[i] == wanted[i]);
      }
  }
}

}  // namespace

int main() {
  isas(kMore);
  for (const int64_t rows : {1, 2, 3, 4, 17, 131})
    for (const auto& [in, out, group] : {std::tuple{1, 1, 1}, {60, 9, 60}, {33, 70, 8}, {37, 33, 16}, {8, 32, 100}})
      for (const Guard guard : kGuards) check({rows, in, out, group, rows != 2}, guard);
  check({37, 1100, 33, 1100, true}, Guard::behind);
  check({0, 8, 9, 8, true}, Guard::before);
}
