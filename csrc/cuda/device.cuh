#pragma once
#include <cstdint>

namespace lcs::cuda {

// Whether all blocks of a grid must be on the device at once, as grid_sync demands.
enum class Grid { independent, cooperative };

struct alignas(16) Words4 {
  uint32_t word[4];
};
struct alignas(8) Words2 {
  uint32_t word[2];
};

}  // namespace lcs::cuda

// What kernels need beyond CUDA C++ itself, by name: each function here has a twin in tests/simt/simt.h, which takes
// the place of this file's lower half where a plain C++ compiler builds a kernel to run it on the CPU.
#ifndef __CUDACC__
#include "simt.h"
#else
#include <cooperative_groups.h>

namespace lcs::cuda {

// Launches the kernel on `stream`; the one way in which any kernel starts.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int threads, Grid grid, void* stream,
                   const Arguments&... arguments) {
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cooperative;
  config.numAttrs = grid == Grid::cooperative;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// How many blocks of the kernel the current device holds at once.
template <class... Parameters>
cudaError_t resident_blocks(void (*kernel)(Parameters...), int threads, int* blocks) {
  int device = 0, processors = 0, each = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0);
  *blocks = processors * each;
  return error;
}

// Waits for all threads of a cooperative grid, and shows each what the others wrote.
__device__ inline void grid_sync() { cooperative_groups::this_grid().sync(); }

// Bytes that the kernel never writes, aligned to their number; they are read once, and so leave the L1 cache alone.
__device__ inline Words4 stream16(const void* from) {
  Words4 to;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
      : "l"(from));
  return to;
}

__device__ inline Words2 stream8(const void* from) {
  Words2 to;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(to.word[0]), "=r"(to.word[1]) : "l"(from));
  return to;
}

__device__ inline void put16(void* to, const Words4& from) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(from.word[0]), "r"(from.word[1]),
               "r"(from.word[2]), "r"(from.word[3])
               : "memory");
}

__device__ inline void put8(void* to, const Words2& from) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(from.word[0]), "r"(from.word[1]) : "memory");
}

// float16 as its bits, rounded half to even.
__device__ inline uint16_t half_of(float x) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}

__device__ inline float float_of_half(uint16_t half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}

}  // namespace lcs::cuda
#endif
