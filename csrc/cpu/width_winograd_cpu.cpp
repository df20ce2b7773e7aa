#include "width_winograd.h"

#include <algorithm>

#include "scratch.h"
#include "walk.h"
#include "width_affine.h"
#include "width_conv2d_kernels.h"
#include "width_winograd_kernels.h"
#include "width_winograd_results.h"
#include "width_winograd_tiles.h"

namespace lcs {
namespace {

constexpr int64_t kSide = kWinogradResults, kPositions = winograd_positions(3);
constexpr int64_t kMostTiles = 72;        // of a block, whose sums stay in the second-level cache
constexpr int64_t kInputBytes = 6 << 20;  // of a block's transformed x
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
        run_(width_winograd_kernels()),
        pixel_(ceil_div(args.x.channels, run_.lanes) * run_.lanes),
        chunk_(std::min(kChunk, pixel_)),
        chunks_(ceil_div(pixel_, chunk_)),
        span_(kWinogradVectors * run_.lanes),
        spans_(ceil_div(args.y.channels, span_)),
        grid_{ceil_div(args.y.height, kSide), ceil_div(args.y.width, kSide)},
        tiled_(
            args.x,
            {winograd_window(3), args.vertical.padding, args.horizontal.padding, run_.three.columns, run_.three.rows},
            grid_, pixel_, chunk_),
        tiles_(args.y.n * grid_.lines * grid_.columns),
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
    parallel_(a_.y.n * grid_.lines, 1, [&](int64_t begin, int64_t end) {
      tiled_.transform(begin * grid_.columns, begin * grid_.columns, end * grid_.columns, x, x_);
    });
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
        if (i == begin || i % spans_ == 0) tiled_.transform(0, first, last, x, x_);
        multiply(first, last, i % spans_, x);
      }
    });
  }

  int64_t input_floats() const { return chunks_ * kPositions * x_; }

  // Results of a span at tiles [first, last) of a block.
  void multiply(int64_t first, int64_t last, int64_t span, const float* x) const {
    static thread_local Scratch<float> scratch;
    float* const weights = scratch.reserve(kPositions * (weights_ + sums_) + kSide * kSide * kWinogradPart * span_);
    float* const sums = weights + kPositions * weights_;
    for (int64_t c = 0; c < a_.x.channels; c += chunk_, x += kPositions * x_) {
      const int64_t channels = std::min(chunk_, a_.x.channels - c);
      transform_weights(span, c, channels, weights);
      run_.three.products({x, weights, sums, last - first, chunk_, channels, x_, weights_, sums_, c == 0});
    }
    const WidthWinogradResults results(a_, run_.three.results, nullptr, scale_, bias_);
    grid_.for_parts(0, first, last, [&](const WinogradPart& part) {
      results.write(part, span, sums, sums_, sums + kPositions * sums_);
    });
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
  const WidthWinogradKernels run_;
  const int64_t pixel_;           // floats of a pixel of x, in whole vectors
  const int64_t chunk_, chunks_;  // channels of x that are multiplied together
  const int64_t span_, spans_;    // output channels, likewise
  const WinogradGrid grid_;
  const WinogradTiles tiled_;
  const int64_t tiles_;     // of all images
  const int64_t weights_;   // floats of a position of transformed weights
  int64_t block_, blocks_;  // tiles that are multiplied together
  int64_t x_, sums_;        // floats of a position of transformed x, of sums
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
