// One pass over the gradients; where none of four neighbours was kept, theirs is not read. Alpha's gradient is summed
// by thread, by tile and over the tiles, each in one order.
#include "layers.cuh"
#include "lcs/interpolate_prune_cuda.h"

namespace lcs::cuda {
namespace {

struct Row {
  const void* grad;
  const void* w0;  // w0 and w1 null: no gradient to alpha is wanted
  const void* w1;
  const uint32_t* mask_bits;
  void* grad_w0;
  void* grad_w1;  // null: a point
  int64_t n, first_tile;
};

struct Work {
  const Row* rows;
  int layers;
  int64_t tiles;
  const float* alpha;
  DType in, out;
  double* share;  // of each tile in alpha's gradient; null: not wanted
};

// The sum over the block, in the first thread.
__device__ double block_sum(double* warps, double value) {
  for (unsigned step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (int i = 0; i < kWarps; ++i) sum += warps[i];
  __syncthreads();
  return sum;
}

// The gradients of four weights, of which `kept` tells which stayed; returns their part of alpha's gradient.
__device__ float backward_vector(const Work& work, const Row& row, int64_t i, uint32_t kept, bool aligned) {
  const Raw grad = kept ? load(row.grad, i, row.n, work.out, aligned) : Raw{};
  const bool line = row.grad_w1 != nullptr;
  const float c1 = *work.alpha, c0 = line ? __fsub_rn(1.0f, c1) : 1.0f;
  Raw grad_w0{}, grad_w1{};
  float g[kVector], part = 0;
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    g[j] = kept >> j & 1 ? weight_of(grad, j, work.out) : 0.0f;
    set_bits(grad_w0, j, work.in, encoded(__fmul_rn(c0, g[j]), work.in));
    if (line) set_bits(grad_w1, j, work.in, encoded(__fmul_rn(c1, g[j]), work.in));
  }
  store(row.grad_w0, i, row.n, work.in, aligned, grad_w0);
  if (line) store(row.grad_w1, i, row.n, work.in, aligned, grad_w1);
  if (work.share == nullptr || kept == 0) return part;
  const Raw w0 = load(row.w0, i, row.n, work.in, aligned), w1 = load(row.w1, i, row.n, work.in, aligned);
#pragma unroll
  for (int j = 0; j < kVector; ++j)
    if (kept >> j & 1)
      part = __fadd_rn(part, __fmul_rn(g[j], __fsub_rn(weight_of(w1, j, work.in), weight_of(w0, j, work.in))));
  return part;
}

__global__ void __launch_bounds__(kThreads) backward_kernel(const Work work) {
  __shared__ double warps[kWarps];
  for (int64_t t = blockIdx.x; t < work.tiles; t += gridDim.x) {
    const Row row = work.rows[row_of(work.rows, work.layers, &Row::first_tile, t)];
    const int64_t begin = (t - row.first_tile) * kTile;
    const bool aligned = aligned16(row.grad) && aligned16(row.w0) && aligned16(row.w1) && aligned16(row.grad_w0) &&
                         aligned16(row.grad_w1);
    double part = 0;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int64_t i = index_of(begin, r);
      if (i < row.n) part += double(backward_vector(work, row, i, row.mask_bits[i / 32] >> i % 32 & 15, aligned));
    }
    if (work.share == nullptr) continue;
    const double sum = block_sum(warps, part);
    if (threadIdx.x == 0) work.share[t] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) sum_kernel(const double* share, int64_t tiles, float* grad_alpha) {
  __shared__ double warps[kWarps];
  double part = 0;
  for (int64_t t = threadIdx.x; t < tiles; t += kThreads) part += share[t];
  const double sum = block_sum(warps, part);
  if (threadIdx.x == 0) *grad_alpha = float(sum);
}

int64_t tiles_of(const InterpolatePruneBackwardArgs& args) {
  int64_t tiles = 0;
  for (const auto& layer : args.layers) tiles += cuda::tiles_of(layer.n);
  return tiles;
}

int64_t bytes_of_rows(const InterpolatePruneBackwardArgs& args) { return int64_t(args.layers.size() * sizeof(Row)); }

}  // namespace

int64_t interpolate_prune_backward_workspace(const InterpolatePruneBackwardArgs& args) {
  return bytes_of_rows(args) + tiles_of(args) * int64_t(sizeof(double));
}

int interpolate_prune_backward(const InterpolatePruneBackwardArgs& args, void* workspace, void* stream) {
  auto* rows = static_cast<Row*>(workspace);
  auto* share = reinterpret_cast<double*>(static_cast<char*>(workspace) + bytes_of_rows(args));
  const int64_t tiles = tiles_of(args);
  int64_t first_tile = 0;
  int error = write_rows(rows, int(args.layers.size()), stream, [&](int i) {
    const InterpolatePruneBackwardLayer& layer = args.layers[i];
    const Row row{layer.grad, layer.w0, layer.w1, layer.mask_bits, layer.grad_w0, layer.grad_w1, layer.n, first_tile};
    first_tile += cuda::tiles_of(layer.n);
    return row;
  });
  if (error) return error;
  const Work work{rows,     int(args.layers.size()),          tiles, args.alpha, args.in,
                  args.out, args.grad_alpha ? share : nullptr};
  constexpr int64_t kMostBlocks = 1 << 20;
  if (tiles)
    error = launch(backward_kernel, int(std::min(tiles, kMostBlocks)), kThreads, Grid::independent, stream, work);
  if (error || !args.grad_alpha) return error;
  return launch(sum_kernel, 1, kThreads, Grid::independent, stream, share, tiles, args.grad_alpha);
}

const char* error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }

}  // namespace lcs::cuda
