#include "width_winograd.h"

#include <algorithm>

#include "scratch.h"
#include "walk.h"
#include "width_affine.h"
#include "width_conv2d_kernels.h"
#include "width_winograd_kernels.h"
#include "width_winograd_results.h"

namespace lcs {
namespace {

constexpr int64_t kSide = kWinogradResults, kWindow = winograd_window(3), kPositions = winograd_positions(3);
constexpr int64_t kMostTiles = 72;        // of a block, whose sums stay in the second-level cache
constexpr int64_t kInputBytes = 6 << 20;  // of a block's transformed x
constexpr int64_t kPart = 8;              // tiles next to each other whose results stay in the first-level cache
constexpr int64_t kFewTiles = 16;         // for which transforming weights costs little
constexpr int64_t kTasks = 4;             // enough for threads to share, where there are more tiles than those
constexpr int64_t kChunk = 64;            // channels of x whose transformed weights stay in the second-level cache
// Multiplications of 16 results that take as long as it takes to transform as many floats: of weights; of a tile's x;
// of its sums.
constexpr int64_t kWeightsCost = 140, kInputCost = 300, kOutputCost = 200;

// Tiles of all images, row by row, in blocks; output channels in spans. Where there are several blocks, they and spans,
// in this order, are shared out among the threads: each transforms x of a block; then, of some channels of x at a time,
// the weights of a span, which it multiplies at all positions of the windows; then the sums. Of a single block the
// threads transform x together.
class WidthWinograd {
 public:
  WidthWinograd(const WidthConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        copy_(width_conv2d_kernels()),
        run_(width_winograd_kernels()),
        pixel_(ceil_div(args.x.channels, run_.lanes) * run_.lanes),
        chunk_(std::min(kChunk, pixel_)),
        chunks_(ceil_div(pixel_, chunk_)),
        span_(kWinogradVectors * run_.lanes),
        spans_(ceil_div(args.y.channels, span_)),
        lines_(ceil_div(args.y.height, kSide)),
        columns_(ceil_div(args.y.width, kSide)),
        tiles_(args.y.n * lines_ * columns_),
        weights_(odd_lines(chunk_ * span_)) {
    const int64_t fit = kInputBytes / (kPositions * pixel_ * int64_t{sizeof(float)});
    block_ = std::clamp<int64_t>(fit, 1, kMostTiles);
    blocks_ = ceil_div(tiles_, block_);
    if (spans_ % 2 && blocks_ > 1) blocks_ += blocks_ % 2;  // so that two threads share evenly
    block_ = ceil_div(tiles_, blocks_);
    blocks_ = ceil_div(tiles_, block_);
    x_ = odd_lines(block_ * chunk_), sums_ = odd_lines(block_ * span_);
  }

  void run() {
    static thread_local Scratch<float> affine;
    float* const scale = affine.reserve(2 * spans_ * span_);
    fill_affine(a_, spans_ * span_, scale);
    scale_ = scale, bias_ = scale + spans_ * span_;
    blocks_ == 1 ? run_together() : run_apart();
  }

 private:
  void run_together() const {
    static thread_local Scratch<float> scratch;
    float* const x = scratch.reserve(input_floats());
    parallel_(a_.y.n * lines_, 1,
              [&](int64_t begin, int64_t end) { transform(begin * columns_, begin * columns_, end * columns_, x); });
    const int64_t pieces = std::clamp<int64_t>(kTasks / spans_, 1, std::max<int64_t>(tiles_ / kFewTiles, 1)),
                  piece = ceil_div(tiles_, pieces);
    parallel_(spans_ * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % pieces * piece, last = std::min(first + piece, tiles_);
        if (first < last) multiply(first, last, i / pieces, x + first * chunk_);
      }
    });
  }

  void run_apart() const {
    parallel_(blocks_ * spans_, 1, [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> scratch;
      float* const x = scratch.reserve(input_floats());
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i / spans_ * block_, last = std::min(first + block_, tiles_);
        if (i == begin || i % spans_ == 0) transform(0, first, last, x);
        multiply(first, last, i % spans_, x);
      }
    });
  }

  int64_t input_floats() const { return chunks_ * kPositions * x_; }

  // Calls each(part) for tiles [first, last), the first of which is `slot`.
  template <class Each>
  void for_parts(int64_t slot, int64_t first, int64_t last, const Each& each) const {
    for (int64_t tile = first, n; tile < last; tile += n, slot += n) {
      const int64_t row = tile / columns_, column = tile % columns_;
      n = std::min({kPart, columns_ - column, last - tile});
      each(WinogradPart{slot, row / lines_, row % lines_, column, column + n});
    }
  }

  // x of tiles [first, last), the first of which is `slot`, to [chunk of channels][position][tile][channel].
  void transform(int64_t slot, int64_t first, int64_t last, float* to) const {
    static thread_local Scratch<float> scratch;
    const int64_t row = (kSide * kPart + kWindow - kSide) * pixel_;
    float* const zeros = scratch.reserve(pixel_ * a_.x.width + kWindow * row);
    float* const sides = zeros + pixel_ * a_.x.width;
    std::fill_n(zeros, pixel_ * a_.x.width, 0.0f);
    Rows held{};
    for_parts(slot, first, last, [&](const WinogradPart& part) {
      const int64_t left = kSide * part.begin - a_.horizontal.padding, columns = kSide * (part.end - part.begin) + 2,
                    begin = std::clamp<int64_t>(-left, 0, columns),
                    end = std::clamp<int64_t>(a_.x.width - left, begin, columns);
      WinogradColumns c{{}, (end - begin) * pixel_, sides + begin * pixel_, row};
      for (int64_t i = 0; i < kWindow; ++i) {
        const int64_t at = kSide * part.line - a_.vertical.padding + i;
        const bool inside = at >= 0 && at < a_.x.height;
        c.rows[i] = inside ? this->row(part.image, at, held) + (left + begin) * pixel_ : zeros;
        std::fill_n(sides + i * row, begin * pixel_, 0.0f);
        std::fill_n(sides + i * row + end * pixel_, (columns - end) * pixel_, 0.0f);
      }
      run_.three.columns(c);
      for (int64_t i = 0; i < chunks_; ++i)
        run_.three.rows({sides + i * chunk_, row, pixel_, std::min(chunk_, pixel_ - i * chunk_), part.end - part.begin,
                         to + i * kPositions * x_ + part.slot * chunk_, x_, chunk_});
    });
  }

  // Of x, channels last and in whole vectors, where they are not so in memory: those that were copied last.
  struct Rows {
    float* data = nullptr;
    int64_t held[kWindow];
  };

  bool in_place() const { return a_.x.channel_stride == 1 && a_.x.column_stride == pixel_ && a_.x.channels == pixel_; }

  const float* row(int64_t image, int64_t at, Rows& rows) const {
    static thread_local Scratch<float> scratch;
    const Images& x = a_.x;
    const float* const from = static_cast<const float*>(x.data) + image * x.image_stride + at * x.row_stride;
    if (in_place()) return from;
    const int64_t floats = x.width * pixel_;
    if (!rows.data) {
      rows.data = scratch.reserve(kWindow * floats);
      std::fill_n(rows.held, kWindow, -1);
      for (int64_t i = 0; i < kWindow * x.width; ++i)
        std::fill_n(rows.data + i * pixel_ + x.channels, pixel_ - x.channels, 0.0f);
    }
    const int64_t slot = at % kWindow, id = image * x.height + at;
    float* const to = rows.data + slot * floats;
    if (rows.held[slot] == id) return to;
    if (x.channel_stride == 1)
      copy_.load({from, to, x.column_stride, 1, pixel_, x.width, x.channels, a_.dtype, false});
    else
      copy_.load({from, to, x.channel_stride, x.column_stride, pixel_, x.channels, x.width, a_.dtype, true});
    rows.held[slot] = id;
    return to;
  }

  // Results of a span at tiles [first, last) of a block.
  void multiply(int64_t first, int64_t last, int64_t span, const float* x) const {
    static thread_local Scratch<float> scratch;
    float* const weights = scratch.reserve(kPositions * (weights_ + sums_) + kSide * kSide * kPart * span_);
    float* const sums = weights + kPositions * weights_;
    for (int64_t c = 0; c < a_.x.channels; c += chunk_, x += kPositions * x_) {
      const int64_t channels = std::min(chunk_, a_.x.channels - c);
      transform_weights(span, c, channels, weights);
      run_.three.products({x, weights, sums, last - first, chunk_, channels, x_, weights_, sums_, c == 0});
    }
    const WidthWinogradResults results(a_, run_.three.results, nullptr, scale_, bias_);
    for_parts(0, first, last,
              [&](const WinogradPart& part) { results.write(part, span, sums, sums_, sums + kPositions * sums_); });
  }

  // Channels [c, c + n) of x.
  void transform_weights(int64_t span, int64_t c, int64_t n, float* to) const {
    const WidthWeight& w = a_.weight;
    for (int64_t i = c; i < c + n; i += kWidthBlock, to += kWidthBlock * span_)
      run_.weights({a_.packed + i * w.taps * kWidthBlock, span * span_, width_blocks(a_.y.channels) * kWidthBlock,
                    w.in_channels * w.taps * kWidthBlock, std::min(kWidthBlock, w.in_channels - i),
                    std::min(kWidthBlock, c + n - i), to, weights_});
  }

  const WidthConv2dArgs& a_;
  const Parallel& parallel_;
  const WidthConv2dKernels copy_;
  const WidthWinogradKernels run_;
  const int64_t pixel_;                    // floats of a pixel of x, in whole vectors
  const int64_t chunk_, chunks_;           // channels of x that are multiplied together
  const int64_t span_, spans_;             // output channels, likewise
  const int64_t lines_, columns_, tiles_;  // of tiles: of an image, of a row, of all images
  const int64_t weights_;                  // floats of a position of transformed weights
  int64_t block_, blocks_;                 // tiles that are multiplied together
  int64_t x_, sums_;                       // floats of a position of transformed x, of sums
  const float *scale_, *bias_;
};

// Whether an image takes clearly less time than by direct products.
bool pays(const WidthConv2dArgs& a) {
  const int64_t outputs = width_blocks(a.y.channels), both = a.x.channels * outputs,
                tiles = ceil_div(a.y.height, kSide) * ceil_div(a.y.width, kSide),
                taps =
                    taps_inside(a.vertical, a.x.height, a.y.height) * taps_inside(a.horizontal, a.x.width, a.y.width);
  const int64_t cost = both * (tiles * kPositions + kWeightsCost) +
                       tiles * (width_blocks(a.x.channels) * kInputCost + outputs * kOutputCost);
  return 10 * cost < 9 * taps * both;
}

}  // namespace

bool width_conv2d_by_winograd(const WidthConv2dArgs& a) {
  const bool can = a.packed && !a.pairs && is_plain(a.vertical) && is_plain(a.horizontal) && a.groups == 1 &&
                   a.dtype == DType::float32 && a.x.channels > 0;
  return can && a.products != WidthProducts::direct && (a.products == WidthProducts::winograd || pays(a));
}

void width_winograd(const WidthConv2dArgs& args, const Parallel& parallel) { WidthWinograd(args, parallel).run(); }

}  // namespace lcs
