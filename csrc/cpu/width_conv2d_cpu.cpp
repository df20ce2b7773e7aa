#include "lcs/width_conv2d.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "scratch.h"
#include "walk.h"
#include "width_conv2d_kernels.h"

namespace lcs {
namespace {

constexpr int64_t kPanelPixels = 400;       // whose sums and weights stay in the second-level cache
constexpr int64_t kPanelBytes = 320 << 10;  // of that cache
constexpr int64_t kLeastPixels = 48;        // of a panel that is split to keep the threads even
constexpr int64_t kTasks = 8;               // enough to do so
constexpr int64_t kTerms = 640;             // that pay for coming back to their sums

WidthConv2dKernels kernels() {
  return best(scalar::width_conv2d_kernels, avx2::width_conv2d_kernels, avx512::width_conv2d_kernels);
}

// The first `out` by `in` channels of a weight.
void pack(const WidthWeight& w, int64_t out, int64_t in, float* packed, const Parallel& parallel) {
  const WidthConv2dKernels run = kernels();
  const int64_t row = w.in_channels * w.taps, block = in * w.taps * kWidthBlock;
  parallel(width_blocks(out), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t rows = std::min(kWidthBlock, out - b * kWidthBlock);
      if (rows < kWidthBlock) std::memset(packed + b * block, 0, size_t(block) * sizeof(float));
      run.load({advance(w.data, b * kWidthBlock * row, w.dtype), packed + b * block, row, 1, kWidthBlock, rows,
                in * w.taps, w.dtype, true});
    }
  });
}

// Panels are bands of rows of an image, or several small images. The input of a panel is a strip, channels last with
// its padding, in which each tap of each output position is at a fixed distance: a copy, or x where it is one already.
class WidthConv2d {
 public:
  WidthConv2d(const WidthConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        run_(kernels()),
        rows_(args.vertical),
        columns_(args.horizontal),
        taps_(args.vertical.kernel * args.horizontal.kernel),
        depthwise_(args.groups > 1 && args.groups == args.x.channels && args.groups == args.y.channels),
        groups_(depthwise_ ? 1 : args.groups),
        outputs_(args.y.channels / groups_),
        inputs_(depthwise_ ? 1 : args.x.channels / groups_),
        span_(run_.lanes * run_.max_vectors),
        tiles_(groups_ == 1 ? ceil_div(outputs_, span_) : (outputs_ + kWidthBlock - 2) / span_ + 1) {
    in_place_ = a_.x.channel_stride == 1 && a_.dtype == DType::float32 && !depthwise_ && rows_.padding == 0 &&
                columns_.padding == 0;
    // No even number of cache lines, so that neighbours do not fall on the same sets.
    column_ = a_.x.channels + (a_.x.channels % 32 == 0 ? 16 : 0);
    if (in_place_) column_ = columns_.step * a_.x.column_stride;
    row_ = in_place_ ? rows_.step * a_.x.row_stride : columns_.length(a_.y.width) * column_;
    choose_panels();
    chunk_ = std::max<int64_t>(ceil_div(inputs_, std::max<int64_t>(ceil_div(inputs_ * taps_, kTerms), 1)), 1);
  }

  void run() {
    static thread_local Scratch<int64_t> places;
    static thread_local Scratch<float> affine, block;
    if (a_.packed) {
      weight_ = a_.packed;
      block_stride_ = a_.weight.in_channels * taps_ * kWidthBlock;
    } else {
      block_stride_ = a_.x.channels / a_.groups * taps_ * kWidthBlock;
      float* const packed = block.reserve(width_blocks(a_.y.channels) * block_stride_);
      pack(a_.weight, a_.y.channels, a_.x.channels / a_.groups, packed, parallel_);
      weight_ = packed;
    }
    fill_places(places.reserve(panel_pixels() + chunk_ * taps_));
    fill_affine(affine.reserve(2 * (ceil_div(a_.y.channels, span_) + 1) * span_));
    panels_ = ceil_div(a_.x.n, images_) * bands_;
    panels_ < kTasks ? run_together() : run_apart();
  }

 private:
  int64_t panel_pixels() const { return images_ * band_ * a_.y.width; }
  int64_t strip_floats() const { return images_ * image_; }

  void choose_panels() {
    const int64_t height = a_.y.height, width = a_.y.width, n = a_.x.n;
    const auto strip_bytes = [&](int64_t band) {
      return int64_t{4} * rows_.length(band) * columns_.length(width) * column_;
    };
    band_ = std::clamp<int64_t>(kPanelPixels / width, 1, height);
    while (band_ > 1 && strip_bytes(band_) > kPanelBytes) --band_;
    bands_ = ceil_div(height, band_);
    images_ = 1;
    if (bands_ == 1)
      images_ = std::clamp<int64_t>(std::min(kPanelPixels / (height * width), kPanelBytes / strip_bytes(height)), 1, n);
    const auto tasks = [&] { return ceil_div(n, images_) * bands_ * tiles_ * groups_; };
    while (images_ > 1 && tasks() < kTasks && images_ * height * width >= 2 * kLeastPixels)
      images_ = ceil_div(images_, 2);
    while (images_ == 1 && bands_ < height && tasks() < kTasks && ceil_div(height, 2 * bands_) * width >= kLeastPixels)
      bands_ = std::min(2 * bands_, height);
    band_ = ceil_div(height, bands_);
    bands_ = ceil_div(height, band_);
    image_ = in_place_ ? a_.x.image_stride : rows_.length(band_) * row_;
  }

  // Of the positions of a panel, and of the terms of a chunk of channels.
  void fill_places(int64_t* to) {
    pixel_ = to;
    for (int64_t image = 0; image < images_; ++image)
      for (int64_t row = 0; row < band_; ++row)
        for (int64_t column = 0; column < a_.y.width; ++column)
          *to++ = image * image_ + row * rows_.stride * row_ + column * columns_.stride * column_;
    offset_ = to;
    for (int64_t c = 0; c < chunk_; ++c)
      for (int64_t i = 0; i < rows_.kernel; ++i)
        for (int64_t j = 0; j < columns_.kernel; ++j)
          *to++ = c + i * rows_.dilation * row_ + j * columns_.dilation * column_;
  }

  // Scales and biases of whole tiles.
  void fill_affine(float* to) {
    const int64_t n = a_.y.channels, whole = (ceil_div(n, span_) + 1) * span_;
    scale_ = to;
    bias_ = to + whole;
    std::fill(to, to + whole, 1.0f);
    std::fill(to + whole, to + 2 * whole, 0.0f);
    if (a_.scale) std::copy(a_.scale, a_.scale + n, to);
    if (a_.bias) std::copy(a_.bias, a_.bias + n, to + whole);
  }

  // Many panels: each is filled and used by one thread.
  void run_apart() const {
    parallel_(panels_, 1, [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> scratch;
      float* const strip = in_place_ ? nullptr : scratch.reserve(strip_floats() + span_);
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t i = 0; strip && i < images_ * rows_.length(band_); ++i) fill(panel, i, strip);
        const float* const x = strip ? strip : in_place(panel);
        for (int64_t tile = 0; tile < tiles_ * groups_; ++tile) multiply(panel, tile, x);
      }
    });
  }

  // Few: all threads fill them, then share out the tiles, so that each weight is read by few of them.
  void run_together() const {
    static thread_local Scratch<float> strips;
    float* x = nullptr;
    if (!in_place_) {
      x = strips.reserve(panels_ * strip_floats() + span_);
      const int64_t rows = images_ * rows_.length(band_);
      parallel_(panels_ * rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) fill(i / rows, i % rows, x + i / rows * strip_floats());
      });
    }
    parallel_(panels_ * tiles_ * groups_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t panel = i % panels_;
        multiply(panel, i / panels_, in_place_ ? in_place(panel) : x + panel * strip_floats());
      }
    });
  }

  const float* in_place(int64_t panel) const {
    return static_cast<const float*>(a_.x.data) + panel / bands_ * images_ * image_ +
           panel % bands_ * band_ * rows_.stride * row_;
  }

  // Row `at` of the strip of a panel, counted over its images.
  void fill(int64_t panel, int64_t at, float* strip) const {
    const int64_t rows = rows_.length(band_), columns = columns_.length(a_.y.width);
    const int64_t image = panel / bands_ * images_ + at / rows, row = panel % bands_ * band_ * rows_.stride + at % rows;
    float* const to = strip + at / rows * image_ + at % rows * row_;
    const int64_t begin = std::min(columns_.first(), columns),
                  end = std::clamp(columns_.last(a_.x.width), begin, columns);
    if (image >= a_.x.n || row < rows_.first() || row >= rows_.last(a_.x.height) || begin == end)
      return clear(to, columns);
    clear(to, begin);
    clear(to + end * column_, columns - end);
    const Images& x = a_.x;
    const int64_t from = image * x.image_stride + (row * rows_.step - rows_.padding) * x.row_stride +
                         (begin * columns_.step - columns_.padding) * x.column_stride;
    const int64_t step = columns_.step * x.column_stride;
    if (x.channel_stride == 1 && step == column_)
      run_.load({advance(x.data, from, a_.dtype), to + begin * column_, 0, 1, 0, 1, (end - begin) * column_, a_.dtype,
                 false});
    else if (x.channel_stride == 1)
      run_.load({advance(x.data, from, a_.dtype), to + begin * column_, step, 1, column_, end - begin, x.channels,
                 a_.dtype, false});
    else
      run_.load({advance(x.data, from, a_.dtype), to + begin * column_, x.channel_stride, step, column_, x.channels,
                 end - begin, a_.dtype, true});
  }

  void clear(float* to, int64_t columns) const { std::memset(to, 0, size_t(columns * column_) * sizeof(float)); }

  void multiply(int64_t panel, int64_t tile, const float* x) const {
    const int64_t first = tile / tiles_ * outputs_, end = first + outputs_;
    const int64_t start = first / kWidthBlock * kWidthBlock + tile % tiles_ * span_;
    if (start >= end) return;  // a group that needs no more tiles than others may
    static thread_local Scratch<float> scratch;
    const int64_t rows = std::min(band_, a_.y.height - panel % bands_ * band_);
    const int64_t images = std::min(images_, a_.x.n - panel / bands_ * images_);
    const int64_t vectors = std::min<int64_t>(run_.max_vectors, ceil_div(end - start, run_.lanes));
    // Whole tiles of float32 channels last are summed where they belong.
    const bool direct =
        a_.y.channel_stride == 1 && a_.dtype == DType::float32 && start >= first && start + vectors * run_.lanes <= end;
    const int64_t stride = direct ? a_.y.channels : vectors * run_.lanes;
    float* const sums = direct ? static_cast<float*>(output(panel, start)) : scratch.reserve(panel_pixels() * stride);
    x += depthwise_ ? start : tile / tiles_ * inputs_;
    const float* const weight = weight_ + start / kWidthBlock * block_stride_;
    for (int64_t c = 0; c == 0 || c < inputs_; c += chunk_)
      run_.accumulate({x + c, pixel_, images * rows * a_.y.width, offset_, std::min(chunk_, inputs_ - c) * taps_,
                       weight + c * taps_ * kWidthBlock, block_stride_, int(vectors), sums, stride, scale_ + start,
                       bias_ + start, c == 0, c + chunk_ >= inputs_, a_.relu, depthwise_});
    const int64_t begin = std::max(start, first);
    if (!direct) write(panel, rows, images, begin, std::min(start + span_, end), sums + begin - start, stride);
  }

  // Where a panel's results of a channel begin.
  void* output(int64_t panel, int64_t channel) const {
    const int64_t image = panel / bands_ * images_, row = panel % bands_ * band_;
    return advance(a_.y.data, image * a_.y.image_stride + row * a_.y.row_stride + channel * a_.y.channel_stride,
                   a_.dtype);
  }

  // Channels [begin, end) of the sums of a panel, `stride` floats a position, to where they belong.
  void write(int64_t panel, int64_t rows, int64_t images, int64_t begin, int64_t end, const float* sums,
             int64_t stride) const {
    const Images& y = a_.y;
    const int64_t pixels = rows * y.width;
    void* const to = output(panel, begin);
    if (y.channel_stride == 1)
      return run_.store({sums, to, stride, 1, y.channels, images * pixels, end - begin, a_.dtype, false});
    for (int64_t i = 0; i < images; ++i)
      run_.store({sums + i * pixels * stride, advance(to, i * y.image_stride, a_.dtype), stride, 1, y.channel_stride,
                  pixels, end - begin, a_.dtype, true});
  }

  const WidthConv2dArgs& a_;
  const Parallel& parallel_;
  const WidthConv2dKernels run_;
  const Walk rows_, columns_;
  const int64_t taps_;
  const bool depthwise_;
  const int64_t groups_, outputs_, inputs_;  // the last two: channels of a group
  const int64_t span_, tiles_;               // channels of a tile, tiles of a group
  bool in_place_;
  int64_t column_, row_, image_;  // distances in a strip
  int64_t band_, bands_, images_, panels_;
  int64_t chunk_;  // input channels of a call of the kernel
  const int64_t *pixel_, *offset_;
  const float *weight_, *scale_, *bias_;
  int64_t block_stride_;
};

}  // namespace

void width_pack(const WidthWeight& weight, float* packed, const Parallel& parallel) {
  pack(weight, weight.out_channels, weight.in_channels, packed, parallel);
}

void width_conv2d(const WidthConv2dArgs& args, const Parallel& parallel) {
  const Images& y = args.y;
  if (y.n * y.channels * y.height * y.width != 0) WidthConv2d(args, parallel).run();
}

}  // namespace lcs
