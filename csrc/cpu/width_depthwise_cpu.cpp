#include "width_depthwise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "scratch.h"
#include "walk.h"
#include "width_depthwise_kernels.h"

namespace lcs {
namespace {

constexpr int64_t kBandFloats = 4 << 10;    // of a copy, which half of the first-level cache holds
constexpr int64_t kOverlaps = 4;            // of rows that the band before copies too, a band has at least
constexpr int64_t kPlanes = 16;             // that are copied together, at most
constexpr int64_t kTaskProducts = 1 << 15;  // of the least that a thread is woken for
constexpr int64_t kLowered = 1 << 14;       // likewise, elements

// Bands of rows of channels' planes are shared out among the threads. Each copies what its band reads to float32, with
// its padding, each row by its columns' remainders modulo the stride: so every tap is at a fixed distance from the
// position, and neighbours read neighbours.
class WidthDepthwise {
 public:
  WidthDepthwise(const WidthConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        run_(width_depthwise_kernels()),
        rows_(args.vertical),
        columns_(args.horizontal) {
    const int64_t length = a_.y.width + columns_.reach, phases = int64_t(columns_.used.size());
    pitch_ = length * phases;
    for (int64_t i = 0; i < phases; ++i) {
      const Inside inside(a_.horizontal, columns_.used[i], a_.x.width, 0, length);
      if (inside.begin < inside.end)
        fills_.push_back({inside.first, i * length + inside.begin, inside.end - inside.begin});
    }
    for (int64_t i = 0; i < a_.horizontal.kernel; ++i)
      taps_at_.push_back(columns_.phase[i] * length + columns_.offset[i]);
    band_ = a_.y.height;
    if (rows_.length(band_) * pitch_ > kBandFloats) {
      const int64_t most = (kBandFloats / pitch_ - rows_.length(1)) / rows_.stride + 1;
      band_ = std::min(band_, std::max(most, kOverlaps * ceil_div(rows_.length(1), rows_.stride)));
    }
    band_ = piece_of(a_.y.height, band_);
    bands_ = ceil_div(a_.y.height, band_);
  }

  // Several planes are copied before the first is read: what was written just before is waited for.
  void run() const {
    const int64_t products = band_ * a_.y.width * a_.weight.taps, floats = rows_.length(band_) * pitch_,
                  together = bands_ == 1 ? std::clamp<int64_t>(kBandFloats / floats, 1, kPlanes) : 1;
    parallel_(a_.y.n * a_.y.channels * bands_, std::max<int64_t>(kTaskProducts / products, 1),
              [&](int64_t begin, int64_t end) {
                static thread_local Scratch<float> scratch;
                const int64_t all = together * floats + run_.overrun;
                float* const x = scratch.reserve(all);
                std::fill_n(x, all, 0.0f);
                for (int64_t i = begin; i < end; i += together) {
                  const int64_t n = std::min(together, end - i);
                  for (int64_t k = 0; k < n; ++k) fill(i + k, x + k * floats);
                  for (int64_t k = 0; k < n; ++k) multiply(i + k, x + k * floats);
                }
              });
  }

 private:
  int64_t plane(int64_t task) const { return bands_ == 1 ? task : task / bands_; }
  int64_t top(int64_t task) const { return bands_ == 1 ? 0 : task % bands_ * band_; }
  int64_t rows(int64_t task) const { return std::min(band_, a_.y.height - top(task)); }
  int64_t at(const Images& t, int64_t task, int64_t row) const {
    return plane(task) * t.channel_stride + row * t.row_stride;
  }

  void multiply(int64_t task, const float* x) const {
    const int64_t channel = plane(task) % a_.y.channels;
    run_.rows({x, advance(a_.y.data, at(a_.y, task, top(task)), a_.dtype), rows_.stride * pitch_, a_.y.row_stride,
               rows(task), a_.y.width, rows_.dilation * pitch_, rows_.kernel, a_.horizontal.kernel, taps_at_.data(),
               weight_of(channel), a_.scale ? a_.scale[channel] : 1.0f, a_.bias ? a_.bias[channel] : 0.0f,
               a_.relu ? 0.0f : -std::numeric_limits<float>::infinity(), a_.cap, a_.dtype});
  }

  // What the band reads; `to`: zeros, or where the same band of another plane was copied.
  void fill(int64_t task, float* to) const {
    const Images& x = a_.x;
    const int64_t first = top(task) * rows_.stride, all = rows_.length(rows(task));
    const int64_t begin = std::clamp(rows_.first() - first, int64_t{0}, all),
                  end = std::clamp(rows_.last(x.height) - first, begin, all);
    if (bands_ > 1) {
      std::fill(to, to + begin * pitch_, 0.0f);
      std::fill(to + end * pitch_, to + all * pitch_, 0.0f);
    }
    const int64_t row = (first + begin) * rows_.step - rows_.padding;
    run_.fill({advance(x.data, at(x, task, row), a_.dtype), advance(x.data, x.n * x.image_stride, a_.dtype),
               to + begin * pitch_, rows_.step * x.row_stride, pitch_, end - begin, a_.horizontal.stride, fills_.data(),
               int64_t(fills_.size()), a_.dtype});
  }

  const float* weight_of(int64_t channel) const {
    const int64_t taps = a_.weight.taps, first = channel * a_.weight.in_channels * taps;
    if (a_.weight.dtype == DType::float32) return static_cast<const float*>(a_.weight.data) + first;
    static thread_local Scratch<float> scratch;
    float* const wide = scratch.reserve(taps);
    for (int64_t i = 0; i < taps; ++i) wide[i] = width_depthwise_weight(a_.weight, first + i);
    return wide;
  }

  const WidthConv2dArgs& a_;
  const Parallel& parallel_;
  const WidthDepthwiseKernels run_;
  const Walk rows_;
  const Phases columns_;
  int64_t pitch_, band_, bands_;  // floats of a copied row; rows of y of a band, bands of a plane
  std::vector<DepthwisePhase> fills_;
  std::vector<int64_t> taps_at_;
};

// y lies channels last, and x does not: its planes are made apart, and copied.
template <class T>
void through_planes(const WidthConv2dArgs& args, const Parallel& parallel) {
  static thread_local Scratch<T> scratch;
  const Images& y = args.y;
  const int64_t pixels = y.height * y.width;
  WidthConv2dArgs planes = args;
  T* const made = scratch.reserve(y.n * y.channels * pixels);
  planes.y = {made, y.n, y.channels, y.height, y.width, y.channels * pixels, pixels, y.width, 1};
  width_depthwise(planes, parallel);
  parallel(y.n * y.height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / y.height, line = row % y.height;
      const T* const from = made + image * planes.y.image_stride + line * y.width;
      T* const to = static_cast<T*>(y.data) + image * y.image_stride + line * y.row_stride;
      for (int64_t column = 0; column < y.width; ++column)
        for (int64_t c = 0; c < y.channels; ++c) to[column * y.column_stride + c] = from[c * pixels + column];
    }
  });
}

}  // namespace

float width_depthwise_weight(const WidthWeight& weight, int64_t i) {
  if (weight.dtype == DType::float32) return static_cast<const float*>(weight.data)[i];
  return std::bit_cast<float>(uint32_t{static_cast<const BFloat16*>(weight.data)[i].bits} << 16);
}

bool width_conv2d_depthwise(const WidthConv2dArgs& a) {
  return a.groups > 1 && a.groups == a.x.channels && a.groups == a.y.channels;
}

void width_depthwise(const WidthConv2dArgs& args, const Parallel& parallel) {
  const Images& y = args.y;
  if (args.x.channel_stride != 1 && y.channel_stride == 1 && y.height * y.width > 1)
    return args.dtype == DType::float32 ? through_planes<float>(args, parallel)
                                        : through_planes<BFloat16>(args, parallel);
  width_depthwise_by_lanes(args) ? width_depthwise_lanes(args, parallel) : WidthDepthwise(args, parallel).run();
}

void width_lower(const WidthConv2dArgs& a, const Parallel& parallel) {
  if (std::isinf(a.cap)) return;
  parallel(a.y.n * a.y.image_stride, kLowered, [&, run = width_depthwise_kernels()](int64_t begin, int64_t end) {
    run.lower(advance(a.y.data, begin, a.dtype), end - begin, a.dtype, a.cap);
  });
}

void width_add(const WidthConv2dArgs& a, const Parallel& parallel) {
  const float floor = a.relu ? 0.0f : -std::numeric_limits<float>::infinity();
  parallel(a.y.n * a.y.image_stride, kLowered, [&, run = width_depthwise_kernels()](int64_t begin, int64_t end) {
    run.add(advance(a.y.data, begin, a.dtype), advance(a.residual, begin, a.dtype), end - begin, a.dtype, floor, a.cap);
  });
}

}  // namespace lcs
