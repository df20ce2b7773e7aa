#include "lcs/sparse_conv2d.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "dispatch.h"
#include "scratch.h"
#include "sparse_conv2d_kernels.h"

namespace lcs {
namespace {

constexpr int64_t kPanelBytes = 512 << 10;  // about half a core's second-level cache
constexpr int kNeighbours = 14;             // vectors of a tile whose lanes are neighbours
constexpr int64_t kImagesAtOnce = 128;      // of a single pixel each
constexpr int64_t kFewPositions = 256;      // of an image, whose vectors may be of images
constexpr int64_t kVeryFewPositions = 64;   // the same where all images fit one vector
constexpr int64_t kTasks = 8;               // enough to keep the threads even
constexpr int64_t kStreamed = 8 << 20;      // bytes of a result that the caches would not hold
constexpr int64_t kTilesToPrepare = 4;      // tiles that pay for looking up all distances first

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the taps of one axis find their input once it is split by its remainders modulo the stride ("phases"), so that
// neighbours in the output read neighbours. Phase p holds the padded coordinates p, p + stride, ...
struct Phases {
  std::vector<int64_t> used;           // remainders that some tap reads
  std::vector<int64_t> phase, offset;  // of each tap: place in `used`, and distance in that phase
  int64_t reach = 0;                   // the largest offset

  explicit Phases(const Axis& axis) {
    for (int64_t k = 0; k < axis.kernel; ++k) {
      const int64_t at = k * axis.dilation, remainder = at % axis.stride;
      const auto found = std::find(used.begin(), used.end(), remainder);
      phase.push_back(found - used.begin());
      if (found == used.end()) used.push_back(remainder);
      offset.push_back(at / axis.stride);
      reach = std::max(reach, offset.back());
    }
  }
};

// The coordinates o in [0, n) of phase `remainder` that fall on the input, o * stride + remainder - padding in [0,
// size).
struct Inside {
  int64_t begin, end, first;  // first: the input coordinate of `begin`

  Inside(const Axis& axis, int64_t remainder, int64_t size, int64_t from, int64_t n) {
    const int64_t shift = axis.padding - remainder;  // input = o * stride - shift
    begin = std::clamp(shift <= 0 ? int64_t{0} : ceil_div(shift, axis.stride), from, from + n);
    end = std::clamp(size + shift <= 0 ? int64_t{0} : ceil_div(size + shift, axis.stride), begin, from + n);
    first = begin * axis.stride - shift;
  }
};

// A convolution on panels: float32 copies of a band of the input in which every tap of every output position is at a
// fixed distance. Positions run along rows of `pitch`, then over the band's rows; each holds `lanes` images.
class SparseConv2d {
 public:
  SparseConv2d(const SparseConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        run_(best(scalar::sparse_conv2d_kernels, avx2::sparse_conv2d_kernels, avx512::sparse_conv2d_kernels)),
        lanes_(choose_lanes()),
        rows_(args.vertical),
        columns_(args.horizontal),
        taps_(args.vertical.kernel * args.horizontal.kernel) {
    pitch_ = a_.y.width + columns_.reach - shared_padding();
    const int64_t row_bytes = int64_t(phases()) * pitch_ * lanes_ * a_.x.channels * 4;
    const int64_t least = std::min(a_.y.height, 2 * rows_.reach + 2);
    const int64_t rows = std::clamp(kPanelBytes / std::max<int64_t>(row_bytes, 1) - rows_.reach, least, a_.y.height);
    bands_ = lanes_ > 1 ? 1 : ceil_div(a_.y.height, rows);
    if (images() * bands_ < kTasks / 4) bands_ = std::min(a_.y.height, kTasks / 4 / images());
    band_ = ceil_div(a_.y.height, bands_);
    bands_ = ceil_div(a_.y.height, band_);
    plane_ = (band_ + rows_.reach) * pitch_ * lanes_;
    // An odd number of cache lines, so that channels do not fall on the same sets.
    channel_ = (ceil_div(phases() * plane_ + columns_.reach * lanes_, 16) | 1) * 16;
    stream_ = may_stream();
    offsets();
  }

  void run() {
    const int64_t panels = images() * bands_;
    panels >= kTasks ? run_many(panels) : run_few(panels);
  }

 private:
  int64_t images() const { return ceil_div(a_.x.n, lanes_); }
  int64_t phases() const { return int64_t(rows_.used.size() * columns_.used.size()); }
  int64_t vectors(int64_t height) const { return ceil_div(((height - 1) * pitch_ + a_.y.width) * lanes_, run_.lanes); }
  int64_t tiles() const { return ceil_div(vectors(band_), tile_vectors()); }  // of a panel
  int64_t panel_floats() const { return a_.x.channels * channel_ + run_.max_vectors * run_.lanes; }

  // How many images share a position: one, and a vector spans neighbours; or, where an image has few of them, vectors
  // of images, which every tap reads at whole vectors. Those of several positions are short, as long ones would leave
  // one panel for all threads.
  int64_t choose_lanes() {
    const int64_t n = a_.x.n, positions = a_.y.height * a_.y.width;
    if (positions == 1) {
      const int64_t vectors = ceil_div(n, run_.lanes),
                    most = std::min<int64_t>(run_.max_vectors, kImagesAtOnce / run_.lanes);
      return ceil_div(vectors, ceil_div(vectors, most)) * run_.lanes;
    }
    if (max_isa() < Isa::avx2) return 1;
    const SparseConv2dKernels narrow = avx2::sparse_conv2d_kernels();
    const bool filled = 4 * n >= 3 * ceil_div(n, narrow.lanes) * narrow.lanes;
    if (!filled || positions > (n > narrow.lanes ? kFewPositions : kVeryFewPositions)) return 1;
    run_ = narrow;
    return narrow.lanes;
  }

  // Where vectors span neighbours, the input of larger tiles falls out of the first-level cache.
  int64_t tile_vectors() const { return lanes_ == 1 ? std::min(run_.max_vectors, kNeighbours) : run_.max_vectors; }

  // Whether y is large, and its rows are whole pieces of `stream_lanes` at such addresses.
  bool may_stream() const {
    const Images& y = a_.y;
    const int64_t unaligned = y.width | y.row_stride | y.channel_stride | y.image_stride;
    return lanes_ == 1 && y.channel_stride != 1 && unaligned % run_.stream_lanes == 0 &&
           reinterpret_cast<uintptr_t>(y.data) % (run_.stream_lanes * size_of(a_.dtype)) == 0 &&
           y.n * y.channels * y.height * y.width * size_of(a_.dtype) >= kStreamed;
  }

  // Zeros right of a row that may serve as those left of the next.
  int64_t shared_padding() const {
    int64_t left = columns_.reach, right = columns_.reach;
    const int64_t width = a_.y.width + columns_.reach;
    for (const int64_t remainder : columns_.used) {
      const Inside inside(a_.horizontal, remainder, a_.x.width, 0, width);
      left = std::min(left, inside.begin);
      right = std::min(right, width - inside.end);
    }
    return std::min(left, right);
  }

  void offsets() {
    const int64_t block = a_.weight.block / taps_;
    for (int64_t c = 0; c < block; ++c)
      for (size_t i = 0; i < rows_.offset.size(); ++i)
        for (size_t j = 0; j < columns_.offset.size(); ++j) {
          const int64_t phase = rows_.phase[i] * int64_t(columns_.used.size()) + columns_.phase[j];
          offset_.push_back(c * channel_ + phase * plane_ + (rows_.offset[i] * pitch_ + columns_.offset[j]) * lanes_);
          reach_ = std::max(reach_, offset_.back());
        }
  }

  // Looks up the offset of each value of rows [begin, end) once, where a thread's `tiles` would do so again and again.
  // Each thread has its own, as writing what another has just read is slow. Null: not worth it.
  const int32_t* distances(int64_t begin, int64_t end, int64_t tiles) const {
    if (tiles < kTilesToPrepare || reach_ > std::numeric_limits<int32_t>::max()) return nullptr;
    static thread_local Scratch<int32_t> scratch;
    const SparsePrepack& w = a_.weight;
    int32_t* const distance = scratch.reserve(std::max<int64_t>(w.start[w.blocks()], 1));
    for (int64_t b = 0; b < w.blocks(); ++b) {
      const int32_t* const count = w.count + b * w.rows;
      int64_t at = std::accumulate(count, count + begin, w.start[b]);
      const int64_t last = std::accumulate(count + begin, count + end, at);
      for (; at < last; ++at) distance[at] = int32_t(offset_[w.index[at]]);
    }
    return distance;
  }

  // Many panels: each is filled and used by one thread.
  void run_many(int64_t panels) const {
    parallel_(panels, 1, [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> panel, sums;
      float* const x = panel.reserve(panel_floats());
      const int32_t* const distance = distances(0, a_.y.channels, (end - begin) * tiles());
      clear(x, 0, a_.x.channels);
      for (int64_t i = begin; i < end; ++i) {
        fill(i, 0, a_.x.channels, x);
        multiply(i, 0, a_.y.channels, x, distance, sums);
      }
      if (stream_) run_.stream_end();
    });
  }

  // Few: all threads fill them, then share out the rows of the weight.
  void run_few(int64_t panels) const {
    static thread_local Scratch<float> panel;
    float* const x = panel.reserve(panels * panel_floats());
    const int64_t channels = std::max<int64_t>(ceil_div(a_.x.channels, kTasks), 1),
                  rows = ceil_div(a_.y.channels, ceil_div(kTasks, panels));
    const int64_t fills = ceil_div(a_.x.channels, channels), shares = ceil_div(a_.y.channels, rows);
    parallel_(panels * fills, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % fills * channels, last = std::min(a_.x.channels, first + channels);
        clear(x + i / fills * panel_floats(), first, last);
        fill(i / fills, first, last, x + i / fills * panel_floats());
      }
    });
    parallel_(panels * shares, 1, [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> sums;
      for (int64_t i = begin; i < end;) {
        const int64_t stop = std::min(end, (i / shares + 1) * shares);  // shares of the same panel
        const int64_t first = i % shares * rows, last = std::min(a_.y.channels, first + (stop - i) * rows);
        multiply(i / shares, first, last, x + i / shares * panel_floats(), distances(first, last, tiles()), sums);
        i = stop;
      }
      if (stream_) run_.stream_end();
    });
  }

  // Channels [begin, end): what `fill` leaves is the padding left and right of the rows.
  void clear(float* panel, int64_t begin, int64_t end) const {
    std::memset(panel + begin * channel_, 0, size_t((end - begin) * channel_) * sizeof(float));
  }

  const char* input(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    const Images& x = a_.x;
    return static_cast<const char*>(x.data) + size_of(a_.dtype) * (image * x.image_stride + channel * x.channel_stride +
                                                                   row * x.row_stride + column * x.column_stride);
  }

  // Channels [begin, end) of a panel. Rows outside the image are zeros.
  void fill(int64_t panel, int64_t begin, int64_t end, float* to) const {
    const int64_t image = panel / bands_ * lanes_, row0 = panel % bands_ * band_;
    const int64_t height = band_ + rows_.reach, width = a_.y.width + columns_.reach;
    for (size_t i = 0; i < rows_.used.size(); ++i)
      for (size_t j = 0; j < columns_.used.size(); ++j) {
        float* const plane = to + int64_t(i * columns_.used.size() + j) * plane_;
        const Inside rows(a_.vertical, rows_.used[i], a_.x.height, row0, height);
        const Inside columns(a_.horizontal, columns_.used[j], a_.x.width, 0, width);
        for (int64_t c = begin; c < end; ++c) {
          float* const p = plane + c * channel_;
          std::fill(p, p + (rows.begin - row0) * pitch_ * lanes_, 0.0f);
          std::fill(p + (rows.end - row0) * pitch_ * lanes_, p + plane_, 0.0f);
        }
        if (rows.begin == rows.end || columns.begin == columns.end) continue;
        float* const first = plane + ((rows.begin - row0) * pitch_ + columns.begin) * lanes_;
        if (a_.x.channel_stride == 1)
          fill_channels_last(image, begin, end, rows, columns, first);
        else
          for (int64_t c = begin; c < end; ++c) fill_channel(image, c, rows, columns, first + c * channel_);
      }
  }

  // Rows and columns that lie inside the image.
  void fill_channel(int64_t image, int64_t c, const Inside& rows, const Inside& columns, float* to) const {
    const int64_t n = columns.end - columns.begin, images = std::min(lanes_, a_.x.n - image);
    const int64_t step = a_.horizontal.stride, row_stride = a_.vertical.stride * a_.x.row_stride;
    const char* from = input(image, c, rows.first, columns.first);
    if (lanes_ == 1) return load(from, row_stride, step, rows.end - rows.begin, n, to, pitch_, false);
    for (int64_t row = rows.begin; row < rows.end; ++row, from += row_stride * size_of(a_.dtype), to += pitch_ * lanes_)
      load(from, a_.x.image_stride, step, images, n, to, lanes_, true);
  }

  void fill_channels_last(int64_t image, int64_t begin, int64_t end, const Inside& rows, const Inside& columns,
                          float* to) const {
    const int64_t n = columns.end - columns.begin, step = a_.horizontal.stride;
    to += begin * channel_;
    for (int64_t row = rows.begin; row < rows.end; ++row, to += pitch_ * lanes_) {
      const int64_t at = rows.first + (row - rows.begin) * a_.vertical.stride;
      if (lanes_ == 1)
        load(input(image, begin, at, columns.first), step * a_.x.column_stride, 1, n, end - begin, to, channel_, true);
      else
        for (int64_t i = 0; i < n; ++i)
          load(input(image, begin, at, columns.first + i * step), a_.x.image_stride, 1,
               std::min(lanes_, a_.x.n - image), end - begin, to + i * lanes_, channel_, true);
    }
  }

  void load(const void* from, int64_t from_stride, int64_t from_step, int64_t rows, int64_t columns, float* to,
            int64_t to_stride, bool transposed) const {
    run_.load({from, to, from_stride, from_step, to_stride, rows, columns, a_.dtype, transposed});
  }

  // Output channels [begin, end) of a panel: all sums of the band first, so that y is written in long runs.
  void multiply(int64_t panel, int64_t begin, int64_t end, const float* x, const int32_t* distance,
                Scratch<float>& scratch) const {
    const int64_t row0 = panel % bands_ * band_, height = std::min(band_, a_.y.height - row0);
    const int64_t vectors = this->vectors(height), tile = ceil_div(vectors, ceil_div(vectors, tile_vectors()));
    // An odd number of cache lines here too.
    const int64_t stride = (ceil_div(vectors * run_.lanes, 16) | 1) * 16;
    float* const sums = scratch.reserve((end - begin) * stride);
    for (int64_t v = 0; v < vectors; v += tile)
      accumulate(begin, end, x + v * run_.lanes, distance, int(std::min(tile, vectors - v)), sums + v * run_.lanes,
                 stride);
    write(panel / bands_ * lanes_, begin, end, row0, height, sums, stride);
  }

  void accumulate(int64_t begin, int64_t end, const float* x, const int32_t* distance, int vectors, float* sums,
                  int64_t stride) const {
    const SparsePrepack& w = a_.weight;
    const int64_t per_group = a_.y.channels / a_.groups, inputs = a_.x.channels / a_.groups;
    for (int64_t b = 0; b < w.blocks(); ++b) {
      const int32_t* const count = w.count + b * w.rows;
      int64_t at = std::accumulate(count, count + begin, w.start[b]);
      for (int64_t row = begin; row < end;) {
        const int64_t group = row / per_group, stop = std::min(end, (group + 1) * per_group);
        run_.accumulate({x + (group * inputs + b * w.block / taps_) * channel_, distance ? distance + at : nullptr,
                         offset_.data(), count + row, w.index + at, w.values + at, sums + (row - begin) * stride,
                         stride, stop - row, a_.bias ? a_.bias + row : nullptr, vectors, b == 0,
                         a_.relu && b == w.blocks() - 1});
        for (; row < stop && stop < end; ++row) at += count[row];  // of which the last group has no need
        row = stop;
      }
    }
  }

  char* output(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    const Images& y = a_.y;
    return static_cast<char*>(y.data) + size_of(a_.dtype) * (image * y.image_stride + channel * y.channel_stride +
                                                             row * y.row_stride + column * y.column_stride);
  }

  // The sums of `height` rows from row0, `stride` floats an output channel, to where they belong.
  void write(int64_t image, int64_t begin, int64_t end, int64_t row0, int64_t height, const float* sums,
             int64_t stride) const {
    const int64_t images = std::min(lanes_, a_.y.n - image), width = a_.y.width;
    if (a_.y.channel_stride == 1) return write_channels_last(image, images, begin, end, row0, height, sums, stride);
    for (int64_t c = begin; c < end; ++c, sums += stride) {
      if (lanes_ == 1) {
        store(sums, pitch_, height, width, output(image, c, row0, 0), a_.y.row_stride, false);
        continue;
      }
      for (int64_t row = 0; row < height; ++row)
        store(sums + row * pitch_ * lanes_, lanes_, width, images, output(image, c, row0 + row, 0), a_.y.image_stride,
              true);
    }
  }

  void write_channels_last(int64_t image, int64_t images, int64_t begin, int64_t end, int64_t row0, int64_t height,
                           const float* sums, int64_t stride) const {
    for (int64_t row = row0; row < row0 + height; ++row, sums += pitch_ * lanes_)
      if (lanes_ == 1)
        store(sums, stride, end - begin, a_.y.width, output(image, begin, row, 0), a_.y.column_stride, true);
      else
        for (int64_t i = 0; i < a_.y.width; ++i)
          store(sums + i * lanes_, stride, end - begin, images, output(image, begin, row, i), a_.y.image_stride, true);
  }

  void store(const float* from, int64_t from_stride, int64_t rows, int64_t columns, void* to, int64_t to_stride,
             bool transposed) const {
    run_.store({from, to, from_stride, 1, to_stride, rows, columns, a_.dtype, transposed, stream_});
  }

  const SparseConv2dArgs& a_;
  const Parallel& parallel_;
  SparseConv2dKernels run_;
  const int64_t lanes_;
  const Phases rows_, columns_;
  const int64_t taps_;
  int64_t pitch_, bands_, band_, plane_, channel_;
  std::vector<int64_t> offset_;
  int64_t reach_ = 0;  // the largest offset
  bool stream_;
};

}  // namespace

void sparse_conv2d(const SparseConv2dArgs& args, const Parallel& parallel) {
  const Images& y = args.y;
  if (y.n * y.channels * y.height * y.width != 0) SparseConv2d(args, parallel).run();
}

}  // namespace lcs
