// Compiled once per instruction set, after its lanes_*.inl and block_copy.inl, in an unnamed namespace inside its
// target region. kMaxVectors is how many vectors of channels a tile may span, pixels_of(vectors) at how many positions
// their sums, one vector of weights each and one of x fit the registers.

#define LCS_UNROLLED _Pragma("GCC unroll 16")  // else gcc keeps the sums in memory

constexpr int kBlock = 16;

template <bool kDepthwise, int kVectors, int kPixels>
void accumulate_tile(const WidthTile& t, int64_t from) {
  Float sum[kPixels][kVectors];
  const float* x[kPixels];
  float* const sums = t.sums + from * kVectors * kLanes;
  LCS_UNROLLED for (int p = 0; p < kPixels; ++p) x[p] = t.x + t.pixel[from + p];
  LCS_UNROLLED for (int p = 0; p < kPixels; ++p) {
    LCS_UNROLLED for (int v = 0; v < kVectors; ++v) sum[p][v] =
        t.first ? set1(0.0f) : load(sums + (p * kVectors + v) * kLanes);
  }
  const float* weight = t.weight;
  for (int64_t k = 0; k < t.terms; ++k, weight += kBlock) {
    const int64_t offset = t.offset[k];
    Float w[kVectors];
    LCS_UNROLLED for (int v = 0; v < kVectors; ++v) w[v] =
        load(weight + v * kLanes / kBlock * t.block_stride + v * kLanes % kBlock);
    LCS_UNROLLED for (int p = 0; p < kPixels; ++p) {
      if constexpr (kDepthwise) {
        LCS_UNROLLED for (int v = 0; v < kVectors; ++v) sum[p][v] =
            fmadd(load(x[p] + offset + v * kLanes), w[v], sum[p][v]);
      } else {
        const Float one = set1(x[p][offset]);
        LCS_UNROLLED for (int v = 0; v < kVectors; ++v) sum[p][v] = fmadd(one, w[v], sum[p][v]);
      }
    }
  }
  const Float floor = set1(t.relu ? 0.0f : -__builtin_inff());
  LCS_UNROLLED for (int p = 0; p < kPixels; ++p) {
    LCS_UNROLLED for (int v = 0; v < kVectors; ++v) {
      if (t.last) sum[p][v] = raised_to(fmadd(sum[p][v], load(t.scale + v * kLanes), load(t.bias + v * kLanes)), floor);
      store(sums + (p * kVectors + v) * kLanes, sum[p][v]);
    }
  }
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
