#include "lcs/packed_network.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "dispatch.h"
#include "lcs/max_pool.h"
#include "max_pool_kernels.h"
#include "packed_network_kernels.h"
#include "scratch.h"
#include "tasks.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kImages = 8;             // that a thread takes through all steps, so that they stay in its caches
constexpr int64_t kBandBytes = 512 << 10;  // of the results that are pooled as they are made
constexpr int64_t kBands = 8;              // enough to keep the threads even
constexpr int64_t kPiece = 1 << 14;        // elements that are looked through for NaN at once
constexpr int64_t kLine = 64;              // bytes
constexpr int64_t kMeans = 64;             // channels that are summed at once
constexpr int64_t kDenseRows = 40;         // of a weight

Images channels_last(void* data, int64_t n, const Images& shape) {
  const int64_t c = shape.channels, h = shape.height, w = shape.width;
  return {data, n, c, h, w, c * h * w, 1, w * c, c};
}

using Kind = PackedNetworkKind;

class PackedNetwork {
 public:
  PackedNetwork(const PackedNetworkArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        run_(best(scalar::max_pool_kernels, avx2::max_pool_kernels, avx512::max_pool_kernels)),
        floats_(best(scalar::packed_network_kernels, avx2::packed_network_kernels, avx2::packed_network_kernels)),
        values_(size_t(args.count + 1)),
        banded_(size_t(args.count)) {}

  void run() {
    // Images go their way alone, each in one thread, where that keeps the threads even.
    const int64_t n = a_.x.n, each = ceil_div(n, a_.threads);
    const bool alone = n >= a_.threads && 5 * n >= 4 * each * a_.threads;
    images_ = alone ? ceil_div(each, ceil_div(each, kImages)) : std::min(n, kImages);
    plan();
    const int64_t groups = ceil_div(n, images_);
    const auto all = [&](int64_t begin, int64_t end, const Parallel& parallel) {
      for (int64_t i = begin; i < end; ++i) run_images(i * images_, std::min(images_, n - i * images_), parallel);
    };
    if (alone)
      parallel_(groups, 1, [&](int64_t begin, int64_t end) { all(begin, end, serial); });
    else
      all(0, groups, parallel_);
  }

 private:
  struct Value {
    int64_t readers = 0, made = -1, read = -1;  // by which step, and by which one last
    int64_t offset = 0, bytes = 0;              // in the scratch memory
  };

  bool codes(int64_t value) const { return value > 0 && a_.steps[value - 1].conv.y_range; }
  int64_t element(int64_t value) const { return codes(value) ? 1 : 4; }
  const Images& shape(int64_t value) const { return value == 0 ? a_.x : a_.steps[value - 1].conv.y; }

  // Which convolutions are pooled as they are made, and where each value lies while it is needed.
  void plan() {
    for (int64_t i = 0; i < a_.count; ++i)
      for (const int value : {a_.steps[i].input, a_.steps[i].residual})
        if (value >= 0) ++values_[size_t(value)].readers, values_[size_t(value)].read = i;
    for (int64_t i = 0; i + 1 < a_.count; ++i) {
      const PackedNetworkStep &step = a_.steps[i], &next = a_.steps[i + 1];
      banded_[size_t(i)] = step.kind == Kind::convolution && step.residual < 0 && !step.conv.y_range &&
                           next.kind == Kind::max_pool && next.input == i + 1 && values_[size_t(i + 1)].readers == 1 &&
                           !codes(step.input);
    }
    for (int64_t v = 1; v < a_.count; ++v) {
      Value& value = values_[size_t(v)];
      if (banded_[size_t(v - 1)]) continue;
      const Images& y = shape(v);
      value.made = v - 1 - (v > 1 && banded_[size_t(v - 2)]);
      value.bytes = ceil_div(images_ * y.channels * y.height * y.width * element(v), kLine) * kLine;
      for (bool moved = true; moved;) {
        moved = false;
        for (int64_t u = 1; u < v; ++u) {
          const Value& other = values_[size_t(u)];
          if (other.bytes && other.read >= value.made && other.offset < value.offset + value.bytes &&
              value.offset < other.offset + other.bytes)
            value.offset = other.offset + other.bytes, moved = true;
        }
      }
      bytes_ = std::max(bytes_, value.offset + value.bytes);
    }
  }

  void run_images(int64_t first, int64_t n, const Parallel& parallel) const {
    static thread_local Scratch<char> scratch;
    char* const memory = scratch.reserve(bytes_);
    const auto at = [&](int64_t value) -> Images {
      if (value == 0) {
        Images x = a_.x;
        x.data = static_cast<float*>(x.data) + first * x.image_stride;
        x.n = n;
        return x;
      }
      if (value < a_.count) return channels_last(memory + values_[size_t(value)].offset, n, shape(value));
      return channels_last(static_cast<float*>(a_.y.data) + first * a_.y.image_stride, n, a_.y);
    };
    for (int64_t i = 0; i < a_.count; ++i) {
      const PackedNetworkStep& step = a_.steps[i];
      const Images x = at(step.input);
      if (banded_[size_t(i)]) {
        convolve_and_pool(step, a_.steps[i + 1], x, at(i + 2), parallel);
        ++i;
      } else if (step.kind == Kind::max_pool) {
        max_pool(pooling(step, x, at(i + 1)), parallel);
      } else if (step.kind == Kind::mean) {
        mean(x, at(i + 1), parallel);
      } else if (step.kind == Kind::dense) {
        multiply(step, x, at(i + 1), parallel);
      } else {
        PackedConv2dArgs conv = step.conv;
        conv.x = x;
        conv.y = at(i + 1);
        conv.x_codes = codes(step.input);
        if (step.residual >= 0) conv.residual = at(step.residual).data;
        packed_conv2d(conv, parallel);
      }
    }
  }

  static MaxPoolArgs pooling(const PackedNetworkStep& step, const Images& x, const Images& y) {
    return {x, y, step.conv.vertical, step.conv.horizontal, DType::float32};
  }

  void mean(const Images& x, const Images& y, const Parallel& parallel) const {
    const int64_t positions = x.height * x.width, parts = ceil_div(x.channels, kMeans);
    parallel(x.n * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / parts, c = i % parts * kMeans, channels = std::min(kMeans, x.channels - c);
        float* const to = static_cast<float*>(y.data) + image * y.image_stride + c;
        floats_.sums(
            {static_cast<const float*>(x.data) + image * x.image_stride + c, x.column_stride, positions, channels, to});
        for (int64_t k = 0; k < channels; ++k) to[k] /= float(positions);
      }
    });
  }

  void multiply(const PackedNetworkStep& step, const Images& x, const Images& y, const Parallel& parallel) const {
    const int64_t rows = y.channels, columns = x.channels;
    parallel(ceil_div(rows, kDenseRows), 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kDenseRows, n = std::min(end * kDenseRows, rows) - first;
      floats_.dense({step.dense + first * columns, n, columns, static_cast<const float*>(x.data), x.n,
                     step.conv.bias ? step.conv.bias + first : nullptr, step.conv.relu,
                     static_cast<float*>(y.data) + first, y.image_stride});
    });
  }

  // Rows of the convolution stay in the second-level cache until they have been pooled.
  void convolve_and_pool(const PackedNetworkStep& step, const PackedNetworkStep& next, const Images& x, const Images& y,
                         const Parallel& parallel) const {
    const Images& made = step.conv.y;
    const Axis &conv = step.conv.vertical, &pool = next.conv.vertical;
    const int64_t row_bytes = made.channels * made.width * 4, needed = ceil_div(made.height * row_bytes, kBandBytes);
    const int64_t bands = std::min(ceil_div(needed, kBands) * kBands, y.height);
    std::vector<std::atomic<bool>> spoilt(static_cast<size_t>(x.n));
    find_nan(x, spoilt, parallel);
    const MaxPoolArgs pooled = pooling(next, channels_last(nullptr, 1, made), y);
    struct None {};
    share_tasks<None>(parallel, x.n * bands, [&](int64_t i, None) {
      static thread_local Scratch<float> scratch;
      const int64_t image = i / bands, from = y.height * (i % bands) / bands, to = y.height * (i % bands + 1) / bands;
      const int64_t first = std::max<int64_t>(from * pool.stride - pool.padding, 0),
                    last = std::min((to - 1) * pool.stride - pool.padding + pool.kernel, made.height);
      const bool nan = spoilt[size_t(image)];
      const int64_t line = first * conv.stride - conv.padding, row = std::max<int64_t>(line, 0);
      float* const rows = scratch.reserve((last - first) * made.width * made.channels);
      PackedConv2dArgs part = step.conv;
      part.spoilt = &nan;
      part.vertical.padding = row - line;
      part.x = x;
      part.x.n = 1;
      part.x.height = std::max<int64_t>(x.height - row, 0);
      part.x.data = static_cast<float*>(x.data) + image * x.image_stride + row * x.row_stride;
      part.y.height = last - first;
      part.y = channels_last(rows, 1, part.y);
      packed_conv2d(part, serial);
      for (int64_t r = from; r < to; ++r)
        max_pool_row(pooled, r, rows, first, static_cast<float*>(y.data) + image * y.image_stride + r * y.row_stride);
    });
  }

  void find_nan(const Images& x, std::vector<std::atomic<bool>>& spoilt, const Parallel& parallel) const {
    const int64_t n = x.channels * x.height * x.width, pieces = ceil_div(n, kPiece);
    parallel(x.n * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / pieces, from = i % pieces * kPiece;
        const float* const at = static_cast<const float*>(x.data) + image * x.image_stride + from;
        if (run_.nan(at, std::min(kPiece, n - from))) spoilt[size_t(image)].store(true, std::memory_order_relaxed);
      }
    });
  }

  const PackedNetworkArgs& a_;
  const Parallel& parallel_;
  const MaxPoolKernels run_;
  const PackedNetworkKernels floats_;
  std::vector<Value> values_;
  std::vector<bool> banded_;
  int64_t images_ = 1, bytes_ = 0;
};

}  // namespace

void packed_network(const PackedNetworkArgs& args, const Parallel& parallel) {
  if (args.x.n > 0) PackedNetwork(args, parallel).run();
}

}  // namespace lcs
