// After transpose_avx2.inl and its masked_*.inl.

// Elements `step` apart.
template <class From>
inline __m256 load_some_apart(const From* p, int64_t step, uint8_t bits) {
  if (bits == 255) return load_apart(p, 8, step);
  From all[8] = {};
  for (int i = 0; i < 8; ++i)
    if (bits >> i & 1) all[i] = p[i * step];
  return eight::load(all);
}

// Whether all columns of all lanes exist: without branches the square stays in registers.
inline bool is_whole(const LaneSquare& s) { return std::bit_cast<uint64_t>(s.exist) == ~uint64_t{0}; }

// The rows that the next repetition reads, of another channel, are prefetched.
template <class From, bool kApart, bool kWhole>
inline void load_square(const LaneCopy& c, const LaneSquare& s, const From* rows, float* to) {
  __m256 r[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const From* const row = rows + s.row[i];
    __builtin_prefetch(row + c.stride);
    if constexpr (kWhole)
      r[i] = eight::load(row);
    else
      r[i] = kApart ? load_some_apart(row, c.step, s.exist[i]) : load_some(row, s.exist[i]);
  }
  transpose(r);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    if (kWhole || i < s.columns) eight::store(to + i * c.panel_step, r[i]);
}

template <class From, bool kApart>
void load_squares(const LaneCopy& c) {
  const From* rows = static_cast<const From*>(c.rows);
  float* panel = c.panel;
  for (int64_t repeat = 0; repeat < c.repeats; ++repeat, rows += c.stride, panel += c.panel_stride)
    for (const LaneSquare* s = c.squares; s != c.squares + c.count; ++s) {
      float* const to = panel + s->panel;
      if (s->columns <= 2) {
        for (int64_t i = 0; i < s->columns; ++i)
          for (int l = 0; l < 8; ++l)
            to[i * c.panel_step + l] = s->exist[l] >> i & 1 ? single::load(rows + s->row[l] + i * c.step) : 0.0f;
        continue;
      }
      !kApart&& is_whole(*s) ? load_square<From, false, true>(c, *s, rows, to)
                             : load_square<From, kApart, false>(c, *s, rows, to);
    }
}

template <class To, bool kAdds, bool kWhole>
inline void store_square(const LaneCopy& c, const LaneSquare& s, const float* from, To* rows, const To* residual) {
  __m256 r[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    r[i] = kWhole || i < s.columns ? eight::load(from + i * c.panel_step) : _mm256_setzero_ps();
  transpose(r);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    To* const row = rows + s.row[i];
    __builtin_prefetch(row + c.stride, 1);
    if constexpr (kAdds) {
      const To* const other = residual + s.row[i];
      __builtin_prefetch(other + c.stride);
      const __m256 sum = eight::add(r[i], kWhole ? eight::load(other) : load_some(other, s.exist[i]));
      r[i] = eight::lowered_to(eight::raised_to(sum, eight::set1(c.floor)), eight::set1(c.cap));
    }
    if constexpr (kWhole)
      eight::store(row, eight::rounded<To>(r[i]));
    else
      store_some(row, r[i], s.exist[i]);
  }
}

template <class To, bool kAdds>
void store_squares(const LaneCopy& c) {
  To* rows = static_cast<To*>(c.rows);
  const To* residual = static_cast<const To*>(c.residual);
  const float* panel = c.panel;
  for (int64_t repeat = 0; repeat < c.repeats; ++repeat, rows += c.stride, panel += c.panel_stride) {
    for (const LaneSquare* s = c.squares; s != c.squares + c.count; ++s)
      is_whole(*s) ? store_square<To, kAdds, true>(c, *s, panel + s->panel, rows, residual)
                   : store_square<To, kAdds, false>(c, *s, panel + s->panel, rows, residual);
    if constexpr (kAdds) residual += c.stride;
  }
}

template <class From>
void load_any(const LaneCopy& copy) {
  copy.step == 1 ? load_squares<From, false>(copy) : load_squares<From, true>(copy);
}

void load_lanes(const LaneCopy& copy) {
  copy.dtype == DType::bfloat16 ? load_any<BFloat16>(copy) : load_any<float>(copy);
}

template <class To>
void store_any(const LaneCopy& copy) {
  copy.residual ? store_squares<To, true>(copy) : store_squares<To, false>(copy);
}

void store_lanes(const LaneCopy& copy) {
  copy.dtype == DType::bfloat16 ? store_any<BFloat16>(copy) : store_any<float>(copy);
}
