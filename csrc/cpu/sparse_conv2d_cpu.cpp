#include "lcs/sparse_conv2d.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "dispatch.h"
#include "scratch.h"
#include "sparse_conv2d_kernels.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kPanelBytes = 512 << 10;    // about half a core's second-level cache
constexpr int64_t kOnlyPanelBytes = 1 << 20;  // the same where sums are written at once
constexpr int kNeighbours = 15;               // vectors of a tile whose lanes are neighbours
constexpr int64_t kImagesAtOnce = 128;        // of a single pixel each
constexpr int64_t kFewPositions = 256;        // of an image, whose vectors may be of images
constexpr int64_t kVeryFewPositions = 64;     // the same where all images, or all their rows, fit few vectors
constexpr int64_t kTasks = 8;                 // enough to keep the threads even
constexpr int64_t kStreamed = 8 << 20;        // bytes of a result that the caches would not hold
constexpr int64_t kTilesToPrepare = 4;        // tiles that pay for looking up all distances first

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

// Tasks that each thread takes from its own range in order, and then from what others have not begun, the last first:
// a thread whose core is slow keeps nobody waiting for long.
class Tasks {
 public:
  struct Some {
    int64_t begin, end;  // equal: none is left
  };

  explicit Tasks(int64_t n) : taken_(n) {}

  class Taker {
   public:
    Taker(Tasks& tasks, int64_t begin, int64_t end) : tasks_(tasks), own_(begin), end_(end), left_(tasks.size()) {}

    Some one() { return some(1); }
    Some half() { return some((end_ - own_ + 1) / 2); }  // of its own that are left, which follow each other

   private:
    Some some(int64_t most) {
      while (own_ < end_ && !tasks_.take(own_)) ++own_;
      if (own_ < end_) {
        const int64_t begin = own_++;
        while (own_ < std::min(end_, begin + most) && tasks_.take(own_)) ++own_;
        return {begin, own_};
      }
      while (left_ > 0)
        if (tasks_.take(--left_)) return {left_, left_ + 1};
      return {0, 0};
    }

    Tasks& tasks_;
    int64_t own_, end_, left_;
  };

 private:
  int64_t size() const { return int64_t(taken_.size()); }
  bool take(int64_t i) {
    return !taken_[i].load(std::memory_order_relaxed) && !taken_[i].exchange(true, std::memory_order_relaxed);
  }

  std::vector<std::atomic<bool>> taken_;
};

// How many strips of each image are left to do.
class Left {
 public:
  Left(int64_t images, int64_t strips) : left_(images) {
    for (std::atomic<int64_t>& left : left_) left = strips;
  }

  // Whether `strips` that are done were the last; what other threads wrote of the image is then seen.
  bool none_after(int64_t image, int64_t strips) { return left_[image].fetch_sub(strips) == strips; }

 private:
  std::vector<std::atomic<int64_t>> left_;
};

// A convolution on panels: float32 copies of `lanes` strips, each some rows of an image, in which every tap of every
// output position is at a fixed distance. Positions run along rows of `pitch`, then over the strip's rows; each holds
// all lanes.
class SparseConv2d {
 public:
  SparseConv2d(const SparseConv2dArgs& args, const Parallel& parallel, const BehindImages& behind)
      : a_(args),
        parallel_(parallel),
        behind_(behind),
        run_(best(scalar::sparse_conv2d_kernels, avx2::sparse_conv2d_kernels, avx512::sparse_conv2d_kernels)),
        rows_(args.vertical),
        columns_(args.horizontal),
        taps_(args.vertical.kernel * args.horizontal.kernel) {
    pitch_ = a_.y.width + columns_.reach - shared_padding();
    choose_strips();
    strips_ = ceil_div(a_.y.height, strip_);
    plane_ = (strip_ + rows_.reach) * pitch_ * lanes_;
    // An odd number of cache lines, so that channels do not fall on the same sets.
    channel_ = (ceil_div(phases() * plane_ + columns_.reach * lanes_, 16) | 1) * 16;
    choose_tiles();
    offsets();
  }

  void run() {
    const int64_t panels = ceil_div(a_.x.n * strips_, lanes_);
    panels >= kTasks ? run_many(panels) : run_few(panels);
  }

 private:
  int64_t phases() const { return int64_t(rows_.used.size() * columns_.used.size()); }
  int64_t vectors(int64_t rows) const { return ceil_div(((rows - 1) * pitch_ + a_.y.width) * lanes_, run_.lanes); }
  int64_t tiles() const { return ceil_div(strip_, tile_rows_) * ceil_div(vectors(tile_rows_), tile_vectors()); }
  int64_t panel_floats() const { return a_.x.channels * channel_ + run_.max_vectors * run_.lanes; }
  int64_t row_bytes(int64_t lanes) const { return phases() * pitch_ * lanes * a_.x.channels * 4; }

  // How many strips share a position, and how high they are. One, and a vector spans neighbours, most of which loads
  // cross a line; or vectors of strips, which every tap reads whole.
  void choose_strips() {
    const int64_t n = a_.x.n, height = a_.y.height;
    lanes_ = 1, strip_ = height;
    if (height * a_.y.width == 1) {
      const int64_t vectors = ceil_div(n, run_.lanes),
                    most = std::min<int64_t>(run_.max_vectors, kImagesAtOnce / run_.lanes);
      lanes_ = ceil_div(vectors, ceil_div(vectors, most)) * run_.lanes;
      return;
    }
    const SparseConv2dKernels narrow = avx2::sparse_conv2d_kernels();
    if (max_isa() >= Isa::avx2)
      if (const int64_t strip = strip_of(narrow.lanes)) {
        run_ = narrow, lanes_ = narrow.lanes, strip_ = strip;
        return;
      }
    large_ = may_stream(), stream_ = large_ && !behind_;
    const int64_t least = std::min(height, 2 * rows_.reach + 2), bytes = large_ ? kOnlyPanelBytes : kPanelBytes;
    strip_ = std::clamp(bytes / std::max<int64_t>(row_bytes(1), 1) - rows_.reach, least, height);
    int64_t strips = ceil_div(height, strip_);
    if (n * strips < kTasks / 4) strips = std::min(height, kTasks / 4 / n);
    strip_ = ceil_div(height, strips);
  }

  // The height of strips, of whole images or single rows, that fill `lanes` lanes well; 0: there is none.
  int64_t strip_of(int64_t lanes) const {
    const int64_t n = a_.x.n, height = a_.y.height, positions = height * a_.y.width;
    const auto fill = [&](int64_t strips) { return 4 * strips >= 3 * ceil_div(strips, lanes) * lanes; };
    if (fill(n) && positions <= (n > lanes ? kFewPositions : kVeryFewPositions)) return height;
    return fill(n * height) && positions <= kVeryFewPositions ? 1 : 0;
  }

  // How many rows of a strip are summed before they are written: where that goes past the caches, few, so that it does
  // not wait until the end, if they take about as few tiles. What comes behind does not change it, nor the sums.
  void choose_tiles() {
    tile_rows_ = strip_;
    if (!large_) return;
    const int64_t all = tiles();
    for (tile_rows_ = 1; 8 * tiles() > 9 * all;) ++tile_rows_;
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
    Tasks tasks(panels);
    const bool each = behind_ && a_.y.n >= kTasks;  // image by image, from the caches
    Left left(each ? a_.y.n : 0, strips_);
    parallel_(panels, 1, [&](int64_t begin, int64_t end) {
      Tasks::Taker taker(tasks, begin, end);
      Tasks::Some some = taker.one();
      if (some.begin == some.end) return;
      static thread_local Scratch<float> panel, sums;
      float* const x = panel.reserve(panel_floats());
      const int32_t* const distance = distances(0, a_.y.channels, (end - begin) * tiles());
      clear(x, 0, a_.x.channels);
      for (; some.begin < some.end; some = taker.one()) {
        fill(some.begin, 0, a_.x.channels, x);
        multiply(some.begin, 0, a_.y.channels, x, distance, sums);
        if (each) finish(some.begin, left);
      }
      if (stream_) run_.stream_end();
    });
    if (behind_ && !each) behind_(0, a_.y.n, parallel_);
  }

  // Does what is behind the images that a panel completes.
  void finish(int64_t panel, Left& left) const {
    runs(panel, [&](const Run& run) {
      if (strips_ == 1)
        behind_(run.image, run.image + run.lanes, serial);
      else if (left.none_after(run.image, run.lanes))
        behind_(run.image, run.image + 1, serial);
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
    Tasks tasks(panels * shares);
    parallel_(panels * shares, 1, [&](int64_t begin, int64_t end) {
      static thread_local Scratch<float> sums;
      Tasks::Taker taker(tasks, begin, end);
      for (Tasks::Some some = taker.half(); some.begin < some.end; some = taker.half())
        for (int64_t i = some.begin; i < some.end;) {
          const int64_t stop = std::min(some.end, (i / shares + 1) * shares);  // shares of the same panel
          const int64_t first = i % shares * rows, last = std::min(a_.y.channels, first + (stop - i) * rows);
          multiply(i / shares, first, last, x + i / shares * panel_floats(), distances(first, last, tiles()), sums);
          i = stop;
        }
      if (stream_) run_.stream_end();
    });
    if (behind_) behind_(0, a_.y.n, parallel_);
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

  // Lanes of a panel whose strips are those of one image, or of images of one strip each: they lie evenly in memory.
  struct Run {
    int64_t lane, lanes, image, row;  // of the first lane: image, and first row of y
  };

  // f(run) for all lanes of a panel that hold a strip.
  template <class F>
  void runs(int64_t panel, F f) const {
    const int64_t first = panel * lanes_, last = std::min(first + lanes_, a_.x.n * strips_);
    for (int64_t at = first; at < last;) {
      const int64_t stop = strips_ == 1 ? last : std::min(last, (at / strips_ + 1) * strips_);
      f(Run{at - first, stop - at, at / strips_, at % strips_ * strip_});
      at = stop;
    }
  }

  // The lanes of a run whose row lies in [0, size): `row` in the first, `step` rows further in each strip of an image.
  Run inside(const Run& run, int64_t row, int64_t step, int64_t size) const {
    if (strips_ == 1) return {run.lane, row < 0 || row >= size ? 0 : run.lanes, run.image, row};
    const int64_t skip = row < 0 ? std::min(ceil_div(-row, step), run.lanes) : 0;
    const int64_t stop = std::clamp(ceil_div(size - row, step), skip, run.lanes);
    return {run.lane + skip, stop - skip, run.image, row + skip * step};
  }

  int64_t lane_stride(const Images& t, int64_t rows) const {
    return strips_ == 1 ? t.image_stride : rows * t.row_stride;
  }

  // One row of a run's lanes: those that lie on the image, and how many there are besides.
  struct Piece {
    int64_t row, lane, lanes;
    Run inside;
  };

  // `rows` rows of all lanes, from row `first` of x or y on: `step` apart in a strip, `apart` from strip to strip.
  std::vector<Piece> pieces(int64_t panel, int64_t rows, int64_t first, int64_t step, int64_t size) const {
    std::vector<Piece> found;
    runs(panel, [&](const Run& run) {
      for (int64_t row = 0; row < rows; ++row)
        found.push_back({row, run.lane, run.lanes, inside(run, (run.row + row) * step + first, strip_ * step, size)});
    });
    return found;
  }

  // Channels [begin, end) of a panel. Rows outside the image are zeros.
  void fill(int64_t panel, int64_t begin, int64_t end, float* to) const {
    const int64_t width = a_.y.width + columns_.reach;
    for (size_t i = 0; i < rows_.used.size(); ++i)
      for (size_t j = 0; j < columns_.used.size(); ++j) {
        float* const plane = to + int64_t(i * columns_.used.size() + j) * plane_;
        const Inside columns(a_.horizontal, columns_.used[j], a_.x.width, 0, width);
        if (lanes_ == 1)
          fill_rows(panel, begin, end, rows_.used[i], columns, plane);
        else
          fill_lanes(
              begin, end,
              pieces(panel, strip_ + rows_.reach, rows_.used[i] - a_.vertical.padding, a_.vertical.stride, a_.x.height),
              columns, plane);
      }
  }

  // All rows of a panel of one strip.
  void fill_rows(int64_t panel, int64_t begin, int64_t end, int64_t remainder, const Inside& columns,
                 float* plane) const {
    const int64_t image = panel / strips_, row0 = panel % strips_ * strip_;
    const Inside rows(a_.vertical, remainder, a_.x.height, row0, strip_ + rows_.reach);
    for (int64_t c = begin; c < end; ++c) {
      float* const p = plane + c * channel_;
      std::fill(p, p + (rows.begin - row0) * pitch_, 0.0f);
      std::fill(p + (rows.end - row0) * pitch_, p + plane_, 0.0f);
    }
    const int64_t n = columns.end - columns.begin, step = a_.horizontal.stride;
    float* to = plane + (rows.begin - row0) * pitch_ + columns.begin;
    if (n == 0 || rows.begin == rows.end) return;
    if (a_.x.channel_stride != 1) {
      for (int64_t c = begin; c < end; ++c)
        load(input(image, c, rows.first, columns.first), a_.vertical.stride * a_.x.row_stride, step,
             rows.end - rows.begin, n, to + c * channel_, pitch_, false);
      return;
    }
    to += begin * channel_;
    for (int64_t row = rows.begin, at = rows.first; row < rows.end; ++row, at += a_.vertical.stride, to += pitch_)
      load(input(image, begin, at, columns.first), step * a_.x.column_stride, 1, n, end - begin, to, channel_, true);
  }

  void fill_lanes(int64_t begin, int64_t end, const std::vector<Piece>& pieces, const Inside& columns,
                  float* plane) const {
    const int64_t n = columns.end - columns.begin, step = a_.horizontal.stride;
    const int64_t stride = lane_stride(a_.x, strip_ * a_.vertical.stride);
    for (int64_t c = begin; c < end; ++c)
      for (const Piece& piece : pieces) {
        const Run& in = piece.inside;
        float* const row = plane + c * channel_ + piece.row * pitch_ * lanes_;
        if (in.lanes < piece.lanes)
          for (int64_t i = 0; i < pitch_; ++i) std::fill_n(row + i * lanes_ + piece.lane, piece.lanes, 0.0f);
        if (in.lanes > 0 && n > 0 && a_.x.channel_stride != 1)
          load(input(in.image, c, in.row, columns.first), stride, step, in.lanes, n,
               row + columns.begin * lanes_ + in.lane, lanes_, true);
      }
    if (a_.x.channel_stride != 1) return;
    for (const Piece& piece : pieces) {
      const Run& in = piece.inside;
      float* const row = plane + begin * channel_ + (piece.row * pitch_ + columns.begin) * lanes_ + in.lane;
      for (int64_t i = 0; in.lanes > 0 && i < n; ++i)
        load(input(in.image, begin, in.row, columns.first + i * step), stride, 1, in.lanes, end - begin,
             row + i * lanes_, channel_, true);
    }
  }

  void load(const void* from, int64_t from_stride, int64_t from_step, int64_t rows, int64_t columns, float* to,
            int64_t to_stride, bool transposed) const {
    run_.load({from, to, from_stride, from_step, to_stride, rows, columns, a_.dtype, transposed});
  }

  // Output channels [begin, end) of a panel: all sums of a tile's rows first, so that y is written in long runs.
  void multiply(int64_t panel, int64_t begin, int64_t end, const float* x, const int32_t* distance,
                Scratch<float>& scratch) const {
    const int64_t height = lanes_ == 1 ? std::min(strip_, a_.y.height - panel % strips_ * strip_) : strip_;
    // An odd number of cache lines here too.
    const int64_t stride = (ceil_div(this->vectors(tile_rows_) * run_.lanes, 16) | 1) * 16;
    float* const sums = scratch.reserve((end - begin) * stride);
    for (int64_t row = 0; row < height; row += tile_rows_, x += tile_rows_ * pitch_ * lanes_) {
      const int64_t rows = std::min(tile_rows_, height - row), vectors = this->vectors(rows),
                    tile = ceil_div(vectors, ceil_div(vectors, tile_vectors()));
      for (int64_t v = 0; v < vectors; v += tile)
        accumulate(begin, end, x + v * run_.lanes, distance, int(std::min(tile, vectors - v)), sums + v * run_.lanes,
                   stride);
      write(panel, begin, end, row, rows, sums, stride);
    }
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

  // The sums of `rows` rows from `row` of all strips, `stride` floats an output channel, to where they belong.
  void write(int64_t panel, int64_t begin, int64_t end, int64_t row, int64_t rows, const float* sums,
             int64_t stride) const {
    const int64_t width = a_.y.width, apart = lane_stride(a_.y, strip_);
    if (lanes_ == 1 && a_.y.channel_stride != 1) {
      const int64_t image = panel / strips_, row0 = panel % strips_ * strip_ + row;
      for (int64_t c = begin; c < end; ++c, sums += stride)
        store(sums, pitch_, rows, width, output(image, c, row0, 0), a_.y.row_stride, false);
      return;
    }
    const std::vector<Piece> pieces = this->pieces(panel, rows, row, 1, a_.y.height);
    if (a_.y.channel_stride != 1) {
      for (int64_t c = begin; c < end; ++c, sums += stride)
        for (const auto& [at, lane, lanes, in] : pieces)
          if (in.lanes > 0)
            store(sums + at * pitch_ * lanes_ + in.lane, lanes_, width, in.lanes, output(in.image, c, in.row, 0), apart,
                  true);
      return;
    }
    for (const auto& [at, lane, lanes, in] : pieces) {
      const float* const from = sums + at * pitch_ * lanes_ + in.lane;
      if (lanes_ == 1)
        store(from, stride, end - begin, width, output(in.image, begin, in.row, 0), a_.y.column_stride, true);
      else
        for (int64_t j = 0; in.lanes > 0 && j < width; ++j)
          store(from + j * lanes_, stride, end - begin, in.lanes, output(in.image, begin, in.row, j), apart, true);
    }
  }

  void store(const float* from, int64_t from_stride, int64_t rows, int64_t columns, void* to, int64_t to_stride,
             bool transposed) const {
    run_.store({from, to, from_stride, 1, to_stride, rows, columns, a_.dtype, transposed, stream_});
  }

  const SparseConv2dArgs& a_;
  const Parallel& parallel_;
  const BehindImages& behind_;
  SparseConv2dKernels run_;
  const Phases rows_, columns_;
  const int64_t taps_;
  int64_t lanes_, strip_, strips_;  // strip_: rows of y; strips_: of an image
  int64_t pitch_, plane_, channel_, tile_rows_;
  std::vector<int64_t> offset_;
  int64_t reach_ = 0;                    // the largest offset
  bool large_ = false, stream_ = false;  // y is, and is stored past the caches
};

}  // namespace

void sparse_conv2d(const SparseConv2dArgs& args, const Parallel& parallel, const BehindImages& behind) {
  const Images& y = args.y;
  if (y.n * y.channels * y.height * y.width != 0) SparseConv2d(args, parallel, behind).run();
}

}  // namespace lcs
