#include "width_strided.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "scratch.h"
#include "walk.h"
#include "width_affine.h"
#include "width_conv2d_kernels.h"
#include "width_winograd_kernels.h"
#include "width_winograd_results.h"

namespace lcs {
namespace {

constexpr int64_t kSide = kWidthStridedRows, kWindow = kWinogradWindow, kPositions = kWinogradPositions;
constexpr int64_t kPhases = 4;        // pairs of remainders
constexpr int64_t kMostChannels = 8;  // of x
constexpr int64_t kBlock = 24;        // tiles whose sums stay in the second-level cache
constexpr int64_t kTasks = 8;         // enough for threads to share evenly
constexpr int64_t kMostLines = 4;     // of tiles, whose x stays in that cache too
constexpr int64_t kFewTiles = 16;     // of an image, too few to pay for transforming the weights
constexpr int64_t kFewOutputs = 32;   // channels, too few to pay for transforming x

// Lines of tiles of an image are a band; bands are shared out among the threads. Each splits x of a band by its
// remainders, channels last, transforms that of some tiles next to each other, multiplies it at all positions of the
// window by the weights of a span of output channels, and transforms the sums.
class WidthStrided {
 public:
  WidthStrided(const WidthConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        copy_(best(scalar::width_conv2d_kernels, avx2::width_conv2d_kernels, avx512::width_conv2d_kernels)),
        run_(best(scalar::width_winograd_kernels, avx2::width_winograd_kernels, avx512::width_winograd_kernels)),
        channels_(kPhases * args.x.channels),
        pixel_(ceil_div(channels_, run_.lanes) * run_.lanes),
        span_(kWinogradVectors * run_.lanes),
        spans_(ceil_div(args.y.channels, span_)),
        lines_(ceil_div(args.y.height, kSide)),
        tiles_(ceil_div(args.y.width, kSide)),
        row_(kSide * tiles_ + kWindow - kSide) {
    band_ = std::clamp<int64_t>(args.y.n * lines_ / (is_serial(parallel) ? 1 : kTasks), 1, kMostLines);
    band_ = piece_of(lines_, band_);
    bands_ = ceil_div(lines_, band_);
    block_ = std::min(tiles_, kBlock);
  }

  void run() {
    static thread_local Scratch<float> scratch;
    const int64_t weights = kPositions * channels_ * span_;
    float* const shared = scratch.reserve(spans_ * (weights + 2 * span_));
    weights_ = shared, scale_ = shared + spans_ * weights, bias_ = scale_ + spans_ * span_;
    fill_affine(a_, spans_ * span_, shared + spans_ * weights);
    parallel_(spans_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) transform_weights(i, shared + i * weights);
    });
    parallel_(a_.y.n * bands_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) band(i / bands_, i % bands_ * band_);
    });
  }

 private:
  void transform_weights(int64_t span, float* to) const {
    const WidthWeight& w = a_.weight;
    const int64_t stored = std::min(kWidthBlock, w.in_channels);
    run_.split_weights({{a_.packed, span * span_, width_blocks(a_.y.channels) * kWidthBlock,
                         w.in_channels * w.taps * kWidthBlock, stored, a_.x.channels, to, channels_ * span_},
                        a_.vertical.kernel,
                        a_.horizontal.kernel,
                        !last()});
  }

  // The lines of tiles that begin at `first`.
  void band(int64_t image, int64_t first) const {
    static thread_local Scratch<float> scratch;
    const int64_t lines = std::min(band_, lines_ - first), line = row_ * pixel_, rows = kSide * band_ + kWindow - kSide,
                  columns = kSide * block_ + kWindow - kSide, sides = kWindow * columns * pixel_,
                  x = kPositions * block_ * pixel_, sums = kPositions * block_ * span_;
    float* const split = scratch.reserve(rows * line + sides + x + sums + kSide * kSide * block_ * span_);
    Room room{split + rows * line, nullptr, nullptr, nullptr};
    room.x = room.sides + sides, room.sums = room.x + x, room.results = room.sums + sums;
    split_band(image, kSide * first, kSide * lines + kWindow - kSide, split);
    for (int64_t i = 0; i < lines; ++i)
      for (int64_t tile = 0; tile < tiles_; tile += block_)
        multiply(image, first + i, tile, std::min(block_, tiles_ - tile), split + kSide * (i * line + tile * pixel_),
                 room);
  }

  // Rows [first, first + n) of split x. A pixel of it is made of pieces, columns 2 i and 2 i + 1 of each row of a pair:
  // of all channels where they lie next to each other, else of each.
  void split_band(int64_t image, int64_t first, int64_t n, float* to) const {
    static constexpr float kZeros[2 * kMostChannels] = {};
    static thread_local Scratch<float> scratch;
    const Images& x = a_.x;
    float* const room = a_.dtype == DType::float32 ? nullptr : scratch.reserve(x.channels * x.width);
    const int64_t pieces = last() ? 1 : x.channels;
    for (int64_t i = 0; i < n * row_; ++i) std::fill_n(to + i * pixel_ + channels_, pixel_ - channels_, 0.0f);
    for (int64_t i = 0; i < n; ++i, to += row_ * pixel_)
      for (int64_t down = 0; down < 2; ++down) {
        const int64_t row = 2 * (first + i) + down - a_.vertical.padding;
        const bool inside = row >= 0 && row < x.height;
        const float* const values = inside ? floats(image, row, room) : kZeros;
        for (int64_t p = 0; p < pieces; ++p)
          split_row(inside ? values + p * (room ? x.width : x.channel_stride) : kZeros, inside ? piece() / 2 : 0,
                    to + (down * pieces + p) * piece());
      }
  }

  bool last() const { return a_.x.channel_stride == 1; }
  int64_t piece() const { return last() ? 2 * a_.x.channels : 2; }  // floats

  // A row of x as floats, in `room` where they are not so in memory.
  const float* floats(int64_t image, int64_t row, float* room) const {
    const Images& x = a_.x;
    const void* const from = advance(x.data, image * x.image_stride + row * x.row_stride, a_.dtype);
    if (!room) return static_cast<const float*>(from);
    if (x.channel_stride == 1)
      copy_.load({from, room, 0, 1, 0, 1, x.channels * x.width, a_.dtype, false});
    else
      copy_.load({from, room, x.channel_stride, 1, x.width, x.channels, x.width, a_.dtype, false});
    return room;
  }

  // One piece of each pixel; `column`: floats from one column of x to the next, 0: to zeros.
  void split_row(const float* from, int64_t column, float* to) const {
    const int64_t left = a_.horizontal.padding, width = a_.x.width, half = piece() / 2;
    const auto some = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t k = 0; k < 2; ++k) {
          const int64_t at = 2 * i + k - left;
          float* const values = to + i * pixel_ + k * half;
          at >= 0 && at < width ? void(std::copy_n(from + at * column, half, values))
                                : void(std::fill_n(values, half, 0.0f));
        }
    };
    const int64_t begin = std::min(ceil_div(left, 2), row_), end = std::clamp((width + left) / 2, begin, row_);
    some(0, begin);
    const float* pair = from + (2 * begin - left) * column;
    for (int64_t i = begin; i < end; ++i, pair += 2 * column)
      for (int64_t k = 0; k < half; ++k) std::memcpy(to + i * pixel_ + 2 * k, pair + 2 * k, 2 * sizeof(float));
    some(end, row_);
  }

  struct Room {
    float *sides, *x, *sums, *results;
  };

  void multiply(int64_t image, int64_t line, int64_t tile, int64_t tiles, const float* x, const Room& room) const {
    const int64_t columns = kSide * tiles + kWindow - kSide, position = tiles * pixel_;
    const WidthWinogradResults results(a_, kSide, scale_, bias_);
    WinogradColumns side{{}, columns * pixel_, room.sides, columns * pixel_};
    for (int64_t i = 0; i < kWindow; ++i) side.rows[i] = x + i * row_ * pixel_;
    run_.columns(side);
    run_.rows({room.sides, columns * pixel_, pixel_, pixel_, tiles, kSide, room.x, position, pixel_});
    for (int64_t i = 0; i < spans_; ++i) {
      run_.products({room.x, weights_ + i * kPositions * channels_ * span_, room.sums, tiles, pixel_, channels_,
                     position, channels_ * span_, tiles * span_, true});
      results.write({0, image, line, tile, tile + tiles}, i, room.sums, tiles * span_, room.results);
    }
  }

  const WidthConv2dArgs& a_;
  const Parallel& parallel_;
  const WidthConv2dKernels copy_;
  const WidthWinogradKernels run_;
  const int64_t channels_, pixel_;     // of split x; floats of a pixel of it
  const int64_t span_, spans_;         // output channels that are multiplied together
  const int64_t lines_, tiles_, row_;  // of tiles, of an image; tiles of each; pixels of a row of split x
  int64_t band_, bands_, block_;       // lines, bands of an image; tiles that are multiplied together
  const float *weights_, *scale_, *bias_;
};

}  // namespace

bool width_conv2d_strided(const WidthConv2dArgs& a) {
  const auto fits = [](const Axis& axis) {
    return (axis.kernel == 7 || axis.kernel == 8) && axis.stride == 2 && axis.dilation == 1;
  };
  const bool can = fits(a.vertical) && fits(a.horizontal) && a.groups == 1 && a.packed && !a.pairs &&
                   a.x.channels > 0 && a.x.channels <= kMostChannels;
  const int64_t tiles = ceil_div(a.y.height, kSide) * ceil_div(a.y.width, kSide);
  return can && a.products != WidthProducts::direct &&
         (a.products == WidthProducts::winograd || (tiles >= kFewTiles && a.y.channels >= kFewOutputs));
}

void width_strided(const WidthConv2dArgs& args, const Parallel& parallel) { WidthStrided(args, parallel).run(); }

}  // namespace lcs
