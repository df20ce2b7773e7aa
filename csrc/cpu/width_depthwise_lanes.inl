// After lane_copy.inl and its namespace `eight`: the lanes of a vector are channels.
constexpr int kMostColumns = 8;  // of a tile, whose sums fit the registers

// `kStep` positions from one column's x to the next.
template <int kStep, int kColumns>
void lanes_tile(const DepthwiseLanes& d, const float* x, float* y) {
  __m256 sum[kColumns];
  LCS_UNROLL
  for (int i = 0; i < kColumns; ++i) sum[i] = eight::set1(0.0f);
  for (int64_t tap = 0; tap < d.taps; ++tap) {
    const float* const at = x + d.taps_at[tap];
    const __m256 weight = eight::load(d.weight + tap * kDepthwiseLanes);
    LCS_UNROLL
    for (int i = 0; i < kColumns; ++i)
      sum[i] = eight::fmadd(eight::load(at + i * kStep * kDepthwiseLanes), weight, sum[i]);
  }
  const __m256 scale = eight::load(d.scale), bias = eight::load(d.bias), floor = eight::set1(d.floor),
               cap = eight::set1(d.cap);
  LCS_UNROLL
  for (int i = 0; i < kColumns; ++i)
    eight::store(y + i * kDepthwiseLanes,
                 eight::lowered_to(eight::raised_to(eight::fmadd(sum[i], scale, bias), floor), cap));
}

template <int kStep, int... kColumns>
void lanes_by(const DepthwiseLanes& d, std::integer_sequence<int, kColumns...>) {
  static constexpr decltype(&lanes_tile<kStep, 1>) kTable[] = {lanes_tile<kStep, kColumns + 1>...};
  const int64_t tiles = (d.columns + kMostColumns - 1) / kMostColumns, most = (d.columns + tiles - 1) / tiles;
  const float* x = d.x;
  float* y = d.y;
  for (int64_t row = 0; row < d.rows; ++row, x += d.x_row)
    for (int64_t first = 0, n; first < d.columns; first += n, y += n * kDepthwiseLanes) {
      n = std::min(most, d.columns - first);
      kTable[n - 1](d, x + first * kStep * kDepthwiseLanes, y);
    }
}

void lanes(const DepthwiseLanes& d) {
  constexpr auto kColumns = std::make_integer_sequence<int, kMostColumns>();
  d.step == 1 ? lanes_by<1>(d, kColumns) : lanes_by<2>(d, kColumns);
}
