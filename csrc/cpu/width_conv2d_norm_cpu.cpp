#include "lcs/width_conv2d_norm.h"

#include <algorithm>
#include <cstring>

#include "scratch.h"
#include "walk.h"
#include "width_images.h"
#include "width_strided.h"

namespace lcs {
namespace {

constexpr int64_t kTasks = 8;              // enough for threads to share evenly
constexpr int64_t kBandBytes = 640 << 10;  // of rows that wait for their pooling, in the second-level cache
constexpr int64_t kParts = 4;              // of an image at most: what two need of the same rows is computed twice

// Images [begin, end) of a call.
void run(const WidthConv2dNormArgs& args, int64_t begin, int64_t end, const Parallel& parallel) {
  static thread_local Scratch<float> between, statistics;
  WidthConv2dArgs conv = args.conv;
  LineNormArgs norm = samples_of(args.norm, begin, end);
  const int64_t n = end - begin;
  conv.x.n = conv.y.n = n;
  conv.x.data = advance(conv.x.data, begin * conv.x.image_stride, conv.dtype);
  conv.y.data = between.reserve(n * conv.y.image_stride);
  norm.x = conv.y.data;
  if (args.pool) norm.y = conv.y.data;
  norm.means = statistics.reserve(2 * n * norm.groups);
  norm.rstds = norm.means + n * norm.groups;
  width_conv2d(conv, parallel);
  line_norm(norm, parallel);
  if (!args.pool) return;
  MaxPoolArgs pool = *args.pool;
  pool.x = conv.y;
  pool.y.n = n;
  pool.y.data = advance(pool.y.data, begin * pool.y.image_stride, pool.dtype);
  max_pool(pool, parallel);
}

// The convolution and its norm, whose statistics are given: that of float32 ends the convolution, if it has no scale or
// bias of its own.
class PooledConv {
 public:
  PooledConv(const WidthConv2dNormArgs& args, const Parallel& parallel)
      : norm_(args.norm),
        together_(args.conv.dtype == DType::float32 && !args.conv.scale && !args.conv.bias),
        conv_(together_ ? with_norm(args) : args.conv),
        products_(conv_, together_ ? norm_.mean : nullptr, parallel) {}

  void multiply(int64_t image, int64_t line, const Images& y) const {
    products_.rows(image, line, y);
    if (together_) return;
    LineNormArgs norm = norm_;
    norm.x = norm.y = y.data;
    norm.n = 1;
    norm.pixels = y.height * y.width;
    line_norm(norm, serial);
  }

 private:
  static WidthConv2dArgs with_norm(const WidthConv2dNormArgs& args) {
    static thread_local Scratch<float> lines;
    float* const scale = lines.reserve(2 * args.norm.channels);
    line_norm_lines(args.norm, scale, scale + args.norm.channels);
    WidthConv2dArgs conv = args.conv;
    conv.scale = scale, conv.bias = scale + args.norm.channels, conv.relu = args.norm.relu;
    return conv;
  }

  const LineNormArgs& norm_;
  const bool together_;
  const WidthConv2dArgs conv_;
  const WidthStrided products_;
};

// Pooled rows of one image, by bands of the convolution's rows that stay in the second-level cache until they are
// pooled. For norms of given statistics, which do the same to each.
class PooledBands {
 public:
  PooledBands(const WidthConv2dNormArgs& args, const PooledConv& conv, int64_t image)
      : a_(args), conv_(conv), pool_(*args.pool), image_(image), row_(args.conv.y.row_stride) {
    const int64_t held = std::max<int64_t>(kBandBytes / size_of(a_.conv.dtype) / row_, 1);
    pooled_ = std::max<int64_t>(held / pool_.vertical.stride, 1);
    static thread_local Scratch<float> rows;
    const int64_t needed = pooled_ * pool_.vertical.stride + pool_.vertical.kernel + 2 * kSide;
    rows_ = rows.reserve(std::min(needed, a_.conv.y.height) * row_);
  }

  void run(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += pooled_) band(row, std::min(end, row + pooled_));
  }

 private:
  static constexpr int64_t kSide = WidthStrided::kRows;

  void* place(int64_t row) const { return advance(static_cast<void*>(rows_), (row - first_) * row_, a_.conv.dtype); }

  void band(int64_t begin, int64_t end) {
    const Axis& v = pool_.vertical;
    const int64_t height = a_.conv.y.height, first = std::max<int64_t>(begin * v.stride - v.padding, 0),
                  last = std::min((end - 1) * v.stride - v.padding + v.kernel, height), start = first / kSide * kSide,
                  stop = std::min(ceil_div(last, kSide) * kSide, height);
    if (made_ <= start) {
      first_ = made_ = start;
    } else {
      std::memmove(rows_, place(first), size_t((made_ - first) * row_ * size_of(a_.conv.dtype)));
      first_ = first;
    }
    if (made_ < stop) make(stop);
    max_pool_rows(pool_, image_, begin, end, rows_, first_);
  }

  // All rows before `stop`.
  void make(int64_t stop) {
    Images y = a_.conv.y;
    y.n = 1;
    y.data = place(made_);
    y.height = stop - made_;
    conv_.multiply(image_, made_ / kSide, y);
    made_ = stop;
  }

  const WidthConv2dNormArgs& a_;
  const PooledConv& conv_;
  const MaxPoolArgs& pool_;
  const int64_t image_, row_;  // elements of a row of the convolution's
  int64_t pooled_;             // rows of a band
  float* rows_;                // those from first_ on
  int64_t first_ = 0, made_ = 0;
};

}  // namespace

void width_conv2d_norm(const WidthConv2dNormArgs& whole, const Parallel& parallel) {
  const Images& y = whole.conv.y;
  if (y.n * y.image_stride == 0) return;
  WidthConv2dNormArgs args = whole;
  const WidthConv2dArgs& conv = whole.conv;
  args.conv.products = width_products(conv);
  if (args.pool && args.norm.mean && !args.norm.residual && width_conv2d_strided(conv)) {
    const PooledConv products(args, parallel);
    const int64_t rows = args.pool->y.height, parts = std::clamp<int64_t>(kTasks / y.n, 1, kParts);
    return parallel(y.n * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        PooledBands(args, products, i / parts).run(i % parts * rows / parts, (i % parts + 1) * rows / parts);
    });
  }
  for_images(args.conv, parallel,
             [&](int64_t begin, int64_t end, const Parallel& threads) { run(args, begin, end, threads); });
}

}  // namespace lcs
