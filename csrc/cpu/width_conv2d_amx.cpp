// Pairs of bfloat16 in tiles: 16 positions by up to 16 pairs of input channels, times those by 16 output channels,
// which is how the weight keeps them. Two tiles of either kind make four tiles of sums.
#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "keys.h"
#include "target.h"
#include "width_conv2d_kernels.h"

LCS_TARGET_BEGIN(LCS_TARGET_BF16)
namespace lcs::amx {
namespace {
#include "lanes_avx512.inl"
#include "tiles.inl"

constexpr int kRows = 16, kMaxVectors = 2;
constexpr int64_t kRowBytes = 64;  // of a tile: a pair of each of 16 channels, or sums of as many

// Up to 16 positions as a tile is loaded from: where they lie if they are 16 and lie evenly, else from a copy.
class Positions {
 public:
  Positions(const WidthTile& t, int first)
      : at_(t.at + first),
        rows_(std::min(kRows, t.pixels - first)),
        pairs_(__mmask16(0xffff >> (kRows - std::min<int64_t>(kRows, t.end - t.begin)))) {
    step_ = rows_ == kRows ? at_[1] - at_[0] : 0;
    even_ = rows_ == kRows;
    for (int m = 2; m < rows_; ++m) even_ = even_ && at_[m] - at_[m - 1] == step_;
    if (!even_) __builtin_memset(copy_, 0, sizeof copy_);
  }

  template <int kTile>
  void load(int64_t offset) {
    if (even_) return tile_load<kTile>(at_[0] + offset, step_ * int64_t{sizeof(float)});
    for (int m = 0; m < rows_; ++m) store(copy_[m], _mm512_maskz_loadu_ps(pairs_, at_[m] + offset));
    tile_load<kTile>(copy_, kRowBytes);
  }

 private:
  const float* const* const at_;
  const int rows_;
  const __mmask16 pairs_;
  int64_t step_;
  bool even_;
  alignas(64) float copy_[kRows][kLanes];
};

inline void put(float* to, Float x) { store(to, x); }
inline void put(BFloat16* to, Float x) {  // denormals as zeros, as the products
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), __m256i(_mm512_cvtneps_pbh(x)));
}

template <class To, int kVectors>
inline void put_results(const WidthTile& t, const float* sums) {
  const Float floor = set1(t.relu ? 0.0f : -__builtin_inff());
  for (int p = 0; p < t.pixels; ++p)
    for (int v = 0; v < kVectors; ++v, sums += kLanes) {
      const Float x = fmadd(load(sums), load(t.scale + v * kLanes), load(t.bias + v * kLanes));
      put(static_cast<To*>(t.to[p]) + v * kLanes, raised_to(x, floor));
    }
}

// Tiles 0 to 3 are the sums of one or two tiles of positions, 4 and 5, with one or two of output channels, 6 and 7.
// Calls on(tile, where it begins among the sums) with each.
template <int kRowTiles, int kVectors, class On>
inline void for_sums(const On& on) {
  constexpr int64_t kNext = kRows * kVectors * kLanes;
  on(std::integral_constant<int, 0>(), 0);
  if constexpr (kVectors == 2) on(std::integral_constant<int, 1>(), kLanes);
  if constexpr (kRowTiles == 2) on(std::integral_constant<int, 2>(), kNext);
  if constexpr (kRowTiles == 2 && kVectors == 2) on(std::integral_constant<int, 3>(), kNext + kLanes);
}

template <int kRowTiles, int kVectors>
void multiply(const WidthTile& t) {
  Positions x0(t, 0), x1(t, kRowTiles == 2 ? kRows : 0);
  const float *weight = t.weight, *ahead = t.ahead;
  for (int64_t block = t.begin; block < t.end; block += t.block) {
    const int64_t next = std::min(t.block, t.stored - block) * kLanes;
    for (const WidthTap* tap = t.tap; tap != t.tap + t.taps; ++tap) {
      const float* const w = weight + tap->index * next;
      const int64_t offset = block + tap->offset;
      for (int i = 0; i < t.ahead_lines; ++i, ahead += kLanes) __builtin_prefetch(ahead, 0, 2);
      tile_load<6>(w, kRowBytes);
      x0.load<4>(offset);
      tile_dot_bfloat16<0, 4, 6>();
      if constexpr (kVectors == 2) {
        tile_load<7>(w + t.block_stride, kRowBytes);
        tile_dot_bfloat16<1, 4, 7>();
      }
      if constexpr (kRowTiles == 2) {
        x1.load<5>(offset);
        tile_dot_bfloat16<2, 5, 6>();
        if constexpr (kVectors == 2) tile_dot_bfloat16<3, 5, 7>();
      }
    }
    weight += t.weight_taps * next;
  }
}

template <int kRowTiles, int kVectors>
void accumulate_tiles(const WidthTile& t) {
  constexpr int64_t kSumBytes = kVectors * kRowBytes;
  const size_t bytes = size_t(t.pixels * kSumBytes);
  alignas(64) float sums[kRowTiles * kRows * kVectors * kLanes];
  if (t.first) {
    for_sums<kRowTiles, kVectors>([](auto tile, int64_t) { tile_zero<tile>(); });
  } else {
    __builtin_memcpy(sums, t.sums, bytes);
    __builtin_memset(reinterpret_cast<char*>(sums) + bytes, 0, sizeof sums - bytes);
    for_sums<kRowTiles, kVectors>([&](auto tile, int64_t at) { tile_load<tile>(sums + at, kSumBytes); });
  }
  multiply<kRowTiles, kVectors>(t);
  for_sums<kRowTiles, kVectors>([&](auto tile, int64_t at) { tile_store<tile>(sums + at, kSumBytes); });
  if (!t.last)
    __builtin_memcpy(t.sums, sums, bytes);
  else if (t.dtype == DType::bfloat16)
    put_results<BFloat16, kVectors>(t, sums);
  else
    put_results<float, kVectors>(t, sums);
}

void accumulate(const WidthTile& t) {
  if (t.pixels > kRows)
    t.vectors == 2 ? accumulate_tiles<2, 2>(t) : accumulate_tiles<2, 1>(t);
  else
    t.vectors == 2 ? accumulate_tiles<1, 2>(t) : accumulate_tiles<1, 1>(t);
}

// Few positions take whole tiles, too: shapes cost more to change than rows to multiply.
void begin(int64_t channels) {
  const uint8_t pairs = uint8_t(std::clamp<int64_t>(channels, 1, kRows));
  constexpr TileShape sums{kRows, kRowBytes};
  const TileShape x{kRows, uint8_t(pairs * sizeof(float))}, w{pairs, kRowBytes};
  tile_configure(tile_config({sums, sums, sums, sums, x, x, w, w}));
}

void end() { tile_release(); }

}  // namespace

WidthConv2dKernels width_conv2d_kernels() {
  WidthConv2dKernels kernels = avx512::width_conv2d_kernels();
  kernels.vectors = kernels.max_vectors = kMaxVectors;
  kernels.pixels = [](int) { return 2 * kRows; };
  kernels.accumulate = accumulate;
  kernels.rows = kRows;
  kernels.begin = begin;
  kernels.end = end;
  return kernels;
}

}  // namespace lcs::amx
LCS_TARGET_END
