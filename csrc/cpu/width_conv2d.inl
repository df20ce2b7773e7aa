// Compiled once per instruction set, after its lanes_*.inl and block_copy.inl, in an unnamed namespace inside its
// target region. kMaxVectors is how many vectors of channels a tile may span, pixels_of(vectors) at how many positions
// their sums, one vector of weights each and one of x fit the registers.

constexpr int kBlock = 16;

// Without the pragmas gcc keeps the sums in memory.
template <bool kDepthwise, int kVectors, int kPixels>
void accumulate_tile(const WidthTile& t, int64_t from) {
  constexpr int kSums = kPixels * kVectors;  // of position i / kVectors, vector i % kVectors
  Float sum[kSums];
  const float* x[kPixels];
  const float* weight = t.weight;
  float* const sums = t.sums + from * t.sums_stride;
  const int64_t stride = t.sums_stride;
#pragma GCC unroll 32
  for (int p = 0; p < kPixels; ++p) x[p] = t.x + t.pixel[from + p];
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i)
    sum[i] = t.first ? set1(0.0f) : load(sums + i / kVectors * stride + i % kVectors * kLanes);
  for (int64_t k = 0; k < t.terms; ++k, weight += kBlock) {
    const int64_t offset = t.offset[k];
    Float w[kVectors];
#pragma GCC unroll 32
    for (int v = 0; v < kVectors; ++v) w[v] = load(weight + v * kLanes / kBlock * t.block_stride + v * kLanes % kBlock);
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) {
      const float* const at = x[i / kVectors] + offset;
      const Float value = kDepthwise ? load(at + i % kVectors * kLanes) : set1(*at);
      sum[i] = fmadd(value, w[i % kVectors], sum[i]);
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
  for (int64_t at = 0, left = tile.pixels; left > 0;) {
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

WidthConv2dKernels table() { return {kLanes, kMaxVectors, accumulate, load_block, store_block}; }
