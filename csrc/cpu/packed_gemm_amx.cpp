// Integers of many rows of x are multiplied in tiles; what concerns few of them, or floats, is VNNI's.
//
// A panel of bytes holds, for every 8 steps, one tile for the first 16 places of a block and one for the other 16: a
// row of the tile has four columns of each place. What is left of the steps makes tiles of fewer rows.
#include <immintrin.h>

#include <algorithm>
#include <utility>

#include "packed_gemm_kernels.h"
#include "target.h"

LCS_TARGET_BEGIN(LCS_TARGET_BF16)
namespace lcs::amx {
namespace {
#include "tiles.inl"

constexpr int64_t kLeastRows = 16;  // of x: a whole tile
constexpr int kTileSteps = 8;
constexpr int kTilePlaces = 16, kTileRows = 16, kTileBytes = 64;
constexpr int64_t kRowBytes = kBlockRows * 4;  // of sums

inline __m256i plane_at(const PackedExpand& e, int64_t step, int plane) {
  if (plane < 0) return _mm256_setzero_si256();
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(e.planes + plane * e.plane_bytes + step * kBlockRows));
}

// A step of two planes behind each other; those before the first one are 0.
inline __m512i two_planes(const PackedExpand& e, int64_t step, int plane) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(plane_at(e, step, plane)), plane_at(e, step, plane + 1), 1);
}

// Where the four bytes of each place stand among four planes of 32 rows.
struct PlaceOrder {
  unsigned char from[kTileBytes];
};
constexpr PlaceOrder place_order(int first) {
  PlaceOrder order{};
  for (int i = 0; i < kTileBytes; ++i)
    order.from[i] = static_cast<unsigned char>(i % 4 * kBlockRows + panel_row(first + i / 4));
  return order;
}

// Four columns' codes of 16 places, from eight planes' bytes of each: of the first, or of the last four.
inline void store_codes(__m512i high, __m512i low, char* to) {
  const __m512i columns = _mm512_set1_epi64(int64_t(0x8040201008040201));
  const __m512 a = _mm512_castsi512_ps(_mm512_gf2p8affine_epi64_epi8(columns, _mm512_unpacklo_epi32(high, low), 0)),
               b = _mm512_castsi512_ps(_mm512_gf2p8affine_epi64_epi8(columns, _mm512_unpackhi_epi32(high, low), 0));
  _mm512_storeu_ps(to, _mm512_shuffle_ps(a, b, 0x88));
  _mm512_storeu_ps(to + kTileBytes, _mm512_shuffle_ps(a, b, 0xdd));
}

template <int kBits>
void expand_steps(const PackedExpand& e) {
  static constexpr PlaceOrder kOrders[] = {place_order(0), place_order(kTilePlaces)};
  __m512i order[2];
  for (int t = 0; t < 2; ++t) order[t] = _mm512_loadu_si512(kOrders[t].from);
  char* const panel = static_cast<char*>(e.panel);
  for (int64_t step = 0; step < e.steps; ++step) {
    const int64_t in_tile = step % kTileSteps, first = step - in_tile,
                  steps = std::min<int64_t>(kTileSteps, e.steps - first);
    char* const to = panel + first * panel_bytes(Panel::bytes) + in_tile * 2 * kTileBytes;
    const __m512i l0 = two_planes(e, step, kBits - 4), l1 = two_planes(e, step, kBits - 2),
                  h0 = two_planes(e, step, kBits - 8), h1 = two_planes(e, step, kBits - 6);
    LCS_UNROLL
    for (int t = 0; t < 2; ++t) {
      const __m512i low = _mm512_permutex2var_epi8(l0, order[t], l1),
                    high = kBits > 4 ? _mm512_permutex2var_epi8(h0, order[t], h1) : _mm512_setzero_si512();
      store_codes(high, low, to + t * steps * 2 * kTileBytes);
    }
  }
}

template <int... kBits>
void expand_bits(const PackedExpand& e, std::integer_sequence<int, kBits...>) {
  static constexpr void (*kTable[])(const PackedExpand&) = {expand_steps<kBits + 1>...};
  kTable[e.bits - 1](e);
}

void expand(const PackedExpand& e, Panel panel) {
  if (panel != Panel::bytes) return vnni::packed_gemm_kernels().expand(e, panel);
  expand_bits(e, std::make_integer_sequence<int, kPlanes>());
}

// Up to 16 rows of x, and up to 8 steps of them, as a tile is loaded from: where they lie if they lie evenly, else
// from a copy.
class RowTile {
 public:
  RowTile(const PackedMultiply& p, int64_t row, int64_t rows) : p_(p), row_(p.row + row), rows_(rows) {
    for (int64_t m = 2; m < rows; ++m) even_ = even_ && row_[m] - row_[m - 1] == row_[1] - row_[0];
    stride_ = rows > 1 ? row_[1] - row_[0] : 0;
  }

  template <int kTile>
  void load(int64_t step, int64_t steps) {
    const int64_t* const at = p_.step + step;
    bool together = true;
    for (int64_t s = 1; s < steps; ++s) together = together && at[s] == at[0] + s * kStepColumns;
    if (even_ && together) return tile_load<kTile>(p_.x + row_[0] + at[0], stride_);
    for (int64_t m = 0; m < rows_; ++m) {
      const char* const x = p_.x + row_[m];
      if (together && steps == kTileSteps)
        __builtin_memcpy(copy_[m], x + at[0], kTileBytes);
      else
        for (int64_t s = 0; s < steps; ++s) __builtin_memcpy(copy_[m] + s * kStepColumns, x + at[s], kStepColumns);
    }
    tile_load<kTile>(copy_, kTileBytes);
  }

 private:
  const PackedMultiply& p_;
  const int64_t* const row_;
  const int64_t rows_;
  int64_t stride_;
  bool even_ = true;
  alignas(64) char copy_[kTileRows][kTileBytes];
};

// Tiles 0 to 3 are the sums of one or two tiles of rows, 4 and 5, with both halves of a block, 6 and 7.
template <int kRowTiles>
void multiply_tiles(const PackedMultiply& p, int64_t row, int64_t rows, int64_t step, int64_t groups, int64_t steps) {
  const TileShape sums0{uint8_t(std::min<int64_t>(rows, kTileRows)), kTileBytes},
      sums1{uint8_t(rows - sums0.rows), uint8_t(kRowTiles == 2 ? kTileBytes : 0)};
  RowTile x0(p, row, sums0.rows), x1(p, row + (kRowTiles == 2 ? kTileRows : 0), sums1.rows);
  char* const acc = static_cast<char*>(p.acc) + row * kRowBytes;
  char* const acc1 = acc + kTileRows * kRowBytes;
  const char* w = static_cast<const char*>(p.panel) + step * panel_bytes(Panel::bytes);
  tile_load<0>(acc, kRowBytes);
  tile_load<1>(acc + kTileBytes, kRowBytes);
  if constexpr (kRowTiles == 2) {
    tile_load<2>(acc1, kRowBytes);
    tile_load<3>(acc1 + kTileBytes, kRowBytes);
  }
  for (int64_t g = 0; g < groups; ++g, step += steps, w += steps * panel_bytes(Panel::bytes)) {
    tile_load<6>(w, kTileBytes);
    x0.load<4>(step, steps);
    tile_dot_signed_unsigned<0, 4, 6>();
    tile_load<7>(w + steps * 2 * kTileBytes, kTileBytes);
    tile_dot_signed_unsigned<1, 4, 7>();
    if constexpr (kRowTiles == 2) {
      x1.load<5>(step, steps);
      tile_dot_signed_unsigned<2, 5, 6>();
      tile_dot_signed_unsigned<3, 5, 7>();
    }
  }
  tile_store<0>(acc, kRowBytes);
  tile_store<1>(acc + kTileBytes, kRowBytes);
  if constexpr (kRowTiles == 2) {
    tile_store<2>(acc1, kRowBytes);
    tile_store<3>(acc1 + kTileBytes, kRowBytes);
  }
}

// All rows with `groups` times `steps` steps from `step` on.
void multiply_steps(const PackedMultiply& p, int64_t step, int64_t groups, int64_t steps) {
  const uint8_t columns = uint8_t(steps * kStepColumns);
  const TileShape w{uint8_t(steps * 2), kTileBytes};
  int64_t row = 0;
  if (p.rows >= 2 * kTileRows) {
    const TileShape sums{kTileRows, kTileBytes}, x{kTileRows, columns};
    tile_configure(tile_config({sums, sums, sums, sums, x, x, w, w}));
    for (; row + 2 * kTileRows <= p.rows; row += 2 * kTileRows)
      multiply_tiles<2>(p, row, 2 * kTileRows, step, groups, steps);
  }
  const int64_t rest = p.rows - row;
  if (rest == 0) return;
  const uint8_t first = uint8_t(std::min<int64_t>(rest, kTileRows)), second = uint8_t(rest - first);
  const TileShape sums0{first, kTileBytes}, x0{first, columns};
  if (second == 0) {
    tile_configure(tile_config({sums0, sums0, {0, 0}, {0, 0}, x0, {0, 0}, w, w}));
    return multiply_tiles<1>(p, row, rest, step, groups, steps);
  }
  const TileShape sums1{second, kTileBytes}, x1{second, columns};
  tile_configure(tile_config({sums0, sums0, sums1, sums1, x0, x1, w, w}));
  multiply_tiles<2>(p, row, rest, step, groups, steps);
}

void multiply(const PackedMultiply& p, Panel panel) {
  if (panel != Panel::bytes) return vnni::packed_gemm_kernels().multiply(p, panel);
  const int64_t groups = p.steps / kTileSteps, rest = p.steps % kTileSteps;
  if (groups > 0) multiply_steps(p, 0, groups, kTileSteps);
  if (rest > 0) multiply_steps(p, p.steps - rest, 1, rest);
  tile_release();
}

void multiply_planes(const PackedExpand& e, const PackedMultiply& p) {
  if (p.rows < kLeastRows) return vnni::packed_gemm_kernels().multiply_planes(e, p);
  expand(e, Panel::bytes);
  multiply(p, Panel::bytes);
}

// Sums from tiles stand where they belong.
void settle(int32_t* acc, int64_t rows, int bits) {
  if (rows < kLeastRows) vnni::packed_gemm_kernels().settle(acc, rows, bits);
}

}  // namespace

PackedGemmKernels packed_gemm_kernels() {
  PackedGemmKernels kernels = vnni::packed_gemm_kernels();
  kernels.expand = expand;
  kernels.multiply = multiply;
  kernels.multiply_planes = multiply_planes;
  kernels.settle = settle;
  kernels.expand_pair = nullptr;  // tiles take a convolution's many positions
  kernels.multiply_pair = nullptr;
  kernels.winograd_2x2 = {};
  kernels.winograd_4x4 = {};
  return kernels;
}

}  // namespace lcs::amx
LCS_TARGET_END
