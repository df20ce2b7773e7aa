#include "lcs/sparse_linear.h"

#include <algorithm>

#include "dispatch.h"
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
  const auto copies = best(scalar::sparse_conv2d_kernels, avx2::sparse_conv2d_kernels, avx512::sparse_conv2d_kernels);
  const auto run = best(scalar::sparse_linear_kernels, avx2::sparse_linear_kernels, avx512::sparse_linear_kernels);
  float *const x = scratch.reserve(w.columns + w.rows), *const y = x + w.columns;
  copies.load({advance(a.x, i * w.columns, a.dtype), x, 0, 1, 0, 1, w.columns, a.dtype, false});
  parallel((w.rows + kRowsAtOnce - 1) / kRowsAtOnce, 1, [&](int64_t first, int64_t last) {
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

}  // namespace

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
