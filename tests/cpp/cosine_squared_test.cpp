// cosine_squared and its backward: every instruction set equals scalar bit for bit and every way to split the work
// equals serial; of integers, however large, scalar equals the definition. A page that faults lies next to each array.
#include "lcs/cosine_squared.h"

#include <cmath>
#include <deque>

#include "prune_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

using Results = std::vector<std::vector<char>>;

// Ends of layers of some sizes, and what becomes of them.
class Line {
 public:
  Line(const std::vector<int64_t>& sizes, DType dtype, Guard guard) : dtype_(dtype) {
    for (const int64_t n : sizes) {
      void* arrays[4];
      for (void*& array : arrays) array = memory_.emplace_back(size_t(n * size_of(dtype)), guard).as();
      layers_.push_back({arrays[0], arrays[1], arrays[2], arrays[3], n});
    }
  }

  void fill_ends(Kind kind) const {
    uint32_t seed = 0;
    for (const CosineSquaredLayer& layer : layers_)
      for (const void* end : {layer.w0, layer.w1}) fill(const_cast<void*>(end), layer.n, dtype_, kind, ++seed);
  }

  // Integers from -2 to 2 times `unit`; or zeros at the first end.
  void fill_integers(float unit, bool zero) const {
    std::mt19937 random(3);
    for (const CosineSquaredLayer& layer : layers_)
      for (int64_t i = 0; i < layer.n; ++i) {
        const int a = int(random() % 5) - 2, b = i % 3 ? a : int(random() % 5) - 2;
        static_cast<float*>(const_cast<void*>(layer.w0))[i] = zero ? 0.0f : float(a) * unit;
        static_cast<float*>(const_cast<void*>(layer.w1))[i] = float(b) * unit;
      }
  }

  Results run(Isa isa, const Parallel& parallel) const {
    set_max_isa(isa);
    const CosineSums sums = cosine_sums(layers_, dtype_, parallel);
    cosine_squared_backward(layers_, sums, 0.75, dtype_, parallel);
    const auto* const from = reinterpret_cast<const char*>(&sums);
    Results found{{from, from + sizeof(sums)}};
    for (const CosineSquaredLayer& layer : layers_)
      for (const void* grad : {layer.grad_w0, layer.grad_w1}) {
        const char* const bytes = static_cast<const char*>(grad);
        found.emplace_back(bytes, bytes + layer.n * size_of(dtype_));
      }
    return found;
  }

  void check_definition(float unit) const {
    CosineSums wanted{};
    each([&](double a, double b, float, float) { wanted.dot += a * b, wanted.norm0 += a * a, wanted.norm1 += b * b; });
    const CosineSums sums = cosine_sums(layers_, dtype_, serial);
    CHECK(sums.dot == wanted.dot && sums.norm0 == wanted.norm0 && sums.norm1 == wanted.norm1);
    const bool zero = sums.norm0 == 0 || sums.norm1 == 0;
    const double square = unit * double(unit), dot = sums.dot / square, norm0 = sums.norm0 / square,
                 norm1 = sums.norm1 / square, cosine = zero ? 0 : dot * dot / (norm0 * norm1);
    CHECK(std::abs(cosine_squared(sums) - cosine) <= 1e-14);
    // Twice the cosine times its gradient, of the unit's reciprocal.
    const double to_b = zero ? 0 : 1.5 * dot / (norm0 * norm1), to_a0 = zero ? 0 : 1.5 * cosine / norm0,
                 to_a1 = zero ? 0 : 1.5 * cosine / norm1;
    each([&](double a, double b, float grad0, float grad1) {
      const double limit = 1e-6 * (std::abs(a) + std::abs(b)) / unit * (to_b + to_a0 + to_a1) / unit;
      CHECK(std::abs(grad0 - (to_b * b - to_a0 * a) / square) <= limit);
      CHECK(std::abs(grad1 - (to_b * a - to_a1 * b) / square) <= limit);
    });
  }

 private:
  template <class Each>
  void each(const Each& each) const {
    const auto at = [](const void* p, int64_t i) { return static_cast<const float*>(p)[i]; };
    for (const CosineSquaredLayer& layer : layers_)
      for (int64_t i = 0; i < layer.n; ++i)
        each(at(layer.w0, i), at(layer.w1, i), at(layer.grad_w0, i), at(layer.grad_w1, i));
  }

  const DType dtype_;
  std::deque<Guarded> memory_;
  std::vector<CosineSquaredLayer> layers_;
};

void check_ways(const Line& line, const Results& wanted) {
  for (const Isa isa : isas()) CHECK(kOnlyThreads || line.run(isa, serial) == wanted);
  for (const Parallel& parallel : ways()) CHECK(line.run(best_isa(), parallel) == wanted);
}

}  // namespace

int main() {
  best_isa();
  const std::vector<int64_t> kLayers[] = {{0}, {1}, {15, 0, 17}, {16385, 33, 40000}, {31, 16384, 32, 5, 32769}};
  for (const Guard guard : kGuards)
    for (const std::vector<int64_t>& sizes : kLayers) {
      for (const DType dtype : kDTypes) {
        const Line line(sizes, dtype, guard);
        for (const Kind kind : {Kind::normal, Kind::few_values}) {
          line.fill_ends(kind);
          check_ways(line, line.run(Isa::scalar, serial));
        }
      }
      const Line line(sizes, DType::float32, guard);
      for (const float unit : {1.0f, 0x1p70f, 0x1p-60f})
        for (const bool zero : {false, true}) {
          line.fill_integers(unit, zero);
          const Results wanted = line.run(Isa::scalar, serial);
          line.check_definition(unit);
          check_ways(line, wanted);
        }
    }
}
