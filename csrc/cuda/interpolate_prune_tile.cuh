#pragma once
#include <climits>
#include <cstdint>

#include "layers.cuh"
#include "lcs/interpolate_prune_cuda.h"

// What the steps of the prune share: their state in device memory, the weights of a tile, numbering and counting.
namespace lcs::cuda {
namespace {

constexpr int32_t kNanKey = 0x7f800001;     // of every NaN, next above infinity
constexpr int32_t kNoKey = INT_MAX - 1;     // above every key
constexpr int kSample = 4096;               // weights of a segment; of a smaller one, all
constexpr int kDeviations = 4;              // half the bracket, in standard deviations of a sampled rank
constexpr int kMargin = 8;                  // and at least so many sampled ranks
constexpr int kBins = 2048, kBinBits = 11;  // of a count
constexpr int kPasses = 3;                  // 31 bits are counted down 11 at a time
constexpr int64_t kPerListed = 8;           // weights of a segment for each place in its list

struct Row {
  const void* w0;
  const void* w1;  // null: a point
  void* w;
  uint32_t* mask_bits;
  int64_t n, first, first_tile;  // of the weights and tiles of all layers
};

// The keys from low to low + width, which hold the threshold: the key of this rank among them, counted from the
// greatest.
struct Interval {
  int32_t low, width;
  int64_t rank;
  int64_t ties;  // of width 0: how many keys equal `low`
};

struct Segment {
  Interval interval;
  int64_t keep;
  unsigned long long above, inside;  // keys above and in the bracket
  bool dense;                        // the list is of no use: the weights are read again
};

struct TileState {
  unsigned long long begin;  // in its segment's list
  uint32_t count;
  uint32_t drop;  // of its ties, how many of the first go; until they are shared out, how many it has
};

struct Flags {
  unsigned open[kPasses + 1];  // before each pass: whether a segment's interval is still to narrow
  unsigned surplus;            // a segment has more ties than places for them
};

struct Work {
  const Row* rows;  // and one past the last, which holds the totals
  int layers, segments;
  int64_t tiles;
  const int64_t* keep;
  const float* alpha;
  DType in, out;
  Segment* segment;
  unsigned long long* counts;  // kBins a segment
  TileState* tile;
  uint32_t* listed;  // weights in the brackets, rounded, as the bits of a float32; kPerListed weights share a place
  uint16_t* offset;  // theirs in the tile
  Flags* flags;

  __device__ bool together() const { return segments != layers; }
};

struct Shared {
  int32_t keys[kSample];
  unsigned bins[kBins];
  uint32_t tile_sums[32];
  unsigned long long warp_sums[kWarps];
  Interval narrowed;
  unsigned long long list_begin;
  uint32_t total;
};

// A tile, as all threads of its block see it.
struct Tile {
  Row row;
  int segment;
  int64_t begin;       // in the layer
  int64_t list, room;  // its segment's
  bool aligned;
};

__device__ int32_t magnitude(float w) {
  const auto bits = int32_t(__float_as_uint(w) & 0x7fffffff);
  return bits < kNanKey ? bits : kNanKey;
}

__device__ int shift_of(int32_t width) {
  const int bits = 32 - __clz(width);
  return bits > kBinBits ? bits - kBinBits : 0;
}

// The first weight of a segment, or of the one behind it.
__device__ int64_t start_of(const Work& work, int segment) {
  if (work.together()) return work.rows[segment ? work.layers : 0].first;
  return work.rows[segment].first;
}

__device__ int64_t list_start(int64_t first) { return (first + kPerListed - 1) / kPerListed; }

__device__ Tile tile_at(const Work& work, int64_t t) {
  const int layer = row_of(work.rows, work.layers, &Row::first_tile, t);
  const Row& row = work.rows[layer];
  const int segment = work.together() ? 0 : layer;
  const int64_t list = list_start(start_of(work, segment));
  return {row,
          segment,
          (t - row.first_tile) * kTile,
          list,
          list_start(start_of(work, segment + 1)) - list,
          aligned16(row.w0) && aligned16(row.w1) && aligned16(row.w)};
}

__device__ float blended(float w0, float w1, bool line, float alpha, DType out) {
  const float w = line ? __fadd_rn(__fmul_rn(__fsub_rn(1.0f, alpha), w0), __fmul_rn(alpha, w1)) : w0;
  return rounded(w, out);
}

__device__ Raw load_end(const Work& work, const Tile& tile, const void* end, int round) {
  return end ? load(end, index_of(tile.begin, round), tile.row.n, work.in, tile.aligned) : Raw{};
}

__device__ void blend_round(const Work& work, const Tile& tile, const Raw& w0, const Raw& w1, float (&w)[kVector]) {
#pragma unroll
  for (int j = 0; j < kVector; ++j)
    w[j] = blended(weight_of(w0, j, work.in), weight_of(w1, j, work.in), tile.row.w1, *work.alpha, work.out);
}

// This thread's weights of one round.
__device__ void load_round(const Work& work, const Tile& tile, int round, float (&w)[kVector]) {
  blend_round(work, tile, load_end(work, tile, tile.row.w0, round), load_end(work, tile, tile.row.w1, round), w);
}

// Those of all rounds, which are on their way together.
__device__ void load_tile(const Work& work, const Tile& tile, float (&w)[kRounds][kVector]) {
  Raw w0[kRounds], w1[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    w0[r] = load_end(work, tile, tile.row.w0, r);
    w1[r] = load_end(work, tile, tile.row.w1, r);
  }
#pragma unroll
  for (int r = 0; r < kRounds; ++r) blend_round(work, tile, w0[r], w1[r], w[r]);
}

// Writes a thread's weights of one round and their mask bits; bit j of `kept` is that of w[j].
__device__ void write_round(const Work& work, const Tile& tile, int round, const float (&w)[kVector], uint32_t kept) {
  const int64_t i = index_of(tile.begin, round);
  Raw raw{};
#pragma unroll
  for (int j = 0; j < kVector; ++j)
    if (kept >> j & 1) set_bits(raw, j, work.out, encoded(w[j], work.out));
  store(tile.row.w, i, tile.row.n, work.out, tile.aligned, raw);
  uint32_t word = kept << threadIdx.x % 8 * kVector;  // eight threads fill a word
  for (int step = 1; step < 8; step *= 2) word |= __shfl_xor_sync(~0u, word, step);
  if (threadIdx.x % 8 == 0 && i < tile.row.n) tile.row.mask_bits[i / 32] = word;
}

// Numbers what the threads counted, in the order of rounds and then of threads: `before[r]` is the sum of the counts in
// front of counts[r]. One thread calls all(total) while the others wait; all have read by then what it last wrote.
template <int kCounts, class All>
__device__ void number(Shared& shared, const uint32_t (&counts)[kCounts], uint32_t (&before)[kCounts], All all) {
  constexpr unsigned kSums = kCounts * kWarps;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int r = 0; r < kCounts; ++r) {
    const uint32_t sum = sum_up_to_lane(counts[r]);
    before[r] = sum - counts[r];
    if (lane == 31) shared.tile_sums[r * kWarps + warp] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    const uint32_t count = lane < kSums ? shared.tile_sums[lane] : 0, sum = sum_up_to_lane(count);
    if (lane < kSums) shared.tile_sums[lane] = sum - count;
    if (lane == 31) all(sum);
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kCounts; ++r) before[r] += shared.tile_sums[r * kWarps + warp];
  __syncwarp();  // until the next call writes them
}

// Narrows the interval to the bin of its rank, given how many of its keys lie in each; the same in all threads.
template <class Count>
__device__ Interval narrowed(Shared& shared, const Interval& from, const Count* bins) {
  constexpr int kEach = kBins / kThreads;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int bin = kBins - kEach * int(threadIdx.x);  // the first thread has the greatest keys
  unsigned long long own = 0;
  for (int j = 1; j <= kEach; ++j) own += bins[bin - j];
  unsigned long long sum = sum_up_to_lane(own);
  if (lane == 31) shared.warp_sums[warp] = sum;
  __syncthreads();
  for (unsigned i = 0; i < warp; ++i) sum += shared.warp_sums[i];
  int64_t rank = from.rank - int64_t(sum - own);
  if (rank > 0 && rank <= int64_t(own)) {
    int64_t count = bins[--bin];
    for (; rank > count; count = bins[--bin]) rank -= count;
    const int shift = shift_of(from.width);
    const int32_t below = bin << shift, rest = from.width - below, size = (1 << shift) - 1;
    shared.narrowed = {from.low + below, rest < size ? rest : size, rank, count};
  }
  __syncthreads();
  return shared.narrowed;
}

__device__ void clear_bins(Shared& shared) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
  __syncthreads();
}

__device__ void count_key(Shared& shared, const Interval& interval, int32_t key) {
  const uint32_t above_low = uint32_t(key) - uint32_t(interval.low);
  if (above_low <= uint32_t(interval.width)) atomicAdd(&shared.bins[above_low >> shift_of(interval.width)], 1u);
}

}  // namespace
}  // namespace lcs::cuda
