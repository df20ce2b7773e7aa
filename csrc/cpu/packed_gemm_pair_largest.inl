// Of the sums of a row of outputs the largest of each window's columns, before they are finished, after
// packed_gemm_pair.inl: a quarter as many are left to be finished.
class LargestSums {
 public:
  LargestSums(const PackedPairOutput& output, int32_t* before, int32_t* to)
      : finish_(output), before_(before), to_(to) {}

  // Of columns from `first` on, an even number. What follows an odd one begins its window.
  template <int kVectors, int kRows>
  [[gnu::always_inline]] inline void rows(int64_t first, const __m512i (*sum)[kVectors]) const {
    const bool few = finish_.has_few_terms();
    const int32_t* const sums = finish_.sums() + first;
    int32_t *const before = before_, *const to = to_ + first / 2 * kPairRows;
    __m512i last[kVectors];
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) last[v] = _mm512_loadu_si512(before + 16 * v);
    LCS_UNROLL
    for (int m = 0; m < kRows; m += 2) {
      __m512i even[kVectors], odd[kVectors];
      finish_.whole(few, sums[m], sum[m], even);
      if (m + 1 < kRows) finish_.whole(few, sums[m + 1], sum[m + 1], odd);
      LCS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        __m512i most = _mm512_max_epi32(last[v], even[v]);
        if (m + 1 < kRows) most = _mm512_max_epi32(most, last[v] = odd[v]);
        _mm512_storeu_si512(to + m / 2 * kPairRows + 16 * v, most);
      }
    }
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_si512(before + 16 * v, last[v]);
  }

 private:
  const PairFinish finish_;
  int32_t* const before_;
  int32_t* const to_;
};

template <int kVectors>
void multiply_largest_vectors(const PackedPairMultiply& p, int32_t* before, int32_t* to) {
  constexpr int kTile = pair_tile(kVectors);
  static_assert(kTile % 2 == 0);
  const LargestSums largest(p.output, before, to);
  for (int64_t row = 0; row < p.rows; row += kTile)
    multiply_pair_of<kVectors>(p, row, int(std::min<int64_t>(kTile, p.rows - row)), largest, nullptr, 0,
                               std::make_integer_sequence<int, kTile>());
}

template <int... kVectors>
void multiply_largest_any(const PackedPairMultiply& p, int32_t* before, int32_t* to,
                          std::integer_sequence<int, kVectors...>) {
  static constexpr void (*kTable[])(const PackedPairMultiply&, int32_t*,
                                    int32_t*) = {multiply_largest_vectors<kVectors + 1>...};
  kTable[(p.output.channels - 1) / 16](p, before, to);
}

void multiply_pair_largest(const PackedPairMultiply& p, int32_t* before, int32_t* to) {
  multiply_largest_any(p, before, to, std::make_integer_sequence<int, kPairVectors>());
}

template <int kVectors>
void finish_largest_vectors(const PackedPairLargest& l) {
  const PairFinish finish(l.output);
  for (int64_t row = 0; row < l.n; ++row) {
    __m512i most[1][kVectors];
    LCS_UNROLL
    for (int v = 0; v < kVectors; ++v) most[0][v] = _mm512_loadu_si512(l.rows[0] + row * kPairRows + 16 * v);
    for (int i = 1; i < l.count; ++i) LCS_UNROLL
    for (int v = 0; v < kVectors; ++v)
      most[0][v] = _mm512_max_epi32(most[0][v], _mm512_loadu_si512(l.rows[i] + row * kPairRows + 16 * v));
    finish.rows<kVectors, 1>(row, most);
  }
}

template <int... kVectors>
void finish_largest_any(const PackedPairLargest& l, std::integer_sequence<int, kVectors...>) {
  static constexpr void (*kTable[])(const PackedPairLargest&) = {finish_largest_vectors<kVectors + 1>...};
  kTable[(l.output.channels - 1) / 16](l);
}

void finish_pair_largest(const PackedPairLargest& l) {
  finish_largest_any(l, std::make_integer_sequence<int, kPairVectors>());
}
