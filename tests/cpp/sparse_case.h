#pragma once
#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <initializer_list>
#include <random>
#include <span>
#include <vector>

#include "guarded.h"
#include "lcs/fork_join.h"
#include "lcs/isa.h"
#include "lcs/sparse_pack.h"

// What the tests of the sparse ops share.
namespace lcs::test {

constexpr DType kDTypes[] = {DType::float32, DType::bfloat16};

// The instruction sets with kernels of their own, `more` among them, up to the machine's or LCS_MAX_ISA; AMX alone, if
// at all, where a test is built for that. First asked before any is set.
inline std::vector<Isa> isas(std::initializer_list<Isa> more = {}) {
  static const Isa best = max_isa();
#if defined(LCS_ONLY_AMX)
  if (best != Isa::amx) {
    std::printf("not run: emulated tiles need avx512_bf16 for all else, and this machine has %s\n", isa_name(best));
    std::exit(77);
  }
  return std::vector<Isa>(size_t(std::count(more.begin(), more.end(), Isa::amx)), Isa::amx);
#else
  std::vector<Isa> found{Isa::scalar, Isa::avx2, Isa::avx512};
  found.insert(found.end(), more);
  std::erase_if(found, [](Isa isa) { return isa > best; });
  return found;
#endif
}

// Those that multiply pairs of bfloat16; only tiles are emulated.
#if defined(LCS_EMULATED_TILES)
constexpr std::initializer_list<Isa> kPairs{Isa::amx};
#else
constexpr std::initializer_list<Isa> kPairs{Isa::avx512_bf16, Isa::amx};
#endif

// Pieces of two grains, the last one first.
inline void backwards(int64_t n, int64_t grain, const Range& range) {
  const int64_t step = 2 * grain;
  for (int64_t begin = n > 0 ? (n - 1) / step * step : -1; begin >= 0; begin -= step)
    range(begin, begin + step < n ? begin + step : n);
}

// The ways to split the work; of scalar kernels, which take longest, among threads alone.
inline std::vector<Parallel> ways(Isa isa) {
  if (kOnlyThreads || isa == Isa::scalar) return {fork_join(3)};
  return {serial, backwards, fork_join(3)};
}

// bfloat16 holds the integers of these tests.
inline void put(void* to, int64_t i, DType dtype, float x) {
  if (dtype == DType::float32)
    static_cast<float*>(to)[i] = x;
  else
    static_cast<uint16_t*>(to)[i] = uint16_t(std::bit_cast<uint32_t>(x) >> 16);
}

inline float get(const void* from, int64_t i, DType dtype) {
  if (dtype == DType::float32) return static_cast<const float*>(from)[i];
  return std::bit_cast<float>(uint32_t{static_cast<const uint16_t*>(from)[i]} << 16);
}

// n integers from -2 to 2.
inline void fill(const Guarded& to, int64_t n, DType dtype, uint32_t seed) {
  std::mt19937 random(seed);
  for (int64_t i = 0; i < n; ++i) put(to.as(), i, dtype, float(int(random() % 5) - 2));
}

// A weight of integers, zeros among those stored, packed and prepacked, each array next to a page that faults.
class Weight {
 public:
  Weight(int64_t rows, int64_t columns, int64_t block, int percent, DType dtype, Guard guard, uint32_t seed)
      : n_(rows * columns),
        dense_(n_ * size_of(dtype), guard),
        bits_((n_ + 31) / 32 * 4, guard),
        count_(rows * sparse_blocks(columns, block) * 4, guard),
        start_((sparse_blocks(columns, block) + 1) * 8, guard) {
    fill(dense_, n_, dtype, seed);
    std::mt19937 random(seed);
    std::memset(bits_.as(), 0, size_t(n_ + 31) / 32 * 4);
    for (int64_t i = 0; i < n_; ++i)
      if (int(random() % 100) < percent)
        bits_.as<uint32_t>()[i / 32] |= 1u << (i % 32);
      else
        put(dense_.as(), i, dtype, 0.0f);
    const std::span bits(bits_.as<uint32_t>(), size_t(n_ + 31) / 32);
    const std::vector<int64_t> rank = ranks(bits, serial);
    packed_.emplace_back(rank.back() * size_of(dtype), guard);
    sparse_pack(dense_.as(), dtype, bits, rank, packed_[0].as(), backwards);
    packed_.emplace_back(rank.back() * 2, guard);
    packed_.emplace_back(rank.back() * 4, guard);
    sparse_prepack_count(rows, columns, block, bits, count_.as<int32_t>(), start_.as<int64_t>(), backwards);
    CHECK(start_.as<int64_t>()[sparse_blocks(columns, block)] == rank.back());
    prepack = {rows, columns, block, count_.as<int32_t>(), start_.as<int64_t>(), nullptr, nullptr};
    sparse_prepack_fill(prepack, bits, packed_[0].as(), dtype, packed_[1].as<uint16_t>(), packed_[2].as<float>(),
                        backwards);
    if (dtype == DType::bfloat16) make_tiles(bits, guard);
    prepack.index = packed_[1].as<uint16_t>();
    prepack.values = packed_[2].as<float>();
    for (int64_t i = 0; i < n_; ++i) dense.push_back(get(dense_.as(), i, dtype));
  }

  SparsePrepack prepack;
  SparseTiles tiles{};       // of bfloat16
  std::vector<float> dense;  // of rows x columns

 private:
  void make_tiles(std::span<const uint32_t> bits, Guard guard) {
    tiles = {prepack.rows, prepack.columns, nullptr, nullptr, nullptr};
    const int64_t words = tiles.row_tiles() * tiles.column_tiles() * SparseTiles::kWords;
    Guarded& found = packed_.emplace_back(words * 4, guard);
    Guarded& start = packed_.emplace_back((tiles.row_tiles() + 1) * 8, guard);
    sparse_tiles_count(tiles, bits, found.as<uint32_t>(), start.as<int64_t>(), backwards);
    tiles.bits = found.as<uint32_t>();
    tiles.start = start.as<int64_t>();
    Guarded& values = packed_.emplace_back((start.as<int64_t>()[tiles.row_tiles()] + tiles.kPadding) * 2, guard);
    sparse_tiles_fill(tiles, bits, packed_[0].as<uint16_t>(), values.as<uint16_t>(), backwards);
    tiles.values = values.as<uint16_t>();
  }

  int64_t n_;
  Guarded dense_, bits_, count_, start_;
  std::deque<Guarded> packed_;  // values, then index and values of the prepack, then the tiles
};

}  // namespace lcs::test
