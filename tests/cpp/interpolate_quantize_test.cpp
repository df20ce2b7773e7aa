// interpolate_quantize and quantize: every instruction set equals scalar bit for bit and every way to split the work
// equals serial; scalar equals the definition; a page that faults lies next to each buffer.
#include "lcs/interpolate_quantize.h"

#include <algorithm>
#include <cmath>

#include "lcs/quantize.h"
#include "prune_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

struct Case {
  int64_t rows, columns, group;
  DType in, out;
  Guard guard;
  Kind kind;
  bool line, nested;
  int64_t bits;
  int64_t n() const { return rows * columns; }
};

// The results' bits, every NaN the same: which of two NaNs a product takes is up to the compiler.
std::vector<uint32_t> bits_of(const Guarded& memory, int64_t n, DType dtype) {
  std::vector<uint32_t> bits(n);
  const uint32_t infinity = dtype == DType::float32 ? 0x7f800000 : dtype == DType::bfloat16 ? 0x7f80 : 0x7c00;
  const uint32_t magnitude = dtype == DType::float32 ? 0x7fffffff : 0x7fff;
  const uint32_t* const words = memory.as<uint32_t>();
  const uint16_t* const halves = memory.as<uint16_t>();
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t found = dtype == DType::float32 ? words[i] : halves[i];
    bits[i] = (found & magnitude) > infinity ? infinity + 1 : found;
  }
  return bits;
}

class Line {
 public:
  explicit Line(const Case& c)
      : case_(c),
        w0_(c.n() * size_of(c.in), c.guard),
        w1_(c.n() * size_of(c.in), c.guard),
        w_(c.n() * size_of(c.out), c.guard) {
    fill(w0_.as(), c.n(), c.in, c.kind, 1);
    fill(w1_.as(), c.n(), c.in, c.kind, 2);
  }

  std::vector<uint32_t> run(Isa isa, const Parallel& parallel) const {
    const Case& c = case_;
    set_max_isa(isa);
    interpolate_quantize({w0_.as(), c.line ? w1_.as() : nullptr, w_.as(), c.rows, c.columns, c.group, 0.3f, c.bits,
                          c.nested, c.in, c.out},
                         parallel);
    return bits_of(w_, c.n(), c.out);
  }

  // By groups in float64, but for the two products that the definition rounds to float32.
  void check_definition() const {
    const float *w0 = w0_.as<float>(), *w1 = w1_.as<float>();
    for (int64_t row = 0; row < case_.rows; ++row)
      for (int64_t begin = 0; begin < case_.columns; begin += case_.group) {
        const int64_t at = row * case_.columns + begin, size = std::min(case_.group, case_.columns - begin);
        std::vector<float> x(size);
        for (int64_t i = 0; i < size; ++i) x[i] = case_.line ? (1 - 0.3f) * w0[at + i] + 0.3f * w1[at + i] : w0[at + i];
        check_group(x, w_.as<float>() + at);
      }
  }

 private:
  void check_group(const std::vector<float>& x, const float* w) const {
    const double low = std::min(0.0f, *std::min_element(x.begin(), x.end()));
    const double high = std::max(0.0f, *std::max_element(x.begin(), x.end()));
    const int coded = case_.nested ? 8 : int(case_.bits), left = coded - int(case_.bits);
    const double lowest = case_.nested ? 0 : -std::ldexp(1, coded - 1), highest = lowest + std::ldexp(1, coded) - 1;
    const double scale = (high - low) / (highest - lowest);
    const double zero = std::clamp(std::nearbyint(lowest - low / scale), lowest, highest);
    for (size_t i = 0; i < x.size(); ++i) {
      if (scale == 0) {
        CHECK(w[i] == 0);
        continue;
      }
      double code = std::clamp(double(std::nearbyint(x[i] * float(1 / scale))) + zero, lowest, highest);
      if (case_.nested) code = double((int(code) >> left) << left) + ((1 << left) - 1) / 2.0;
      CHECK(w[i] == float(code - zero) * float(scale));
    }
  }

  Case case_;
  Guarded w0_, w1_, w_;
};

void check(const Case& c) {
  const Line line(c);
  const auto wanted = line.run(Isa::scalar, serial);
  if (c.in == DType::float32 && c.out == DType::float32 && c.kind != Kind::any_bits) line.check_definition();
  for (const Isa isa : isas()) CHECK(kOnlyThreads || line.run(isa, serial) == wanted);
  for (const Parallel& parallel : ways()) CHECK(line.run(best_isa(), parallel) == wanted);
}

void check_activations(int64_t n, DType dtype, Guard guard, Kind kind) {
  const Guarded x(n * size_of(dtype), guard), to(n * size_of(dtype), guard);
  fill(x.as(), n, dtype, kind, 3);
  const auto run = [&](Isa isa, const Parallel& parallel) {
    set_max_isa(isa);
    quantize({x.as(), to.as(), n, -1.25f, 100, 4, dtype}, parallel);
    return bits_of(to, n, dtype);
  };
  const auto wanted = run(Isa::scalar, serial);
  for (const Isa isa : isas()) CHECK(kOnlyThreads || run(isa, serial) == wanted);
  for (const Parallel& parallel : ways()) CHECK(run(best_isa(), parallel) == wanted);
  if (dtype != DType::float32 || kind == Kind::any_bits) return;
  const double scale = (100 + 1.25) / 15, zero = std::nearbyint(-8 + 1.25 / scale);
  for (int64_t i = 0; i < n; ++i) {
    const double code = std::clamp(double(std::nearbyint(x.as<float>()[i] * float(1 / scale))) + zero, -8.0, 7.0);
    CHECK(to.as<float>()[i] == float(code - zero) * float(scale));
  }
}

}  // namespace

int main() {
  best_isa();
  for (const Guard guard : kGuards)
    for (const Kind kind : kKinds) {
      for (const DType in : kDTypes) {
        for (const int64_t n : kSizes) check_activations(n, in, guard, kind);
        for (const DType out : kDTypes)
          for (const int64_t n : kSizes) check({1, n, std::max<int64_t>(n, 1), in, out, guard, kind, true, false, 3});
      }
      for (const int64_t group : {1, 31, 32, 100, 16385, 33000, 99999})
        for (const bool nested : {false, true})
          check({3, 33000, group, DType::float32, DType::float32, guard, kind, !nested, nested, 5});
    }
  for (const Guard guard : kGuards) {  // results written past the caches
    for (const Kind kind : {Kind::normal, Kind::any_bits})
      check({1, (8 << 20) / 4 + 77, 1 << 30, DType::float32, DType::float32, guard, kind, true, false, 4});
    check({99, 21197, 2048, DType::float32, DType::float32, guard, Kind::few_values, true, true, 2});
  }
}
