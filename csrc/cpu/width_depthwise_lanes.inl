// Where the lanes of a vector are channels: those of a namespace `channels`.
constexpr int kMostColumns = 8;  // of a tile, whose sums fit the registers

// `kStep` positions from one column's x to the next; 0: as many as the call says.
template <int kStep, int kColumns>
void lanes_tile(const DepthwiseLanes& d, const float* x, float* y) {
  constexpr int kWidth = channels::kLanes;
  const int64_t step = (kStep ? kStep : d.step) * kWidth;
  channels::Float sum[kColumns];
  LCS_UNROLL
  for (int i = 0; i < kColumns; ++i) sum[i] = channels::set1(0.0f);
  for (int64_t tap = 0; tap < d.taps; ++tap) {
    const float* const at = x + d.taps_at[tap];
    const channels::Float weight = channels::load(d.weight + tap * kWidth);
    LCS_UNROLL
    for (int i = 0; i < kColumns; ++i) sum[i] = channels::fmadd(channels::load(at + i * step), weight, sum[i]);
  }
  const channels::Float scale = channels::load(d.scale), bias = channels::load(d.bias), floor = channels::set1(d.floor),
                        cap = channels::set1(d.cap);
  LCS_UNROLL
  for (int i = 0; i < kColumns; ++i)
    channels::store(y + i * d.y_column,
                    channels::lowered_to(channels::raised_to(channels::fmadd(sum[i], scale, bias), floor), cap));
}

template <int kStep, int... kColumns>
void lanes_by(const DepthwiseLanes& d, std::integer_sequence<int, kColumns...>) {
  static constexpr decltype(&lanes_tile<kStep, 1>) kTable[] = {lanes_tile<kStep, kColumns + 1>...};
  const int64_t tiles = (d.columns + kMostColumns - 1) / kMostColumns, most = (d.columns + tiles - 1) / tiles;
  const float* x = d.x;
  float* y = d.y;
  for (int64_t row = 0; row < d.rows; ++row, x += d.x_row, y += d.y_row)
    for (int64_t first = 0, n; first < d.columns; first += n) {
      n = std::min(most, d.columns - first);
      kTable[n - 1](d, x + first * d.step * channels::kLanes, y + first * d.y_column);
    }
}

void lanes(const DepthwiseLanes& d) {
  constexpr auto kColumns = std::make_integer_sequence<int, kMostColumns>();
  d.step == 1 ? lanes_by<1>(d, kColumns) : d.step == 2 ? lanes_by<2>(d, kColumns) : lanes_by<0>(d, kColumns);
}
