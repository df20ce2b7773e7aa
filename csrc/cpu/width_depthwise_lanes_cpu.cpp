#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "scratch.h"
#include "walk.h"
#include "width_conv2d_kernels.h"
#include "width_depthwise.h"
#include "width_depthwise_kernels.h"

namespace lcs {
namespace {

constexpr int64_t kPlaneBytes = 16 << 10;   // of a panel of whole planes, half of the first-level cache
constexpr int64_t kBandBytes = 24 << 10;    // of one of some rows, of which neighbours share some
constexpr int64_t kMostLanes = 8;           // of any instruction set
constexpr int64_t kTaskProducts = 1 << 15;  // of the least that a thread is woken for
constexpr int64_t kTaskWeights = 1 << 15;   // likewise

// An image of one pixel lies either way.
bool is_last(const WidthConv2dArgs& a) { return a.x.channel_stride == 1 && a.y.channel_stride == 1; }

int64_t padded(const Axis& a, int64_t outputs) { return (outputs - 1) * a.stride + (a.kernel - 1) * a.dilation + 1; }

// Rows of a block of channels are brought into a panel, with their padding, a float of every lane at each position: so
// every tap of every position is a whole vector. Blocks of bands of rows are shared out among the threads.
class WidthDepthwiseLanes {
 public:
  WidthDepthwiseLanes(const WidthConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        run_(width_depthwise_kernels()),
        copy_(width_conv2d_kernels()),
        lanes_(run_.lanes),
        blocks_(ceil_div(args.y.channels, lanes_)),
        rest_(args.y.channels - (blocks_ - 1) * lanes_),
        width_(padded(args.horizontal, args.y.width)),
        band_(args.y.height) {
    for (int64_t i = 0; i < a_.vertical.kernel; ++i)
      for (int64_t j = 0; j < a_.horizontal.kernel; ++j)
        taps_at_.push_back((i * a_.vertical.dilation * width_ + j * a_.horizontal.dilation) * lanes_);
    if (!last()) {
      whole_ = squares(lanes_), part_ = squares(rest_);
      return;
    }
    const int64_t row = width_ * lanes_ * 4, one = padded(a_.vertical, 1) * row;
    band_ = std::clamp<int64_t>((kBandBytes - one) / (row * a_.vertical.stride) + 1, 1, a_.y.height);
    band_ = piece_of(a_.y.height, band_);
    bands_ = ceil_div(a_.y.height, band_);
  }

  void run() {
    static thread_local Scratch<float> shared;
    float* const weights = shared.reserve(blocks_ * weight_floats());
    weights_ = weights;
    parallel_(blocks_, std::max<int64_t>(kTaskWeights / weight_floats(), 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) gather(i * lanes_, weights + i * weight_floats());
    });
    const int64_t floats = padded(a_.vertical, band_) * width_ * lanes_, sums = band_ * a_.y.width * lanes_,
                  products = sums * taps();
    parallel_(a_.y.n * bands_ * blocks_, std::max<int64_t>(kTaskProducts / products, 1),
              [&](int64_t begin, int64_t end) {
                static thread_local Scratch<float> scratch;
                float* const panel = scratch.reserve(floats + sums);
                std::fill_n(panel, floats, 0.0f);
                for (int64_t i = begin; i < end; ++i)
                  multiply(i / blocks_ / bands_, i / blocks_ % bands_ * band_, i % blocks_, panel, panel + floats);
              });
  }

 private:
  bool last() const { return is_last(a_); }
  int64_t taps() const { return a_.weight.taps; }
  int64_t weight_floats() const { return (taps() + 2) * lanes_; }
  int64_t channels(int64_t block) const { return block + 1 < blocks_ ? lanes_ : rest_; }

  // The weights of a block's channels, a vector for each tap, then their scales and biases.
  void gather(int64_t first, float* to) const {
    for (int64_t l = 0; l < lanes_; ++l) {
      const int64_t channel = std::min(first + l, a_.y.channels - 1);
      for (int64_t tap = 0; tap < taps(); ++tap)
        to[tap * lanes_ + l] = width_depthwise_weight(a_.weight, channel * a_.weight.in_channels * taps() + tap);
      to[taps() * lanes_ + l] = a_.scale ? a_.scale[channel] : 1.0f;
      to[(taps() + 1) * lanes_ + l] = a_.bias ? a_.bias[channel] : 0.0f;
    }
  }

  // Columns of x that a panel holds.
  int64_t columns() const { return std::clamp<int64_t>(width_ - a_.horizontal.padding, 0, a_.x.width); }

  struct Squares {
    std::vector<LaneSquare> x, y;
  };
  // Where the planes of so many channels lie, and their columns in a panel and among the sums.
  Squares squares(int64_t channels) const {
    const Axis& v = a_.vertical;
    const int64_t rows = std::clamp<int64_t>(padded(v, a_.y.height) - v.padding, 0, a_.x.height);
    Squares found;
    for (int64_t row = 0; row < rows; ++row)
      cover(channels, columns(), a_.x.channel_stride, row * a_.x.row_stride,
            ((row + v.padding) * width_ + a_.horizontal.padding) * lanes_, found.x);
    cover(channels, a_.y.height * a_.y.width, a_.y.channel_stride, 0, 0, found.y);
    return found;
  }

  // Squares of n columns that follow each other; the last two may overlap, so that all are whole.
  void cover(int64_t channels, int64_t n, int64_t channel, int64_t from, int64_t panel,
             std::vector<LaneSquare>& squares) const {
    const int64_t columns = std::min(kMostLanes, n);
    for (int64_t next = 0; next < n; next += columns) {
      const int64_t column = std::min(next, n - columns);
      LaneSquare& s = squares.emplace_back();
      s.panel = panel + column * lanes_, s.columns = columns;
      for (int64_t l = 0; l < kMostLanes; ++l) {
        s.row[l] = std::min(l, channels - 1) * channel + from + column;
        s.exist[l] = l < channels ? uint8_t((1 << columns) - 1) : 0;
      }
    }
  }

  void* at(const Images& t, int64_t image, int64_t block) const {
    return advance(t.data, image * t.image_stride + block * lanes_ * t.channel_stride, a_.dtype);
  }
  LaneCopy planes(const Images& t, int64_t image, int64_t block, float* panel,
                  const std::vector<LaneSquare>& squares) const {
    const int64_t next = lanes_ * t.channel_stride;  // which is fetched ahead
    return {at(t, image, block), panel, squares.data(), int64_t(squares.size()), 1, lanes_, 1, next, 0, a_.dtype};
  }

  // Rows from `top` on of y.
  void multiply(int64_t image, int64_t top, int64_t block, float* panel, float* sums) const {
    const Images& y = a_.y;
    const float* const weight = weights_ + block * weight_floats();
    const int64_t rows = std::min(band_, y.height - top);
    const Squares& places = block + 1 < blocks_ ? whole_ : part_;
    last() ? fill(image, top, rows, block, panel) : run_.load_lanes(planes(a_.x, image, block, panel, places.x));
    const bool direct = last() && a_.dtype == DType::float32 && channels(block) == lanes_;
    void* const to = advance(at(y, image, block), top * y.row_stride, a_.dtype);
    run_.multiply_lanes({panel, direct ? static_cast<float*>(to) : sums, a_.vertical.stride * width_ * lanes_,
                         a_.horizontal.stride, direct ? y.row_stride : y.width * lanes_,
                         direct ? y.column_stride : lanes_, rows, y.width, taps(), taps_at_.data(), weight,
                         weight + taps() * lanes_, weight + (taps() + 1) * lanes_,
                         a_.relu ? 0.0f : -std::numeric_limits<float>::infinity(), a_.cap});
    if (!last()) return run_.store_lanes(planes(y, image, block, sums, places.y));
    if (!direct) copy_.store({sums, to, lanes_, 1, y.column_stride, rows * y.width, channels(block), a_.dtype, false});
  }

  // What rows [top, top + rows) of y read of a block of channels.
  void fill(int64_t image, int64_t top, int64_t rows, int64_t block, float* panel) const {
    const Images& x = a_.x;
    const void* const from = at(x, image, block);
    const int64_t first = top * a_.vertical.stride - a_.vertical.padding, n = columns(),
                  left = a_.horizontal.padding * lanes_;
    for (int64_t i = 0; i < padded(a_.vertical, rows); ++i, panel += width_ * lanes_) {
      const int64_t row = first + i;
      if (row < 0 || row >= x.height)
        std::fill_n(panel, width_ * lanes_, 0.0f);
      else if (a_.dtype == DType::float32 && channels(block) == kMostLanes)
        copy(static_cast<const float*>(from) + row * x.row_stride, x.column_stride, n, panel + left);
      else if (n > 0)
        copy_.load({advance(from, row * x.row_stride, a_.dtype), panel + left, x.column_stride, 1, lanes_, n,
                    channels(block), a_.dtype, false});
    }
  }

  static void copy(const float* from, int64_t column, int64_t n, float* to) {
    for (int64_t i = 0; i < n; ++i, from += column, to += kMostLanes) std::memcpy(to, from, kMostLanes * sizeof(float));
  }

  const WidthConv2dArgs& a_;
  const Parallel& parallel_;
  const WidthDepthwiseKernels run_;
  const WidthConv2dKernels copy_;
  const int64_t lanes_, blocks_, rest_;  // channels of a block, and of the last one
  const int64_t width_;                  // positions of a row of a panel
  int64_t band_, bands_ = 1;             // rows of y that are summed at once
  std::vector<int64_t> taps_at_;
  Squares whole_, part_;
  const float* weights_ = nullptr;
};

}  // namespace

bool width_depthwise_by_lanes(const WidthConv2dArgs& a) {
  if (is_last(a)) return true;
  const int64_t lanes = width_depthwise_kernels().lanes, width = padded(a.horizontal, a.y.width),
                height = padded(a.vertical, a.y.height);
  return lanes > 1 && a.y.channels >= lanes && width <= kPlaneBytes && height <= kPlaneBytes &&
         width * height * lanes * 4 <= kPlaneBytes;
}

void width_depthwise_lanes(const WidthConv2dArgs& args, const Parallel& parallel) {
  WidthDepthwiseLanes(args, parallel).run();
}

}  // namespace lcs
