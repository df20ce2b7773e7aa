// Every instruction set equals scalar bit for bit, every way to split the work equals serial, and scalar keeps what a
// stable sort of the dense blend keeps; a page that faults lies next to each buffer.
#include "lcs/interpolate_prune.h"

#include <algorithm>
#include <numeric>

#include "prune_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

struct Case {
  int64_t n;
  DType in, out;
  Kind kind;
  Guard guard;
  bool line;
};

struct Result {
  std::vector<char> w, mask_bits;
  bool operator==(const Result&) const = default;
};

uint32_t infinity_of(DType dtype) {
  return dtype == DType::float32 ? 0x7f800000 : dtype == DType::bfloat16 ? 0x7f80 : 0x7c00;
}

uint32_t bits_of(const char* w, DType dtype) {
  uint32_t bits = 0;
  std::memcpy(&bits, w, size_of(dtype));
  return bits;
}

// Ordered like the magnitude of the weight with these bits, every NaN alike.
uint32_t rank_of(uint32_t bits, DType dtype) {
  return std::min(bits & (dtype == DType::float32 ? 0x7fffffff : 0x7fff), infinity_of(dtype) + 1);
}

// Which of two NaN an addition passes on is the compiler's choice.
void make_nan_alike(std::vector<char>& w, DType dtype) {
  const uint32_t nan = infinity_of(dtype) + 1;
  for (size_t i = 0; i < w.size(); i += size_of(dtype))
    if (rank_of(bits_of(&w[i], dtype), dtype) == nan) std::memcpy(&w[i], &nan, size_of(dtype));
}

// The ends of a line, and what the op makes of them.
class Layer {
 public:
  explicit Layer(const Case& c)
      : case_(c),
        w0_(c.n * size_of(c.in), c.guard),
        w1_(c.n * size_of(c.in), c.guard),
        w_(c.n * size_of(c.out), c.guard),
        mask_bits_(words() * 4, c.guard) {
    fill(w0_.as(), c.n, c.in, c.kind, uint32_t(c.n));
    fill(w1_.as(), c.n, c.in, c.kind, uint32_t(c.n) + 1);
  }

  Result run(Isa isa, int64_t keep, const Parallel& parallel) const {
    set_max_isa(isa);
    const InterpolatePruneLayer layer{w0_.as(), case_.line ? w1_.as() : nullptr, w_.as(), mask_bits_.as<uint32_t>(),
                                      case_.n};
    interpolate_prune({{&layer, 1}, {&keep, 1}, 0.3f, case_.in, case_.out}, parallel);
    Result result{bytes(w_, case_.n * size_of(case_.out)), bytes(mask_bits_, words() * 4)};
    make_nan_alike(result.w, case_.out);
    return result;
  }

  int64_t words() const { return (case_.n + 31) / 32; }
  const Case& shape() const { return case_; }

 private:
  Case case_;
  Guarded w0_, w1_, w_, mask_bits_;
};

// By the definition: the dense blend, sorted.
class Sorted {
 public:
  explicit Sorted(const Layer& layer)
      : dense_(layer.run(Isa::scalar, layer.shape().n, serial)), out_(layer.shape().out), order_(layer.shape().n) {
    std::vector<uint32_t> rank(order_.size());
    for (size_t i = 0; i < rank.size(); ++i) rank[i] = rank_of(bits_of(&dense_.w[i * size_of(out_)], out_), out_);
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return rank[a] < rank[b]; });
  }

  Result but_for(int64_t dropped) const {
    Result result = dense_;
    for (int64_t i = 0; i < dropped; ++i) {
      std::memset(&result.w[order_[i] * size_of(out_)], 0, size_of(out_));
      result.mask_bits[order_[i] / 8] &= char(~(1 << order_[i] % 8));
    }
    return result;
  }

 private:
  Result dense_;
  DType out_;
  std::vector<int64_t> order_;
};

void check(const Case& c, const std::vector<int64_t>& keeps) {
  const Layer layer(c);
  const Sorted sorted(layer);
  for (const int64_t keep : keeps) {
    const Result wanted = sorted.but_for(c.n - keep);
    for (const Isa isa : isas()) CHECK(kOnlyThreads || layer.run(isa, keep, serial) == wanted);
    for (const Parallel& parallel : ways()) CHECK(layer.run(best_isa(), keep, parallel) == wanted);
  }
}

// Ties that go in every chunk, at counts that cut each of them somewhere.
void check_ties() {
  const Case c{5 * 16'384 + 1, DType::float32, DType::bfloat16, Kind::few_values, Guard::behind, false};
  std::vector<int64_t> keeps;
  for (int64_t keep = 0; keep < c.n; keep += c.n / 24) keeps.push_back(keep);
  check(c, keeps);
}

// Results that go past the caches, as large ones do that begin at a cache line.
void check_streamed() {
  for (const DType out : {DType::float32, DType::bfloat16}) {
    const int64_t n = (8 << 20) / size_of(out) + 417;
    check({n, DType::float32, out, Kind::normal, Guard::before, true}, {n / 3});
  }
}

void check_blend() {
  // By hand: 0.75 * w0 + 0.25 * w1; the tie of -2 and 2 keeps the later.
  const float w0[] = {0, 4, -2, 1, 0}, w1[] = {-8, -4, -2, 1, 8};
  float w[5];
  uint32_t mask_bits;
  const InterpolatePruneLayer layer{w0, w1, w, &mask_bits, 5};
  const int64_t keep = 3;
  for (const Isa isa : isas()) {
    set_max_isa(isa);
    interpolate_prune({{&layer, 1}, {&keep, 1}, 0.25f, DType::float32, DType::float32}, serial);
    const float wanted[] = {0, 2, -2, 0, 2};
    CHECK(std::equal(w, w + 5, wanted) && mask_bits == 0b10110);
  }
}

// Layers of several sizes ranked together, in one list and cut from one long layer.
void check_together() {
  const Case c{70'000, DType::float32, DType::bfloat16, Kind::few_values, Guard::behind, true};
  const int64_t cuts[] = {0, 32, 16'416, 16'416, 49'184, 70'000};
  Guarded w0(c.n * 4, c.guard), w1(c.n * 4, c.guard);
  fill(w0.as(), c.n, c.in, c.kind, 1);
  fill(w1.as(), c.n, c.in, c.kind, 2);
  for (const Isa isa : isas())
    for (const Parallel& parallel : {Parallel(serial), Parallel(backwards), fork_join(4)}) {
      set_max_isa(isa);
      std::vector<uint16_t> whole(c.n), pieces(c.n);
      std::vector<uint32_t> whole_bits((c.n + 31) / 32), piece_bits(whole_bits.size());
      const auto layer = [&](int64_t begin, int64_t end, auto& w, auto& bits) {
        return InterpolatePruneLayer{w0.as<float>() + begin, w1.as<float>() + begin, w.data() + begin,
                                     bits.data() + begin / 32, end - begin};
      };
      const InterpolatePruneLayer one = layer(0, c.n, whole, whole_bits);
      std::vector<InterpolatePruneLayer> many;
      for (int i = 0; i < 5; ++i) many.push_back(layer(cuts[i], cuts[i + 1], pieces, piece_bits));
      const int64_t keep = 23'456;
      interpolate_prune({{&one, 1}, {&keep, 1}, 0.3f, c.in, c.out}, parallel);
      interpolate_prune({many, {&keep, 1}, 0.3f, c.in, c.out}, parallel);
      CHECK(whole == pieces && whole_bits == piece_bits);
    }
}

}  // namespace

int main() {
  best_isa();
  for (const int64_t n : kSizes)
    for (const DType in : kDTypes)
      for (const DType out : kDTypes)
        for (const Kind kind : kKinds)
          for (const Guard guard : kGuards)
            check({n, in, out, kind, guard, kind != Kind::any_bits || n % 2 == 0}, {0, n / 40, n - n / 3, n});
  check_ties();
  check_streamed();
  check_blend();
  check_together();
}
