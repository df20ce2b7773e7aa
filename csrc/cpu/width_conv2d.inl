// Compiled once per instruction set, after its lanes_*.inl and block_copy.inl, in an unnamed namespace inside its
// target region. kMaxVectors is how many vectors of channels a tile may span, pixels_of(vectors) at how many positions
// their sums and one vector of weights each fit the registers, term(x, weight, sum) the sum with one more term: of a
// float, or of a pair of bfloat16 where one lies in its place.

constexpr int kBlock = 16;
// Without it gcc keeps the positions' addresses in registers, and those that do not fit in vectors, from where they
// come back through the multipliers' ports.
#define LCS_FORGET_MEMORY asm volatile("" ::: "memory")

// Where each tap of each position begins in x; outside of the image: at zeros.
template <int kPixels>
void find_taps(const WidthTile& t, int64_t from, const float** at) {
  for (int64_t tap = 0; tap < t.taps; ++tap, at += kPixels) {
    const WidthPlace& k = t.tap[tap];
    const WidthPlace* const place = t.place + from;
    for (int p = 0; p < kPixels; ++p) {
      const bool inside = uint64_t(place[p].row + k.row - t.first_row) < uint64_t(t.rows) &&
                          uint64_t(place[p].column + k.column - t.first_column) < uint64_t(t.columns);
      at[p] = inside ? t.x + (place[p].offset + k.offset) : t.zeros;
    }
  }
}

// The terms of kTogether input channels of a tap, the first of them `c`; sum[i] is of position i / kVectors, vector
// i % kVectors.
template <bool kDepthwise, int kVectors, int kPixels, int kTogether>
__attribute__((always_inline)) inline void add_terms(const float* const* at, int64_t c, const float* weight,
                                                     int64_t block_stride, Float (&sum)[kPixels * kVectors]) {
  constexpr int kWeights = kTogether * kVectors;
  Float w[kWeights];
  LCS_FORGET_MEMORY;
#pragma GCC unroll 32
  for (int i = 0; i < kWeights; ++i) {
    const int channel = i % kVectors * kLanes;
    w[i] = load(weight + i / kVectors * kBlock + channel / kBlock * block_stride + channel % kBlock);
  }
#pragma GCC unroll 32
  for (int p = 0; p < kPixels; ++p) {
    const float* const x = at[p] + c;
#pragma GCC unroll 32
    for (int i = 0; i < kWeights; ++i) {
      Float& to = sum[p * kVectors + i % kVectors];
      to = term(kDepthwise ? load(x + i * kLanes) : set1(x[i / kVectors]), w[i], to);
    }
  }
}

// Without the pragmas gcc keeps the sums in memory.
template <bool kDepthwise, int kVectors, int kPixels>
void accumulate_tile(const WidthTile& t, int64_t from) {
  constexpr int kSums = kPixels * kVectors;
  constexpr int kTogether = kDepthwise || kVectors * kLanes > kBlock ? 1 : kTogetherAtMost;
  Float sum[kSums];
  float* const sums = t.sums + from * t.sums_stride;
  const int64_t stride = t.sums_stride, block_stride = t.block_stride;
  find_taps<kPixels>(t, from, t.at);
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i)
    sum[i] = t.first ? set1(0.0f) : load(sums + i / kVectors * stride + i % kVectors * kLanes);
  const float* weight = t.weight;
  for (int64_t block = t.begin; block < t.end; block += t.block) {
    const int64_t end = std::min(block + t.block, t.end), next = std::min(t.block, t.stored - block) * kBlock;
    const float* const* at = t.at;
    for (int64_t tap = 0; tap < t.taps; ++tap, weight += next, at += kPixels) {
      const float* w = weight;
      int64_t c = block;
      for (; c + kTogether <= end; c += kTogether, w += kTogether * kBlock)
        add_terms<kDepthwise, kVectors, kPixels, kTogether>(at, c, w, block_stride, sum);
      if constexpr (kTogether > 1)
        for (; c < end; ++c, w += kBlock) add_terms<kDepthwise, kVectors, kPixels, 1>(at, c, w, block_stride, sum);
    }
  }
  if (t.last) {
    const Float floor = set1(t.relu ? 0.0f : -__builtin_inff());
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) {
      const int channel = i % kVectors * kLanes;
      sum[i] = raised_to(fmadd(sum[i], load(t.scale + channel), load(t.bias + channel)), floor);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) store(sums + i / kVectors * stride + i % kVectors * kLanes, sum[i]);
}

template <bool kDepthwise, int kVectors, int... kPixels>
void accumulate_some(const WidthTile& tile, int64_t n, int64_t from, std::integer_sequence<int, kPixels...>) {
  static constexpr void (*kTable[])(const WidthTile&,
                                    int64_t) = {accumulate_tile<kDepthwise, kVectors, kPixels + 1>...};
  kTable[n - 1](tile, from);
}

template <bool kDepthwise, int kVectors>
void accumulate_all(const WidthTile& tile) {
  constexpr int kMost = pixels_of(kVectors);
  for (int64_t at = tile.from, left = tile.to - tile.from; left > 0;) {
    // The last two share evenly: few sums leave the multipliers waiting for each other.
    const int64_t n = left >= 2 * kMost ? kMost : left > kMost ? (left + 1) / 2 : left;
    accumulate_some<kDepthwise, kVectors>(tile, n, at, std::make_integer_sequence<int, kMost>());
    at += n;
    left -= n;
  }
}

template <bool kDepthwise, int... kVectors>
void accumulate_any(const WidthTile& tile, std::integer_sequence<int, kVectors...>) {
  static constexpr void (*kTable[])(const WidthTile&) = {accumulate_all<kDepthwise, kVectors + 1>...};
  kTable[tile.vectors - 1](tile);
}

void accumulate(const WidthTile& tile) {
  constexpr auto kVectors = std::make_integer_sequence<int, kMaxVectors>();
  tile.depthwise ? accumulate_any<true>(tile, kVectors) : accumulate_any<false>(tile, kVectors);
}

WidthConv2dKernels table() {
  return {kLanes, kMaxVectors, pixels_of(kMaxVectors), accumulate, load_block, store_block};
}
