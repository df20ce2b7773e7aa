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
      __m256 r[8];
      if (!kApart && is_whole(*s)) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          __builtin_prefetch(rows + s->row[i] + c.stride);
          r[i] = eight::load(rows + s->row[i]);
        }
        transpose(r);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) eight::store(to + i * c.panel_step, r[i]);
        continue;
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const From* const row = rows + s->row[i];
        __builtin_prefetch(row + c.stride);
        r[i] = kApart ? load_some_apart(row, c.step, s->exist[i]) : load_some(row, s->exist[i]);
      }
      transpose(r);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        if (i < s->columns) eight::store(to + i * c.panel_step, r[i]);
    }
}

template <class To, bool kAdds>
void store_squares(const LaneCopy& c) {
  To* rows = static_cast<To*>(c.rows);
  const To* residual = static_cast<const To*>(c.residual);
  const float* panel = c.panel;
  const __m256 floor = eight::set1(c.floor), cap = eight::set1(c.cap);
  const auto finished = [&](__m256 x, __m256 residual) {
    return eight::lowered_to(eight::raised_to(eight::add(x, residual), floor), cap);
  };
  for (int64_t repeat = 0; repeat < c.repeats; ++repeat, rows += c.stride, panel += c.panel_stride) {
    for (const LaneSquare* s = c.squares; s != c.squares + c.count; ++s) {
      const float* const from = panel + s->panel;
      __m256 r[8];
      if (is_whole(*s)) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) r[i] = eight::load(from + i * c.panel_step);
        transpose(r);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          __builtin_prefetch(rows + s->row[i] + c.stride, 1);
          if constexpr (kAdds) {
            __builtin_prefetch(residual + s->row[i] + c.stride);
            r[i] = finished(r[i], eight::load(residual + s->row[i]));
          }
          eight::store(rows + s->row[i], eight::rounded<To>(r[i]));
        }
        continue;
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) r[i] = i < s->columns ? eight::load(from + i * c.panel_step) : _mm256_setzero_ps();
      transpose(r);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        __builtin_prefetch(rows + s->row[i] + c.stride, 1);
        if constexpr (kAdds) {
          __builtin_prefetch(residual + s->row[i] + c.stride);
          r[i] = finished(r[i], load_some(residual + s->row[i], s->exist[i]));
        }
        store_some(rows + s->row[i], r[i], s->exist[i]);
      }
    }
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
