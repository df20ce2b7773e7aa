// How a linear layer's integers are multiplied with VNNI and GFNI, after packed_gemm.inl: four products are added to 32
// bits at once, at every width. Eight vectors of 32 bytes hold a step, each the codes of four rows, eight columns
// beside each other; two sums belong to each row, of the first and of the last four columns.
//
// A field of 2, 4 or 8 bits holds a code. Fields of several rows share the bytes that the planes make: each row's are
// masked but stay where they are, so that its sums count for a power of two, which `settle` divides by.
constexpr int kParts = 8;  // vectors of 32 bytes, of a step
constexpr int field_of(int bits) { return bits <= 2 ? 2 : bits <= 4 ? 4 : 8; }

// Bytes of eight planes, first to last, that lie side by side become eight codes, the first plane their highest bit.
inline __m256i transposed(__m256i planes) {
  const __m256i columns = _mm256_set1_epi64x(int64_t(0x8040201008040201));
  return _mm256_gf2p8affine_epi64_epi8(columns, planes, 0);
}

inline __m256i low_bytes(__m256i a, __m256i b) { return _mm256_unpacklo_epi8(a, b); }
inline __m256i high_bytes(__m256i a, __m256i b) { return _mm256_unpackhi_epi8(a, b); }
inline __m256i low_words(__m256i a, __m256i b) { return _mm256_unpacklo_epi16(a, b); }
inline __m256i high_words(__m256i a, __m256i b) { return _mm256_unpackhi_epi16(a, b); }
inline __m256i low_fours(__m256i a, __m256i b) { return _mm256_unpacklo_epi32(a, b); }
inline __m256i high_fours(__m256i a, __m256i b) { return _mm256_unpackhi_epi32(a, b); }
inline __m512i low_bytes(__m512i a, __m512i b) { return _mm512_unpacklo_epi8(a, b); }
inline __m512i high_bytes(__m512i a, __m512i b) { return _mm512_unpackhi_epi8(a, b); }
inline __m512i low_words(__m512i a, __m512i b) { return _mm512_unpacklo_epi16(a, b); }
inline __m512i high_words(__m512i a, __m512i b) { return _mm512_unpackhi_epi16(a, b); }
inline __m512i low_fours(__m512i a, __m512i b) { return _mm512_unpacklo_epi32(a, b); }
inline __m512i high_fours(__m512i a, __m512i b) { return _mm512_unpackhi_epi32(a, b); }

// The planes `plane(0)` to `plane(kBits - 1)` of a step as the last ones of `kField`, byte by byte: kField vectors of
// rows.
template <int kBits, int kField, class Plane, class Vector>
inline void join_planes(const Plane& plane, Vector* to) {
  if constexpr (kBits == 0) {
    LCS_UNROLL
    for (int i = 0; i < kField; ++i) to[i] = Vector{};
  } else if constexpr (kField == 1) {
    to[0] = plane(0);
  } else {
    constexpr int kHalf = kField / 2, kLow = std::min(kBits, kHalf), kHigh = kBits - kLow;
    Vector high[kHalf], low[kHalf];
    join_planes<kHigh, kHalf>(plane, high);
    join_planes<kLow, kHalf>([&](int i) { return plane(kHigh + i); }, low);
    LCS_UNROLL
    for (int i = 0; i < kHalf; ++i) {
      if constexpr (kHalf == 1) {
        to[2 * i] = low_bytes(high[i], low[i]);
        to[2 * i + 1] = high_bytes(high[i], low[i]);
      } else if constexpr (kHalf == 2) {
        to[2 * i] = low_words(high[i], low[i]);
        to[2 * i + 1] = high_words(high[i], low[i]);
      } else {
        to[2 * i] = low_fours(high[i], low[i]);
        to[2 * i + 1] = high_fours(high[i], low[i]);
      }
    }
  }
}

template <int kBits>
inline void unpack_fields(const uint8_t* planes, int64_t plane_bytes, __m256i* parts) {
  constexpr int kField = field_of(kBits), kFields = 8 / kField;
  __m256i joined[kField];
  join_planes<kBits, kField>([&](int i) { return load_bytes(planes + i * plane_bytes); }, joined);
  LCS_UNROLL
  for (int i = 0; i < kField; ++i) {
    const __m256i codes = transposed(joined[i]);
    LCS_UNROLL
    for (int f = 0; f < kFields; ++f)
      parts[i * kFields + f] =
          kFields == 1 ? codes : _mm256_and_si256(codes, every(((1 << kField) - 1) << (8 - kField * (f + 1))));
  }
}

// Compilers take integer sums apart, to add them in another order, and run out of registers for the pieces.
inline void add_products(__m512i& sum, __m512i w, __m512i x) {
  sum = _mm512_dpbusd_epi32(sum, w, x);
  LCS_OPAQUE(sum);
}
inline void add_products(__m256i& sum, __m256i w, __m256i x) {
  sum = _mm256_dpbusd_epi32(sum, w, x);
  LCS_OPAQUE(sum);
}

inline long long eight_of(const char* x) {
  long long columns;
  __builtin_memcpy(&columns, x, 8);
  return columns;
}

constexpr int kAhead = 512;      // bytes of a plane, loaded before they are needed
constexpr int kFarAhead = 4096;  // likewise, into the second-level cache alone, which waits for more lines at once
constexpr int kFirstRows = 4;    // of x, multiplied while a panel is written
constexpr int kStepsAhead = 2;   // so far behind
constexpr int kTileRows = 6;     // of x, multiplied with a panel
constexpr int kWides = 4;        // vectors of 64 bytes, of a step
constexpr int kRowSums = 2 * kBlockRows;

inline void prefetch_second(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

// The lines of two steps to come.
template <int kBits>
inline void prefetch_planes(const uint8_t* planes, int64_t plane_bytes) {
  LCS_UNROLL
  for (int i = 0; i < kBits; ++i) {
    prefetch(planes + i * plane_bytes + kAhead);
    prefetch_second(planes + i * plane_bytes + kFarAhead);
  }
}

// The parts of two steps, in the halves of each vector. A byte's fields are not masked off from those below: part f of
// them holds all from f on.
template <int kBits>
inline void unpack_two(const uint8_t* planes, int64_t plane_bytes, __m512i* parts) {
  constexpr int kField = field_of(kBits), kFields = 8 / kField;
  const __m512i columns = _mm512_set1_epi64(int64_t(0x8040201008040201));
  __m512i joined[kField];
  join_planes<kBits, kField>([&](int i) { return wide_load(planes + i * plane_bytes); }, joined);
  LCS_UNROLL
  for (int i = 0; i < kField; ++i) {
    const __m512i codes = _mm512_gf2p8affine_epi64_epi8(columns, joined[i], 0);
    LCS_UNROLL
    for (int f = 0; f < kFields; ++f)
      parts[i * kFields + f] =
          f == 0 ? codes : _mm512_and_si512(codes, _mm512_set1_epi8(char((1 << (8 - kField * f)) - 1)));
  }
}

// All steps but the last of an odd number. The sums of the fields below are taken off at the end.
template <int kBits, int kRows>
void multiply_pairs(const PackedExpand& e, const PackedMultiply& p) {
  constexpr int kFields = 8 / field_of(kBits);
  const RowPointers<kRows> rows(p, 0);
  __m512i sum[kRows][kParts];
  LCS_UNROLL
  for (int m = 0; m < kRows; ++m) LCS_UNROLL
  for (int v = 0; v < kParts; ++v) sum[m][v] = _mm512_setzero_si512();
  const uint8_t* planes = e.planes;
  const int64_t* at = p.step;
  for (int64_t i = 0; i < p.steps / 2; ++i, planes += 2 * kBlockRows, at += 2) {
    prefetch_planes<kBits>(planes, e.plane_bytes);
    __m512i parts[kParts];
    unpack_two<kBits>(planes, e.plane_bytes, parts);
    LCS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m512i x =
          _mm512_mask_set1_epi64(_mm512_set1_epi64(eight_of(rows.x[m] + at[0])), 0xf0, eight_of(rows.x[m] + at[1]));
      LCS_UNROLL
      for (int v = 0; v < kParts; ++v) add_products(sum[m][v], parts[v], x);
    }
  }
  int32_t* const acc = static_cast<int32_t*>(p.acc);
  LCS_UNROLL
  for (int m = 0; m < kRows; ++m) LCS_UNROLL
  for (int v = 0; v < kParts; ++v) {
    const __m512i own = v % kFields == kFields - 1 ? sum[m][v] : _mm512_sub_epi32(sum[m][v], sum[m][v + 1]);
    int32_t* const to = acc + m * kRowSums + 8 * v;
    const __m256i both = _mm256_add_epi32(_mm512_castsi512_si256(own), _mm512_extracti64x4_epi64(own, 1));
    store_bytes(to, _mm256_add_epi32(load_bytes(to), both));
  }
}

template <int kBits>
void multiply_few(const PackedExpand& e, const PackedMultiply& p) {
  if (p.rows == 1) return multiply_pairs<kBits, 1>(e, p);
  if (p.rows == 2) return multiply_pairs<kBits, 2>(e, p);
  multiply_pairs<kBits, 3>(e, p);
}

template <int kBits>
inline void expand_step(const PackedExpand& e, int64_t step) {
  char* const to = static_cast<char*>(e.panel) + step * panel_bytes(Panel::bytes);
  __m256i parts[kParts];
  unpack_fields<kBits>(e.planes + step * kBlockRows, e.plane_bytes, parts);
  LCS_UNROLL
  for (int v = 0; v < kParts; ++v) store_bytes(to + 32 * v, parts[v]);
}

// A tile of the product, its sums in registers; `each(step)` is done on the way.
template <int kRows, class Each>
inline void multiply_tile(const PackedMultiply& p, int64_t row, const Each& each) {
  const RowPointers<kRows> rows(p, row);
  const char* panel = static_cast<const char*>(p.panel);
  int32_t* const acc = static_cast<int32_t*>(p.acc) + row * kRowSums;
  __m512i sum[kRows][kWides];
  LCS_UNROLL
  for (int m = 0; m < kRows; ++m) LCS_UNROLL
  for (int v = 0; v < kWides; ++v) sum[m][v] = _mm512_loadu_si512(acc + m * kRowSums + 16 * v);
  for (int64_t step = 0; step < p.steps; ++step, panel += panel_bytes(Panel::bytes)) {
    each(step);
    __m512i w[kWides];
    LCS_UNROLL
    for (int v = 0; v < kWides; ++v) w[v] = _mm512_loadu_si512(panel + 64 * v);
    LCS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m512i x = _mm512_set1_epi64(eight_of(rows.x[m] + p.step[step]));
      LCS_UNROLL
      for (int v = 0; v < kWides; ++v) add_products(sum[m][v], w[v], x);
    }
  }
  LCS_UNROLL
  for (int m = 0; m < kRows; ++m) LCS_UNROLL
  for (int v = 0; v < kWides; ++v) _mm512_storeu_si512(acc + m * kRowSums + 16 * v, sum[m][v]);
}

// Unpacks each step a little before it is multiplied, as the units that do either differ.
template <int kBits>
void multiply_first(const PackedExpand& e, const PackedMultiply& p) {
  for (int64_t step = 0; step < std::min<int64_t>(kStepsAhead, e.steps); ++step) expand_step<kBits>(e, step);
  multiply_tile<kFirstRows>(p, 0, [&](int64_t step) {
    if (step + kStepsAhead < e.steps) expand_step<kBits>(e, step + kStepsAhead);
  });
}

// Loads `planes` planes from `next` on meanwhile.
template <int kRows>
void multiply_rest(const PackedMultiply& p, int64_t row, const uint8_t* next, int64_t plane_bytes, int planes) {
  multiply_tile<kRows>(p, row, [&](int64_t step) {
    for (int i = 0; i < planes; ++i) prefetch_second(next + i * plane_bytes + step * kBlockRows);
  });
}

template <int kBits>
void multiply_bits(const PackedExpand& e, const PackedMultiply& p) {
  if (p.rows > kFewRows) return multiply_first<kBits>(e, p);
  multiply_few<kBits>(e, p);
  if (p.steps % 2 == 0) return;
  alignas(64) uint8_t planes[kBits][2 * kBlockRows] = {};  // of the last step, and of none
  for (int i = 0; i < kBits; ++i)
    std::memcpy(planes[i], e.planes + i * e.plane_bytes + (p.steps - 1) * kBlockRows, kBlockRows);
  PackedMultiply last = p;
  const int64_t step[2] = {p.step[p.steps - 1], p.step[p.steps - 1]};
  last.step = step;
  last.steps = 2;
  multiply_few<kBits>({planes[0], sizeof(planes[0]), 2, e.bits, e.shift, nullptr, nullptr}, last);
}

template <int... kBits>
void multiply_bits_of(const PackedExpand& e, const PackedMultiply& p, std::integer_sequence<int, kBits...>) {
  static constexpr void (*kTable[])(const PackedExpand&, const PackedMultiply&) = {multiply_bits<kBits + 1>...};
  kTable[e.bits - 1](e, p);
}

template <int... kRows>
void multiply_rest_of(const PackedMultiply& p, int64_t row, int rows, const uint8_t* next, int64_t plane_bytes,
                      int planes, std::integer_sequence<int, kRows...>) {
  static constexpr void (*kTable[])(const PackedMultiply&, int64_t, const uint8_t*, int64_t,
                                    int) = {multiply_rest<kRows + 1>...};
  kTable[rows - 1](p, row, next, plane_bytes, planes);
}

void multiply_planes(const PackedExpand& e, const PackedMultiply& p) {
  multiply_bits_of(e, p, std::make_integer_sequence<int, 8>());
  if (p.rows <= kFirstRows) return;
  const int64_t rest = p.rows - kFirstRows, tiles = (rest + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t row = rest * i / tiles, end = rest * (i + 1) / tiles;
    const int plane = int(e.bits * i / tiles), planes = int(e.bits * (i + 1) / tiles) - plane;
    const uint8_t* const next = e.planes + e.steps * kBlockRows + plane * e.plane_bytes;
    multiply_rest_of(p, kFirstRows + row, int(end - row), next, e.plane_bytes, planes,
                     std::make_integer_sequence<int, kTileRows>());
  }
}

// Which sums of two vectors of 16, each added to the next one, belong to 16 places, and what they count for.
struct Places {
  __m512i from, low, high;
};

inline __m512i shifts(int first, int second) {
  return _mm512_inserti64x4(_mm512_set1_epi32(first), _mm256_set1_epi32(second), 1);
}

inline Places places_of(int bits) {
  switch (field_of(bits)) {
    case 2:
      return {_mm512_setr_epi32(0, 8, 16, 24, 4, 12, 20, 28, 2, 10, 18, 26, 6, 14, 22, 30), shifts(6, 4), shifts(2, 0)};
    case 4:
      return {_mm512_setr_epi32(0, 8, 2, 10, 4, 12, 6, 14, 16, 24, 18, 26, 20, 28, 22, 30), shifts(4, 0), shifts(4, 0)};
    default:
      return {_mm512_setr_epi32(0, 2, 8, 10, 4, 6, 12, 14, 16, 18, 24, 26, 20, 22, 28, 30), shifts(0, 0), shifts(0, 0)};
  }
}

inline __m512i both(__m512i sums, __m512i shift) {
  return _mm512_srav_epi32(_mm512_add_epi32(sums, _mm512_srli_epi64(sums, 32)), shift);
}

void settle(int32_t* acc, int64_t rows, int bits) {
  const Places places = places_of(bits);
  for (int64_t m = 0; m < rows; ++m) {
    __m512i sums[kWides];
    for (int v = 0; v < kWides; ++v) sums[v] = _mm512_loadu_si512(acc + m * kRowSums + 16 * v);
    for (int v = 0; v < 2; ++v)
      _mm512_storeu_si512(
          acc + m * kBlockRows + 16 * v,
          _mm512_permutex2var_epi32(both(sums[2 * v], places.low), places.from, both(sums[2 * v + 1], places.high)));
  }
}
