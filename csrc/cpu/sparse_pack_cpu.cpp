#include "lcs/ceil_div.h"
#include "lcs/sparse_pack.h"

#include <algorithm>
#include <bit>

namespace lcs {
namespace {

using Bits = std::span<const uint32_t>;
constexpr int64_t kPieceWords = 512, kRows = 8;

// Calls visit(i) for every bit i that is set in [begin, end).
template <class Visit>
void each_bit(Bits bits, int64_t begin, int64_t end, Visit visit) {
  for (int64_t word = begin / 32; word * 32 < end; ++word) {
    uint32_t left = bits[word];
    if (word * 32 < begin) left &= ~0u << (begin % 32);
    if (end - word * 32 < 32) left &= (1u << (end % 32)) - 1;
    for (; left; left &= left - 1) visit(word * 32 + std::countr_zero(left));
  }
}

int64_t count_bits(Bits bits, int64_t begin, int64_t end) {
  if (begin >= end) return 0;
  const int64_t first = begin / 32, last = (end - 1) / 32;
  const uint32_t head = ~0u << (begin % 32), tail = ~0u >> (31 - (end - 1) % 32);
  if (first == last) return std::popcount(bits[first] & head & tail);
  int64_t n = std::popcount(bits[first] & head) + std::popcount(bits[last] & tail);
  for (int64_t word = first + 1; word < last; ++word) n += std::popcount(bits[word]);
  return n;
}

// Calls visit(piece, first weight, end) for pieces of 2^14 weights.
template <class Visit>
void each_piece(Bits bits, const Parallel& parallel, Visit visit) {
  const int64_t words = int64_t(bits.size());
  parallel(ceil_div(words, kPieceWords), 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) visit(i, i * kPieceWords * 32, std::min(words, (i + 1) * kPieceWords) * 32);
  });
}

template <class Word>
void pack(const Word* w, Bits bits, std::span<const int64_t> rank, Word* values, const Parallel& parallel) {
  each_piece(bits, parallel, [&](int64_t piece, int64_t begin, int64_t end) {
    Word* to = values + rank[piece];
    each_bit(bits, begin, end, [&](int64_t i) { *to++ = w[i]; });
  });
}

template <class Word>
void unpack(Bits bits, std::span<const int64_t> rank, const Word* values, int64_t n, Word* w,
            const Parallel& parallel) {
  each_piece(bits, parallel, [&](int64_t piece, int64_t begin, int64_t end) {
    std::fill(w + begin, w + std::min(n, end), Word{0});
    const Word* from = values + rank[piece];
    each_bit(bits, begin, end, [&](int64_t i) { w[i] = *from++; });
  });
}

template <class Word>
void nonzero(const Word* w, int64_t n, uint32_t* bits, const Parallel& parallel) {
  constexpr Word kMagnitude = Word(~Word{0}) >> 1;
  parallel((n + 31) / 32, kPieceWords, [&](int64_t begin, int64_t end) {
    for (int64_t word = begin; word < end; ++word) {
      uint32_t found = 0;
      for (int64_t i = 0; i < std::min<int64_t>(32, n - word * 32); ++i)
        found |= uint32_t((w[word * 32 + i] & kMagnitude) != 0) << i;
      bits[word] = found;
    }
  });
}

float widen(float x) { return x; }
float widen(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

template <class E>
void fill(const SparsePrepack& p, Bits bits, const E* packed, uint16_t* index, float* values,
          const Parallel& parallel) {
  parallel(ceil_div(p.rows, kRows), 1, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kRows, end = std::min(p.rows, last * kRows);
    std::vector<int64_t> to(p.start, p.start + p.blocks());
    const E* from = packed;
    for (int64_t b = 0; b < p.blocks(); ++b)
      for (int64_t row = 0; row < begin; ++row) {
        to[b] += p.count[b * p.rows + row];
        from += p.count[b * p.rows + row];
      }
    for (int64_t row = begin; row < end; ++row)
      for (int64_t b = 0; b < p.blocks(); ++b) {
        const int64_t column = row * p.columns + b * p.block;
        each_bit(bits, column, std::min(column + p.block, (row + 1) * p.columns), [&](int64_t i) {
          index[to[b]] = uint16_t(i - column);
          values[to[b]++] = widen(*from++);
        });
      }
  });
}

// Calls visit(word, bit) for every weight of the row that is stored, counted within its row tile.
template <class Visit>
void each_tile_bit(Bits bits, int64_t row, int64_t columns, Visit visit) {
  each_bit(bits, row * columns, (row + 1) * columns, [&](int64_t i) {
    const int64_t column = i - row * columns;
    visit(column / 2, int(2 * (row % SparseTiles::kRows) + column % 2));
  });
}

}  // namespace

void nonzero_bits(const void* w, DType dtype, int64_t n, uint32_t* mask_bits, const Parallel& parallel) {
  if (size_of(dtype) == 4) return nonzero(static_cast<const uint32_t*>(w), n, mask_bits, parallel);
  nonzero(static_cast<const uint16_t*>(w), n, mask_bits, parallel);
}

std::vector<int64_t> ranks(Bits mask_bits, const Parallel& parallel) {
  std::vector<int64_t> rank(ceil_div(mask_bits.size(), kPieceWords) + 1);
  each_piece(mask_bits, parallel,
             [&](int64_t piece, int64_t begin, int64_t end) { rank[piece + 1] = count_bits(mask_bits, begin, end); });
  for (size_t i = 1; i < rank.size(); ++i) rank[i] += rank[i - 1];
  return rank;
}

void sparse_pack(const void* w, DType dtype, Bits mask_bits, std::span<const int64_t> rank, void* values,
                 const Parallel& parallel) {
  if (size_of(dtype) == 4)
    return pack(static_cast<const uint32_t*>(w), mask_bits, rank, static_cast<uint32_t*>(values), parallel);
  pack(static_cast<const uint16_t*>(w), mask_bits, rank, static_cast<uint16_t*>(values), parallel);
}

void sparse_unpack(Bits mask_bits, std::span<const int64_t> rank, const void* values, DType dtype, int64_t n, void* w,
                   const Parallel& parallel) {
  if (size_of(dtype) == 4)
    return unpack(mask_bits, rank, static_cast<const uint32_t*>(values), n, static_cast<uint32_t*>(w), parallel);
  unpack(mask_bits, rank, static_cast<const uint16_t*>(values), n, static_cast<uint16_t*>(w), parallel);
}

void sparse_prepack_count(int64_t rows, int64_t columns, int64_t block, Bits mask_bits, int32_t* count, int64_t* start,
                          const Parallel& parallel) {
  const int64_t blocks = sparse_blocks(columns, block);
  parallel(rows, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t b = 0; b < blocks; ++b)
        count[b * rows + row] = int32_t(
            count_bits(mask_bits, row * columns + b * block, row * columns + std::min(columns, (b + 1) * block)));
  });
  start[0] = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    start[b + 1] = start[b];
    for (int64_t row = 0; row < rows; ++row) start[b + 1] += count[b * rows + row];
  }
}

void sparse_prepack_fill(const SparsePrepack& counted, Bits mask_bits, const void* packed, DType dtype, uint16_t* index,
                         float* values, const Parallel& parallel) {
  if (dtype == DType::bfloat16)
    return fill(counted, mask_bits, static_cast<const BFloat16*>(packed), index, values, parallel);
  fill(counted, mask_bits, static_cast<const float*>(packed), index, values, parallel);
}

void sparse_tiles_count(const SparseTiles& sizes, Bits mask_bits, uint32_t* bits, int64_t* start,
                        const Parallel& parallel) {
  const int64_t words = sizes.column_tiles() * SparseTiles::kWords, tiles = sizes.row_tiles();
  parallel(tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      uint32_t* const to = bits + tile * words;
      std::fill(to, to + words, 0);
      const int64_t first = tile * SparseTiles::kRows, last = std::min(sizes.rows, first + SparseTiles::kRows);
      for (int64_t row = first; row < last; ++row)
        each_tile_bit(mask_bits, row, sizes.columns, [&](int64_t word, int bit) { to[word] |= 1u << bit; });
      start[tile + 1] = count_bits({to, size_t(words)}, 0, words * 32);
    }
  });
  start[0] = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) start[tile + 1] += start[tile];
}

void sparse_tiles_fill(const SparseTiles& t, Bits mask_bits, const uint16_t* packed, uint16_t* values,
                       const Parallel& parallel) {
  const int64_t words = t.column_tiles() * SparseTiles::kWords;
  parallel(t.row_tiles(), 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> at(static_cast<size_t>(words));  // where a word's values begin
    for (int64_t tile = begin; tile < end; ++tile) {
      const uint32_t* const bits = t.bits + tile * words;
      const uint16_t* from = packed + t.start[tile];  // whole rows: as many values come before
      int64_t next = t.start[tile];
      for (int64_t word = 0; word < words; next += std::popcount(bits[word++])) at[size_t(word)] = next;
      const int64_t first = tile * SparseTiles::kRows, last = std::min(t.rows, first + SparseTiles::kRows);
      for (int64_t row = first; row < last; ++row)
        each_tile_bit(mask_bits, row, t.columns, [&](int64_t word, int bit) {
          values[at[size_t(word)] + std::popcount(bits[word] & ((1u << bit) - 1))] = *from++;
        });
    }
  });
  std::fill_n(values + t.start[t.row_tiles()], SparseTiles::kPadding, uint16_t{0});
}

}  // namespace lcs
