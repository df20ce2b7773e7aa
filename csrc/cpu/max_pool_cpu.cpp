#include "lcs/max_pool.h"

#include "max_pool_kernels.h"
#include "scratch.h"
#include "width_conv2d_kernels.h"

namespace lcs {
namespace {

// A row of y as `dtype`, channels last.
void pool_row(const MaxPoolArgs& a, int64_t row, const void* from, int64_t begin, void* to, DType dtype) {
  static thread_local Scratch<float> scratch;
  const MaxPoolKernels run = max_pool_kernels();
  const Axis& h = a.horizontal;
  const PooledRows read = pooled_rows(a, row);
  const int64_t n = a.x.width * a.x.channels;
  float* const largest = scratch.reserve(n);
  run.rows({advance(from, (read.begin - begin) * a.x.row_stride, a.dtype), a.x.row_stride, read.end - read.begin, n,
            a.dtype, largest, a.numbers});
  run.columns({largest, a.x.width, a.x.channels, h.kernel, h.stride, h.padding, to, a.y.width, dtype, a.numbers});
}

}  // namespace

void max_pool_row(const MaxPoolArgs& a, int64_t row, const void* from, int64_t begin, void* to) {
  pool_row(a, row, from, begin, to, a.dtype);
}

void max_pool_rows(const MaxPoolArgs& args, int64_t image, int64_t begin, int64_t end, const void* from,
                   int64_t first) {
  static thread_local Scratch<float> scratch;
  const Images& y = args.y;
  const WidthConv2dKernels copies = width_conv2d_kernels();
  for (int64_t row = begin; row < end; ++row) {
    void* const to = advance(y.data, image * y.image_stride + row * y.row_stride, args.dtype);
    if (y.channel_stride == 1) {
      pool_row(args, row, from, first, to, args.dtype);
      continue;
    }
    float* const pixels = scratch.reserve(y.width * y.channels);
    pool_row(args, row, from, first, pixels, DType::float32);
    copies.store({pixels, to, y.channels, 1, y.channel_stride, y.width, y.channels, args.dtype, true});
  }
}

void max_pool(const MaxPoolArgs& args, const Parallel& parallel) {
  const Images &x = args.x, &y = args.y;
  if (y.n * y.channels * y.height * y.width == 0) return;
  parallel(y.n * y.height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / y.height, row = i % y.height;
      max_pool_rows(args, image, row, row + 1, advance(x.data, image * x.image_stride, args.dtype), 0);
    }
  });
}

}  // namespace lcs
