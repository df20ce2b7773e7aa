#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "scratch.h"
#include "walk.h"
#include "width_depthwise.h"
#include "width_depthwise_kernels.h"

namespace lcs {
namespace {

constexpr int64_t kLanes = kDepthwiseLanes;
constexpr int64_t kPanelBytes = 16 << 10;   // that leave room in the first-level cache
constexpr int64_t kTaskProducts = 1 << 15;  // of the least that a thread is woken for

WidthDepthwiseKernels kernels() {
  return best(scalar::width_depthwise_kernels, avx2::width_depthwise_kernels, avx512::width_depthwise_kernels);
}

int64_t padded(const Axis& a, int64_t outputs) { return (outputs - 1) * a.stride + (a.kernel - 1) * a.dilation + 1; }

// Planes of eight channels are transposed to a panel, with their padding, so that every tap of every position is a
// whole vector, multiplied, and transposed back. Blocks of channels are shared out among the threads, image by image.
class WidthDepthwiseLanes {
 public:
  WidthDepthwiseLanes(const WidthConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        run_(kernels()),
        width_(padded(args.horizontal, args.y.width)),
        floats_(padded(args.vertical, args.y.height) * width_ * kLanes) {
    for (int64_t i = 0; i < a_.vertical.kernel; ++i)
      for (int64_t j = 0; j < a_.horizontal.kernel; ++j)
        taps_at_.push_back((i * a_.vertical.dilation * width_ + j * a_.horizontal.dilation) * kLanes);
  }

  void run() const {
    const int64_t blocks = ceil_div(a_.y.channels, kLanes), products = kLanes * a_.y.height * a_.y.width * taps();
    parallel_(blocks * a_.y.n, std::max<int64_t>(kTaskProducts / products, 1), [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> scratch;
      const int64_t sums = a_.y.height * a_.y.width * kLanes;
      float* const panel = scratch.reserve(floats_ + sums + (taps() + 2) * kLanes);
      std::fill_n(panel, floats_, 0.0f);
      Block block;
      for (int64_t i = begin; i < end; ++i) {
        if (const int64_t first = i / a_.y.n * kLanes; first != block.first)
          prepare(first, panel + floats_ + sums, block);
        multiply(i % a_.y.n, block, panel, panel + floats_);
      }
    });
  }

 private:
  struct Block {
    int64_t first = -1, channels = 0;
    const float *weight, *scale, *bias;  // of each lane
    std::vector<LaneSquare> x, y;
  };

  int64_t taps() const { return a_.weight.taps; }

  float weight_at(int64_t i) const {
    if (a_.weight.dtype == DType::float32) return static_cast<const float*>(a_.weight.data)[i];
    return std::bit_cast<float>(uint32_t{static_cast<const BFloat16*>(a_.weight.data)[i].bits} << 16);
  }

  void prepare(int64_t first, float* to, Block& block) const {
    const int64_t channels = std::min(kLanes, a_.y.channels - first);
    float *const scale = to + taps() * kLanes, *const bias = scale + kLanes;
    for (int64_t l = 0; l < kLanes; ++l) {
      const int64_t channel = first + std::min(l, channels - 1);
      for (int64_t tap = 0; tap < taps(); ++tap)
        to[tap * kLanes + l] = weight_at(channel * a_.weight.in_channels * taps() + tap);
      scale[l] = a_.scale ? a_.scale[channel] : 1.0f;
      bias[l] = a_.bias ? a_.bias[channel] : 0.0f;
    }
    if (channels != block.channels) squares(channels, block);
    block.first = first, block.channels = channels;
    block.weight = to, block.scale = scale, block.bias = bias;
  }

  // Where rows of the planes of so many channels lie, and their columns in the panel and among the sums.
  void squares(int64_t channels, Block& block) const {
    const Axis &v = a_.vertical, &h = a_.horizontal;
    const int64_t rows = std::clamp<int64_t>(floats_ / (width_ * kLanes) - v.padding, 0, a_.x.height),
                  columns = std::clamp<int64_t>(width_ - h.padding, 0, a_.x.width);
    block.x.clear(), block.y.clear();
    for (int64_t row = 0; row < rows; ++row)
      cover(channels, columns, a_.x.channel_stride, row * a_.x.row_stride,
            ((row + v.padding) * width_ + h.padding) * kLanes, block.x);
    cover(channels, a_.y.height * a_.y.width, a_.y.channel_stride, 0, 0, block.y);
  }

  // Squares of n columns that follow each other; the last two may overlap, so that all are whole.
  static void cover(int64_t channels, int64_t n, int64_t channel, int64_t from, int64_t panel,
                    std::vector<LaneSquare>& squares) {
    const int64_t columns = std::min(kLanes, n);
    for (int64_t next = 0; next < n; next += columns) {
      const int64_t column = std::min(next, n - columns);
      LaneSquare& s = squares.emplace_back();
      s.panel = panel + column * kLanes, s.columns = columns;
      for (int64_t l = 0; l < kLanes; ++l) {
        s.row[l] = std::min(l, channels - 1) * channel + from + column;
        s.exist[l] = l < channels ? uint8_t((1 << columns) - 1) : 0;
      }
    }
  }

  // `stride`: elements from these planes to the next ones, which are fetched ahead.
  static LaneCopy copy(const Images& t, DType dtype, int64_t image, int64_t channel, float* panel,
                       const std::vector<LaneSquare>& squares) {
    return {advance(t.data, image * t.image_stride + channel * t.channel_stride, dtype),
            panel,
            squares.data(),
            int64_t(squares.size()),
            1,
            kLanes,
            1,
            image + 1 < t.n ? t.image_stride : kLanes * t.channel_stride - image * t.image_stride,
            0,
            dtype};
  }

  void multiply(int64_t image, const Block& block, float* panel, float* sums) const {
    run_.load_lanes(copy(a_.x, a_.dtype, image, block.first, panel, block.x));
    run_.lanes({panel, sums, a_.vertical.stride * width_ * kLanes, a_.horizontal.stride, a_.y.height, a_.y.width,
                taps(), taps_at_.data(), block.weight, block.scale, block.bias,
                a_.relu ? 0.0f : -std::numeric_limits<float>::infinity(), a_.cap});
    run_.store_lanes(copy(a_.y, a_.dtype, image, block.first, sums, block.y));
  }

  const WidthConv2dArgs& a_;
  const Parallel& parallel_;
  const WidthDepthwiseKernels run_;
  const int64_t width_, floats_;  // positions of a row, and floats, of a panel
  std::vector<int64_t> taps_at_;
};

}  // namespace

bool width_depthwise_by_lanes(const WidthConv2dArgs& a) {
  const int64_t width = padded(a.horizontal, a.y.width), height = padded(a.vertical, a.y.height);
  return kernels().lanes && a.y.channels >= kLanes && a.horizontal.stride <= 2 && a.y.row_stride == a.y.width &&
         width <= kPanelBytes && height <= kPanelBytes && width * height * kLanes * 4 <= kPanelBytes;
}

void width_depthwise_lanes(const WidthConv2dArgs& args, const Parallel& parallel) {
  WidthDepthwiseLanes(args, parallel).run();
}

}  // namespace lcs
