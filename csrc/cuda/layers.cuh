#pragma once
#include <algorithm>
#include <cstdint>

#include "device.cuh"
#include "lcs/dtype.h"

// A list of layers as one grid: a table of them in device memory, cut into tiles, and weights of any dtype by fours.
// The dtype is a value, not a template's parameter: a kernel that waits for memory has instructions to spare, and one
// kernel for all dtypes is built once per architecture rather than eighteen times.
namespace lcs::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kVector = 4;                           // weights that a thread loads at once
constexpr int kRounds = 4;                           // how often, in a tile
constexpr int kTile = kThreads * kVector * kRounds;  // whole words of mask bits
static_assert(kWarps * kRounds == 32, "one warp sums what all warps counted in a tile");

inline int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

// The index in its layer of the first of the kVector weights that this thread has in a round of the tile at `begin`.
__device__ inline int64_t index_of(int64_t begin, int round) {
  return begin + int64_t(round * kThreads + int(threadIdx.x)) * kVector;
}

// The last row whose `start` is at most `value`; starts do not fall, and the first one is at most `value`.
template <class Row>
__device__ int row_of(const Row* rows, int count, int64_t Row::* start, int64_t value) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (rows[middle].*start <= value)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Rows of a table as a kernel's argument, of at most 4 KiB: what a CUDA graph records is the rows themselves.
constexpr int kBatch = 56;
template <class Row>
struct Batch {
  Row rows[kBatch];
};

template <class Row>
__global__ void write_rows_kernel(Row* to, const Batch<Row> batch, int count) {
  if (int(threadIdx.x) < count) to[threadIdx.x] = batch.rows[threadIdx.x];
}

// Writes rows `row(0)` to `row(count - 1)` to device memory.
template <class Row, class At>
int write_rows(Row* to, int count, void* stream, At row) {
  for (int begin = 0; begin < count; begin += kBatch) {
    const int some = std::min(kBatch, count - begin);
    Batch<Row> batch{};
    for (int i = 0; i < some; ++i) batch.rows[i] = row(begin + i);
    if (int error = launch(write_rows_kernel<Row>, 1, 64, Grid::independent, stream, to + begin, batch, some))
      return error;
  }
  return 0;
}

// kVector weights as they lie in memory: 16-bit ones fill half.
using Raw = Words4;

__device__ inline bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

__device__ inline uint32_t bits_at(const void* array, int64_t i, DType type) {
  return type == DType::float32 ? static_cast<const uint32_t*>(array)[i] : static_cast<const uint16_t*>(array)[i];
}

__device__ inline void put_bits(void* array, int64_t i, DType type, uint32_t bits) {
  if (type == DType::float32)
    static_cast<uint32_t*>(array)[i] = bits;
  else
    static_cast<uint16_t*>(array)[i] = uint16_t(bits);
}

__device__ inline uint32_t bits_of(const Raw& raw, int j, DType type) {
  return type == DType::float32 ? raw.word[j] : raw.word[j / 2] >> (j % 2 * 16) & 0xffff;
}

// Sets weight j of `raw`, whose bits have been 0.
__device__ inline void set_bits(Raw& raw, int j, DType type, uint32_t bits) {
  if (type == DType::float32)
    raw.word[j] = bits;
  else
    raw.word[j / 2] |= bits << (j % 2 * 16);
}

// Weights i to i + 3 of an array of n that no kernel writes meanwhile; those past its end are 0.
__device__ inline Raw load(const void* array, int64_t i, int64_t n, DType type, bool aligned) {
  Raw raw{};
  if (aligned && i + kVector <= n) {
    if (type == DType::float32) return stream16(static_cast<const uint32_t*>(array) + i);
    const Words2 half = stream8(static_cast<const uint16_t*>(array) + i);
    raw.word[0] = half.word[0];
    raw.word[1] = half.word[1];
    return raw;
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j)
    if (i + j < n) set_bits(raw, j, type, bits_at(array, i + j, type));
  return raw;
}

__device__ inline void store(void* array, int64_t i, int64_t n, DType type, bool aligned, const Raw& raw) {
  if (aligned && i + kVector <= n) {
    if (type == DType::float32)
      put16(static_cast<uint32_t*>(array) + i, raw);
    else
      put8(static_cast<uint16_t*>(array) + i, {{raw.word[0], raw.word[1]}});
    return;
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j)
    if (i + j < n) put_bits(array, i + j, type, bits_of(raw, j, type));
}

__device__ inline float decoded(uint32_t bits, DType type) {
  if (type == DType::float32) return __uint_as_float(bits);
  return type == DType::bfloat16 ? __uint_as_float(bits << 16) : float_of_half(uint16_t(bits));
}

// x in the dtype, rounded half to even.
__device__ inline uint32_t encoded(float x, DType type) {
  const uint32_t bits = __float_as_uint(x);
  if (type == DType::float32) return bits;
  if (type == DType::float16) return half_of(x);
  const uint32_t nearest = bits + 0x7fff + (bits >> 16 & 1);
  return (x == x ? nearest : bits | 0x400000) >> 16;
}

__device__ inline float rounded(float x, DType type) { return decoded(encoded(x, type), type); }

__device__ inline float weight_of(const Raw& raw, int j, DType type) { return decoded(bits_of(raw, j, type), type); }

// The sum of a warp's values up to and with this lane's.
template <class T>
__device__ T sum_up_to_lane(T value) {
  const unsigned lane = threadIdx.x % 32;
  for (unsigned step = 1; step < 32; step *= 2) {
    const T before = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

}  // namespace lcs::cuda
