// Every instruction set equals scalar bit for bit and every way to split the work equals serial, alpha's gradient
// included; scalar equals the definition; a page that faults lies next to each buffer.
#include <cmath>

#include "prune_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

enum class Wants { point, line, line_and_alpha };

struct Case {
  int64_t n;
  DType in, out;
  Guard guard;
  Wants wants;
};

struct Result {
  std::vector<char> grad_w0, grad_w1;
  uint64_t grad_alpha;  // its bits
  bool operator==(const Result&) const = default;
};

class Layer {
 public:
  explicit Layer(const Case& c)
      : case_(c),
        grad_(c.n * size_of(c.out), c.guard),
        w0_(c.n * size_of(c.in), c.guard),
        w1_(c.n * size_of(c.in), c.guard),
        mask_bits_((c.n + 31) / 32 * 4, c.guard),
        grad_w0_(c.n * size_of(c.in), c.guard),
        grad_w1_(c.n * size_of(c.in), c.guard) {
    fill(grad_.as(), c.n, c.out, Kind::normal, 1);
    fill(w0_.as(), c.n, c.in, Kind::few_values, 2);
    fill(w1_.as(), c.n, c.in, Kind::few_values, 3);
    fill(mask_bits_.as(), (c.n + 31) / 32, DType::float32, Kind::any_bits, 4);
  }

  Result run(Isa isa, const Parallel& parallel) const {
    set_max_isa(isa);
    const bool line = case_.wants != Wants::point, ends = case_.wants == Wants::line_and_alpha;
    const InterpolatePruneBackwardLayer layer{grad_.as(),
                                              ends ? w0_.as() : nullptr,
                                              ends ? w1_.as() : nullptr,
                                              mask_bits_.as<uint32_t>(),
                                              grad_w0_.as(),
                                              line ? grad_w1_.as() : nullptr,
                                              case_.n};
    const double alpha = interpolate_prune_backward({{&layer, 1}, 0.3f, case_.in, case_.out}, parallel);
    return {bytes(grad_w0_, case_.n * size_of(case_.in)), bytes(grad_w1_, line ? case_.n * size_of(case_.in) : 0),
            std::bit_cast<uint64_t>(alpha)};
  }

  void check_definition(const Result& result) const {
    const float *grad = grad_.as<float>(), *w0 = w0_.as<float>(), *w1 = w1_.as<float>();
    double sum = 0, magnitudes = 0;
    for (int64_t i = 0; i < case_.n; ++i) {
      const bool kept = mask_bits_.as<uint32_t>()[i / 32] >> (i % 32) & 1;
      const float g = kept ? grad[i] : 0;
      CHECK(grad_w0_.as<float>()[i] == (1 - 0.3f) * g && grad_w1_.as<float>()[i] == 0.3f * g);
      sum += double(g) * (double(w1[i]) - double(w0[i]));
      magnitudes += std::fabs(double(g) * (double(w1[i]) - double(w0[i])));
    }
    // 16 sums of at most 1024 float32 terms a chunk, each term rounded twice
    CHECK(std::fabs(std::bit_cast<double>(result.grad_alpha) - sum) <= magnitudes * (1024 + 2) * 0x1p-24);
  }

 private:
  Case case_;
  Guarded grad_, w0_, w1_, mask_bits_, grad_w0_, grad_w1_;
};

void check(const Case& c) {
  const Layer layer(c);
  const Result wanted = layer.run(Isa::scalar, serial);
  if (c.in == DType::float32 && c.out == DType::float32 && c.wants == Wants::line_and_alpha)
    layer.check_definition(wanted);
  if (c.wants != Wants::line_and_alpha) CHECK(std::bit_cast<double>(wanted.grad_alpha) == 0);
  for (const Isa isa : isas()) CHECK(kOnlyThreads || layer.run(isa, serial) == wanted);
  for (const Parallel& parallel : ways()) CHECK(layer.run(best_isa(), parallel) == wanted);
}

}  // namespace

int main() {
  best_isa();
  for (const int64_t n : kSizes)
    for (const DType in : kDTypes)
      for (const DType out : kDTypes)
        for (const Guard guard : kGuards)
          for (const Wants wants : {Wants::point, Wants::line, Wants::line_and_alpha})
            check({n, in, out, guard, wants});
}
