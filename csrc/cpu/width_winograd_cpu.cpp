#include "width_winograd.h"

#include <algorithm>
#include <array>

#include "dispatch.h"
#include "scratch.h"
#include "walk.h"
#include "width_affine.h"
#include "width_conv2d_kernels.h"
#include "width_winograd_kernels.h"

namespace lcs {
namespace {

constexpr int64_t kSide = 2;                // of a tile of results
constexpr int64_t kInputBytes = 448 << 10;  // of the second-level cache, for a block's transformed x
constexpr int64_t kMostTiles = 112;         // of a block, whose sums take the rest of that cache
constexpr int64_t kMostFloats = 48;         // of a span, on any instruction set
constexpr int64_t kRows = kWinogradWindow;

// Tiles of all images, row by row, in blocks. Blocks and spans of output channels, in this order, are shared out among
// the threads: each transforms x of a block, multiplies it by the weight of a span at all positions of the window, and
// transforms the sums.
class WidthWinograd {
 public:
  WidthWinograd(const WidthConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        run_(best(scalar::width_conv2d_kernels, avx2::width_conv2d_kernels, avx512::width_conv2d_kernels)),
        winograd_(best(scalar::width_winograd_kernels, avx2::width_winograd_kernels, avx512::width_winograd_kernels)),
        rows_(ceil_div(args.y.height, kSide)),
        columns_(ceil_div(args.y.width, kSide)),
        tiles_(args.y.n * rows_ * columns_),
        span_(run_.lanes * (args.y.channels <= run_.lanes * run_.max_vectors ? run_.max_vectors : run_.vectors)),
        spans_(ceil_div(args.y.channels, span_)) {
    // An odd number of cache lines, so that neighbours do not fall on the same sets.
    column_ = (ceil_div(a_.x.channels, kWidthBlock) | 1) * kWidthBlock;
    const int64_t whole = run_.pixels(int(span_ / run_.lanes)),
                  fit = kInputBytes / (kWidthPositions * column_ * int64_t{sizeof(float)});
    block_ = std::max(std::min(fit, kMostTiles) / whole * whole, whole);
    blocks_ = ceil_div(tiles_, block_);
    block_ = ceil_div(tiles_, blocks_);
    blocks_ = ceil_div(tiles_, block_);
  }

  void run() {
    static thread_local Scratch<float> affine;
    fill_affine(affine.reserve(2 * spans_ * span_));
    parallel_(blocks_ * spans_, 1, [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> scratch;
      const int64_t x = kWidthPositions * block_ * column_, sums = kWidthPositions * block_ * span_;
      float* const memory = scratch.reserve(x + sums + 2 * kSide * block_ * span_);
      Rows rows{};
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i / spans_ * block_, n = std::min(block_, tiles_ - first), start = i % spans_ * span_;
        if (i == begin || start == 0) transform(first, n, rows, memory);
        multiply(n, start, memory, memory + x);
        finish(first, n, start, memory + x, memory + x + sums);
      }
    });
  }

 private:
  // Of x, channels last, where they are not so in memory: those that were copied last.
  struct Rows {
    float* data = nullptr;
    int64_t held[kRows] = {-1, -1, -1, -1};
  };

  void fill_affine(float* to) {
    const int64_t whole = spans_ * span_;
    lcs::fill_affine(a_, whole, to);
    scale_ = to;
    bias_ = to + whole;
  }

  // Calls each(first of them in the block, image, row of tiles, first column, one past the last) for tiles of a row.
  template <class Each>
  void for_rows(int64_t first, int64_t n, const Each& each) const {
    for (int64_t tile = first; tile < first + n;) {
      const int64_t row = tile / columns_, column = tile % columns_,
                    last = std::min(columns_, column + first + n - tile);
      each(tile - first, row / rows_, row % rows_, column, last);
      tile += last - column;
    }
  }

  void transform(int64_t first, int64_t n, Rows& held, float* to) const {
    static thread_local Scratch<float> scratch;
    float* const zeros = scratch.reserve(a_.x.channels);
    std::fill_n(zeros, a_.x.channels, 0.0f);
    WidthWinogradInput in{{}, a_.x.channels, to, block_ * column_};
    for_rows(first, n, [&](int64_t, int64_t image, int64_t line, int64_t column, int64_t last) {
      const float* rows[kRows];
      for (int64_t i = 0; i < kRows; ++i) {
        const int64_t at = kSide * line - a_.vertical.padding + i;
        rows[i] = at >= 0 && at < a_.x.height ? row(image, at, held) : nullptr;
      }
      const int64_t step = in_place() ? a_.x.column_stride : column_;
      for (; column < last; ++column, in.to += column_) {
        const int64_t left = kSide * column - a_.horizontal.padding;
        for (int64_t i = 0; i < kRows; ++i)
          for (int64_t j = 0; j < kRows; ++j)
            in.at[i * kRows + j] =
                rows[i] && left + j >= 0 && left + j < a_.x.width ? rows[i] + (left + j) * step : zeros;
        winograd_.input(in);
      }
    });
  }

  bool in_place() const { return a_.x.channel_stride == 1; }

  const float* row(int64_t image, int64_t at, Rows& rows) const {
    static thread_local Scratch<float> scratch;
    const Images& x = a_.x;
    const float* const from = static_cast<const float*>(x.data) + image * x.image_stride + at * x.row_stride;
    if (in_place()) return from;
    if (!rows.data) rows.data = scratch.reserve(kRows * x.width * column_);
    const int64_t slot = at % kRows, id = image * x.height + at;
    float* const to = rows.data + slot * x.width * column_;
    if (rows.held[slot] != id)
      run_.load({from, to, x.channel_stride, x.column_stride, column_, x.channels, x.width, a_.dtype, true});
    rows.held[slot] = id;
    return to;
  }

  int64_t vectors(int64_t start) const { return ceil_div(std::min(a_.y.channels - start, span_), run_.lanes); }

  // Of n transformed tiles: their sums at each position, `vectors` of them next to each other.
  void multiply(int64_t n, int64_t start, const float* x, float* sums) const {
    constexpr WidthTap kTap{0, 0};
    static constexpr std::array<float, kMostFloats> kZeros{}, kOnes = [] {
      std::array<float, kMostFloats> ones{};
      ones.fill(1.0f);
      return ones;
    }();
    const int64_t stored = a_.weight.in_channels * kWidthBlock, floats = vectors(start) * run_.lanes;
    WidthTile t{};
    t.dtype = DType::float32, t.vectors = int(vectors(start));
    t.tap = &kTap, t.taps = t.weight_taps = 1;
    t.begin = 0, t.end = t.stored = a_.x.channels, t.block = kWidthBlock;
    t.block_stride = kWidthPositions * stored;
    t.scale = kOnes.data(), t.bias = kZeros.data(), t.first = t.last = true;
    const float* weight = a_.winograd + start / kWidthBlock * t.block_stride;
    const int64_t most = run_.pixels(t.vectors);
    for (int64_t p = 0; p < kWidthPositions; ++p, weight += stored, x += block_ * column_, sums += block_ * floats) {
      t.weight = weight;
      for (int64_t tile = 0; tile < n; tile += t.pixels) {
        const int64_t left = n - tile;
        t.pixels = int(left >= 2 * most ? most : left > most ? (left + 1) / 2 : left);
        for (int i = 0; i < t.pixels; ++i) {
          t.at[i] = x + (tile + i) * column_;
          t.to[i] = sums + (tile + i) * floats;
        }
        run_.accumulate(t);
      }
    }
  }

  // Results from sums.
  void finish(int64_t first, int64_t n, int64_t start, const float* sums, float* results) const {
    const Images& y = a_.y;
    const int64_t floats = vectors(start) * run_.lanes, channels = std::min(a_.y.channels - start, span_);
    const bool direct = y.channel_stride == 1 && channels == floats;
    WidthWinogradOutput out{nullptr, block_ * floats, int(vectors(start)), scale_ + start, bias_ + start, a_.relu, {}};
    for_rows(first, n, [&](int64_t tile, int64_t image, int64_t line, int64_t column, int64_t last) {
      float* const at = static_cast<float*>(y.data) + image * y.image_stride + start * y.channel_stride;
      const int64_t left = kSide * column, width = std::min(kSide * last, y.width) - left;
      const int64_t height = std::min(kSide, y.height - kSide * line);
      float* rows[kSide];
      for (int64_t i = 0; i < kSide; ++i)
        rows[i] = direct ? at + (kSide * line + i) * y.row_stride + left * y.column_stride
                         : results + i * kSide * block_ * floats;
      const int64_t step = direct ? y.column_stride : floats;
      for (int64_t j = 0; j < width; j += kSide, ++tile) {
        out.sums = sums + tile * floats;
        for (int64_t i = 0; i < kSide; ++i)
          for (int64_t k = 0; k < kSide; ++k)
            out.to[i * kSide + k] = i < height && j + k < width ? rows[i] + (j + k) * step : nullptr;
        winograd_.output(out);
      }
      for (int64_t i = 0; !direct && i < height; ++i) {
        float* const to = at + (kSide * line + i) * y.row_stride + left * y.column_stride;
        const bool last = y.channel_stride == 1;
        run_.store(
            {rows[i], to, floats, 1, last ? y.column_stride : y.channel_stride, width, channels, a_.dtype, !last});
      }
    });
  }

  const WidthConv2dArgs& a_;
  const Parallel& parallel_;
  const WidthConv2dKernels run_;
  const WidthWinogradKernels winograd_;
  const int64_t rows_, columns_, tiles_;  // of tiles: of an image, of a row, of all images
  const int64_t span_, spans_;            // output channels that are multiplied together
  int64_t column_;                        // floats of transformed x of a tile at a position
  int64_t block_, blocks_;                // tiles that are multiplied together
  const float *scale_, *bias_;
};

}  // namespace

bool width_conv2d_by_winograd(const WidthConv2dArgs& a) {
  const auto plain = [](const Axis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; };
  return a.winograd && plain(a.vertical) && plain(a.horizontal) && a.groups == 1 && a.dtype == DType::float32 &&
         a.x.channels > 0;
}

void width_winograd(const WidthConv2dArgs& args, const Parallel& parallel) { WidthWinograd(args, parallel).run(); }

}  // namespace lcs
