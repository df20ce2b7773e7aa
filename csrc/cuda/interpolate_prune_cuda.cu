// One cooperative launch for all layers. A sample of each segment (a layer, or all of them ranked together) gives a
// bracket that should hold its threshold; one pass over the weights decides and writes all others and lists those
// inside the bracket; the lists are narrowed down to the threshold by counting, 11 bits at a time, and settled. Counts
// show whether a bracket held and its list fitted. Where not, the same counting reads the weights again in place of a
// list: slower, and as exact.
//
// Tiles list what they have in order of their index, in whatever place the list has for them, and ties are shared out
// among tiles by prefix sums: the result depends on no order in which blocks run.
#include "lcs/interpolate_prune_cuda.h"

#include <cmath>

#include "interpolate_prune_tile.cuh"

namespace lcs::cuda {
namespace {

// The key of this rank in the sample, which the barriers here part from what is written before and after.
__device__ int32_t sampled_key(Shared& shared, int size, int64_t rank) {
  Interval interval{0, kNanKey, rank, 0};
  while (interval.width > 0) {
    clear_bins(shared);
    for (int j = threadIdx.x; j < size; j += kThreads) count_key(shared, interval, shared.keys[j]);
    __syncthreads();
    interval = narrowed(shared, interval, shared.bins);
  }
  return interval.low;
}

// Keys of weights spread over the segment, at places that no stride in the data can follow.
__device__ void take_sample(const Work& work, Shared& shared, int segment, int64_t start, int64_t n, int size) {
  for (int j = threadIdx.x; j < size; j += kThreads) {
    const int64_t from = start + j * n / size, to = start + (j + 1) * n / size;
    const uint32_t hash = (uint32_t(j) * 2654435769u ^ 0x7feb352du) * 2246822519u;
    const int64_t at = from + (int64_t(hash >> 8) * (to - from) >> 24);
    const Row& row = work.rows[work.together() ? row_of(work.rows, work.layers, &Row::first, at) : segment];
    const int64_t i = at - row.first;
    const float w0 = decoded(bits_at(row.w0, i, work.in), work.in);
    const float w1 = row.w1 ? decoded(bits_at(row.w1, i, work.in), work.in) : 0.0f;
    shared.keys[j] = magnitude(blended(w0, w1, row.w1 != nullptr, *work.alpha, work.out));
  }
}

// The bracket of a segment.
__device__ Interval guessed(const Work& work, Shared& shared, int segment, int64_t start, int64_t n, int64_t keep) {
  if (keep == n) return {-1, 0, 0, 0};
  if (keep == 0) return {kNoKey, 0, 0, 0};
  const int size = int(n < kSample ? n : kSample);
  take_sample(work, shared, segment, start, n, size);
  if (size == n) return {sampled_key(shared, size, keep), 0, 0, 0};
  const float share = float(keep) / float(n);
  const int rank = int(share * float(size) + 0.5f);
  const int margin = kMargin + int(kDeviations * sqrtf(float(size) * share * (1.0f - share)));
  const int32_t high = rank - margin < 1 ? kNanKey : sampled_key(shared, size, rank - margin);
  const int32_t low = rank + margin > size ? 0 : sampled_key(shared, size, rank + margin);
  return {low, high - low, 0, 0};
}

__device__ void guess(const Work& work, Shared& shared, int segment) {
  const int64_t start = start_of(work, segment), n = start_of(work, segment + 1) - start;
  int64_t keep = work.keep[segment];
  keep = keep < 0 ? 0 : keep > n ? n : keep;
  const Interval bracket = guessed(work, shared, segment, start, n, keep);
  for (int i = threadIdx.x; i < kBins; i += kThreads) work.counts[int64_t(segment) * kBins + i] = 0;
  if (threadIdx.x == 0) work.segment[segment] = {bracket, keep, 0, 0, false};
}

// Writes all weights of a tile that its bracket decides, zeros for the others, and lists these.
__device__ void classify(const Work& work, Shared& shared, int64_t t) {
  const Tile tile = tile_at(work, t);
  Segment& segment = work.segment[tile.segment];
  const int32_t low = segment.interval.low, high = low + segment.interval.width;
  float w[kRounds][kVector];
  load_tile(work, tile, w);
  uint32_t inside[kRounds], counts[kRounds], before[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    uint32_t above = 0;
    inside[r] = 0;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int32_t key = magnitude(w[r][j]);
      const uint32_t bit = uint32_t(index_of(tile.begin, r) + j < tile.row.n) << j;
      if (key > high)
        above |= bit;
      else if (key >= low)
        inside[r] |= bit;
    }
    write_round(work, tile, r, w[r], above);
    counts[r] = uint32_t(__popc(above)) << 16 | uint32_t(__popc(inside[r]));
  }
  number(shared, counts, before, [&](uint32_t total) {
    const uint32_t count = total & 0xffff;
    atomicAdd(&segment.above, (unsigned long long)(total >> 16));
    shared.list_begin = atomicAdd(&segment.inside, (unsigned long long)(count));
    work.tile[t] = {shared.list_begin, count, 0};
  });
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    int64_t at = int64_t(shared.list_begin) + (before[r] & 0xffff);
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      if (inside[r] >> j & 1) {
        if (at < tile.room) {
          work.listed[tile.list + at] = __float_as_uint(w[r][j]);
          work.offset[tile.list + at] = uint16_t(index_of(tile.begin, r) + j - tile.begin);
        }
        ++at;
      }
  }
}

__device__ void raise_flags(const Work& work, const Interval& interval, int pass) {
  if (interval.width > 0)
    atomicOr(&work.flags->open[pass], 1u);
  else if (interval.ties > interval.rank)
    atomicOr(&work.flags->surplus, 1u);
}

// Whether the guess was right. One thread a segment.
__device__ void check(const Work& work, int s) {
  Segment& segment = work.segment[s];
  Interval interval = segment.interval;
  const auto inside = int64_t(segment.inside);
  interval.rank = segment.keep - int64_t(segment.above);
  segment.dense = inside > list_start(start_of(work, s + 1)) - list_start(start_of(work, s));
  if (interval.rank < 0 || interval.rank > inside) {
    interval = {0, kNanKey, segment.keep, 0};
    segment.dense = true;
  } else if (interval.rank == 0) {
    interval = {interval.low + interval.width + 1, 0, 0, 0};
  } else if (interval.rank == inside) {
    interval.width = 0;
    interval.ties = inside;
  } else if (interval.width == 0) {
    interval.ties = inside;
  }
  segment.interval = interval;
  raise_flags(work, interval, 0);
}

// Calls body(weight) for this thread's share of what the tile has listed, or of all its weights if its segment is
// dense.
template <class Body>
__device__ void each_undecided(const Work& work, const Tile& tile, int64_t t, bool dense, Body body) {
  if (!dense) {
    const TileState& state = work.tile[t];
    const int64_t list = tile.list + int64_t(state.begin);
    for (unsigned i = threadIdx.x; i < state.count; i += kThreads) body(__uint_as_float(work.listed[list + i]));
    return;
  }
#pragma unroll 1
  for (int r = 0; r < kRounds; ++r) {
    float w[kVector];
    load_round(work, tile, r, w);
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      if (index_of(tile.begin, r) + j < tile.row.n) body(w[j]);
  }
}

__device__ void add_bins(const Work& work, const Shared& shared, int segment) {
  for (int i = threadIdx.x; i < kBins; i += kThreads)
    if (shared.bins[i]) atomicAdd(&work.counts[int64_t(segment) * kBins + i], (unsigned long long)(shared.bins[i]));
}

// Counts the undecided of this block's tiles by bins; the tiles of a segment follow one another.
__device__ void count(const Work& work, Shared& shared) {
  int counted = -1;
  for (int64_t t = blockIdx.x; t < work.tiles; t += gridDim.x) {
    const Tile tile = tile_at(work, t);
    const Segment segment = work.segment[tile.segment];
    if (segment.interval.width == 0) continue;
    if (tile.segment != counted) {
      __syncthreads();
      if (counted >= 0) add_bins(work, shared, counted);
      clear_bins(shared);  // by the thread that added them
      counted = tile.segment;
    }
    each_undecided(work, tile, t, segment.dense, [&](float w) { count_key(shared, segment.interval, magnitude(w)); });
  }
  __syncthreads();
  if (counted >= 0) add_bins(work, shared, counted);
}

__device__ void narrow(const Work& work, Shared& shared, int s, int pass) {
  const Interval from = work.segment[s].interval;
  if (from.width == 0) return;
  unsigned long long* counts = work.counts + int64_t(s) * kBins;
  const Interval to = narrowed(shared, from, counts);
  for (int i = threadIdx.x; i < kBins; i += kThreads) counts[i] = 0;
  if (threadIdx.x == 0) {
    work.segment[s].interval = to;
    raise_flags(work, to, pass + 1);
  }
}

__device__ bool has_surplus(const Segment& segment) { return segment.interval.ties > segment.interval.rank; }

__device__ void count_ties(const Work& work, Shared& shared, int64_t t) {
  const Tile tile = tile_at(work, t);
  const Segment segment = work.segment[tile.segment];
  if (!has_surplus(segment)) return;
  if (threadIdx.x == 0) shared.bins[0] = 0;
  __syncthreads();
  each_undecided(work, tile, t, segment.dense, [&](float w) {
    if (magnitude(w) == segment.interval.low) atomicAdd(&shared.bins[0], 1u);
  });
  __syncthreads();
  if (threadIdx.x == 0) work.tile[t].drop = shared.bins[0];
}

// Tells each tile of a segment how many of its ties go: the first ones of the segment.
__device__ void share_ties(const Work& work, Shared& shared, int s) {
  const Segment& segment = work.segment[s];
  if (!has_surplus(segment)) return;
  const int64_t surplus = segment.interval.ties - segment.interval.rank;
  const int64_t first = work.rows[work.together() ? 0 : s].first_tile;
  const int64_t last = work.rows[work.together() ? work.layers : s + 1].first_tile;
  int64_t gone = 0;
  for (int64_t t = first; t < last; t += kThreads * kRounds) {
    uint32_t ties[kRounds], before[kRounds];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int64_t at = t + r * kThreads + threadIdx.x;
      ties[r] = at < last ? work.tile[at].drop : 0;
    }
    number(shared, ties, before, [&](uint32_t total) { shared.total = total; });
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int64_t at = t + r * kThreads + threadIdx.x, left = surplus - gone - before[r];
      if (at < last) work.tile[at].drop = left <= 0 ? 0 : left < ties[r] ? uint32_t(left) : ties[r];
    }
    gone += shared.total;
  }
}

// Writes the weights of a dense segment's tile anew.
__device__ void settle_dense(const Work& work, Shared& shared, const Tile& tile, int32_t threshold, uint32_t drop) {
  uint32_t passed = 0;
#pragma unroll 1
  for (int r = 0; r < kRounds; ++r) {
    float w[kVector];
    load_round(work, tile, r, w);
    uint32_t ties = 0, kept = 0, counts[1], before[1];
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int32_t key = magnitude(w[j]);
      const uint32_t bit = uint32_t(index_of(tile.begin, r) + j < tile.row.n) << j;
      if (key > threshold) kept |= bit;
      if (key == threshold) ties |= bit;
    }
    counts[0] = uint32_t(__popc(ties));
    number(shared, counts, before, [&](uint32_t total) { shared.total = total; });
    uint32_t rank = passed + before[0];
#pragma unroll
    for (int j = 0; j < kVector; ++j)
      if (ties >> j & 1 && rank++ >= drop) kept |= 1u << j;
    passed += shared.total;
    write_round(work, tile, r, w, kept);
  }
}

__device__ void keep_listed(const Work& work, const Tile& tile, uint32_t bits, int64_t offset) {
  const int64_t i = tile.begin + offset;
  put_bits(tile.row.w, i, work.out, encoded(__uint_as_float(bits), work.out));
  atomicOr(&tile.row.mask_bits[i / 32], 1u << i % 32);
}

// Puts back what a tile listed and the threshold keeps.
__device__ void settle_listed(const Work& work, Shared& shared, const Tile& tile, int32_t threshold,
                              const TileState& state) {
  const int64_t list = tile.list + int64_t(state.begin);
  uint32_t dropped = 0;
  for (uint32_t i = 0; i < state.count; i += kThreads * kRounds) {
    uint32_t bits[kRounds], ties[kRounds], before[kRounds] = {};
    int32_t key[kRounds];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const uint32_t at = i + r * kThreads + threadIdx.x;
      bits[r] = at < state.count ? work.listed[list + at] : 0;
      key[r] = at < state.count ? magnitude(__uint_as_float(bits[r])) : -1;
      ties[r] = key[r] == threshold;
    }
    if (state.drop) {
      number(shared, ties, before, [&](uint32_t total) { shared.total = total; });
#pragma unroll
      for (int r = 0; r < kRounds; ++r) before[r] += dropped;
      dropped += shared.total;
    }
#pragma unroll
    for (int r = 0; r < kRounds; ++r)
      if (key[r] > threshold || (ties[r] && before[r] >= state.drop))
        keep_listed(work, tile, bits[r], work.offset[list + i + r * kThreads + threadIdx.x]);
  }
}

__device__ void settle(const Work& work, Shared& shared, int64_t t) {
  const Tile tile = tile_at(work, t);
  const Segment& segment = work.segment[tile.segment];
  const TileState state = work.tile[t];
  if (segment.dense)
    settle_dense(work, shared, tile, segment.interval.low, state.drop);
  else
    settle_listed(work, shared, tile, segment.interval.low, state);
}

__global__ void __launch_bounds__(kThreads, 2) prune_kernel(const Work work) {
  __shared__ Shared shared;
  const int64_t block = blockIdx.x, blocks = gridDim.x;
  if (block == 0 && threadIdx.x == 0) *work.flags = {};
  for (int64_t s = block; s < work.segments; s += blocks) guess(work, shared, int(s));
  grid_sync();
  for (int64_t t = block; t < work.tiles; t += blocks) classify(work, shared, t);
  grid_sync();
  for (int64_t s = block * kThreads + threadIdx.x; s < work.segments; s += blocks * kThreads) check(work, int(s));
  grid_sync();
  for (int pass = 0; work.flags->open[pass]; ++pass) {
    count(work, shared);
    grid_sync();
    for (int64_t s = block; s < work.segments; s += blocks) narrow(work, shared, int(s), pass);
    grid_sync();
  }
  if (work.flags->surplus) {
    for (int64_t t = block; t < work.tiles; t += blocks) count_ties(work, shared, t);
    grid_sync();
    for (int64_t s = block; s < work.segments; s += blocks) share_ties(work, shared, int(s));
    grid_sync();
  }
  for (int64_t t = block; t < work.tiles; t += blocks) settle(work, shared, t);
}

// Cuts a workspace into arrays; with no workspace it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t at = size_;
    size_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
    return base_ ? static_cast<T*>(static_cast<void*>(base_ + at)) : nullptr;
  }
  int64_t size() const { return size_; }

 private:
  char* base_;
  int64_t size_ = 0;
};

Work lay_out(const InterpolatePruneArgs& args, Arena& arena, Row** rows) {
  Work work{};
  int64_t n = 0;
  for (const InterpolatePruneLayer& layer : args.layers) {
    n += layer.n;
    work.tiles += tiles_of(layer.n);
  }
  work.layers = int(args.layers.size());
  work.segments = args.together ? 1 : work.layers;
  work.keep = args.keep;
  work.alpha = args.alpha;
  work.in = args.in;
  work.out = args.out;
  work.rows = *rows = arena.take<Row>(work.layers + 1);
  work.segment = arena.take<Segment>(work.segments);
  work.counts = arena.take<unsigned long long>(int64_t(work.segments) * kBins);
  work.tile = arena.take<TileState>(work.tiles);
  work.listed = arena.take<uint32_t>(n / kPerListed + 1);
  work.offset = arena.take<uint16_t>(n / kPerListed + 1);
  work.flags = arena.take<Flags>(1);
  return work;
}

}  // namespace

int64_t interpolate_prune_workspace(const InterpolatePruneArgs& args) {
  Arena arena(nullptr);
  Row* rows;
  lay_out(args, arena, &rows);
  return arena.size();
}

int interpolate_prune(const InterpolatePruneArgs& args, void* workspace, void* stream) {
  Arena arena(workspace);
  Row* rows;
  const Work work = lay_out(args, arena, &rows);
  if (work.tiles == 0) return 0;
  int resident = 0;
  if (int error = resident_blocks(prune_kernel, kThreads, &resident)) return error;
  int64_t first = 0, first_tile = 0;
  const int error = write_rows(rows, work.layers + 1, stream, [&](int i) {
    if (i == work.layers) return Row{nullptr, nullptr, nullptr, nullptr, 0, first, first_tile};
    const InterpolatePruneLayer& layer = args.layers[i];
    const Row row{layer.w0, layer.w1, layer.w, layer.mask_bits, layer.n, first, first_tile};
    first += layer.n;
    first_tile += tiles_of(layer.n);
    return row;
  });
  if (error) return error;
  const auto blocks = int(std::min<int64_t>(resident, work.tiles));
  return launch(prune_kernel, blocks, kThreads, Grid::cooperative, stream, work);
}

}  // namespace lcs::cuda
