#include "width_strided.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "scratch.h"
#include "walk.h"
#include "width_affine.h"
#include "width_winograd_results.h"

namespace lcs {
namespace {

constexpr int64_t kWindow = winograd_window(4), kPositions = winograd_positions(4);
constexpr int64_t kPhases = 4;        // pairs of remainders
constexpr int64_t kMostChannels = 8;  // of x
constexpr int64_t kBlock = 14;        // tiles whose sums stay in the second-level cache
constexpr int64_t kTasks = 8;         // enough for threads to share evenly
constexpr int64_t kMostLines = 4;     // of tiles, whose x stays in that cache too
constexpr int64_t kFewTiles = 16;     // of an image, too few to pay for transforming the weights
constexpr int64_t kFewOutputs = 32;   // channels, too few to pay for transforming x

// Writes pieces of so many floats, `pixel` floats apart.
template <int64_t kFloats>
void scatter(const float* from, int64_t n, int64_t pixel, float* to) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * pixel, from + i * kFloats, kFloats * sizeof(float));
}

template <int64_t... kPairs>
void scatter_any(const float* from, int64_t n, int64_t piece, int64_t pixel, float* to,
                 std::integer_sequence<int64_t, kPairs...>) {
  static constexpr decltype(&scatter<2>) kTable[] = {scatter<2 * (kPairs + 1)>...};
  kTable[piece / 2 - 1](from, n, pixel, to);
}

}  // namespace

// A line of tiles of an image, and where it goes.
struct WidthStrided::Place {
  int64_t image, line;
  const WidthConv2dArgs& to;  // of y
  int64_t to_image, to_line;
};

WidthStrided::WidthStrided(const WidthConv2dArgs& args, const float* mean, const Parallel& parallel)
    : a_(args),
      copy_(width_conv2d_kernels()),
      run_(width_winograd_kernels()),
      channels_(kPhases * args.x.channels),
      pixel_(ceil_div(channels_, run_.lanes) * run_.lanes),
      span_(kWinogradVectors * run_.lanes),
      spans_(ceil_div(args.y.channels, span_)),
      lines_(ceil_div(args.y.height, kRows)),
      tiles_(ceil_div(args.y.width, kRows)),
      row_(kRows * tiles_ + kWindow - kRows),
      block_(std::min(tiles_, kBlock)) {
  static thread_local Scratch<float> scratch;
  const int64_t whole = spans_ * span_, span = kPositions * channels_ * span_;
  float* const to = scratch.reserve(spans_ * span + 3 * whole);
  float* const affine = to + spans_ * span;
  weights_ = to, mean_ = mean ? affine : nullptr, scale_ = affine + whole, bias_ = scale_ + whole;
  std::fill_n(affine, whole, 0.0f);
  if (mean) std::copy_n(mean, args.y.channels, affine);
  fill_affine(args, whole, affine + whole);
  parallel(spans_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) transform_weights(i, to + i * span);
  });
}

void WidthStrided::run(const Parallel& parallel) const {
  const int64_t shared = a_.y.n * lines_ / (is_serial(parallel) ? 1 : kTasks),
                lines = piece_of(lines_, std::clamp<int64_t>(shared, 1, kMostLines)), bands = ceil_div(lines_, lines);
  parallel(a_.y.n * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / bands, first = i % bands * lines;
      band({image, first, a_, image, first}, std::min(lines, lines_ - first));
    }
  });
}

void WidthStrided::rows(int64_t image, int64_t first, const Images& to) const {
  WidthConv2dArgs args = a_;
  args.y = to;
  for (int64_t line = 0, all = ceil_div(to.height, kRows); line < all; line += kMostLines)
    band({image, first + line, args, 0, line}, std::min(kMostLines, all - line));
}

void WidthStrided::transform_weights(int64_t span, float* to) const {
  const WidthWeight& w = a_.weight;
  const int64_t stored = std::min(kWidthBlock, w.in_channels);
  run_.split_weights({{a_.packed, span * span_, width_blocks(a_.y.channels) * kWidthBlock,
                       w.in_channels * w.taps * kWidthBlock, stored, a_.x.channels, to, channels_ * span_},
                      a_.vertical.kernel,
                      a_.horizontal.kernel,
                      !last()});
}

// The lines of tiles that begin there.
void WidthStrided::band(const Place& place, int64_t lines) const {
  static thread_local Scratch<float> scratch;
  const int64_t line = row_ * pixel_, rows = kRows * lines + kWindow - kRows,
                columns = kRows * block_ + kWindow - kRows, sides = kWindow * columns * pixel_,
                x = kPositions * block_ * pixel_, sums = kPositions * block_ * span_;
  float* const split = scratch.reserve(rows * line + sides + x + sums + kRows * kRows * block_ * span_);
  Room room{split + rows * line, nullptr, nullptr, nullptr};
  room.x = room.sides + sides, room.sums = room.x + x, room.results = room.sums + sums;
  split_band(place.image, kRows * place.line, rows, split);
  for (int64_t i = 0; i < lines; ++i)
    for (int64_t tile = 0; tile < tiles_; tile += block_)
      multiply({place.image, place.line + i, place.to, place.to_image, place.to_line + i}, tile,
               std::min(block_, tiles_ - tile), split + kRows * (i * line + tile * pixel_), room);
}

// Rows [first, first + n) of split x. A pixel of it is made of pieces, columns 2 i and 2 i + 1 of each row of a pair:
// of all channels where they lie next to each other, else of each.
void WidthStrided::split_band(int64_t image, int64_t first, int64_t n, float* to) const {
  static thread_local Scratch<float> scratch;
  const Images& x = a_.x;
  float* const room = a_.dtype == DType::float32 ? nullptr : scratch.reserve(x.channels * x.width);
  const int64_t pieces = last() ? 1 : x.channels;
  std::fill_n(to, n * row_ * pixel_, 0.0f);
  for (int64_t i = 0; i < 2 * n; ++i) {
    const int64_t row = 2 * first + i - a_.vertical.padding;
    if (row < 0 || row >= x.height || x.width == 0) continue;
    const float* const values = floats(image, row, room);
    for (int64_t p = 0; p < pieces; ++p)
      split_row(values + p * (room ? x.width : x.channel_stride),
                to + i / 2 * row_ * pixel_ + (i % 2 * pieces + p) * piece());
  }
}

// A row of x as floats, in `room` where they are not so in memory.
const float* WidthStrided::floats(int64_t image, int64_t row, float* room) const {
  const Images& x = a_.x;
  const void* const from = advance(x.data, image * x.image_stride + row * x.row_stride, a_.dtype);
  if (!room) return static_cast<const float*>(from);
  if (x.channel_stride == 1)
    copy_.load({from, room, 0, 1, 0, 1, x.channels * x.width, a_.dtype, false});
  else
    copy_.load({from, room, x.channel_stride, 1, x.width, x.channels, x.width, a_.dtype, false});
  return room;
}

// One piece of each pixel, but for those outside of x.
void WidthStrided::split_row(const float* from, float* to) const {
  const int64_t left = a_.horizontal.padding, width = a_.x.width, half = piece() / 2, begin = ceil_div(left, 2),
                end = std::min((width + left) / 2, row_);
  const auto column = [&](int64_t i) {
    const int64_t at = i + left;
    if (at / 2 < row_) std::copy_n(from + i * half, half, to + at / 2 * pixel_ + at % 2 * half);
  };
  if (left % 2) column(0);
  if (begin < end)
    scatter_any(from + (2 * begin - left) * half, end - begin, 2 * half, pixel_, to + begin * pixel_,
                std::make_integer_sequence<int64_t, kMostChannels>());
  if ((width + left) % 2) column(width - 1);
}

void WidthStrided::multiply(const Place& place, int64_t tile, int64_t tiles, const float* x, const Room& room) const {
  const int64_t columns = kRows * tiles + kWindow - kRows, position = tiles * pixel_;
  const WidthWinogradResults results(place.to, run_.four.results, mean_, scale_, bias_);
  WinogradColumns side{{}, columns * pixel_, room.sides, columns * pixel_};
  for (int64_t i = 0; i < kWindow; ++i) side.rows[i] = x + i * row_ * pixel_;
  run_.four.columns(side);
  run_.four.rows({room.sides, columns * pixel_, pixel_, pixel_, tiles, room.x, position, pixel_});
  for (int64_t i = 0; i < spans_; ++i) {
    run_.four.products({room.x, weights_ + i * kPositions * channels_ * span_, room.sums, tiles, pixel_, channels_,
                        position, channels_ * span_, tiles * span_, true});
    results.write({0, place.to_image, place.to_line, tile, tile + tiles}, i, room.sums, tiles * span_, room.results);
  }
}

bool width_conv2d_strided(const WidthConv2dArgs& a) {
  const auto fits = [](const Axis& axis) {
    return (axis.kernel == 7 || axis.kernel == 8) && axis.stride == 2 && axis.dilation == 1;
  };
  const bool can = fits(a.vertical) && fits(a.horizontal) && a.groups == 1 && a.packed && !a.pairs &&
                   a.x.channels > 0 && a.x.channels <= kMostChannels;
  const int64_t tiles = ceil_div(a.y.height, WidthStrided::kRows) * ceil_div(a.y.width, WidthStrided::kRows);
  return can && a.products != WidthProducts::direct &&
         (a.products == WidthProducts::winograd || (tiles >= kFewTiles && a.y.channels >= kFewOutputs));
}

}  // namespace lcs
