#include "lcs/width_conv2d.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "lcs/isa.h"
#include "scratch.h"
#include "walk.h"
#include "width_affine.h"
#include "width_conv2d_kernels.h"
#include "width_depthwise.h"
#include "width_images.h"
#include "width_pack.h"
#include "width_strided.h"
#include "width_winograd.h"
#include "width_winograd6.h"

namespace lcs {
namespace {

constexpr int64_t kPanelPixels = 400;        // whose sums and weights stay in the second-level cache
constexpr int64_t kPanelBytes = 320 << 10;   // of that cache
constexpr int64_t kWeightBytes = 512 << 10;  // of that cache, likewise
constexpr int64_t kPanels = 8;               // enough for each thread to fill its own
constexpr int64_t kFar = 1 << 20;            // bytes of results that it would not keep
constexpr int64_t kLine = 64;                // bytes
constexpr int64_t kTasks = 16;               // enough for threads to share evenly
constexpr int64_t kPartRows = 4;             // that a task has at least

WidthConv2dKernels pair_kernels() {
  return max_isa() >= Isa::amx ? amx::width_conv2d_kernels() : bf16::width_conv2d_kernels();
}

// Panels are bands of rows of an image, or several small images. The input of a panel is x itself where its channels
// lie next to each other, else a strip, a copy with channels last. Each tap of each output position is at a fixed
// distance in either; positions that the same taps reach are computed together, and no padding is. Panels, tiles of
// output channels and parts of a panel's rows, in this order, are shared out among the threads: each reads few weights,
// and those again and again.
class WidthConv2d {
 public:
  WidthConv2d(const WidthConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        pairs_(args.pairs && args.dtype == DType::bfloat16 && args.groups == 1 && max_isa() >= Isa::avx512_bf16),
        run_(pairs_ ? pair_kernels() : width_conv2d_kernels()),
        x_(pairs_ ? paired(args.x) : args.x),
        rows_(args.vertical),
        columns_(args.horizontal),
        groups_(args.groups),
        outputs_(args.y.channels / groups_),
        stored_(pairs_        ? ceil_div(args.weight.in_channels, 2)
                : args.packed ? args.weight.in_channels
                              : args.x.channels / args.groups),
        block_stride_(stored_ * args.weight.taps * kWidthBlock),
        span_(run_.lanes *
              (groups_ == 1 && outputs_ <= run_.lanes * run_.max_vectors ? run_.max_vectors : run_.vectors)),
        tiles_(groups_ == 1 ? ceil_div(outputs_, span_) : (outputs_ + kWidthBlock - 2) / span_ + 1) {
    // The taps of a row of few channels are one with as many channels.
    const int64_t kernel = columns_.kernel;
    merged_ = groups_ == 1 && !pairs_ && a_.x.channels > 0 && a_.x.channels < kWidthBlock && a_.x.channels == stored_ &&
              kernel > 1 && columns_.dilation == 1;
    inputs_ = x_.channels / groups_;
    if (merged_) inputs_ = stored_ = block_ = inputs_ * kernel;
    in_place_ = a_.x.channel_stride == 1 && (pairs_ ? whole_pairs(a_.x) : a_.dtype == DType::float32) && !merged_;
    column_ = in_place_ ? columns_.step * x_.column_stride : x_.channels;
    // No even number of cache lines, so that neighbours do not fall on the same sets.
    if (!in_place_ && column_ % 32 == 0) column_ += 16;
    row_ = in_place_ ? rows_.step * x_.row_stride : columns_.length(a_.y.width) * column_;
    far_ = a_.y.n * a_.y.image_stride * size_of(a_.dtype) > kFar;
    choose_panels();
    const int64_t bytes = block_ * taps() * span_ * int64_t{sizeof(float)};
    const int64_t blocks = std::max<int64_t>(ceil_div(inputs_, block_), 1),
                  at_once = std::max<int64_t>(kWeightBytes / bytes, 1);
    chunk_ = ceil_div(blocks, ceil_div(blocks, at_once)) * block_;
  }

  void run() {
    static thread_local Scratch<float> affine, block;
    weight_ = pairs_ ? static_cast<const float*>(static_cast<const void*>(a_.pairs)) : a_.packed;
    if (!weight_) {
      float* const packed = block.reserve(width_blocks(a_.y.channels) * block_stride_);
      width_pack_part(a_.weight, a_.y.channels, a_.x.channels / a_.groups, packed, parallel_);
      weight_ = packed;
    }
    fill_affine(affine.reserve(2 * (ceil_div(a_.y.channels, span_) + 1) * span_));
    row_runs_ = tap_runs(rows_, a_.x.height, a_.y.height);
    column_runs_ = merged_ ? std::vector<TapRun>{{0, a_.y.width, 0, 1}} : tap_runs(columns_, a_.x.width, a_.y.width);
    panels_ = ceil_div(a_.x.n, images_) * bands_;
    const int64_t most = images_ == 1 ? std::max<int64_t>(band_ / kPartRows, 1) : 1;
    part_rows_ = ceil_div(band_, std::clamp<int64_t>(kTasks / (panels_ * tiles_ * groups_), 1, most));
    parts_ = ceil_div(band_, part_rows_);
    if (in_place_) return multiply([this](int64_t panel) { return in_place(panel); });
    panels_ < kPanels ? run_together() : run_apart();
  }

 private:
  int64_t taps() const { return merged_ ? rows_.kernel : rows_.kernel * columns_.kernel; }
  int64_t panel_pixels() const { return images_ * band_ * a_.y.width; }
  int64_t strip_floats() const { return images_ * image_; }

  void choose_panels() {
    const int64_t height = a_.y.height, width = a_.y.width;
    const auto strip_bytes = [&](int64_t band) {
      return int64_t{4} * rows_.length(band) * columns_.length(width) * std::max<int64_t>(column_, 1);
    };
    band_ = std::clamp<int64_t>(kPanelPixels / width, 1, height);
    while (band_ > 1 && !in_place_ && strip_bytes(band_) > kPanelBytes) --band_;
    band_ = piece_of(height, band_);
    bands_ = ceil_div(height, band_);
    images_ = 1;
    if (bands_ == 1) {
      const int64_t fit = in_place_ ? a_.x.n : kPanelBytes / strip_bytes(height);
      images_ = std::clamp<int64_t>(std::min(kPanelPixels / (height * width), fit), 1, a_.x.n);
    }
    images_ = ceil_div(a_.x.n, ceil_div(a_.x.n, images_));
    image_ = in_place_ ? x_.image_stride : rows_.length(band_) * row_;
  }

  // Scales and biases of whole tiles.
  void fill_affine(float* to) {
    const int64_t whole = (ceil_div(a_.y.channels, span_) + 1) * span_;
    lcs::fill_affine(a_, whole, to);
    scale_ = to;
    bias_ = to + whole;
  }

  // Many panels: each is filled by the threads that use it, mostly one.
  void run_apart() const {
    multiply([this, filled = int64_t{-1}](int64_t panel) mutable {
      static thread_local Scratch<float> scratch;
      float* const strip = scratch.reserve(strip_floats() + span_);
      for (int64_t i = 0; panel != filled && i < images_ * rows_.length(band_); ++i) fill(panel, i, strip);
      filled = panel;
      return strip;
    });
  }

  // Few: all threads fill them first.
  void run_together() const {
    static thread_local Scratch<float> strips;
    float* const x = strips.reserve(panels_ * strip_floats() + span_);
    const int64_t rows = images_ * rows_.length(band_);
    parallel_(panels_ * rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fill(i / rows, i % rows, x + i / rows * strip_floats());
    });
    multiply([&](int64_t panel) { return x + panel * strip_floats(); });
  }

  // Where the first tap of the first position is, were x as large as its padding.
  const float* in_place(int64_t panel) const {
    return static_cast<const float*>(a_.x.data) + panel / bands_ * images_ * image_ +
           panel % bands_ * band_ * rows_.stride * row_ - rows_.padding * x_.row_stride -
           columns_.padding * x_.column_stride;
  }

  // Row `at` of the strip of a panel, counted over its images.
  void fill(int64_t panel, int64_t at, float* strip) const {
    const int64_t rows = rows_.length(band_), columns = columns_.length(a_.y.width);
    const int64_t image = panel / bands_ * images_ + at / rows, row = panel % bands_ * band_ * rows_.stride + at % rows;
    float* const to = strip + at / rows * image_ + at % rows * row_;
    const int64_t begin = std::min(columns_.first(), columns),
                  end = std::clamp(columns_.last(a_.x.width), begin, columns);
    if (image >= a_.x.n || row < rows_.first() || row >= rows_.last(a_.x.height)) return;  // no tap reads it
    if (merged_) {
      clear(to, begin);
      clear(to + end * column_, columns - end);
    }
    if (begin == end) return;
    const Images& x = a_.x;
    const int64_t from = image * x.image_stride + (row * rows_.step - rows_.padding) * x.row_stride +
                         (begin * columns_.step - columns_.padding) * x.column_stride;
    const int64_t step = columns_.step * x.column_stride, count = end - begin;
    float* const first = to + begin * column_;
    if (!pairs_) return copy(advance(x.data, from, a_.dtype), step, count, column_, first);
    static thread_local Scratch<float> scratch;
    const int64_t channels = 2 * x_.channels;
    float* const wide = scratch.reserve(count * channels);
    if (channels != x.channels) std::memset(wide, 0, size_t(count * channels) * sizeof(float));
    copy(advance(x.data, from, a_.dtype), step, count, channels, wide);
    if (column_ == x_.channels) return run_.store({wide, first, 0, 1, 0, 1, count * channels, a_.dtype, false});
    run_.store({wide, first, channels, 1, 2 * column_, count, channels, a_.dtype, false});
  }

  // `count` columns, `step` apart, to floats with channels last, `column` apart.
  void copy(const void* from, int64_t step, int64_t count, int64_t column, float* to) const {
    const Images& x = a_.x;
    if (x.channel_stride == 1 && step == column && column == x.channels)
      run_.load({from, to, 0, 1, 0, 1, count * column, a_.dtype, false});
    else if (x.channel_stride == 1)
      run_.load({from, to, step, 1, column, count, x.channels, a_.dtype, false});
    else
      run_.load({from, to, x.channel_stride, step, column, x.channels, count, a_.dtype, true});
  }

  void clear(float* to, int64_t columns) const { std::memset(to, 0, size_t(columns * column_) * sizeof(float)); }

  // All results, a part of a panel in one tile at a time; input_of(panel) is called by the thread that needs it.
  template <class InputOf>
  void multiply(const InputOf& input_of) const {
    const int64_t tiles = tiles_ * groups_;
    parallel_(panels_ * tiles * parts_, 1, [&](int64_t begin, int64_t end) {
      InputOf input = input_of;
      while (begin < end) {  // what is next to each other in one tile
        const int64_t part = begin % parts_, last = std::min(end - begin + part, parts_),
                      panel = begin / parts_ / tiles;
        const int64_t tile = begin / parts_ % tiles;
        begin += last - part;
        multiply(panel, tile, part * part_rows_, last * part_rows_, input(panel),
                 begin < end ? weight_of(begin / parts_ % tiles) : nullptr);
      }
    });
  }

  // The first output channel of a tile, or of the block it is in.
  int64_t start_of(int64_t tile) const {
    return tile / tiles_ * outputs_ / kWidthBlock * kWidthBlock + tile % tiles_ * span_;
  }
  const float* weight_of(int64_t tile) const { return weight_ + start_of(tile) / kWidthBlock * block_stride_; }

  // Of a chunk that begins at input channel c.
  int64_t chunk_end(int64_t c) const {
    const int64_t n = std::min(chunk_, inputs_ - c);
    return c + (run_.begin && n > block_ ? n / block_ * block_ : n);
  }

  // Rows [from, to) of the panel's band in a tile. `later`: the weight of the thread's next tile, or null.
  void multiply(int64_t panel, int64_t tile, int64_t from, int64_t to, const float* x, const float* later) const {
    const int64_t first = tile / tiles_ * outputs_, end = first + outputs_, start = start_of(tile);
    const int64_t top = panel % bands_ * band_, rows = std::min(band_, a_.y.height - top);
    to = std::min(to, rows);
    if (start >= end || from >= to) return;  // of a group that needs no more tiles than others may, or a smaller panel
    const int64_t vectors = ceil_div(std::min(end - start, span_), run_.lanes), floats = vectors * run_.lanes,
                  pixels = rows * a_.y.width;
    // Whole tiles of channels last go where they belong.
    const bool direct = a_.y.channel_stride == 1 && start >= first && start + floats <= end;
    static thread_local Scratch<float> sums, results;
    WidthTile t{};
    t.block = block_, t.stored = stored_, t.block_stride = block_stride_, t.vectors = int(vectors);
    t.weight_taps = taps(), t.scale = scale_ + start, t.bias = bias_ + start;
    t.relu = a_.relu, t.dtype = direct ? a_.dtype : DType::float32;
    // What other tiles of outputs have read is near, as is a strip.
    if (in_place_ && tile == 0)
      t.ahead_lines = int(ceil_div(run_.pixels(t.vectors) * columns_.stride * block_ * 4, taps() * kLine));
    const int64_t images = std::min(images_, a_.x.n - panel / bands_ * images_);
    Span span{top, from, to, images, nullptr, pixels * floats, floats};
    if (direct)
      span.results = output(panel, start), span.image = a_.y.image_stride, span.position = a_.y.channels;
    else
      span.results = results.reserve(panel_pixels() * floats);
    float* const between = chunk_end(0) < inputs_ ? sums.reserve(panel_pixels() * floats) : nullptr;
    do {
      t.first = t.end == 0, t.begin = t.end, t.end = chunk_end(t.begin), t.last = t.end == inputs_;
      t.weight = weight_of(tile) + t.begin * taps() * kWidthBlock;
      t.sums = between;
      const float* const next = t.last ? later : weight_of(tile) + t.end * taps() * kWidthBlock;
      accumulate(t, span, x + tile / tiles_ * inputs_, panels_ < kPanels ? next : nullptr);
    } while (!t.last);
    const int64_t begin = std::max(start, first);
    if (!direct)
      write(panel, pixels, from * a_.y.width, images == 1 ? to * a_.y.width : images * pixels, begin,
            std::min(start + span_, end), static_cast<const float*>(span.results) + begin - start, floats);
  }

  // Rows [from, to) of a band that begins at row `top`, of each of several images; elements of results from image to
  // image, and from position to position.
  struct Span {
    int64_t top, from, to, images;
    void* results;
    int64_t image, position;
  };

  // `later`: the weight that the next call reads, prefetched instead of x, or null.
  void accumulate(WidthTile& t, const Span& s, const float* x, const float* later) const {
    static thread_local Scratch<WidthTap> scratch;
    WidthTap* const taps = scratch.reserve(this->taps());
    const int64_t step = columns_.stride * column_, floats = t.vectors * run_.lanes;
    const int64_t ahead =
        (rows_.kernel - 1) * rows_.dilation * row_ + (columns_.kernel - 1) * columns_.dilation * column_;
    // Cache lines of the later weight: of a block of it, all, and those prefetched so far.
    const int64_t block = (t.end - t.begin) * this->taps(), all = ceil_div(floats, kWidthBlock) * block,
                  turns = ceil_div(t.end - t.begin, block_);
    int64_t fetched = 0;
    if (all == 0) later = nullptr;
    if (later) t.ahead_lines = int(ceil_div(all, std::max<int64_t>(turns * taps_of(t, s), 1)));
    if (run_.begin) run_.begin(t.end - t.begin);
    for (const TapRun& rows : row_runs_) {
      const int64_t begin = std::max(rows.begin - s.top, s.from), end = std::min(rows.end - s.top, s.to);
      for (const TapRun& columns : column_runs_) {
        t.tap = taps, t.taps = 0;
        for (int64_t i = rows.first; i < rows.last; ++i)
          for (int64_t j = columns.first; j < columns.last; ++j)
            taps[t.taps++] = {i * rows_.dilation * row_ + j * columns_.dilation * column_,
                              i * (this->taps() / rows_.kernel) + j};
        int64_t left = s.images * std::max<int64_t>(end - begin, 0) * (columns.end - columns.begin),
                next = share(t, left);
        for (int64_t image = 0; image < s.images; ++image)
          for (int64_t i = begin; i < end; ++i)
            for (int64_t j = columns.begin; j < columns.end;) {
              const int64_t n = std::min(next - t.pixels, columns.end - j);
              place(t, n, x + image * image_ + i * rows_.stride * row_ + j * step, step,
                    advance(s.results, image * s.image + (i * a_.y.width + j) * s.position, t.dtype), s.position);
              j += n;
              if (t.pixels < next) continue;
              t.ahead = t.at[0] + ahead + next * step;
              if (later) {
                t.ahead = later + fetched / block * block_stride_ + fetched % block * kWidthBlock;
                fetched += t.ahead_lines * t.taps * turns;
              }
              run_.accumulate(t);
              if (later && fetched >= all) t.ahead_lines = 0;
              if (t.sums) t.sums += next * floats;
              next = share(t, left -= next);
            }
      }
    }
    if (run_.end) run_.end();
  }

  // Taps of all tiles of a span.
  int64_t taps_of(const WidthTile& t, const Span& s) const {
    int64_t n = 0;
    for (const TapRun& rows : row_runs_)
      for (const TapRun& columns : column_runs_) {
        const int64_t height = std::min(rows.end - s.top, s.to) - std::max(rows.begin - s.top, s.from),
                      positions = s.images * std::max<int64_t>(height, 0) * (columns.end - columns.begin);
        n += ceil_div(positions, run_.pixels(t.vectors)) * (rows.last - rows.first) * (columns.last - columns.first);
      }
    return n;
  }

  // The next n positions of a tile, `step` floats of x and `position` results apart.
  void place(WidthTile& t, int64_t n, const float* at, int64_t step, void* to, int64_t position) const {
    const int64_t bytes = position * size_of(t.dtype),
                  lines = far_ && t.last ? t.vectors * run_.lanes * size_of(t.dtype) / kLine : 0;
    char* const results = static_cast<char*>(to);
    for (int64_t i = 0; i < n; ++i) t.at[t.pixels + i] = at + i * step;
    for (int64_t i = 0; i < n; ++i) t.to[t.pixels + i] = results + i * bytes;
    for (int64_t i = 0; lines && i < n; ++i)
      for (int64_t j = 0; j < lines; ++j) __builtin_prefetch(results + i * bytes + j * kLine, 1);
    t.pixels += int(n);
  }

  // How many of the positions that are left are the next tile. The last two share evenly, but for what costs nothing:
  // few sums leave the multipliers waiting for each other.
  int64_t share(WidthTile& t, int64_t left) const {
    t.pixels = 0;
    const int64_t most = run_.pixels(t.vectors);
    return left >= 2 * most ? most : left > most ? ceil_div(ceil_div(left, 2), run_.rows) * run_.rows : left;
  }

  // Where a panel's results of a channel begin.
  void* output(int64_t panel, int64_t channel) const {
    const int64_t image = panel / bands_ * images_, row = panel % bands_ * band_;
    return advance(a_.y.data, image * a_.y.image_stride + row * a_.y.row_stride + channel * a_.y.channel_stride,
                   a_.dtype);
  }

  // Channels [begin, end) at positions [from, to), of `pixels` an image, to where they belong; `stride` floats of sums
  // a position.
  void write(int64_t panel, int64_t pixels, int64_t from, int64_t to, int64_t begin, int64_t end, const float* sums,
             int64_t stride) const {
    const Images& y = a_.y;
    for (int64_t next; from < to; from = next) {
      const int64_t image = from / pixels;
      next = std::min(to, (image + 1) * pixels);
      void* const at =
          advance(output(panel, begin), image * y.image_stride + from % pixels * y.column_stride, a_.dtype);
      const float* const source = sums + from * stride;
      if (y.channel_stride == 1)
        run_.store({source, at, stride, 1, y.channels, next - from, end - begin, a_.dtype, false});
      else
        run_.store({source, at, stride, 1, y.channel_stride, next - from, end - begin, a_.dtype, true});
    }
  }

  // Whether pairs of compact channels lie where floats may.
  static bool whole_pairs(const Images& x) {
    return x.channels % 2 == 0 && reinterpret_cast<uintptr_t>(x.data) % sizeof(float) == 0;
  }

  // Images of bfloat16 as images of pairs of their channels, which are floats to all but the kernel.
  static Images paired(Images x) {
    x.channels = ceil_div(x.channels, 2);
    x.image_stride /= 2, x.row_stride /= 2, x.column_stride /= 2;
    return x;
  }

  const WidthConv2dArgs& a_;
  const Parallel& parallel_;
  const bool pairs_;
  const WidthConv2dKernels run_;
  const Images x_;
  const Walk rows_, columns_;
  const int64_t groups_, outputs_;  // the latter: channels of a group
  int64_t stored_;                  // input channels of the weight that is read
  const int64_t block_stride_;
  const int64_t span_, tiles_;  // channels of a tile, tiles of a group
  bool merged_, in_place_, far_;
  int64_t inputs_;                // channels of a group
  int64_t block_ = kWidthBlock;   // input channels that the weight keeps together
  int64_t column_, row_, image_;  // distances in a strip
  int64_t band_, bands_, images_, panels_, part_rows_, parts_;
  int64_t chunk_;  // input channels of a call of the kernel
  std::vector<TapRun> row_runs_, column_runs_;
  const float *weight_, *scale_, *bias_;
};

void convolve(const WidthConv2dArgs& args, const Parallel& parallel) {
  if (width_conv2d_depthwise(args)) return width_depthwise(args, parallel);
  if (width_conv2d_by_winograd(args))
    width_winograd(args, parallel);
  else if (width_conv2d_by_winograd6(args))
    width_winograd6(args, parallel);
  else if (width_conv2d_strided(args))
    WidthStrided(args, nullptr, parallel).run(parallel);
  else
    WidthConv2d(args, parallel).run();
  width_lower(args, parallel);
}

// With the residual.
void add_up(const WidthConv2dArgs& whole, const Parallel& parallel) {
  WidthConv2dArgs args = whole;
  args.products = width_products(whole);
  for_images(args, parallel, [&](int64_t begin, int64_t end, const Parallel& threads) {
    WidthConv2dArgs part = args;
    part.x.n = part.y.n = end - begin;
    part.x.data = advance(args.x.data, begin * args.x.image_stride, args.dtype);
    part.y.data = advance(args.y.data, begin * args.y.image_stride, args.dtype);
    part.residual = advance(args.residual, begin * args.y.image_stride, args.dtype);
    WidthConv2dArgs sums = part;
    sums.relu = false, sums.cap = std::numeric_limits<float>::infinity();
    convolve(sums, threads);
    width_add(part, threads);
  });
}

}  // namespace

void width_conv2d(const WidthConv2dArgs& args, const Parallel& parallel) {
  const Images& y = args.y;
  if (y.n * y.channels * y.height * y.width == 0) return;
  args.residual ? add_up(args, parallel) : convolve(args, parallel);
}

}  // namespace lcs
