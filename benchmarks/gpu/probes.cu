// Kernels that answer what a design rests on before it is built: how fast weights can be decoded that nothing
// multiplies, what a barrier of the grid costs, and how many of some instructions a multiprocessor starts a clock.
#include "device.cuh"

#ifdef __CUDACC__
#define ON_DEVICE __device__ __forceinline__
#else  // what tests/simt has no need of elsewhere
#define ON_DEVICE inline
inline long long clock64() { return 0; }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int shift = 0; shift < 32; shift += 8) c += (a >> shift & 255) * (b >> shift & 255);
  return c;
}
#endif

namespace {

using namespace lcs::cuda;

// ---- sp_delta4: a tile of 64 x 64 bfloat16 in shared memory, from runs of equally many values at 4-bit distances.

constexpr int kRuns = 128, kTilePositions = 4096;  // a run a thread

template <int kValues>
struct Run {
  unsigned words[kValues / 2];  // two values each
  unsigned distances[(kValues + 7) / 8];
  unsigned start;
};

// The arrays lie [tile][part of a run][run], so that neighbouring threads read neighbouring words.
template <int kValues>
ON_DEVICE Run<kValues> load_run(const char* values, const char* distances, const uint16_t* starts, int64_t tile) {
  Run<kValues> run;
  const int64_t thread = threadIdx.x;
  if constexpr (kValues >= 8) {
#pragma unroll
    for (int part = 0; part < kValues / 8; ++part) {
      const int64_t at = (tile * (kValues / 8) + part) * kRuns + thread;
      const Words4 four = stream16(values + at * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) run.words[part * 4 + i] = four.word[i];
      run.distances[part] = reinterpret_cast<const unsigned*>(distances)[at];
    }
  } else {
    const int64_t at = tile * kRuns + thread;
    const Words2 two = stream8(values + at * 8);
    run.words[0] = two.word[0];
    run.words[1] = two.word[1];
    run.distances[0] = reinterpret_cast<const uint16_t*>(distances)[at];
  }
  run.start = starts[tile * kRuns + thread];
  return run;
}

template <int kValues>
ON_DEVICE void scatter(const Run<kValues>& run, uint16_t* tile) {
  unsigned position = run.start;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    tile[position] = uint16_t(run.words[i / 2] >> i % 2 * 16);
    position += run.distances[i / 8] >> i % 8 * 4 & 15;
  }
}

template <int kValues>
__global__ void __launch_bounds__(kRuns, 8)
    delta_kernel(const char* values, const char* distances, const uint16_t* starts, int64_t tiles, unsigned* sums) {
  __shared__ Words4 tile[kTilePositions / 8];
  constexpr int kEach = kTilePositions / 8 / kRuns;
#pragma unroll
  for (int i = 0; i < kEach; ++i) tile[i * kRuns + threadIdx.x] = {};
  __syncthreads();
  unsigned sum = 0;
  Run<kValues> next{};
  if (int64_t(blockIdx.x) < tiles) next = load_run<kValues>(values, distances, starts, blockIdx.x);
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const Run<kValues> run = next;
    if (t + gridDim.x < tiles) next = load_run<kValues>(values, distances, starts, t + gridDim.x);
    scatter<kValues>(run, reinterpret_cast<uint16_t*>(tile));
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {  // read once, as the matrix units would
      const Words4 four = tile[i * kRuns + threadIdx.x];
      sum += four.word[0] + four.word[1] + four.word[2] + four.word[3];
      tile[i * kRuns + threadIdx.x] = {};
    }
    __syncthreads();
  }
  sums[blockIdx.x * kRuns + threadIdx.x] = sum;
}

// ---- nest8: weights of 8 bits in chunks of 2, 1, 1, 2 and 2 bits, of which the first make the narrower ones.

constexpr int kNestThreads = 256;

struct Chunks {
  const char* two[3];  // bits 7 and 6; 3 and 2; 1 and 0
  const char* one[2];  // bit 5; bit 4
};

// 128 weights of a thread, 4 to a word, in registers.
template <int kBits>
ON_DEVICE unsigned decode_and_sum(const Chunks& chunks, int64_t unit, unsigned sum) {
  constexpr int kTwos = kBits == 8 ? 3 : kBits == 6 ? 2 : 1, kOnes = kBits >= 4 ? 2 : kBits - 2;
  Words4 two[kTwos][2], one[kOnes + 1];
#pragma unroll
  for (int c = 0; c < kTwos; ++c)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      two[c][half] =
          stream16(chunks.two[c] + ((unit / kNestThreads * 2 + half) * kNestThreads + unit % kNestThreads) * 16);
#pragma unroll
  for (int c = 0; c < kOnes; ++c) one[c] = stream16(chunks.one[c] + unit * 16);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    unsigned weights = 0;
#pragma unroll
    for (int c = 0; c < kTwos; ++c) {
      const unsigned bits = two[c][i / 16].word[i / 4 % 4] >> i % 4 * 2 & 0x03030303u;
      weights |= bits << (c == 0 ? 6 : c == 1 ? 2 : 0);
    }
#pragma unroll
    for (int c = 0; c < kOnes; ++c) weights |= (one[c].word[i / 8] >> i % 8 & 0x01010101u) << (5 - c);
    sum = __dp4a(weights, 0x01010101u, sum);  // in place of the matrix units
  }
  return sum;
}

template <int kBits>
__global__ void __launch_bounds__(kNestThreads) nest_kernel(const Chunks chunks, int64_t units, unsigned* sums) {
  unsigned sum = 0;
  const int64_t first = int64_t(blockIdx.x) * kNestThreads + threadIdx.x;
  for (int64_t unit = first; unit < units; unit += int64_t(gridDim.x) * kNestThreads)
    sum = decode_and_sum<kBits>(chunks, unit, sum);
  sums[first] = sum;
}

// ---- Barriers and instructions.

__global__ void empty_kernel() {}

__global__ void sync_kernel(int count) {
  for (int i = 0; i < count; ++i) grid_sync();
}

constexpr int kRateThreads = 1024, kAtOnce = 4;

struct CountBits {
  ON_DEVICE unsigned operator()(unsigned x, uint16_t*) const { return unsigned(__popc(x)); }
};
struct Logic {
  ON_DEVICE unsigned operator()(unsigned x, uint16_t*) const {
#ifdef __CUDACC__
    asm volatile("lop3.b32 %0, %0, 0x55aa55aa, %0, 0x6a;" : "+r"(x));
#endif
    return x;
  }
};
struct Scatter {
  ON_DEVICE unsigned operator()(unsigned x, uint16_t* shared) const {
    x = x * 1664525u + 1013904223u;
    shared[x >> 20] = uint16_t(x);  // any of 4096
    return x;
  }
};

// The clocks that one block of 1024 threads takes for kAtOnce * iterations of the instruction in each.
template <class Instruction>
__global__ void __launch_bounds__(kRateThreads) rate_kernel(int iterations, long long* clocks, unsigned* sums) {
  __shared__ uint16_t shared[kTilePositions];
  unsigned x[kAtOnce];
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) x[i] = threadIdx.x * 2654435769u + unsigned(i);
  __syncthreads();
  const long long begin = clock64();
  for (int n = 0; n < iterations; ++n)
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) x[i] = Instruction()(x[i], shared);
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - begin;
  sums[blockIdx.x * kRateThreads + threadIdx.x] = x[0] + x[1] + x[2] + x[3] + shared[threadIdx.x];
}

}  // namespace

// Each returns a cudaError_t, queues its kernel and does not wait.
extern "C" {

int probe_delta(int values, const char* words, const char* distances, const uint16_t* starts, int64_t tiles,
                unsigned* sums, int blocks, void* stream) {
  const auto kernel = values == 16 ? delta_kernel<16> : values == 8 ? delta_kernel<8> : delta_kernel<4>;
  return launch(kernel, blocks, kRuns, Grid::independent, stream, words, distances, starts, tiles, sums);
}

int probe_nest(int bits, const char* two0, const char* one0, const char* one1, const char* two1, const char* two2,
               int64_t units, unsigned* sums, int blocks, void* stream) {
  const auto kernel = bits == 8 ? nest_kernel<8> : bits == 4 ? nest_kernel<4> : nest_kernel<2>;
  const Chunks chunks{{two0, two1, two2}, {one0, one1}};
  return launch(kernel, blocks, kNestThreads, Grid::independent, stream, chunks, units, sums);
}

int probe_empty(int blocks, int cooperative, void* stream) {
  return launch(empty_kernel, blocks, 256, cooperative ? Grid::cooperative : Grid::independent, stream);
}

int probe_sync(int blocks, int count, void* stream) {
  return launch(sync_kernel, blocks, 256, Grid::cooperative, stream, count);
}

int probe_rate(int which, int blocks, int iterations, long long* clocks, unsigned* sums, void* stream) {
  const auto kernel = which == 0 ? rate_kernel<CountBits> : which == 1 ? rate_kernel<Logic> : rate_kernel<Scatter>;
  return launch(kernel, blocks, kRateThreads, Grid::independent, stream, iterations, clocks, sums);
}

}  // extern "C"
