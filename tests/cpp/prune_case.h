#pragma once
#include <bit>
#include <random>
#include <vector>

#include "guarded.h"
#include "lcs/fork_join.h"
#include "lcs/interpolate_prune.h"
#include "lcs/isa.h"

// What the tests of interpolate_prune and of its backward share.
namespace lcs::test {

constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16};
constexpr int64_t kSizes[] = {0, 1, 15, 31, 32, 33, 63, 65, 4095, 4097, 16383, 16384, 16385, 32769};

// The best instruction set under test: the machine's, unless LCS_MAX_ISA caps it. To be asked before any is set.
inline Isa best_isa() {
  static const Isa best = max_isa();
  return best;
}

// Those to run on one thread.
inline std::vector<Isa> isas() {
  const Isa best = best_isa();
  if (kOnlyThreads) return {best};
  std::vector<Isa> found;
  for (Isa isa : lcs::kIsas)
    if (isa <= best) found.push_back(isa);
  return found;
}

// The shortest pieces allowed, the last one first.
inline void backwards(int64_t n, int64_t grain, const Range& range) {
  for (int64_t begin = n > 0 ? (n - 1) / grain * grain : -1; begin >= 0; begin -= grain)
    range(begin, begin + grain < n ? begin + grain : n);
}

// The ways to split the work.
inline std::vector<Parallel> ways() {
  if (kOnlyThreads) return {fork_join(3)};
  return {backwards, fork_join(3)};
}

enum class Kind { normal, few_values, any_bits };
constexpr Kind kKinds[] = {Kind::normal, Kind::few_values, Kind::any_bits};

// n weights of `dtype`: bell-shaped; of seven values, -0 among them; or any bits at all, NaN, infinities and denormals.
inline void fill(void* to, int64_t n, DType dtype, Kind kind, uint32_t seed) {
  std::mt19937 random(seed);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t draw = random();
    const float sum = float(draw & 0xff) + float(draw >> 8 & 0xff) + float(draw >> 16 & 0xff) - 382.5f;
    const float few[] = {-2.0f, -1.0f, -0.0f, 0.0f, 1.0f, 1.5f, 2.0f};
    const uint32_t bits =
        kind == Kind::any_bits ? draw : std::bit_cast<uint32_t>(kind == Kind::normal ? sum : few[draw % 7]);
    // A float's upper half is a bfloat16; as a float16 the same bits are some other number, ties and NaN like before.
    if (dtype == DType::float32)
      static_cast<uint32_t*>(to)[i] = bits;
    else
      static_cast<uint16_t*>(to)[i] = uint16_t(bits >> 16 ^ (kind == Kind::normal ? draw & 0xf : 0));
  }
}

inline std::vector<char> bytes(const Guarded& memory, int64_t n) { return {memory.as<char>(), memory.as<char>() + n}; }

}  // namespace lcs::test
