#include "width_winograd6.h"

#include <algorithm>

#include "dispatch.h"
#include "lcs/isa.h"
#include "scratch.h"
#include "walk.h"
#include "width_affine.h"
#include "width_conv2d_kernels.h"
#include "width_winograd6_kernels.h"

namespace lcs {
namespace {

constexpr int64_t kSide = kWinograd6Results, kRows = kWinograd6Window, kPositions = kWinograd6Positions;
constexpr int64_t kInputBytes = 6 << 20;  // of a block's transformed x
constexpr int64_t kMostTiles = 72;        // of a block, whose sums stay in the second-level cache
constexpr int64_t kFewTiles = 25;         // for which transforming weights costs little
constexpr int64_t kTasks = 8;             // enough for threads to share, where there are more tiles than those
constexpr int64_t kChunk = 64;            // channels of x whose transformed weights stay in that cache
// Multiplications of vectors that take as long as it takes to transform a vector: of weights; of a tile's x; of sums.
constexpr int64_t kWeightsCost = 250, kInputCost = 400, kOutputCost = 400;

// Results a side of the tile that begins `left` results before the end.
int side_of(int64_t left) { return left > 4 ? 6 : left > 2 ? 4 : 2; }

// Points of all tiles along an axis of so many results.
int64_t points_of(int64_t results) {
  const int64_t tiles = ceil_div(results, kSide);
  return (tiles - 1) * kRows + side_of(results - (tiles - 1) * kSide) + 2;
}

// Whether a tile of so many results has this point.
bool has(int results, int64_t point) { return point <= results || point == kRows - 1; }

bool of_pairs(const WidthConv2dArgs& a) { return a.pairs && max_isa() == Isa::avx512_bf16; }

WidthWinograd6Kernels transform_kernels(bool pairs) {
  return pairs ? bf16::width_winograd6_kernels()
               : best(scalar::width_winograd6_kernels, avx2::width_winograd6_kernels, avx512::width_winograd6_kernels);
}

// Tiles of all images, row by row, in blocks; output channels in spans.
struct Tiling {
  int64_t rows, columns, tiles, span, spans, block, blocks;
  int64_t chunk, position, tile;  // channels of x at a time; floats of them, transformed: of a position, of a tile

  Tiling(const WidthConv2dArgs& a, const WidthConv2dKernels& run)
      : rows(ceil_div(a.y.height, kSide)),
        columns(ceil_div(a.y.width, kSide)),
        tiles(a.y.n * rows * columns),
        span(run.lanes * (a.y.channels <= run.lanes * run.max_vectors ? run.max_vectors : run.vectors)),
        spans(ceil_div(a.y.channels, span)),
        chunk(std::min(kChunk, a.x.channels)),
        position(odd_lines(chunk)),
        tile(odd_lines(kPositions * position)) {
    const int64_t fit = kInputBytes / (chunks(a) * tile * int64_t{sizeof(float)}),
                  few = std::max(ceil_div(tiles * spans, kTasks), kFewTiles);
    block = std::clamp<int64_t>(std::min(fit, few), 1, kMostTiles);
    blocks = ceil_div(tiles, block);
    if (spans % 2 && tiles > 1) blocks += blocks % 2;  // so that two threads share evenly
    block = ceil_div(tiles, blocks);
    blocks = ceil_div(tiles, block);
  }

  int64_t chunks(const WidthConv2dArgs& a) const { return ceil_div(a.x.channels, chunk); }
};

// Blocks and spans, in this order, are shared out among the threads: each transforms x of a block; then, of some
// channels of x at a time, the weights of a span, which it multiplies at all positions of the windows; then the sums.
class WidthWinograd6 {
 public:
  WidthWinograd6(const WidthConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        pairs_(of_pairs(args)),
        run_(width_conv2d_kernels()),
        transform_(transform_kernels(pairs_)),
        t_(args, run_),
        row_(odd_lines(args.x.channels)),
        weights_(odd_lines(t_.chunk * kWidthBlock)),
        bottom_(side_of(args.y.height - (t_.rows - 1) * kSide)),
        right_(side_of(args.y.width - (t_.columns - 1) * kSide)) {}

  void run() {
    static thread_local Scratch<float> affine;
    float* const scale = affine.reserve(2 * t_.spans * t_.span);
    fill_affine(a_, t_.spans * t_.span, scale);
    scale_ = scale, bias_ = scale + t_.spans * t_.span;
    parallel_(t_.blocks * t_.spans, 1, [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> scratch;
      const int64_t x = t_.chunks(a_) * t_.block * t_.tile,
                    weights = ceil_div(t_.span, kWidthBlock) * kPositions * weights_,
                    sums = kPositions * odd_lines(t_.block * t_.span);
      Block b{};
      b.x = scratch.reserve(x + weights + sums + kSide * kSide * t_.block * t_.span);
      b.weights = b.x + x, b.sums = b.weights + weights, b.results = b.sums + sums;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t start = i % t_.spans * t_.span;
        if (i == begin || start == 0) {
          place(i / t_.spans * t_.block, b);
          transform(b);
        }
        multiply(start, b);
        finish(start, b);
      }
    });
  }

 private:
  // A thread's work. Its tiles lie in this order: those at the right border, where it cuts them, whole ones, those at
  // the bottom, the one in the corner. So those that have a position are next to each other.
  struct Block {
    int64_t first, n;
    int64_t kinds[4];
    int64_t slots[kMostTiles];
    float *x, *weights, *sums, *results;
    // Rows of x, channels last, where they are not so in memory: those that were copied last.
    float* rows;
    int64_t held[kRows];
  };

  // Calls each(first of them in the block, image, row of tiles, first column, one past the last) for tiles of a row.
  template <class Each>
  void for_rows(const Block& b, const Each& each) const {
    for (int64_t tile = b.first; tile < b.first + b.n;) {
      const int64_t row = tile / t_.columns, column = tile % t_.columns,
                    last = std::min(t_.columns, column + b.first + b.n - tile);
      each(tile - b.first, row / t_.rows, row % t_.rows, column, last);
      tile += last - column;
    }
  }

  int height(int64_t line) const { return line == t_.rows - 1 ? bottom_ : int(kSide); }
  int width(int64_t column) const { return column == t_.columns - 1 ? right_ : int(kSide); }

  void place(int64_t first, Block& b) const {
    b.first = first, b.n = std::min(t_.block, t_.tiles - first);
    const auto kind = [&](int64_t line, int64_t column) {
      return height(line) == kSide ? int(width(column) == kSide) : 3 - int(width(column) == kSide);
    };
    const auto each = [&](const auto& put) {
      for_rows(b, [&](int64_t tile, int64_t, int64_t line, int64_t column, int64_t last) {
        for (; column < last; ++column, ++tile) put(tile, kind(line, column));
      });
    };
    std::fill_n(b.kinds, 4, 0);
    each([&](int64_t, int kind) { ++b.kinds[kind]; });
    int64_t next[4] = {0, b.kinds[0], b.kinds[0] + b.kinds[1], b.n - b.kinds[3]};
    each([&](int64_t tile, int kind) { b.slots[tile] = next[kind]++; });
  }

  bool in_place() const { return a_.x.channel_stride == 1; }

  void transform(Block& b) const {
    static thread_local Scratch<float> scratch;
    float* const zeros = scratch.reserve(a_.x.channels);
    std::fill_n(zeros, a_.x.channels, 0.0f);
    const DType dtype = in_place() ? a_.dtype : DType::float32;
    const int64_t step = in_place() ? a_.x.column_stride : row_;
    WidthWinograd6Input in{};
    in.dtype = dtype, in.position = t_.position;
    for_rows(b, [&](int64_t tile, int64_t image, int64_t line, int64_t column, int64_t last) {
      in.height = height(line);
      for (int64_t i = 0; i < in.height + 2; ++i) {
        const int64_t at = kSide * line - a_.vertical.padding + i;
        const bool inside = at >= 0 && at < a_.x.height;
        in.rows[i] = inside ? row(image, at, b) : zeros, in.steps[i] = inside ? step : 0;
      }
      for (; column < last; ++column, ++tile) {
        in.width = width(column), in.to = b.x + b.slots[tile] * t_.tile;
        in.left = kSide * column - a_.horizontal.padding;
        in.first = int(std::clamp<int64_t>(-in.left, 0, in.width + 2));
        in.last = int(std::clamp<int64_t>(a_.x.width - in.left, in.first, in.width + 2));
        for (in.begin = 0; in.begin < a_.x.channels; in.begin = in.end, in.to += t_.block * t_.tile) {
          in.end = std::min(in.begin + t_.chunk, a_.x.channels);
          transform_.input(in);
        }
      }
    });
  }

  const void* row(int64_t image, int64_t at, Block& b) const {
    static thread_local Scratch<float> scratch;
    const Images& x = a_.x;
    const void* const from = advance(x.data, image * x.image_stride + at * x.row_stride, a_.dtype);
    if (in_place()) return from;
    if (!b.rows) {
      b.rows = scratch.reserve(kRows * x.width * row_);
      std::fill_n(b.held, kRows, -1);
    }
    const int64_t slot = at % kRows, id = image * x.height + at;
    float* const to = b.rows + slot * x.width * row_;
    if (b.held[slot] != id)
      run_.load({from, to, x.channel_stride, x.column_stride, row_, x.channels, x.width, a_.dtype, true});
    b.held[slot] = id;
    return to;
  }

  int64_t vectors(int64_t start) const { return ceil_div(std::min(a_.y.channels - start, t_.span), run_.lanes); }

  // Channels [c, c + n) of x of a block of output channels.
  void transform_weights(int64_t block, int64_t c, int64_t n, float* to) const {
    // Channels of x that a block of the weight keeps together, elements of the weight of one or of two of them.
    const int64_t together = kWidthBlock * (pairs_ ? 2 : 1), shared = pairs_ ? 2 : 1, row = kWidthBlock * shared,
                  stored = ceil_div(a_.weight.in_channels, shared), taps = a_.weight.taps;
    const DType dtype = pairs_ ? DType::bfloat16 : DType::float32;
    const void* const weight = pairs_ ? static_cast<const void*>(a_.pairs) : a_.packed;
    for (int64_t i = c; i < c + n; i += together, to += together * kWidthBlock) {
      const int64_t kept = std::min(kWidthBlock, stored - i / shared);
      transform_.weights({advance(weight, (block * stored + i / shared) * taps * row, dtype), kept * row,
                          std::min(together, c + n - i), to, weights_});
    }
  }

  void multiply(int64_t start, const Block& b) const {
    constexpr WidthTap kTap{0, 0};
    const int64_t vectors = this->vectors(start), floats = vectors * run_.lanes, blocks = ceil_div(floats, kWidthBlock),
                  most = run_.pixels(int(vectors));
    const float* x = b.x;
    WidthTile t{};
    t.dtype = DType::float32, t.vectors = int(vectors);
    t.tap = &kTap, t.taps = t.weight_taps = 1, t.block_stride = kPositions * weights_;
    for (int64_t c = 0; c < a_.x.channels; c += t_.chunk, x += t_.block * t_.tile) {
      t.first = c == 0, t.end = t.stored = t.block = std::min(t_.chunk, a_.x.channels - c);
      for (int64_t i = 0; i < blocks; ++i)
        transform_weights(start / kWidthBlock + i, c, t.end, b.weights + i * t.block_stride);
      for (int64_t p = 0; p < kPositions; ++p) {
        const bool bottom = has(bottom_, p / kRows), right = has(right_, p % kRows);
        int64_t tile = right ? 0 : b.kinds[0];
        const int64_t end = bottom ? b.n - (right ? 0 : b.kinds[3]) : b.kinds[0] + b.kinds[1];
        t.weight = b.weights + p * weights_;
        for (; tile < end; tile += t.pixels) {
          const int64_t left = end - tile;
          t.pixels = int(left >= 2 * most ? most : left > most ? (left + 1) / 2 : left);
          for (int i = 0; i < t.pixels; ++i) t.at[i] = x + (tile + i) * t_.tile + p * t_.position;
          t.sums = b.sums + p * odd_lines(t_.block * floats) + tile * floats;
          run_.accumulate(t);
        }
      }
    }
  }

  // Results from sums.
  void finish(int64_t start, const Block& b) const {
    const Images& y = a_.y;
    const int64_t floats = vectors(start) * run_.lanes, channels = std::min(y.channels - start, t_.span);
    const bool direct = y.channel_stride == 1 && channels == floats;
    const DType dtype = direct ? a_.dtype : DType::float32;
    WidthWinograd6Output out{};
    out.position = odd_lines(t_.block * floats), out.vectors = int(vectors(start));
    out.scale = scale_ + start, out.bias = bias_ + start, out.relu = a_.relu;
    out.dtype = dtype, out.step = direct ? y.column_stride : floats;
    for_rows(b, [&](int64_t tile, int64_t image, int64_t line, int64_t column, int64_t last) {
      const int64_t left = kSide * column, width = std::min(kSide * last, y.width) - left,
                    height = std::min(kSide, y.height - kSide * line);
      const auto row = [&](int64_t i) {
        return advance(y.data,
                       image * y.image_stride + start * y.channel_stride + (kSide * line + i) * y.row_stride +
                           left * y.column_stride,
                       a_.dtype);
      };
      const auto result = [&](int64_t i) { return b.results + i * kSide * t_.block * floats; };
      out.height = this->height(line), out.rows = int(height);
      for (int64_t j = 0; j < width; j += kSide, ++column, ++tile) {
        out.width = this->width(column), out.columns = int(std::min(kSide, width - j));
        out.sums = b.sums + b.slots[tile] * floats;
        for (int64_t i = 0; i < height; ++i) out.to[i] = advance(direct ? row(i) : result(i), j * out.step, dtype);
        transform_.output(out);
      }
      const bool channels_last = y.channel_stride == 1;
      for (int64_t i = 0; !direct && i < height; ++i)
        run_.store({result(i), row(i), floats, 1, channels_last ? y.column_stride : y.channel_stride, width, channels,
                    a_.dtype, !channels_last});
    });
  }

  const WidthConv2dArgs& a_;
  const Parallel& parallel_;
  const bool pairs_;
  const WidthConv2dKernels run_;
  const WidthWinograd6Kernels transform_;
  const Tiling t_;
  const int64_t row_, weights_;  // floats of a pixel of a copied row; of a position of transformed weights
  const int bottom_, right_;     // results a side of the last tiles of an image
  const float *scale_, *bias_;
};

// Whether it takes clearly less time than direct products.
bool pays(const WidthConv2dArgs& a) {
  const Tiling t(a, width_conv2d_kernels());
  const int64_t outputs = width_blocks(a.y.channels), both = a.x.channels * outputs,
                points = a.y.n * points_of(a.y.height) * points_of(a.y.width),
                taps = a.y.n * taps_inside(a.vertical, a.x.height, a.y.height) *
                       taps_inside(a.horizontal, a.x.width, a.y.width);
  const int64_t cost = both * (points + t.blocks * kWeightsCost) +
                       t.tiles * (width_blocks(a.x.channels) * kInputCost + outputs * kOutputCost);
  return 10 * cost < 9 * (taps * both / (of_pairs(a) ? 2 : 1));
}

}  // namespace

bool width_conv2d_by_winograd6(const WidthConv2dArgs& a) {
  const bool can = a.dtype == DType::bfloat16 && is_plain(a.vertical) && is_plain(a.horizontal) && a.groups == 1 &&
                   a.x.channels > 0 && (of_pairs(a) || (a.packed && !a.pairs));
  return can && a.products != WidthProducts::direct && (a.products == WidthProducts::winograd || pays(a));
}

void width_winograd6(const WidthConv2dArgs& args, const Parallel& parallel) { WidthWinograd6(args, parallel).run(); }

}  // namespace lcs
