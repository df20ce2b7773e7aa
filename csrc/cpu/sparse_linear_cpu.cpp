#include "lcs/sparse_linear.h"

#include <algorithm>
#include <atomic>

#include "dispatch.h"
#include "lcs/ceil_div.h"
#include "lcs/sparse_conv2d.h"
#include "scratch.h"
#include "sparse_conv2d_kernels.h"
#include "sparse_linear_kernels.h"

namespace lcs {
namespace {

constexpr int64_t kRowsAtOnce = 64;

// One row of x: the weights are read once, and x is gathered.
void single_row(const SparseLinearArgs& a, int64_t i, const Parallel& parallel) {
  static thread_local Scratch<float> scratch;
  const SparsePrepack& w = a.weight;
  const auto copies = sparse_conv2d_kernels();
  const auto run = best(scalar::sparse_linear_kernels, avx2::sparse_linear_kernels, avx512::sparse_linear_kernels);
  float *const x = scratch.reserve(w.columns + w.rows), *const y = x + w.columns;
  copies.load({advance(a.x, i * w.columns, a.dtype), x, 0, 1, 0, 1, w.columns, a.dtype, false});
  parallel(ceil_div(w.rows, kRowsAtOnce), 1, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kRowsAtOnce, end = std::min(w.rows, last * kRowsAtOnce);
    for (int64_t b = 0; b < w.blocks(); ++b) {
      const int32_t* const count = w.count + b * w.rows;
      int64_t at = w.start[b];
      for (int64_t row = 0; row < begin; ++row) at += count[row];
      run.dots({x + b * w.block, count + begin, w.index + at, w.values + at, a.bias ? a.bias + begin : nullptr,
                y + begin, end - begin, b == 0, a.relu && b == w.blocks() - 1});
    }
    copies.store({y + begin, advance(a.y, i * w.rows + begin, a.dtype), 0, 1, 0, 1, end - begin, a.dtype, false});
  });
}

// Rows of x that meet a block of the weight at once, as it is unpacked for them anew.
constexpr int64_t kTileRowsAtOnce = 512;

// Of those rows, all blocks; whether x was finite.
bool multiply_tiles(const SparseLinearTilesArgs& a, int64_t first, int64_t rows, const Parallel& parallel) {
  static thread_local Scratch<char> x_scratch;
  constexpr int64_t kRows = SparseTiles::kRows, kBlock = 2 * kRows;
  const SparseTiles& w = a.weight;
  const SparseTileKernels run = amx::sparse_tile_kernels();
  const auto copies = avx512::sparse_conv2d_kernels();
  const int64_t tiles = ceil_div(rows, kRows), row_bytes = w.column_tiles() * kSparseTileBytes;
  char* const x = x_scratch.reserve(tiles * row_bytes);
  std::atomic<bool> finite = true;
  parallel(tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      if (!run.pack(
              {a.x + (first + t * kRows) * w.columns, std::min(kRows, rows - t * kRows), w.columns, x + t * row_bytes}))
        finite.store(false, std::memory_order_relaxed);
  });
  if (!finite) return false;
  parallel(w.blocks(), 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch<char> scratch;
    char* const panel = scratch.reserve(kSparsePanelBytes + tiles * kRows * kBlock * 4);
    float* const acc = reinterpret_cast<float*>(panel + kSparsePanelBytes);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t channel = block * kBlock, channels = std::min(kBlock, w.rows - channel);
      float start[kBlock] = {};
      if (a.bias) std::copy_n(a.bias + channel, channels, start);
      for (int64_t m = 0; m < tiles * kRows; ++m) std::copy_n(start, kBlock, acc + m * kBlock);
      run.multiply({&w, block, x, tiles, panel, acc});
      if (a.relu)
        for (int64_t i = 0; i < rows * kBlock; ++i) acc[i] = acc[i] < 0.0f ? 0.0f : acc[i];
      copies.store({acc, a.y + first * w.rows + channel, kBlock, 1, w.rows, rows, channels, DType::bfloat16, false});
    }
  });
  return true;
}

}  // namespace

bool sparse_linear_tiles(const SparseLinearTilesArgs& a, const Parallel& parallel) {
  if (max_isa() < Isa::amx) return false;
  for (int64_t first = 0; first < a.rows; first += kTileRowsAtOnce)
    if (!multiply_tiles(a, first, std::min(kTileRowsAtOnce, a.rows - first), parallel)) return false;
  return true;
}

void sparse_linear(const SparseLinearArgs& a, const Parallel& parallel) {
  const SparsePrepack& w = a.weight;
  if (a.rows <= kSparseLinearSingleRows && w.columns > 0) {
    for (int64_t i = 0; i < a.rows; ++i) single_row(a, i, parallel);
    return;
  }
  // The rows of x are the images of a 1 x 1 convolution.
  const Axis one{1, 0, 1, 1};
  const Images x{const_cast<void*>(a.x), a.rows, w.columns, 1, 1, w.columns, 1, w.columns, w.columns};
  const Images y{a.y, a.rows, w.rows, 1, 1, w.rows, 1, w.rows, w.rows};
  sparse_conv2d({x, y, a.dtype, one, one, 1, w, a.bias, a.relu}, parallel);
}

}  // namespace lcs
