// Compiled once per instruction set, after its lanes_*.inl, those of one lane in a namespace `single`, and its
// transpose_*.inl, in an unnamed namespace inside its target region. kMaxVectors sums and one value fit its registers.

// Few vectors leave the multipliers waiting for each other's sums: then the values are dealt out to several sums.
constexpr int kOrderedVectors = 6;
constexpr int sums_of(int vectors) { return vectors >= kOrderedVectors ? 1 : vectors >= 3 ? 2 : 4; }

// f(0), f(1), ... without a loop, in which compilers would leave many sums in memory.
template <class F, int... i>
inline __attribute__((always_inline)) void each(F f, std::integer_sequence<int, i...>) {
  (f(i), ...);
}

template <int kVectors, int kLines, bool kDirect, int kStep>
void accumulate_tile(const SparseTile& tile) {
  constexpr int kSums = sums_of(kVectors), kLine = kVectors / kLines;
  static_assert(kVectors % kLines == 0);
  constexpr auto kEach = std::make_integer_sequence<int, kVectors>();
  const int32_t* distance = tile.distance;
  const uint16_t* index = tile.index;
  const float* value = tile.values;
  float* acc = tile.acc;
  const bool first = tile.block == 0, last = tile.block == tile.blocks - 1;
  const bool scales = last && tile.scale, starts = first && tile.bias && !tile.scale;
  const float* residual = tile.residual;
  float* y = tile.y;
  const bool fetches = tile.block == tile.blocks - 2 && y != tile.acc;  // what the last block reads and writes
  const auto of = [](auto* start, int64_t line, int v) { return start + (v < kLine ? 0 : line) + v % kLine * kLanes; };
  const Float floor = set1(tile.relu ? 0.0f : -__builtin_inff()), ceiling = set1(tile.cap);
  const auto add_value = [&](Float* sum, int32_t i) {
    const float* x = tile.x;
    if constexpr (kDirect)
      x += distance[i];
    else
      x += tile.offset[index[i]];
    const Float w = set1(value[i]);
    const float* second = x + tile.x_line;
    if (kLines > 1) asm("" : "+r"(second));  // else loads of both lines, which fall on the same banks, take turns
    each([&](int v) { sum[v] = fmadd(w, load((v < kLine ? x : second) + v % kLine * kLanes * kStep), sum[v]); }, kEach);
  };
  for (int64_t row = 0; row < tile.rows; ++row, acc += tile.acc_stride) {
    Float sum[kSums][kVectors];
    const Float start = set1(starts ? tile.bias[row] : 0.0f);
    each([&](int v) { sum[0][v] = first ? start : load(of(acc, tile.acc_line, v)); }, kEach);
    for (int s = 1; s < kSums; ++s) each([&](int v) { sum[s][v] = set1(0.0f); }, kEach);
    if (fetches) each([&](int v) { __builtin_prefetch(of(y, tile.y_line, v), 1); }, kEach);
    if (fetches && residual && residual != y)
      each([&](int v) { __builtin_prefetch(of(residual, tile.residual_line, v)); }, kEach);
    const int32_t n = tile.count[row];
    int32_t i = 0;
    for (; i + kSums <= n; i += kSums)
      for (int s = 0; s < kSums; ++s) add_value(sum[s], i + s);
    for (; i < n; ++i) add_value(sum[0], i);
    kDirect ? void(distance += n) : void(index += n);
    value += n;
    if constexpr (kSums > 1)
      each(
          [&](int v) {
            for (int s = 1; s < kSums; ++s) sum[0][v] = add(sum[0][v], sum[s][v]);
          },
          kEach);
    if (last) {
      const Float scale = set1(scales ? tile.scale[row] : 1.0f),
                  shift = set1(scales && tile.bias ? tile.bias[row] : 0.0f);
      if (scales) each([&](int v) { sum[0][v] = fmadd(sum[0][v], scale, shift); }, kEach);
      if (residual) each([&](int v) { sum[0][v] = add(sum[0][v], load(of(residual, tile.residual_line, v))); }, kEach);
      each([&](int v) { sum[0][v] = lowered_to(raised_to(sum[0][v], floor), ceiling); }, kEach);
    }
    float* const to = last ? y : acc;
    const int64_t to_line = last ? tile.y_line : tile.acc_line;
    each([&](int v) { store(of(to, to_line, v), sum[0][v]); }, kEach);
    if (residual) residual += tile.residual_stride;
    y += tile.y_stride;
  }
}

template <int kLines, bool kDirect, int kStep, int... i>
void accumulate_any(const SparseTile& tile, std::integer_sequence<int, i...>) {
  static constexpr void (*kTable[])(const SparseTile&) = {accumulate_tile<(i + 1) * kLines, kLines, kDirect, kStep>...};
  kTable[tile.vectors / kLines - 1](tile);
}

template <int kLines, bool kDirect>
void accumulate_any(const SparseTile& tile) {
  constexpr auto kVectors = std::make_integer_sequence<int, kMaxVectors / kLines>();
  tile.step == 1 ? accumulate_any<kLines, kDirect, 1>(tile, kVectors)
                 : accumulate_any<kLines, kDirect, 2>(tile, kVectors);
}

template <int kLines>
void accumulate_any(const SparseTile& tile) {
  tile.distance ? accumulate_any<kLines, true>(tile) : accumulate_any<kLines, false>(tile);
}

void accumulate(const SparseTile& tile) {
  if constexpr (kMaxLines > 1)
    if (tile.lines == 2) return accumulate_any<2>(tile);
  accumulate_any<1>(tile);
}

void add_residual(const float* residual, int64_t n, float floor, float cap, float* sums) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    store(sums + i, lowered_to(raised_to(add(load(sums + i), load(residual + i)), set1(floor)), set1(cap)));
  for (; i < n; ++i) sums[i] = single::lowered_to(single::raised_to(sums[i] + residual[i], floor), cap);
}

SparseConv2dKernels table() {
  return {kLanes,      kMaxVectors, kMaxLines,   kOrderedVectors, kSquare,         accumulate,   load_block,
          store_block, load_lanes,  store_lanes, share_lanes,     normalise_lanes, add_residual, stream_end};
}
