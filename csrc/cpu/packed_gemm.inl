// Compiled once per instruction set with vectors of 256 bits or more, after its lanes_*.inl and the vocabulary of its
// file (Wide and what multiplies it, kMaxRows), in an unnamed namespace inside its target region.
inline Wide sums_load(const int32_t* p) { return wide_load(p); }
inline void sums_store(int32_t* p, Wide x) { wide_store(p, x); }
inline Float sums_load(const float* p) { return load(p); }
inline void sums_store(float* p, Float x) { store(p, x); }

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_bytes(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
constexpr int kLine = 64;  // bytes
inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// Loads the lines of `rows` channels of n outputs, of which this is one of some shares: what is added to them, and
// where they go.
inline void prefetch_outputs(const PackedPairOutput& o, int64_t begin, int64_t n, int share, int shares, int first,
                             int rows) {
  constexpr int kFloats = kLine / 4;
  for (int64_t m = begin + n * share / shares; m < begin + n * (share + 1) / shares; ++m) {
    if (o.place[m] < 0) continue;
    const int64_t residual = o.place[m] * o.residual_stride + first, y = o.place[m] * o.stride + first;
    for (int i = 0; o.residual && i < rows; i += kFloats) __builtin_prefetch(o.residual + residual + i);
    for (int i = 0; o.y && i < rows; i += kFloats) __builtin_prefetch(o.y + y + i, 1);
    if (o.codes) __builtin_prefetch(o.codes + y, 1);
  }
}
inline __m256i every(int bits) { return _mm256_set1_epi8(char(bits)); }

template <class T>
float largest_of(const T* x, int64_t n) {
  Key most = set1_key(0);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) most = larger(most, magnitude(load(x + i)));
  int32_t keys[kLanes], key = 0;
  store_keys(keys, most);
  for (int32_t k : keys) key = std::max(key, k);
  for (; i < n; ++i) key = std::max(key, single::magnitude(single::load(x + i)));
  return std::bit_cast<float>(key);
}

float largest(const void* x, DType dtype, int64_t n) {
  return dtype == DType::bfloat16 ? largest_of(static_cast<const BFloat16*>(x), n)
                                  : largest_of(static_cast<const float*>(x), n);
}

template <class T>
__m256i nearest(const T* x, __m256 inverse) {
  return _mm256_cvtps_epi32(_mm256_mul_ps(eight::load(x), inverse));
}

template <class T>
int32_t quantize_of(const T* x, int64_t n, float factor, int8_t* to) {
  const __m256 inverse = _mm256_set1_ps(factor);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i sums = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i low = _mm256_packs_epi32(nearest(x + i, inverse), nearest(x + i + 8, inverse)),
                  high = _mm256_packs_epi32(nearest(x + i + 16, inverse), nearest(x + i + 24, inverse));
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    store_bytes(to + i, bytes);
    const __m256i pairs = _mm256_maddubs_epi16(every(1), bytes);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  int32_t lanes[8], sum = 0;
  store_bytes(lanes, sums);
  for (int32_t lane : lanes) sum += lane;
  for (; i < n; ++i) sum += to[i] = int8_t(_mm_cvtss_si32(_mm_set_ss(single::load(x + i) * factor)));
  return sum;
}

int32_t quantize(const void* x, DType dtype, int64_t n, float inverse, int8_t* to) {
  return dtype == DType::bfloat16 ? quantize_of(static_cast<const BFloat16*>(x), n, inverse, to)
                                  : quantize_of(static_cast<const float*>(x), n, inverse, to);
}

void widen(const int8_t* x, int64_t n, int16_t* to) {
  const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    store_bytes(to + i, _mm256_cvtepi8_epi16(_mm_shuffle_epi8(eight::load_half(x + i), order)));
  for (; i < n; i += 4)
    for (int j = 0; j < 4; ++j) to[i + j] = x[i + (j == 1 ? 2 : j == 2 ? 1 : j)];
}

// The 16 sums of four values' subsets, less the smallest, as their last 5 bits and, 16 bytes on, the rest.
int32_t table_of(const int8_t* x, uint8_t* to) {
  int32_t least = 0;
  __m256i sums = _mm256_setzero_si256();
  const __m256i subset = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int i = 0; i < 4; ++i) {
    const __m256i bit = _mm256_set1_epi16(int16_t(1 << i));
    const __m256i in = _mm256_cmpeq_epi16(_mm256_and_si256(subset, bit), bit);
    sums = _mm256_add_epi16(sums, _mm256_and_si256(in, _mm256_set1_epi16(x[i])));
    least += x[i] < 0 ? x[i] : 0;
  }
  sums = _mm256_sub_epi16(sums, _mm256_set1_epi16(int16_t(least)));
  const __m256i low = _mm256_and_si256(sums, _mm256_set1_epi16(31)), high = _mm256_srli_epi16(sums, 5);
  store_bytes(to, _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), _MM_SHUFFLE(3, 1, 2, 0)));
  return least;
}

int32_t tables(const int8_t* x, int64_t steps, uint8_t* to) {
  int32_t least = 0;
  for (int64_t i = 0; i < 2 * steps; ++i) least += table_of(x + 4 * i, to + kTableBytes / 2 * i);
  return least;
}

inline __m256i table(const uint8_t* p) { return _mm256_broadcastsi128_si256(eight::load_half(p)); }

// Sums of bytes, kept as those of even bytes plus 256 times those of odd ones, modulo 2^16, and those of odd ones.
struct ByteSums {
  __m256i all, odd;

  void operator+=(__m256i bytes) {
    all = _mm256_add_epi16(all, bytes);
    odd = _mm256_add_epi16(odd, _mm256_srli_epi16(bytes, 8));
  }
  __m256i even() const { return _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8)); }
};

// Bytes hold the sums of eight look-ups: 8 * 31 < 256.
constexpr int kLookupSteps = 4;

// `next`: what is looked up after this, to be loaded meanwhile.
template <int kBlocks>
void lookup_plane(const PackedLookup& l, const uint8_t* plane, const uint8_t* next, __m256i (*total)[4]) {
  const __m256i zero = _mm256_setzero_si256(), nibble = every(15);
  ByteSums low[kBlocks], high[kBlocks];
  for (int b = 0; b < kBlocks; ++b) low[b] = high[b] = {zero, zero};
  const uint8_t* t = l.tables;
  for (int64_t i = 0; i < l.steps; i += kLookupSteps) {
    __m256i lows[kBlocks], highs[kBlocks];
    for (int b = 0; b < kBlocks; ++b) lows[b] = highs[b] = zero;
    const int64_t end = std::min<int64_t>(l.steps, i + kLookupSteps);
    for (int b = 0; b < kBlocks; ++b)
      for (int line = 0; line < kLookupSteps * kBlockRows; line += kLine)
        prefetch(next + b * l.block_bytes + i * kBlockRows + line);
    for (int64_t step = i; step < end; ++step, t += kTableBytes) {
      const __m256i t0 = table(t), t1 = table(t + 16), t2 = table(t + 32), t3 = table(t + 48);
      for (int b = 0; b < kBlocks; ++b) {
        const __m256i bits = load_bytes(plane + b * l.block_bytes + step * kBlockRows);
        const __m256i first = _mm256_and_si256(bits, nibble),
                      second = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble);
        lows[b] = _mm256_add_epi8(lows[b], _mm256_shuffle_epi8(t0, first));
        highs[b] = _mm256_add_epi8(highs[b], _mm256_shuffle_epi8(t1, first));
        lows[b] = _mm256_add_epi8(lows[b], _mm256_shuffle_epi8(t2, second));
        highs[b] = _mm256_add_epi8(highs[b], _mm256_shuffle_epi8(t3, second));
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      low[b] += lows[b];
      high[b] += highs[b];
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    const __m256i even = _mm256_add_epi16(low[b].even(), _mm256_slli_epi16(high[b].even(), 5)),
                  odd = _mm256_add_epi16(low[b].odd, _mm256_slli_epi16(high[b].odd, 5));
    const __m256i first = _mm256_unpacklo_epi16(even, odd), second = _mm256_unpackhi_epi16(even, odd);
    const __m256i sums[4] = {_mm256_unpacklo_epi16(first, zero), _mm256_unpackhi_epi16(first, zero),
                             _mm256_unpacklo_epi16(second, zero), _mm256_unpackhi_epi16(second, zero)};
    for (int v = 0; v < 4; ++v) total[b][v] = _mm256_add_epi32(_mm256_add_epi32(total[b][v], total[b][v]), sums[v]);
  }
}

template <int kBlocks>
void lookup_blocks(const PackedLookup& l) {
  __m256i total[kBlocks][4];
  for (auto& block : total)
    for (__m256i& sums : block) sums = _mm256_setzero_si256();
  for (int p = 0; p < l.bits; ++p) {
    const uint8_t* const plane = l.planes + p * l.plane_bytes;
    lookup_plane<kBlocks>(l, plane, p + 1 < l.bits ? plane + l.plane_bytes : l.planes + l.steps * kBlockRows, total);
  }
  const __m256i missing = _mm256_set1_epi32(int32_t(l.correction * ((1 << l.bits) - 1)));
  for (int b = 0; b < kBlocks; ++b)
    for (int v = 0; v < 4; ++v) {
      int32_t* const to = l.acc + b * kBlockRows + v * 8;
      store_bytes(to, _mm256_add_epi32(load_bytes(to), _mm256_add_epi32(total[b][v], missing)));
    }
}

void lookup(const PackedLookup& l) { l.blocks == 2 ? lookup_blocks<2>(l) : lookup_blocks<1>(l); }

// Fields of `kShift` bits, and in the next half of each byte's fields those of the other vector: of a and b, the
// columns of the lower fields and of the upper ones.
template <int kShift>
inline void exchange(__m256i a, __m256i b, __m256i* lower, __m256i* upper) {
  constexpr int kLow = kShift == 1 ? 0x55 : kShift == 2 ? 0x33 : 0x0f;
  const __m256i moved = _mm256_andnot_si256(every(kLow), _mm256_xor_si256(b, _mm256_slli_epi16(a, kShift)));
  *lower = _mm256_xor_si256(b, moved);
  *upper = _mm256_xor_si256(a, _mm256_srli_epi16(moved, kShift));
}
template <int kShift>
inline void split(__m256i b, __m256i* lower, __m256i* upper) {
  constexpr int kLow = kShift == 1 ? 0x55 : kShift == 2 ? 0x33 : 0x0f;
  *lower = _mm256_and_si256(b, every(kLow));
  *upper = _mm256_and_si256(_mm256_srli_epi16(b, kShift), every(kLow));
}

// `kBits` planes, the last one at `plane(0)`, as fields of `kField` bits: to[i] holds the columns i, i + kField, ...
template <int kField, int kBits, class Plane>
inline void join_fields(const Plane& plane, __m256i* to) {
  if constexpr (kField == 1) {
    to[0] = plane(0);
  } else {
    constexpr int kHalf = kField / 2, kLow = std::min(kBits, kHalf), kHigh = kBits - kLow;
    __m256i low[kHalf], high[kHalf];
    join_fields<kHalf, kLow>(plane, low);
    if constexpr (kHigh > 0) join_fields<kHalf, kHigh>([&](int i) { return plane(i + kHalf); }, high);
    for (int i = 0; i < kHalf; ++i)
      if constexpr (kHigh > 0)
        exchange<kHalf>(high[i], low[i], to + i, to + i + kHalf);
      else
        split<kHalf>(low[i], to + i, to + i + kHalf);
  }
}

// codes[k]: those of column k.
template <int kBits>
inline void unpack_step(const uint8_t* planes, int64_t plane_bytes, __m256i* codes) {
  join_fields<kStepColumns, kBits>([&](int i) { return load_bytes(planes + (kBits - 1 - i) * plane_bytes); }, codes);
}

// Four columns' bytes to 32 places of four bytes.
inline void interleave(const __m256i* codes, __m256i* to) {
  const __m256i a = _mm256_unpacklo_epi8(codes[0], codes[1]), b = _mm256_unpackhi_epi8(codes[0], codes[1]),
                c = _mm256_unpacklo_epi8(codes[2], codes[3]), d = _mm256_unpackhi_epi8(codes[2], codes[3]);
  to[0] = _mm256_unpacklo_epi16(a, c);
  to[1] = _mm256_unpackhi_epi16(a, c);
  to[2] = _mm256_unpacklo_epi16(b, d);
  to[3] = _mm256_unpackhi_epi16(b, d);
}

inline void put_floats(__m256i codes, int shift, const __m256i* center, float* to) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low = _mm256_unpacklo_epi8(codes, zero), high = _mm256_unpackhi_epi8(codes, zero);
  const __m256i wide[4] = {_mm256_unpacklo_epi16(low, zero), _mm256_unpackhi_epi16(low, zero),
                           _mm256_unpacklo_epi16(high, zero), _mm256_unpackhi_epi16(high, zero)};
  for (int v = 0; v < 4; ++v) {
    const __m256i value = _mm256_add_epi32(_mm256_sll_epi32(wide[v], _mm_cvtsi32_si128(shift)), center[v]);
    _mm256_storeu_ps(to + 8 * v, _mm256_cvtepi32_ps(value));
  }
}

template <int kBits, Panel kPanel>
void expand_steps(const PackedExpand& e) {
  char* to = static_cast<char*>(e.panel);
  __m256i center[4];
  if constexpr (kPanel == Panel::floats)
    for (int v = 0; v < 4; ++v) center[v] = load_bytes(e.center + 8 * v);
  for (int64_t step = 0; step < e.steps; ++step, to += panel_bytes(kPanel)) {
    __m256i codes[kStepColumns];
    unpack_step<kBits>(e.planes + step * kBlockRows, e.plane_bytes, codes);
    if constexpr (kPanel == Panel::floats) {
      float* const floats = reinterpret_cast<float*>(to);
      for (int k = 0; k < kStepColumns; ++k) put_floats(codes[k], e.shift, center, floats + k * kBlockRows);
    } else {
      for (int half = 0; half < 2; ++half) {
        __m256i places[4];
        interleave(codes + 4 * half, places);
        char* const at = to + half * (panel_bytes(kPanel) / 2);
        for (int v = 0; v < 4; ++v) {
          if constexpr (kPanel == Panel::words) {
            store_bytes(at + 32 * v, _mm256_and_si256(places[v], _mm256_set1_epi16(255)));
            store_bytes(at + 128 + 32 * v, _mm256_srli_epi16(places[v], 8));
          } else {
            store_bytes(at + 32 * v, places[v]);
          }
        }
      }
    }
  }
}

template <Panel kPanel, int... kBits>
void expand_any(const PackedExpand& e, std::integer_sequence<int, kBits...>) {
  static constexpr void (*kTable[])(const PackedExpand&) = {expand_steps<kBits + 1, kPanel>...};
  kTable[e.bits - 1](e);
}

void expand(const PackedExpand& e, Panel panel) {
  constexpr auto kBits = std::make_integer_sequence<int, kPlanes>();
  panel == Panel::floats  ? expand_any<Panel::floats>(e, kBits)
  : panel == Panel::words ? expand_any<Panel::words>(e, kBits)
                          : expand_any<Panel::bytes>(e, kBits);
}

constexpr int kVectors = 2;                                  // of a panel's 32 places, multiplied at once
constexpr int kHalves = 128 / int(kVectors * sizeof(Wide));  // so many times
constexpr int kHalf = kBlockRows / kHalves;                  // places

template <int kRows>
struct RowPointers {
  const char* x[kRows];

  RowPointers(const PackedMultiply& p, int64_t row) {
    for (int m = 0; m < kRows; ++m) x[m] = p.x + p.row[row + m];
  }
};

// Where a tile's rows of x lie: far apart, or, `kTiled`, next to each other, four bytes of each.
template <int kRows, bool kTiled, int kStepBytes>
struct TileRows : RowPointers<kRows> {
  const int64_t* step;

  TileRows(const PackedMultiply& p, int64_t row) : RowPointers<kRows>(p, row), step(p.step) {}

  int64_t at(int64_t i) const { return step[i]; }
  const char* four(int64_t at, int group, int m) const { return this->x[m] + at + 4 * group; }
};
template <int kRows, int kStepBytes>
struct TileRows<kRows, true, kStepBytes> {
  const char* x;

  TileRows(const PackedMultiply& p, int64_t row) : x(p.x + row * p.row_bytes + p.first * kRows * kStepBytes) {}

  static int64_t at(int64_t i) { return i * kRows * kStepBytes; }
  const char* four(int64_t at, int group, int m) const { return x + at + 4 * (group * kRows + m); }
};

// 16-bit sums of at most `chain` steps, then added to the 32-bit ones in memory.
template <int kRows, bool kTiled>
void multiply_chains(const PackedMultiply& p, int64_t row, int half, int64_t chain) {
  const TileRows<kRows, kTiled, kStepColumns> rows(p, row);
  const char* panel = static_cast<const char*>(p.panel) + half * int(kVectors * sizeof(Wide));
  int32_t* const acc = static_cast<int32_t*>(p.acc) + row * kBlockRows + half * kHalf;
  for (int64_t begin = 0; begin < p.steps; begin += chain) {
    const int64_t end = std::min(p.steps, begin + chain);
    Wide sum[kRows][kVectors];
    LCS_UNROLL
    for (int m = 0; m < kRows; ++m) LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[m][v] = wide_zero();
    for (int64_t step = begin; step < end; ++step) {
      const int64_t at = rows.at(step);
      LCS_UNROLL
      for (int group = 0; group < 2; ++group, panel += 128) {
        Wide w[kVectors];
        LCS_UNROLL
        for (int v = 0; v < kVectors; ++v) w[v] = wide_load(panel + v * sizeof(Wide));
        LCS_UNROLL
        for (int m = 0; m < kRows; ++m) {
          const Wide x = wide_broadcast(rows.four(at, group, m));
          LCS_UNROLL
          for (int v = 0; v < kVectors; ++v) add_words_to(sum[m][v], pairs(w[v], x));
        }
      }
    }
    LCS_UNROLL
    for (int m = 0; m < kRows; ++m) LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      int32_t* const to = acc + m * kBlockRows + v * int(sizeof(Wide) / 4);
      wide_store(to, add(wide_load(to), dot_pairs(sum[m][v], wide_words(1))));
    }
  }
}

template <Panel kPanel>
struct SumOf {
  using Type = Wide;
};
template <>
struct SumOf<Panel::floats> {
  using Type = Float;
};

// 32-bit or float32 sums in registers, of `kDepth` groups of four bytes of x at once.
template <int kRows, Panel kPanel, int kDepth, bool kTiled>
void multiply_sums(const PackedMultiply& p, int64_t row, int half) {
  using Sum = typename SumOf<kPanel>::Type;
  using Element = std::conditional_t<kPanel == Panel::floats, float, int32_t>;
  constexpr int kGroups = kPanel == Panel::bytes ? 2 : kPanel == Panel::words ? 4 : 8;  // a step
  const TileRows<kRows, kTiled, 4 * kGroups> rows(p, row);
  const char* panel = static_cast<const char*>(p.panel) + half * int(kVectors * sizeof(Wide));
  Element* const acc = static_cast<Element*>(p.acc) + row * kBlockRows + half * kHalf;
  const auto place = [&](int m, int v) { return acc + m * kBlockRows + v * int(sizeof(Wide) / 4); };
  Sum sum[kRows][kVectors];
  LCS_UNROLL
  for (int m = 0; m < kRows; ++m) LCS_UNROLL
  for (int v = 0; v < kVectors; ++v) sum[m][v] = sums_load(place(m, v));
  for (int64_t step = 0; step < p.steps; ++step) {
    const int64_t at = rows.at(step);
    LCS_UNROLL
    for (int group = 0; group < kGroups; group += kDepth, panel += 128 * kDepth) {
      if constexpr (kPanel == Panel::floats) {
        Float w[kVectors];
        LCS_UNROLL
        for (int v = 0; v < kVectors; ++v) w[v] = load(reinterpret_cast<const float*>(panel) + v * kLanes);
        LCS_UNROLL
        for (int m = 0; m < kRows; ++m) {
          const Float x = set1(*reinterpret_cast<const float*>(rows.four(at, group, m)));
          LCS_UNROLL
          for (int v = 0; v < kVectors; ++v) sum[m][v] = fmadd(w[v], x, sum[m][v]);
        }
      } else {
        Wide w[kVectors][kDepth];
        LCS_UNROLL
        for (int v = 0; v < kVectors; ++v) LCS_UNROLL
        for (int i = 0; i < kDepth; ++i) w[v][i] = wide_load(panel + 128 * i + v * sizeof(Wide));
        LCS_UNROLL
        for (int m = 0; m < kRows; ++m) {
          Wide x[kDepth];
          LCS_UNROLL
          for (int i = 0; i < kDepth; ++i) x[i] = wide_broadcast(rows.four(at, group + i, m));
          LCS_UNROLL
          for (int v = 0; v < kVectors; ++v)
            if constexpr (kPanel == Panel::words)
              add_dot_words(sum[m][v], w[v][0], x[0]);
            else
              add_dot_bytes<kDepth>(sum[m][v], w[v], x);
        }
      }
    }
  }
  LCS_UNROLL
  for (int m = 0; m < kRows; ++m) LCS_UNROLL
  for (int v = 0; v < kVectors; ++v) sums_store(place(m, v), sum[m][v]);
}

template <int kRows, bool kTiled>
void multiply_bytes(const PackedMultiply& p, int64_t row, int half) {
  if constexpr (kChainBits > 0) {
    if (p.bits <= kChainBits) return multiply_chains<kRows, kTiled>(p, row, half, chain_of(p.bits));
    if (p.bits <= kDeepBits) return multiply_sums<kRows, Panel::bytes, 2, kTiled>(p, row, half);
  }
  multiply_sums<kRows, Panel::bytes, 1, kTiled>(p, row, half);
}

template <int kRows, bool kTiled>
void multiply_rows(const PackedMultiply& p, int64_t row, Panel panel) {
  for (int half = 0; half < kHalves; ++half)
    if (panel == Panel::floats)
      multiply_sums<kRows, Panel::floats, 1, kTiled>(p, row, half);
    else if (panel == Panel::words)
      multiply_sums<kRows, Panel::words, 1, kTiled>(p, row, half);
    else
      multiply_bytes<kRows, kTiled>(p, row, half);
}

template <bool kTiled, int... kRows>
void multiply_any(const PackedMultiply& p, int64_t row, int rows, Panel panel, std::integer_sequence<int, kRows...>) {
  static constexpr void (*kTable[])(const PackedMultiply&, int64_t, Panel) = {multiply_rows<kRows + 1, kTiled>...};
  kTable[rows - 1](p, row, panel);
}

void multiply(const PackedMultiply& p, Panel panel) {
  constexpr auto kRows = std::make_integer_sequence<int, kMaxRows>();
  const RowTiles tiles{p.rows, kMaxRows};
  for (int64_t i = 0; i < tiles.count(); ++i) {
    const int64_t row = tiles.begin(i), end = tiles.begin(i + 1);
    if (kTiles && p.row_bytes)
      multiply_any<kTiles>(p, row, int(end - row), panel, kRows);
    else
      multiply_any<false>(p, row, int(end - row), panel, kRows);
  }
}

void scale(const PackedScale& s) {
  const __m128i shift = _mm_cvtsi32_si128(s.shift);
  for (int v = 0; v < 4; ++v) {
    const __m256 factor = _mm256_loadu_ps(s.scale + 8 * v);
    const __m256i center = load_bytes(s.center + 8 * v);
    for (int64_t m = 0; m < s.rows; ++m) {
      const int64_t at = m * kBlockRows + 8 * v;
      __m256 sum;
      if (s.sums) {
        const __m256i moved = _mm256_mullo_epi32(center, _mm256_set1_epi32(s.sums[m * s.sums_stride]));
        const __m256i acc = load_bytes(static_cast<const int32_t*>(s.acc) + at);
        sum = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_sll_epi32(acc, shift), moved));
      } else {
        sum = _mm256_loadu_ps(static_cast<const float*>(s.acc) + at);
      }
      const __m256 scaled = _mm256_mul_ps(sum, factor);
      _mm256_storeu_ps(s.y + at, s.first ? scaled : _mm256_add_ps(_mm256_loadu_ps(s.y + at), scaled));
    }
  }
}

void finish(const PackedFinish& f) {
  const __m256 floor = _mm256_set1_ps(f.relu ? 0.0f : -__builtin_inff());
  for (int64_t m = 0; m < f.rows; ++m) {
    float* const y = f.y + m * kBlockRows;
    const __m256 factor = _mm256_set1_ps(f.row_scale[m]);
    __m256 v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm256_mul_ps(_mm256_loadu_ps(y + 8 * i), factor);
    const __m256 rows[4] = {_mm256_permute2f128_ps(v[0], v[1], 0x20), _mm256_permute2f128_ps(v[2], v[3], 0x20),
                            _mm256_permute2f128_ps(v[0], v[1], 0x31), _mm256_permute2f128_ps(v[2], v[3], 0x31)};
    for (int i = 0; i < 4; ++i) {
      const __m256 sum = f.bias ? _mm256_add_ps(rows[i], _mm256_loadu_ps(f.bias + 8 * i)) : rows[i];
      _mm256_storeu_ps(y + 8 * i, _mm256_max_ps(floor, sum));  // a NaN stays
    }
  }
}

PackedGemmKernels table() {
  return {panel_of, kTiles ? kMaxRows : 0, largest, quantize, widen, tables, lookup, expand, multiply, scale, finish};
}
