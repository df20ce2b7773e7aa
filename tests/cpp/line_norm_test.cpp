// line_norm and its backward: every instruction set equals scalar bit for bit and every way to split the work equals
// serial; scalar equals the definition where that is exact; a page that faults lies next to each buffer.
#include "lcs/line_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "prune_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

struct Case {
  int64_t n, channels, pixels, groups;
  bool last, given, relu;
  DType dtype;
  Guard guard;
  int64_t size() const { return n * channels * pixels; }
};

using Results = std::vector<std::vector<uint32_t>>;

// The bits of n values, every NaN the same: which of two NaNs a sum takes is up to the compiler.
std::vector<uint32_t> bits_of(const Guarded& memory, int64_t n, DType dtype) {
  std::vector<uint32_t> bits(n);
  const uint32_t infinity = dtype == DType::float32 ? 0x7f800000 : dtype == DType::bfloat16 ? 0x7f80 : 0x7c00;
  const uint32_t magnitude = dtype == DType::float32 ? 0x7fffffff : 0x7fff;
  for (int64_t i = 0; i < n; ++i) {
    bits[i] = dtype == DType::float32 ? memory.as<uint32_t>()[i] : memory.as<uint16_t>()[i];
    if ((bits[i] & magnitude) > infinity) bits[i] = infinity + 1;
  }
  return bits;
}

class Norm {
 public:
  Norm(const Case& c, Kind kind)
      : case_(c),
        x_(c.size() * size_of(c.dtype), c.guard),
        residual_(c.size() * size_of(c.dtype), c.guard),
        grad_(c.size() * size_of(c.dtype), c.guard),
        y_(c.size() * size_of(c.dtype), c.guard),
        grad_x_(c.size() * size_of(c.dtype), c.guard),
        statistics_(2 * c.n * c.groups * sizeof(float), c.guard),
        given_(2 * c.channels * sizeof(float), c.guard),
        ends_(4 * c.channels * sizeof(float), c.guard),
        grads_(4 * full() * sizeof(float), c.guard) {
    fill(x_.as(), c.size(), c.dtype, kind, 1);
    fill(residual_.as(), c.size(), c.dtype, kind, 2);
    fill(grad_.as(), c.size(), c.dtype, kind, 3);
    fill(given_.as(), c.channels, DType::float32, Kind::few_values, 4);
    fill(ends_.as(), 4 * c.channels, DType::float32, Kind::few_values, 5);
    std::fill_n(given_.as<float>() + c.channels, c.channels, 4.0f);
  }

  Results run(Isa isa, const Parallel& parallel) const {
    const Case& c = case_;
    set_max_isa(isa);
    const auto end = [&](int i) { return ends_.as<float>() + i * c.channels; };
    const auto grad_of = [&](int i) { return grads_.as<float>() + i * full(); };
    float *const means = c.given ? nullptr : statistics_.as<float>(), *const given = given_.as<float>();
    LineNormArgs args{x_.as(),
                      residual_.as(),
                      y_.as(),
                      c.n,
                      c.channels,
                      c.pixels,
                      c.groups,
                      c.last,
                      {end(0), end(1), DType::float32},
                      {end(2), end(3), DType::float32},
                      0.25f,
                      c.given ? given : nullptr,
                      c.given ? given + c.channels : nullptr,
                      means,
                      means ? means + c.n * c.groups : nullptr,
                      0,
                      c.relu,
                      c.dtype};
    line_norm(args, parallel);
    const double grad_alpha = line_norm_backward(
        {args, grad_.as(), grad_x_.as(), {grad_of(0), grad_of(1), full()}, {grad_of(2), grad_of(3), full()}}, parallel);
    Results found{bits_of(y_, c.size(), c.dtype), bits_of(grad_x_, c.size(), c.dtype),
                  bits_of(grads_, 4 * full(), DType::float32)};
    if (!c.given) found.push_back(bits_of(statistics_, 2 * c.n * c.groups, DType::float32));
    const uint64_t alpha = std::isnan(grad_alpha) ? 0 : std::bit_cast<uint64_t>(grad_alpha);
    found.push_back({std::isnan(grad_alpha), uint32_t(alpha), uint32_t(alpha >> 32)});
    std::memcpy(y_.as(), x_.as(), c.size() * size_of(c.dtype));
    args.x = args.y;
    line_norm(args, parallel);
    CHECK(bits_of(y_, c.size(), c.dtype) == found[0]);
    return found;
  }

  // With given statistics and small numbers all is exact.
  void check_definition() const {
    const Case& c = case_;
    const float *x = x_.as<float>(), *mean = given_.as<float>(), *ends = ends_.as<float>();
    for (int64_t i = 0; i < c.size(); ++i) {
      const int64_t channel = c.last ? i % c.channels : i / c.pixels % c.channels;
      const auto at = [&](int end) { return ends[end * c.channels + channel]; };
      const double weight = 0.75 * at(0) + 0.25 * at(1), bias = 0.75 * at(2) + 0.25 * at(3);
      const double y = (x[i] - mean[channel]) / 2 * weight + bias + residual_.as<float>()[i];
      CHECK(y_.as<float>()[i] == float(c.relu ? std::max(y, 0.0) : y));
    }
    for (int64_t i = 0; i < 4 * full(); ++i) CHECK(i % full() < c.channels || grads_.as<float>()[i] == 0);
  }

 private:
  int64_t full() const { return case_.channels + 5; }  // longer than x has channels

  Case case_;
  Guarded x_, residual_, grad_, y_, grad_x_, statistics_, given_, ends_, grads_;
};

void check(const Case& c) {
  for (const Kind kind : {Kind::normal, Kind::few_values}) {
    const Norm norm(c, kind);
    const Results wanted = norm.run(Isa::scalar, serial);
    if (c.given && c.dtype == DType::float32 && kind == Kind::few_values) norm.check_definition();
    for (const Isa isa : isas()) CHECK(kOnlyThreads || norm.run(isa, serial) == wanted);
    for (const Parallel& parallel : ways()) CHECK(norm.run(best_isa(), parallel) == wanted);
  }
}

}  // namespace

int main() {
  best_isa();
  constexpr int64_t kShapes[][4] = {{2, 1, 1, 1},    {3, 6, 1, 2},    {2, 17, 1, 17},  {2, 4, 15, 2},
                                    {2, 12, 16, 3},  {1, 5, 17, 1},   {2, 16, 33, 16}, {3, 40, 100, 8},
                                    {1, 3, 4099, 1}, {2, 2, 9001, 2}, {1, 33, 700, 3}, {65, 24, 64, 12},
                                    {2, 48, 49, 3},  {1, 16, 16, 2},  {0, 4, 9, 2},    {2, 3, 0, 3}};
  for (const Guard guard : kGuards)
    for (const DType dtype : kDTypes)
      for (const auto& [n, channels, pixels, groups] : kShapes)
        for (const bool last : {false, true})
          for (const bool given : {false, true})
            check({n, channels, pixels, groups, last, given, (n + channels + given) % 2 == 0, dtype, guard});
}
