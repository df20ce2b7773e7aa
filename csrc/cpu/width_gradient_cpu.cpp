#include "lcs/width_gradient.h"

#include <algorithm>

#include "scratch.h"
#include "walk.h"
#include "width_gradient_kernels.h"
#include "width_pack.h"
#include "width_winograd_tiles.h"

namespace lcs {
namespace {

constexpr int64_t kSide = kWinogradResults, kPositions = winograd_positions(3), kTaps = 9;
constexpr int64_t kMostTiles = 128;        // that are summed at once, of which a block's stay in the first-level cache
constexpr int64_t kInputBytes = 12 << 20;  // of what is transformed at once
constexpr int64_t kSumBytes = 64 << 20;    // of sums that are kept from some tiles to the next
constexpr int64_t kBlock = 32;             // channels of grad that are multiplied together

// Tiles of all images, row by row, some at a time: the threads transform grad and x of these together, and then add
// their products to the sums of a block of grad's channels by a span of x's each, of which the last make the gradient.
class WidthGradient {
 public:
  WidthGradient(const WidthGradientArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        run_(width_gradient_kernels()),
        span_(kWinogradVectors * run_.lanes),
        grad_pixel_(ceil_div(args.grad.channels, run_.lanes) * run_.lanes),
        x_pixel_(ceil_div(args.x.channels, run_.lanes) * run_.lanes),
        blocks_(ceil_div(args.grad.channels, kBlock)),
        spans_(ceil_div(args.x.channels, span_)),
        grid_{ceil_div(args.grad.height, kSide), ceil_div(args.grad.width, kSide)},
        tiles_(args.grad.n * grid_.lines * grid_.columns) {
    const int64_t fit = kInputBytes / (kPositions * (grad_pixel_ + x_pixel_) * int64_t{sizeof(float)});
    at_once_ = piece_of(tiles_, std::clamp<int64_t>(fit, 1, kMostTiles));
    grad_position_ = odd_lines(at_once_ * kBlock), x_position_ = odd_lines(at_once_ * span_);
  }

  void run() const {
    static thread_local Scratch<float> scratch;
    const int64_t grads = blocks_ * kPositions * grad_position_, xs = spans_ * kPositions * x_position_;
    float* const grad = scratch.reserve(grads + xs + blocks_ * spans_ * kSums * span_);
    float* const x = grad + grads;
    float* const sums = x + xs;
    const int64_t last = x_pixel_ % span_ ? kPositions * x_position_ : 0;  // of whose span channels are missing
    std::fill_n(x + xs - last, last, 0.0f);
    for (int64_t first = 0; first < tiles_; first += at_once_) {
      const int64_t n = std::min(at_once_, tiles_ - first);
      transform(first, n, grad, x);
      parallel_(blocks_ * spans_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          multiply(i / spans_, i % spans_, first, n, grad, x, sums + i * kSums * span_);
      });
    }
  }

 private:
  static constexpr int64_t kSums = kPositions * kBlock;  // of a block, times a span

  void transform(int64_t first, int64_t n, float* grad, float* x) const {
    const WidthWinogradKernels windows = width_winograd_kernels();
    const WinogradTiles of_grad(a_.grad, {kSide, 0, 0, run_.columns, run_.rows}, grid_, grad_pixel_, kBlock);
    const WinogradTiles of_x(a_.x, {winograd_window(3), a_.above, a_.left, windows.three.columns, windows.three.rows},
                             grid_, x_pixel_, span_);
    parallel_(ceil_div(n, kWinogradPart), 1, [&](int64_t begin, int64_t end) {
      const int64_t from = begin * kWinogradPart, last = std::min(end * kWinogradPart, n);
      of_grad.transform(from, first + from, first + last, grad, grad_position_);
      of_x.transform(from, first + from, first + last, x, x_position_);
    });
  }

  void multiply(int64_t block, int64_t span, int64_t first, int64_t n, const float* grad, const float* x,
                float* sums) const {
    const int64_t output = block * kBlock, input = span * span_, outputs = std::min(kBlock, a_.grad.channels - output);
    run_.products({grad + block * kPositions * grad_position_, x + span * kPositions * x_position_, sums, n, outputs,
                   kBlock, span_, grad_position_, x_position_, kBlock * span_, first == 0});
    if (first + n < tiles_) return;
    const int64_t row = a_.x.channels * kTaps;
    run_.results({sums, kBlock * span_, outputs, std::min(span_, a_.x.channels - input),
                  a_.to + output * row + input * kTaps, row});
  }

  const WidthGradientArgs& a_;
  const Parallel& parallel_;
  const WidthGradientKernels run_;
  const int64_t span_;                  // channels of x that are multiplied together
  const int64_t grad_pixel_, x_pixel_;  // channels, in whole vectors
  const int64_t blocks_, spans_;
  const WinogradGrid grid_;
  const int64_t tiles_;                 // of all images
  int64_t at_once_;                     // tiles
  int64_t grad_position_, x_position_;  // floats of a position
};

}  // namespace

void width_gradient(const WidthGradientArgs& args, const Parallel& parallel) {
  const int64_t weights = args.grad.channels * args.x.channels * kTaps;
  if (args.grad.n * args.grad.height * args.grad.width == 0 || weights == 0) {
    std::fill_n(args.to, weights, 0.0f);
    return;
  }
  const int64_t column = kPositions * args.x.channels * int64_t{sizeof(float)},
                most = std::max<int64_t>(kSumBytes / (column * kBlock), 1) * kBlock;
  for (int64_t o = 0; o < args.grad.channels; o += most) {
    WidthGradientArgs part = args;
    part.grad.data = static_cast<float*>(args.grad.data) + o * args.grad.channel_stride;
    part.grad.channels = std::min(most, args.grad.channels - o);
    part.to += o * args.x.channels * kTaps;
    WidthGradient(part, parallel).run();
  }
}

void width_input_gradient(const WidthInputGradientArgs& args, const Parallel& parallel) {
  static thread_local Scratch<float> scratch;
  const int64_t out = args.grad.channels, in = args.to.channels;
  float* const packed = scratch.reserve(width_blocks(in) * kWidthBlock * out * kTaps);
  width_pack_turned({args.weight, DType::float32, out, in, kTaps}, packed, parallel);
  const WidthWeight turned{nullptr, DType::float32, in, out, kTaps};  // only read packed
  width_conv2d({args.grad, args.to, DType::float32, Axis{1, 2 - args.above, 1, 3}, Axis{1, 2 - args.left, 1, 3}, 1,
                turned, packed, nullptr, nullptr, nullptr, false},
               parallel);
}

}  // namespace lcs
