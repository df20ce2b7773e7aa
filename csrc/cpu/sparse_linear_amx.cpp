#include <immintrin.h>

#include <algorithm>

#include "sparse_linear_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_BF16)
namespace lcs::amx {
namespace {
#include "tiles.inl"

constexpr int kRowBytes = 64;                                  // of a tile
constexpr int64_t kSumBytes = 2 * SparseTiles::kRows * 4;      // of a row of sums
constexpr int64_t kTileSums = SparseTiles::kRows * kSumBytes;  // bytes of a tile's rows of sums

bool pack(const SparseTileRows& r) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 special = 0;
  for (int64_t column = 0; column < r.columns; column += SparseTiles::kColumns) {
    const int64_t n = std::min(SparseTiles::kColumns, r.columns - column);
    const __mmask32 inside = ~0u >> (SparseTiles::kColumns - n);
    char* const to = r.to + column / SparseTiles::kColumns * kSparseTileBytes;
    for (int m = 0; m < SparseTiles::kRows; ++m) {
      const __m512i x =
          m < r.rows ? _mm512_maskz_loadu_epi16(inside, r.x + m * r.columns + column) : _mm512_setzero_si512();
      special |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(x, exponent), exponent);
      _mm512_storeu_si512(to + m * kRowBytes, x);
    }
  }
  return special == 0;
}

// A row tile of the weight, unpacked column tile by column tile.
struct Unpack {
  const uint32_t* bits;
  const uint16_t* values;

  Unpack(const SparseTiles& w, int64_t tile)
      : bits(w.bits + tile * w.column_tiles() * SparseTiles::kWords), values(w.values + w.start[tile]) {}

  void next(char* to) {
    const uint32_t* const words = bits;
    const uint16_t* from = values;
    LCS_UNROLL
    for (int i = 0; i < SparseTiles::kWords; ++i) {
      const uint32_t word = words[i];
      _mm512_storeu_si512(to + i * kRowBytes, _mm512_maskz_expand_epi16(word, _mm512_loadu_si512(from)));
      from += __builtin_popcount(word);
    }
    values = from;
    bits = words + SparseTiles::kWords;
  }
};

// One or two tiles of rows of x, 4 and 5, times `n` column tiles of a block, of which 6 and 7 hold one; `each(i)` comes
// before the i-th of them.
template <int kRowTiles, class Each>
inline void multiply_rows(const char* x, int64_t x_bytes, const char* panel, int64_t n, float* acc, const Each& each) {
  char* const sums = reinterpret_cast<char*>(acc);
  tile_load<0>(sums, kSumBytes);
  tile_load<1>(sums + kRowBytes, kSumBytes);
  if constexpr (kRowTiles == 2) {
    tile_load<2>(sums + kTileSums, kSumBytes);
    tile_load<3>(sums + kTileSums + kRowBytes, kSumBytes);
  }
  for (int64_t i = 0; i < n; ++i, x += kSparseTileBytes, panel += 2 * kSparseTileBytes) {
    each(i);
    tile_load<6>(panel, kRowBytes);
    tile_load<4>(x, kRowBytes);
    tile_dot_bfloat16<0, 4, 6>();
    tile_load<7>(panel + kSparseTileBytes, kRowBytes);
    tile_dot_bfloat16<1, 4, 7>();
    if constexpr (kRowTiles == 2) {
      tile_load<5>(x + x_bytes, kRowBytes);
      tile_dot_bfloat16<2, 5, 6>();
      tile_dot_bfloat16<3, 5, 7>();
    }
  }
  tile_store<0>(sums, kSumBytes);
  tile_store<1>(sums + kRowBytes, kSumBytes);
  if constexpr (kRowTiles == 2) {
    tile_store<2>(sums + kTileSums, kSumBytes);
    tile_store<3>(sums + kTileSums + kRowBytes, kSumBytes);
  }
}

void multiply(const SparseTileProduct& p) {
  constexpr TileShape kWhole{SparseTiles::kRows, kRowBytes};
  tile_configure(tile_config({kWhole, kWhole, kWhole, kWhole, kWhole, kWhole, kWhole, kWhole}));
  const int64_t columns = p.weight->column_tiles(), x_bytes = columns * kSparseTileBytes;
  Unpack low(*p.weight, 2 * p.block), high(*p.weight, 2 * p.block + 1);
  const auto unpack = [&](int64_t i) {
    low.next(p.panel + 2 * i * kSparseTileBytes);
    high.next(p.panel + (2 * i + 1) * kSparseTileBytes);
  };
  for (int64_t column = 0; column < columns; column += kSparseTilesAtOnce) {
    const int64_t n = std::min(kSparseTilesAtOnce, columns - column);
    const auto rows = [&](int64_t m, const auto& each) {
      const char* const x = p.x + m * x_bytes + column * kSparseTileBytes;
      float* const acc = p.acc + m * kTileSums / 4;
      p.tiles - m > 1 ? multiply_rows<2>(x, x_bytes, p.panel, n, acc, each)
                      : multiply_rows<1>(x, x_bytes, p.panel, n, acc, each);
    };
    // The first rows are multiplied while the panel is unpacked, a tile ahead, as the units that do either differ.
    unpack(0);
    rows(0, [&](int64_t i) {
      if (i + 1 < n) unpack(i + 1);
    });
    for (int64_t m = 2; m < p.tiles; m += 2) rows(m, [](int64_t) {});
  }
  tile_release();
}

}  // namespace

SparseTileKernels sparse_tile_kernels() { return {pack, multiply}; }

}  // namespace lcs::amx
LCS_TARGET_END
