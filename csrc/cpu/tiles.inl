// The tile instructions of AMX, in an unnamed namespace inside a target region of at least AVX-512. Tiles are numbered
// 0 to 7 at compile time and hold up to 16 rows of 64 bytes; their shapes hold for the calling thread, from
// tile_configure() to tile_release(). What is loaded, stored and multiplied is a tile's whole shape.
//
// Written in assembly, as gcc 12's intrinsics do not say which memory they read. A build that defines
// LCS_EMULATED_TILES computes the same bits without the instructions.
struct TileShape {
  uint8_t rows, bytes;  // at most 16, and 64 of each row
};

struct alignas(64) TileConfig {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles of no rows may not be used.
constexpr TileConfig tile_config(const TileShape (&shapes)[8]) {
  static_assert(sizeof(TileConfig) == 64);
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.bytes[i] = shapes[i].bytes;
    config.rows[i] = shapes[i].rows;
  }
  return config;
}

#if defined(LCS_EMULATED_TILES)
#include "emulated/tiles_emulated.inl"
#else
// Zeroes all tiles.
inline void tile_configure(const TileConfig& config) {
  asm volatile("ldtilecfg %0" ::"m"(*reinterpret_cast<const char (*)[64]>(&config)) : "memory");
}
inline void tile_release() { asm volatile("tilerelease" ::: "memory"); }

template <int kTile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"n"(kTile));
}
template <int kTile>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "n"(kTile) : "memory");
}
template <int kTile>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "n"(kTile) : "memory");
}

// kSum[m][n] += the sum over k of a[m][k] * b[k / 4][n][k % 4]: int8 times uint8, in int32.
template <int kSum, int kA, int kB>
inline void tile_dot_signed_unsigned() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(kSum), "n"(kA), "n"(kB));
}

// kSum[m][n] += the sum over k of a[m][k] * b[k / 2][n][k % 2]: bfloat16, in float32; subnormal numbers count as 0.
template <int kSum, int kA, int kB>
inline void tile_dot_bfloat16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(kSum), "n"(kA), "n"(kB));
}
#endif
