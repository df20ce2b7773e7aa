// What csrc/cpu/tiles.inl does, in plain C++, bit for bit; ends the process where an instruction would fault.
struct EmulatedTile {
  int rows, bytes;
  alignas(64) unsigned char data[16][64];
};

inline EmulatedTile& emulated_tile(int tile) {
  static thread_local EmulatedTile tiles[8];
  return tiles[tile];
}

inline EmulatedTile& shaped_tile(int tile) {
  EmulatedTile& t = emulated_tile(tile);
  if (t.rows == 0) __builtin_trap();  // not configured
  return t;
}

inline void tile_configure(const TileConfig& config) {
  for (int i = 0; i < 8; ++i) {
    const int rows = config.rows[i], bytes = config.bytes[i];
    if (rows > 16 || bytes > 64 || (rows == 0) != (bytes == 0)) __builtin_trap();
    emulated_tile(i) = {rows, bytes, {}};
  }
}

inline void tile_release() {
  for (int i = 0; i < 8; ++i) emulated_tile(i) = {};
}

template <int kTile>
inline void tile_zero() {
  __builtin_memset(shaped_tile(kTile).data, 0, sizeof(EmulatedTile::data));
}

template <int kTile>
inline void tile_load(const void* from, int64_t stride) {
  EmulatedTile& t = shaped_tile(kTile);
  __builtin_memset(t.data, 0, sizeof t.data);
  for (int m = 0; m < t.rows; ++m)
    __builtin_memcpy(t.data[m], static_cast<const char*>(from) + m * stride, size_t(t.bytes));
}

template <int kTile>
inline void tile_store(void* to, int64_t stride) {
  const EmulatedTile& t = shaped_tile(kTile);
  for (int m = 0; m < t.rows; ++m) __builtin_memcpy(static_cast<char*>(to) + m * stride, t.data[m], size_t(t.bytes));
}

template <int kSum, int kA, int kB>
inline void check_product() {
  static_assert(kSum != kA && kSum != kB && kA != kB);
  const EmulatedTile &sum = shaped_tile(kSum), &a = shaped_tile(kA), &b = shaped_tile(kB);
  if (a.bytes % 4 || b.bytes % 4 || sum.rows != a.rows || sum.bytes != b.bytes || a.bytes != 4 * b.rows)
    __builtin_trap();
}

// Left to no sanitizer: products are most of what a test does, and read what check_product has checked.
#define LCS_PRODUCT [[gnu::no_sanitize("address", "thread", "undefined")]] inline

template <class T>
LCS_PRODUCT T tile_element(const EmulatedTile& t, int row, int i) {
  T x;
  __builtin_memcpy(&x, t.data[row] + i * int(sizeof(T)), sizeof(T));
  return x;
}
template <class T>
LCS_PRODUCT void put_tile_element(EmulatedTile& t, int row, int i, T x) {
  __builtin_memcpy(t.data[row] + i * int(sizeof(T)), &x, sizeof(T));
}

template <int kSum, int kA, int kB>
LCS_PRODUCT void tile_dot_signed_unsigned() {
  check_product<kSum, kA, kB>();
  EmulatedTile& sum = emulated_tile(kSum);
  const EmulatedTile &a = emulated_tile(kA), &b = emulated_tile(kB);
  for (int m = 0; m < a.rows; ++m)
    for (int k = 0; k < b.rows; ++k)
      for (int n = 0; n < b.bytes / 4; ++n) {
        uint32_t total = tile_element<uint32_t>(sum, m, n);  // wraps around
        for (int i = 0; i < 4; ++i)
          total += uint32_t(int32_t(tile_element<int8_t>(a, m, 4 * k + i)) * tile_element<uint8_t>(b, k, 4 * n + i));
        put_tile_element(sum, m, n, total);
      }
}

LCS_PRODUCT float without_subnormal(float x) {
  return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}
LCS_PRODUCT float wide_bfloat16(const EmulatedTile& t, int row, int i) {
  const uint32_t bits = uint32_t(tile_element<uint16_t>(t, row, i)) << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return without_subnormal(x);
}

// In the order of the instruction: the even columns' products and the odd ones', each added with one rounding; then
// the sum of both is added to what was there. Subnormal operands and results are 0.
template <int kSum, int kA, int kB>
LCS_PRODUCT void tile_dot_bfloat16() {
  check_product<kSum, kA, kB>();
  EmulatedTile& sum = emulated_tile(kSum);
  const EmulatedTile &a = emulated_tile(kA), &b = emulated_tile(kB);
  for (int m = 0; m < a.rows; ++m)
    for (int n = 0; n < b.bytes / 4; ++n) {
      float part[2] = {0.0f, 0.0f};
      for (int k = 0; k < b.rows; ++k)
        for (int i = 0; i < 2; ++i)
          part[i] = without_subnormal(
              __builtin_fmaf(wide_bfloat16(a, m, 2 * k + i), wide_bfloat16(b, k, 2 * n + i), part[i]));
      const float both = without_subnormal(part[0] + part[1]);
      const float total = without_subnormal(without_subnormal(tile_element<float>(sum, m, n)) + both);
      put_tile_element(sum, m, n, total);
    }
}

#undef LCS_PRODUCT
