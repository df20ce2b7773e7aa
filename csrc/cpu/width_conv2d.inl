// Compiled once per instruction set, after its lanes_*.inl and block_copy.inl, in an unnamed namespace inside its
// target region. kTileVectors is how many vectors of channels a tile spans where there are many, kMaxVectors how many
// where those are all, pixels_of(vectors) at how many positions their sums and one vector of weights each fit the
// registers, kAddresses at how many these also hold where x lies, term(x, weight, sum) the sum with one more term: of a
// float, or of a pair of bfloat16 where one lies in its place. term_of_all(x, weight, sum) is that of one x in all
// lanes, which the multiplication itself reads from memory. put(to, x) rounds to what `to` points to.

constexpr int kBlock = 16;
constexpr int kAhead = 48 * kBlock;  // floats of the weight, which may come from memory
// Without it gcc keeps the positions' addresses in registers, and those that do not fit in vectors, from where they
// come back through the multipliers' ports.
#define LCS_FORGET_MEMORY asm volatile("" ::: "memory")

// The terms of kTogether input channels of a tap, the first of them `c`; sum[i] is of position i / kVectors, vector
// i % kVectors.
template <int kVectors, int kPixels, int kTogether>
__attribute__((always_inline)) inline void add_terms(const float* const* at, int64_t c, const float* weight,
                                                     int64_t block_stride, Float (&sum)[kPixels * kVectors]) {
  constexpr int kWeights = kTogether * kVectors;
  Float w[kWeights];
  if constexpr (kPixels > kAddresses) LCS_FORGET_MEMORY;
#pragma GCC unroll 32
  for (int i = 0; i < kWeights; ++i) {
    const int channel = i % kVectors * kLanes;
    const float* const at = weight + i / kVectors * kBlock + channel / kBlock * block_stride + channel % kBlock;
    w[i] = load(at);
    if (channel % kBlock == 0) __builtin_prefetch(at + kAhead);
  }
#pragma GCC unroll 32
  for (int p = 0; p < kPixels; ++p) {
    const float* const x = at[p] + c;
#pragma GCC unroll 32
    for (int i = 0; i < kWeights; ++i) {
      Float& to = sum[p * kVectors + i % kVectors];
      if constexpr (kVectors == 1)
        to = term_of_all(x[i], w[i], to);
      else
        to = term(set1(x[i / kVectors]), w[i], to);
    }
  }
}

template <class To, int kVectors, int kSums>
__attribute__((always_inline)) inline void put_all(const WidthTile& t, const Float (&sum)[kSums]) {
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) put(static_cast<To*>(t.to[i / kVectors]) + i % kVectors * kLanes, sum[i]);
}

// Without the pragmas gcc keeps the sums in memory.
template <int kVectors, int kPixels>
void accumulate_tile(const WidthTile& t) {
  constexpr int kSums = kPixels * kVectors;
  constexpr int kTogether = kVectors * kLanes > kBlock ? 1 : kTogetherAtMost;
  Float sum[kSums];
  const int64_t block_stride = t.block_stride;
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) sum[i] = t.first ? set1(0.0f) : load(t.sums + i * kLanes);
  const float *weight = t.weight, *ahead = t.ahead;
  for (int64_t block = t.begin; block < t.end; block += t.block) {
    const int64_t end = std::min(block + t.block, t.end), next = std::min(t.block, t.stored - block) * kBlock;
    for (const WidthTap* tap = t.tap; tap != t.tap + t.taps; ++tap) {
      const float* w = weight + tap->index * next;
      const int64_t last = end + tap->offset;
      for (int i = 0; i < t.ahead_lines; ++i, ahead += kBlock) __builtin_prefetch(ahead, 0, 2);
      int64_t c = block + tap->offset;
      for (; c + kTogether <= last; c += kTogether, w += kTogether * kBlock)
        add_terms<kVectors, kPixels, kTogether>(t.at, c, w, block_stride, sum);
      if constexpr (kTogether > 1)
        for (; c < last; ++c, w += kBlock) add_terms<kVectors, kPixels, 1>(t.at, c, w, block_stride, sum);
    }
    weight += t.weight_taps * next;
  }
  if (!t.last) {
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) store(t.sums + i * kLanes, sum[i]);
    return;
  }
  const Float floor = set1(t.relu ? 0.0f : -__builtin_inff());
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) {
    const int channel = i % kVectors * kLanes;
    sum[i] = raised_to(fmadd(sum[i], load(t.scale + channel), load(t.bias + channel)), floor);
  }
  t.dtype == DType::bfloat16 ? put_all<BFloat16, kVectors>(t, sum) : put_all<float, kVectors>(t, sum);
}

template <int kVectors, int... kPixels>
void accumulate_some(const WidthTile& tile, std::integer_sequence<int, kPixels...>) {
  static constexpr void (*kTable[])(const WidthTile&) = {accumulate_tile<kVectors, kPixels + 1>...};
  kTable[tile.pixels - 1](tile);
}

template <int kVectors>
void accumulate_all(const WidthTile& tile) {
  accumulate_some<kVectors>(tile, std::make_integer_sequence<int, pixels_of(kVectors)>());
}

template <int... kVectors>
void accumulate_any(const WidthTile& tile, std::integer_sequence<int, kVectors...>) {
  static constexpr void (*kTable[])(const WidthTile&) = {accumulate_all<kVectors + 1>...};
  kTable[tile.vectors - 1](tile);
}

void accumulate(const WidthTile& tile) { accumulate_any(tile, std::make_integer_sequence<int, kMaxVectors>()); }

WidthConv2dKernels table() {
  return {kLanes, kTileVectors, kMaxVectors, pixels_of, accumulate, load_block, store_block};
}
