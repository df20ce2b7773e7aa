// Packing, unpacking and prepacking against loops over single weights; a page that faults lies next to each array.
#include "lcs/sparse_pack.h"

#include "sparse_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

void check_pack(int64_t n, DType dtype, int percent, Guard guard, const Parallel& parallel) {
  const size_t words = size_t(n + 31) / 32, bytes = size_t(n * size_of(dtype));
  const Guarded w(bytes, guard), back(bytes, guard), found(words * 4, guard);
  std::mt19937 random(uint32_t(n) + uint32_t(percent));
  std::vector<float> wanted, kept;
  for (int64_t i = 0; i < n; ++i) {
    const float some[] = {1.0f, -2.0f, __builtin_nanf(""), __builtin_inff()}, x = some[random() % 4];
    const bool stored = int(random() % 100) < percent;
    put(w.as(), i, dtype, stored ? x : random() % 2 ? 0.0f : -0.0f);
    wanted.push_back(stored ? x : 0.0f);
    if (stored) kept.push_back(x);
  }
  nonzero_bits(w.as(), dtype, n, found.as<uint32_t>(), parallel);
  const std::span bits(found.as<uint32_t>(), words);
  for (int64_t i = 0; i < int64_t(words) * 32; ++i)
    CHECK((bits[i / 32] >> (i % 32) & 1) == (i < n && wanted[i] != 0.0f));
  const std::vector<int64_t> rank = ranks(bits, parallel);
  CHECK(rank.back() == int64_t(kept.size()));
  const Guarded values(kept.size() * size_of(dtype), guard);
  sparse_pack(w.as(), dtype, bits, rank, values.as(), parallel);
  sparse_unpack(bits, rank, values.as(), dtype, n, back.as(), parallel);
  const auto same = [](float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); };
  for (size_t i = 0; i < kept.size(); ++i) CHECK(same(get(values.as(), int64_t(i), dtype), kept[i]));
  for (int64_t i = 0; i < n; ++i) CHECK(same(get(back.as(), i, dtype), wanted[i]));
}

// The prepack scattered back is the dense weight, and its columns rise within a row.
void check_prepack(int64_t rows, int64_t columns, int64_t block, int percent, DType dtype, Guard guard) {
  const Weight weight(rows, columns, block, percent, dtype, guard, uint32_t(rows + columns));
  const SparsePrepack& p = weight.prepack;
  std::vector<float> dense(rows * columns);
  for (int64_t b = 0, i = 0; b < p.blocks(); ++b) {
    CHECK(p.start[b] == i);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t k = 0, last = -1; k < p.count[b * rows + row]; ++k, ++i) {
        CHECK(p.index[i] > last && p.index[i] < block && b * block + p.index[i] < columns);
        last = p.index[i];
        dense[row * columns + b * block + last] = p.values[i];
      }
  }
  CHECK(dense == weight.dense);
}

// The tiles scattered back are the dense weight, and nothing is stored around it.
void check_tiles(int64_t rows, int64_t columns, int percent, Guard guard) {
  const Weight weight(rows, columns, 32, percent, DType::bfloat16, guard, uint32_t(rows + columns));
  const SparseTiles& t = weight.tiles;
  std::vector<float> dense(rows * columns);
  int64_t next = 0;
  for (int64_t word = 0; word < t.row_tiles() * t.column_tiles() * 16; ++word) {
    const int64_t tile = word / 16, row = tile / t.column_tiles() * 16,
                  column = tile % t.column_tiles() * 32 + word % 16 * 2;
    if (word % (t.column_tiles() * 16) == 0) CHECK(t.start[row / 16] == next);
    for (int bit = 0; bit < 32; ++bit) {
      if (!(t.bits[word] >> bit & 1)) continue;
      CHECK(row + bit / 2 < rows && column + bit % 2 < columns);
      dense[(row + bit / 2) * columns + column + bit % 2] = get(t.values, next++, DType::bfloat16);
    }
  }
  CHECK(dense == weight.dense && t.start[t.row_tiles()] == next);
  for (int i = 0; i < 32; ++i) CHECK(t.values[next + i] == 0);
}

}  // namespace

int main() {
  for (const int64_t n : {0, 1, 31, 32, 33, 16'383, 16'384, 16'385, 40'001})
    for (const DType dtype : kDTypes)
      for (const int percent : {0, 2, 50, 100})
        for (const Guard guard : kGuards)
          for (const Parallel& parallel : ways(max_isa())) check_pack(n, dtype, percent, guard, parallel);
  for (const auto& [rows, columns] : {std::pair{1, 1}, {9, 33}, {33, 101}, {0, 5}, {5, 0}})
    for (const int64_t block : {1, 7, 32, 101, 65'536})
      for (const DType dtype : kDTypes)
        for (const int percent : {0, 30, 100})
          for (const Guard guard : kGuards) check_prepack(rows, columns, block, percent, dtype, guard);
  for (const auto& [rows, columns] : {std::pair{1, 1}, {9, 33}, {33, 101}, {16, 64}, {0, 5}, {5, 0}})
    for (const int percent : {0, 30, 100})
      for (const Guard guard : kGuards) check_tiles(rows, columns, percent, guard);
  check_prepack(2, 70'001, 65'536, 90, DType::float32, Guard::behind);
}
