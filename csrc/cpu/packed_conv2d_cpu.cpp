#include "lcs/packed_conv2d.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "packed_conv2d_kernels.h"
#include "packed_gemm.h"
#include "quantize_grid.h"
#include "scratch.h"
#include "sparse_conv2d_kernels.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kStripBytes = 2 << 20;       // of the images that are quantised before they are multiplied
constexpr int64_t kRangeBytes = 384 << 10;     // of that, what stays in the second-level cache from block to block
constexpr int64_t kTasks = 16;                 // enough to keep the threads even
constexpr int64_t kLeastPixels = 96;           // that pay for unpacking a block of the weight
constexpr int64_t kPiece = 1 << 14;            // elements of which the largest is looked for
constexpr int64_t kChannels = 16, kRun = 256;  // read at once of NCHW images: channels, and elements of each
constexpr int64_t kChunkBytes = 16 << 10;      // of a panel: half of the first-level cache
constexpr int64_t kTile = 120;                 // positions at once: whole rows of every instruction set's registers

QuantizeGrid grid_of(const ActivationRange& range) {
  return quantize_grid({range.low, range.high}, quantize_codes(range.bits, false));
}

PackedCodes codes_of(const QuantizeGrid& grid) {
  return {grid.inverse, int(grid.zero), int(grid.lowest), int(grid.highest)};
}

// The input becomes a strip: int8 (or what the panel takes), channels last, each group's channels padded to whole
// steps, with the padding of the convolution, so that each tap of each output position is at a fixed distance. Where
// taps are joined, its columns are those of the output, each with all that a row of the kernel reads there. Then each
// block of the weight is unpacked, and meets the strip of many output positions.
class PackedConv2d {
 public:
  PackedConv2d(const PackedConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        layout_(args.weight.layout),
        gemm_(args.weight, args.bits, nullptr, false, args.exact),
        run_(best(scalar::packed_conv2d_kernels, avx2::packed_conv2d_kernels, avx2::packed_conv2d_kernels)),
        copies_(best(scalar::sparse_conv2d_kernels, avx2::sparse_conv2d_kernels, avx512::sparse_conv2d_kernels)),
        rows_(args.vertical),
        columns_(args.horizontal),
        groups_(layout_.parts),
        inputs_(args.x.channels / groups_),
        segment_(layout_.segment_steps() * kStepColumns),
        element_(element_bytes(gemm_.panel())),
        joined_(layout_.joined > 1),
        row_taps_(joined_ ? 1 : columns_.kernel),
        stride_(joined_ ? 1 : columns_.stride),
        lines_(rows_.length(args.y.height)),
        line_(joined_ ? args.y.width : columns_.length(args.y.width)),
        column_(groups_ * segment_),
        row_(line_ * column_),
        image_(lines_ * row_),
        pixels_(args.y.height * args.y.width) {
    images_ = std::clamp<int64_t>(kStripBytes / std::max<int64_t>(image_ * element_, 1), 1, a_.x.n);
    images_ = ceil_div(a_.x.n, ceil_div(a_.x.n, images_));
    if (a_.range) {
      const QuantizeGrid grid = grid_of(*a_.range);
      codes_ = codes_of(grid);
      half_scale_ = grid.scale * 0.5f;
    }
    if (a_.y_range) y_codes_ = codes_of(grid_of(*a_.y_range));
  }

  void run() {
    static thread_local Scratch<char> scratch;
    const int64_t sums = a_.exact ? 0 : groups_ * images_ * lines_ * line_;
    const int64_t strip = (images_ * image_ * element_ + 63) / 64 * 64;
    char* const at = scratch.reserve(strip + sums * 4);
    strip_ = at;
    strip_sums_ = reinterpret_cast<int32_t*>(at + strip);
    fill_distances();
    choose_units();
    choose_regions();
    find_scales();
    choose_ranges();
    for (first_ = 0; first_ < a_.x.n; first_ += images_) run_images(std::min(images_, a_.x.n - first_));
  }

 private:
  void fill_distances() {
    const int64_t steps = layout_.segment_steps();
    for (int64_t s = 0; s < layout_.steps(); ++s) {
      const int64_t tap = s / steps;
      step_.push_back(element_ * (tap / row_taps_ * rows_.dilation * row_ +
                                  tap % row_taps_ * columns_.dilation * column_ + s % steps * kStepColumns));
    }
  }

  // Whether the strip leaves out nothing of the images: then quantising it meets every NaN.
  bool reads_all() const {
    const auto all = [](const Walk& walk, int64_t size, int64_t outputs) {
      return walk.step == 1 && walk.last(size) <= walk.length(outputs);
    };
    return all(rows_, a_.x.height, a_.y.height) && all(columns_, a_.x.width, a_.y.width);
  }

  // Of every image: how it is quantised, and what half of a unit is worth.
  void find_scales() {
    inverse_.assign(size_t(a_.x.n), codes_.inverse);
    scale_.assign(size_t(a_.x.n), a_.exact ? 0.5f : half_scale_);
    for (int64_t image = 0; a_.spoilt && image < a_.x.n; ++image)
      if (a_.spoilt[image]) scale_[size_t(image)] = std::numeric_limits<float>::quiet_NaN();
    if (a_.exact || a_.x_codes || a_.spoilt || (a_.range && reads_all())) return;
    const int64_t n = a_.x.channels * a_.x.height * a_.x.width, pieces = ceil_div(n, kPiece);
    std::vector<float> largest(size_t(a_.x.n * pieces));
    parallel_(a_.x.n * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t from = i % pieces * kPiece;
        largest[size_t(i)] = gemm_.kernels().largest(
            advance(a_.x.data, i / pieces * a_.x.image_stride + from, a_.dtype), a_.dtype, std::min(kPiece, n - from));
      }
    });
    for (int64_t image = 0; image < a_.x.n; ++image) {
      int32_t most = 0;  // as bits, among which NaN comes last
      for (int64_t i = 0; i < pieces; ++i)
        most = std::max(most, std::bit_cast<int32_t>(largest[size_t(image * pieces + i)]));
      const float found = std::bit_cast<float>(most);
      const Quantization q(found);
      if (!a_.range) inverse_[size_t(image)] = q.inverse;
      if (!a_.range || std::isnan(found)) scale_[size_t(image)] = q.half_scale;
    }
  }

  // Blocks of a part that are multiplied at once.
  struct Unit {
    int64_t block, blocks;
  };

  void choose_units() {
    const int64_t most = gemm_.pairs() ? 2 : 1, blocks = layout_.part_blocks();
    for (int64_t part = 0; part < layout_.parts; ++part)
      for (int64_t b = 0; b < blocks; b += most) units_.push_back({part * blocks + b, std::min(most, blocks - b)});
  }

  // Output positions whose windows reach equally far out of the image, and the steps of what they read inside it. The
  // positions of `images_` images are numbered region by region, and in a region image by image.
  struct Region {
    int64_t row, rows, column, columns;
    std::vector<PackedRun> runs;
    int64_t steps, taps_begin[2], taps_end[2];  // taps of the kernel's columns, and of its rows
  };

  // Outputs in a row that read the same taps.
  struct Span {
    int64_t first, count, begin, end;  // outputs; taps
  };
  static std::vector<Span> spans(const Axis& axis, int64_t size, int64_t outputs) {
    std::vector<Span> found;
    const int64_t reach = (axis.kernel - 1) * axis.dilation;
    for (int64_t o = 0; o < outputs; ++o) {
      const int64_t from = axis.padding - o * axis.stride;  // the tap at distance `from` is the first inside
      const int64_t begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(from, 0), axis.dilation), 0, axis.kernel),
                    end = std::clamp<int64_t>(ceil_div(std::max<int64_t>(from + size, 0), axis.dilation), begin,
                                              axis.kernel);
      if (found.empty() || found.back().begin != begin || found.back().end != end) found.push_back({o, 0, begin, end});
      ++found.back().count;
      if (begin > 0 || end < axis.kernel) continue;
      const int64_t inside = (size + axis.padding - reach - 1) / axis.stride;  // the last output that reads every tap
      found.back().count += std::min(inside, outputs - 1) - o;
      o = std::min(inside, outputs - 1);
    }
    return found;
  }

  // One for all where results do not go right to their places.
  void choose_regions() {
    const bool direct = gemm_.pairs() && a_.y.channel_stride == 1 && a_.dtype == DType::float32;
    const bool several = direct && layout_.part_blocks() % 2 == 0;
    const std::vector<Span> all_rows{{0, a_.y.height, 0, rows_.kernel}}, all_columns{{0, a_.y.width, 0, row_taps_}};
    const int64_t steps = layout_.segment_steps();
    for (const Span& r : several ? spans(a_.vertical, a_.x.height, a_.y.height) : all_rows)
      for (const Span& c : several && !joined_ ? spans(a_.horizontal, a_.x.width, a_.y.width) : all_columns) {
        Region region{r.first, r.count, c.first, c.count, {}, 0, {c.begin, r.begin}, {c.end, r.end}};
        for (int64_t tap = r.begin; tap < r.end; ++tap) {
          const PackedRun run{(tap * row_taps_ + c.begin) * steps, (tap * row_taps_ + c.end) * steps};
          region.steps += run.end - run.begin;
          if (!region.runs.empty() && region.runs.back().end == run.begin)
            region.runs.back().end = run.end;
          else
            region.runs.push_back(run);
        }
        regions_.push_back(std::move(region));
      }
  }

  // The position up to which a share of all products lies.
  int64_t position(int64_t images, int64_t share, int64_t shares) const {
    const auto cost = [&](const Region& r) { return images * r.rows * r.columns * (r.steps + 1); };
    int64_t all = 0, first = 0;
    for (const Region& region : regions_) all += cost(region);
    int64_t left = all * share / shares;
    for (const Region& region : regions_) {
      if (left < cost(region)) return first + left / (region.steps + 1);
      left -= cost(region);
      first += images * region.rows * region.columns;
    }
    return first;
  }

  void choose_ranges() {
    const int64_t pixels = images_ * pixels_, blocks = int64_t(units_.size());
    ranges_ = std::clamp<int64_t>(images_ * image_ * element_ / kRangeBytes, 1, ceil_div(pixels, kLeastPixels));
    in_cache_ = ranges_ == 1;
    while (ranges_ * blocks < kTasks && ceil_div(pixels, 2 * ranges_) >= kLeastPixels) ranges_ *= 2;
  }

  void run_images(int64_t images) {
    const int64_t at_once = a_.x.channel_stride == 1 || a_.exact ? 1 : ceil_div(kRun, a_.x.width + 1);
    const int64_t bands = ceil_div(lines_, at_once);
    parallel_(images * bands, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / bands, line = i % bands * at_once, last = std::min(line + at_once, lines_);
        a_.exact ? copy(image, line) : quantize(image, line, last);
      }
    });
    multiply(images);
  }

  // Ranges of a unit, or where the strip does not stay in the cache units of a range, come after each other. Threads
  // take some of them whenever they are done, fewer and fewer.
  void multiply(int64_t images) const {
    const int64_t units = int64_t(units_.size()), tasks = units * ranges_;
    std::atomic<int64_t> next{0};
    parallel_(tasks, 1, [&](int64_t, int64_t) {
      UnitPanel panel;
      for (int64_t begin = next.load(std::memory_order_relaxed); begin < tasks;) {
        const int64_t end = begin + std::max<int64_t>((tasks - begin) / 4, 1);
        if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        for (int64_t i = begin; i < end; ++i) {
          const int64_t unit = in_cache_ ? i / ranges_ : i % units, range = in_cache_ ? i % ranges_ : i / units;
          multiply(unit, images, position(images, range, ranges_), position(images, range + 1, ranges_), panel);
        }
        begin = next.load(std::memory_order_relaxed);
      }
    });
  }

  // The columns of a row, with the convolution's padding, that lie inside the image; none where the row does not.
  struct Inside {
    int64_t begin, end, from;  // `from`: of the first one's element of x
  };
  Inside inside(int64_t image, int64_t row) const {
    const int64_t columns = columns_.length(a_.y.width), begin = std::min(columns_.first(), columns);
    if (row < rows_.first() || row >= rows_.last(a_.x.height)) return {0, 0, 0};
    const int64_t end = std::clamp(columns_.last(a_.x.width), begin, columns);
    const Images& x = a_.x;
    return {begin, end,
            (first_ + image) * x.image_stride + (row * rows_.step - rows_.padding) * x.row_stride +
                (begin * columns_.step - columns_.padding) * x.column_stride};
  }

  // Where the rows of x are written, each column's elements of it: the strip, or lines that are joined afterwards.
  struct Lines {
    int64_t column, group, row;  // distances
  };
  Lines lines() const {
    if (!joined_) return {column_, segment_, row_};
    const int64_t group = columns_.length(a_.y.width) * inputs_ + kStepColumns;  // whole steps are written
    return {inputs_, group, groups_ * group};
  }

  // Of each column of a row of the strip, and each group: what a row of the kernel reads there.
  template <class T>
  void join(const T* from, T* to) const {
    const int64_t n = columns_.kernel * inputs_;
    for (int64_t group = 0; group < groups_; ++group, from += lines().group, to += segment_) {
      if (sizeof(T) == 1 && columns_.dilation == 1) {
        join_words(reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to));
        continue;
      }
      for (int64_t column = 0; column < line_; ++column) {
        const T* const first = from + column * columns_.stride * inputs_;
        for (int64_t tap = 0; tap < columns_.kernel; ++tap)
          std::copy_n(first + tap * columns_.dilation * inputs_, inputs_, to + column * column_ + tap * inputs_);
        std::fill_n(to + column * column_ + n, segment_ - n, T{0});
      }
    }
  }

  // By whole steps, as what comes behind a line may be read.
  void join_words(const char* from, char* to) const {
    const int64_t words = segment_ / kStepColumns, last = columns_.kernel * inputs_ - (words - 1) * kStepColumns;
    if (words == 0) return;
    char kept[kStepColumns] = {};
    std::fill_n(kept, last, char(-1));
    const uint64_t mask = std::bit_cast<uint64_t>(kept);
    for (int64_t column = 0; column < line_; ++column, from += columns_.stride * inputs_, to += column_) {
      for (int64_t i = 0; i + 1 < words; ++i) std::memcpy(to + i * kStepColumns, from + i * kStepColumns, kStepColumns);
      uint64_t word;
      std::memcpy(&word, from + (words - 1) * kStepColumns, kStepColumns);
      word &= mask;
      std::memcpy(to + (words - 1) * kStepColumns, &word, kStepColumns);
    }
  }

  // A row of the strip in float32.
  void copy(int64_t image, int64_t row) const {
    static thread_local Scratch<float> scratch;
    float* const strip = reinterpret_cast<float*>(strip_) + image * image_ + row * row_;
    const Lines line = lines();
    float* const to = joined_ ? scratch.reserve(line.row) : strip;
    const Inside in = inside(image, row);
    const Images& x = a_.x;
    std::memset(to, 0, size_t(line.row) * 4);
    for (int64_t group = 0; group < groups_ && in.begin < in.end; ++group) {
      const void* const from = advance(x.data, in.from + group * inputs_ * x.channel_stride, a_.dtype);
      float* const first = to + in.begin * line.column + group * line.group;
      const int64_t step = columns_.step * x.column_stride, n = in.end - in.begin;
      if (x.channel_stride == 1)
        copies_.load({from, first, step, 1, line.column, n, inputs_, a_.dtype, false});
      else
        copies_.load({from, first, x.channel_stride, step, line.column, inputs_, n, a_.dtype, true});
    }
    if (joined_) join(to, strip);
  }

  // Rows [begin, end) of the strip in integers, and the sums of each column's elements.
  void quantize(int64_t image, int64_t begin, int64_t end) {
    static thread_local Scratch<int8_t> scratch;
    const bool bytes = gemm_.panel() == Panel::bytes;
    const Lines line = lines();
    char* const strip = strip_ + (image * image_ + begin * row_) * element_;
    const int64_t rows = end - begin, strip_size = bytes ? 0 : rows * row_;
    int8_t* const own = scratch.reserve(strip_size + (joined_ ? rows * line.row : 0));
    int8_t* const codes = bytes ? reinterpret_cast<int8_t*>(strip) : own;
    int8_t* const to = joined_ ? own + strip_size : codes;
    const int64_t at_once = a_.x.channel_stride == 1 ? inputs_ : kChannels;
    for (int64_t group = 0; group < groups_; ++group)
      for (int64_t c = 0; c < inputs_; c += at_once)
        for (int64_t row = begin; row < end; ++row)
          quantize_row(image, row, group * inputs_ + c, std::min(at_once, inputs_ - c),
                       to + (row - begin) * line.row + group * line.group + c);
    for (int64_t row = begin; row < end; ++row) {
      int8_t* const at = to + (row - begin) * line.row;
      pad(inside(image, row), at);
      if (joined_) join(at, codes + (row - begin) * row_);
    }
    for (int64_t group = 0; group < groups_; ++group)
      run_.sums(codes + group * segment_, column_, segment_, rows * line_,
                strip_sums_ + ((group * images_ + image) * lines_ + begin) * line_);
    if (!bytes) gemm_.kernels().widen(codes, rows * row_, reinterpret_cast<int16_t*>(strip));
  }

  // The columns of a row outside the image hold the code of 0 in every channel.
  void pad(const Inside& in, int8_t* to) const {
    const Lines line = lines();
    const int64_t columns = columns_.length(a_.y.width);
    for (int64_t group = 0; group < groups_; ++group, to += line.group) {
      if (groups_ > 1 || inputs_ < segment_) {
        for (int64_t column = 0; column < columns; ++column) {
          if (column == in.begin) column = in.end;
          if (column == columns) break;
          std::memset(to + column * line.column, codes_.zero, size_t(inputs_));
          if (!joined_) std::memset(to + column * line.column + inputs_, 0, size_t(segment_ - inputs_));
        }
      } else {
        std::memset(to, codes_.zero, size_t(in.begin * line.column));
        std::memset(to + in.end * line.column, codes_.zero, size_t((columns - in.end) * line.column));
      }
    }
  }

  // What of a row lies inside the image, of some channels.
  void quantize_row(int64_t image, int64_t row, int64_t channel, int64_t channels, int8_t* to) {
    const Inside in = inside(image, row);
    if (in.begin == in.end) return;
    const Images& x = a_.x;
    const int64_t step = columns_.step * x.column_stride, column = lines().column, n = in.end - in.begin;
    const bool dense = x.channel_stride == 1 && step == channels && column == channels;  // as a single pixel
    to += in.begin * column;
    if (a_.x_codes) {  // all of a group's channels
      const int8_t* from = static_cast<const int8_t*>(x.data) + in.from + channel;
      if (dense) {
        std::memcpy(to, from, size_t(n * channels));
        return;
      }
      for (int64_t i = 0; i < n; ++i, from += step, to += column) {
        std::memcpy(to, from, size_t(channels));
        if (!joined_) std::memset(to + channels, 0, size_t(segment_ - channels));
      }
      return;
    }
    PackedCodes codes = codes_;
    codes.inverse = inverse_[size_t(first_ + image)];
    if (run_.quantize({advance(x.data, in.from + channel * x.channel_stride, a_.dtype), a_.dtype, x.channel_stride,
                       step, dense ? 1 : n, dense ? n * channels : channels, to, column, codes}))
      std::atomic_ref(scale_[size_t(first_ + image)])
          .store(std::numeric_limits<float>::quiet_NaN(), std::memory_order_relaxed);
  }

  // Of a block's rows: minus the zero point of x times the sum of their codes.
  void correct(const char* panel, int32_t* to) const {
    int32_t sums[kBlockRows] = {};
    if (codes_.zero != 0) {
      const int8_t bytes[kStepColumns] = {1, 1, 1, 1, 1, 1, 1, 1};
      const int16_t words[kStepColumns] = {1, 1, 1, 1, 1, 1, 1, 1};
      const char* const ones =
          gemm_.panel() == Panel::bytes ? reinterpret_cast<const char*>(bytes) : reinterpret_cast<const char*>(words);
      const int64_t row = 0;
      const std::vector<int64_t> same(size_t(layout_.steps()));
      gemm_.kernels().multiply({panel, layout_.steps(), a_.bits, ones, &row, same.data(), 1, sums}, gemm_.panel());
    }
    for (int i = 0; i < kBlockRows; ++i) to[i] = -codes_.zero * sums[i];
  }

  // A unit of the weight, unpacked by the thread that multiplies it.
  struct UnitPanel {
    int64_t unit = -1;
    char* panel = nullptr;
    char* more = nullptr;  // memory for a tile's results
    PackedGemm::Factors factors;
    PackedGemm::PairFactors pair_factors;
    alignas(64) int32_t start[kPairRows];  // of each place: minus the zero point of x times the sum of the codes
    std::vector<int32_t> tap_sums;         // of the codes of each tap, for `start`
  };

  // A unit of the weight times the output positions [begin, end) of the strip's images.
  void multiply(int64_t unit, int64_t images, int64_t begin, int64_t end, UnitPanel& panel) const {
    const bool pair = units_[size_t(unit)].blocks == 2;
    if (panel.unit != unit) pair ? expand_pair(unit, panel) : expand(unit, panel);
    panel.unit = unit;
    int64_t first = 0;
    for (const Region& region : regions_) {
      const int64_t size = images * region.rows * region.columns;
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, size);
      first += size;
      if (from >= to) continue;
      if (pair) find_start(region, panel);
      const int64_t tiles = ceil_div(to - from, kTile);
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t at = from + (to - from) * t / tiles, n = from + (to - from) * (t + 1) / tiles - at;
        pair ? multiply_pair(region, at, n, t == 0, panel) : multiply_block(region, at, n, panel);
      }
    }
  }

  void expand(int64_t unit, UnitPanel& to) const {
    static thread_local Scratch<char> scratch;
    const int64_t block = units_[size_t(unit)].block, tile = kTile * kBlockRows * 4;
    const int64_t size = layout_.steps() * panel_bytes(gemm_.panel());
    to.panel = scratch.reserve(size + 3 * tile);
    to.more = to.panel + size;
    to.factors = gemm_.factors(block, 0);
    gemm_.expand(block, 0, layout_.steps(), to.factors, to.panel);
    std::fill_n(to.start, kBlockRows, 0);
    if (!a_.exact) correct(to.panel, to.start);
  }

  void multiply_block(const Region& region, int64_t first, int64_t n, const UnitPanel& panel) const {
    const int64_t block = units_[size_t(panel.unit)].block;
    int32_t* const acc = reinterpret_cast<int32_t*>(panel.more);
    float* const tile = reinterpret_cast<float*>(acc + kTile * kBlockRows);
    for (int64_t m = 0; m < n; ++m) std::copy_n(panel.start, kBlockRows, acc + m * kBlockRows);
    Rows rows;
    find_rows(region, block, first, n, rows);
    multiply_tile(block, n, rows, panel.panel, acc);
    finish(block, first, n, rows, panel.factors, acc, tile, tile + kTile * kBlockRows);
  }

  void expand_pair(int64_t unit, UnitPanel& to) const {
    static thread_local Scratch<char> scratch;
    const int64_t block = units_[size_t(unit)].block, size = layout_.steps() * kPairStepBytes;
    const int64_t steps = layout_.segment_steps(), taps = codes_.zero ? layout_.segments() : 0;
    to.panel = scratch.reserve(size + 2 * kTile * kPairRows * 4);
    to.more = to.panel + size;
    to.pair_factors = gemm_.pair_factors(block);
    to.tap_sums.resize(size_t(taps * kPairRows));
    for (int64_t tap = 0; tap < taps; ++tap)
      gemm_.expand_pair(block, tap * steps, steps, to.panel + tap * steps * kPairStepBytes,
                        to.tap_sums.data() + tap * kPairRows);
    if (!taps) gemm_.expand_pair(block, 0, layout_.steps(), to.panel, nullptr);
  }

  void find_start(const Region& region, UnitPanel& panel) const {
    std::fill_n(panel.start, kPairRows, 0);
    if (!codes_.zero) return;
    for (int64_t i = region.taps_begin[1]; i < region.taps_end[1]; ++i)
      for (int64_t j = region.taps_begin[0]; j < region.taps_end[0]; ++j) {
        const int32_t* const sums = panel.tap_sums.data() + (i * row_taps_ + j) * kPairRows;
        for (int place = 0; place < kPairRows; ++place) panel.start[place] -= codes_.zero * sums[place];
      }
  }

  void multiply_pair(const Region& region, int64_t first, int64_t n, bool load_next, const UnitPanel& panel) const {
    const int64_t units = int64_t(units_.size()), unit = panel.unit, block = units_[size_t(unit)].block;
    float* const tile = reinterpret_cast<float*>(panel.more);
    const bool more = load_next && unit + 1 < units && units_[size_t(unit + 1)].blocks == 2;
    Rows rows;
    find_rows(region, block, first, n, rows);
    float bias[kPairRows];
    const Output out = output_of(block, 2, base(first), n, tile, tile + kTile * kPairRows, bias);
    const PackedGemm::PairFactors& factors = panel.pair_factors;
    gemm_.kernels().multiply_pair(
        {panel.panel,
         region.runs.data(),
         int64_t(region.runs.size()),
         strip_ + block / layout_.part_blocks() * segment_,
         rows.x,
         step_.data(),
         n,
         panel.start,
         {rows.place, rows.sums, gemm_.shift(), factors.center, factors.scale, rows.scale, out.bias, out.residual,
          out.residual_stride, a_.relu, int(out.channels), out.y, out.codes, out.stride, y_codes_},
         gemm_.planes(more ? units_[size_t(unit + 1)].block : block),
         layout_.plane_bytes(),
         more ? a_.bits : 0});
    if (!out.codes && out.y == tile) store(block, out.channels, kPairRows, first, n, tile);
  }

  // Of output positions: where their windows begin, the sums of these less the zero point of x, the scale of x, and
  // where their results go, from position `base` on.
  struct Rows {
    int64_t x[kTile];
    int32_t sums[kTile];
    float scale[kTile];
    int64_t place[kTile];
  };
  int64_t base(int64_t first) const { return regions_.size() > 1 ? 0 : first; }

  void find_rows(const Region& region, int64_t block, int64_t first, int64_t n, Rows& to) const {
    const int64_t part = block / layout_.part_blocks(), positions = region.rows * region.columns;
    int64_t image = first / positions, r = first % positions / region.columns, c = first % region.columns;
    for (int64_t m = 0; m < n; c = 0) {
      const int64_t run = std::min(n - m, region.columns - c), row = region.row + r, column = region.column + c;
      const int64_t line = row * rows_.stride, at = column * stride_;
      const int64_t from = element_ * (image * image_ + line * row_ + at * column_),
                    step = element_ * stride_ * column_;
      const int64_t place = image * pixels_ + row * a_.y.width + column - base(first);
      for (int64_t i = 0; i < run; ++i) to.x[m + i] = from + i * step, to.place[m + i] = place + i;
      std::fill_n(to.scale + m, run, scale_[size_t(first_ + image)]);
      if (!a_.exact) add_sums(strip_sums_ + ((part * images_ + image) * lines_ + line) * line_ + at, run, to.sums + m);
      m += run;
      if (++r == region.rows) r = 0, ++image;
    }
  }

  void add_sums(const int32_t* from, int64_t n, int32_t* to) const {
    std::fill_n(to, n, int32_t(-codes_.zero * layout_.columns));
    for (int64_t i = 0; i < rows_.kernel; ++i)
      for (int64_t j = 0; j < row_taps_; ++j) {
        const int32_t* const tap = from + i * rows_.dilation * line_ + j * columns_.dilation;
        if (stride_ == 1)
          for (int64_t m = 0; m < n; ++m) to[m] += tap[m];
        else
          for (int64_t m = 0; m < n; ++m) to[m] += tap[m * stride_];
      }
  }

  void multiply_tile(int64_t block, int64_t n, const Rows& rows, const char* panel, int32_t* acc) const {
    const int64_t step_bytes = panel_bytes(gemm_.panel()), at_once = kChunkBytes / step_bytes;
    const char* const x = strip_ + block / layout_.part_blocks() * segment_ * element_;
    for (int64_t step = 0; step < layout_.steps(); step += at_once)
      gemm_.kernels().multiply({panel + step * step_bytes, std::min(at_once, layout_.steps() - step), a_.bits, x,
                                rows.x, step_.data() + step, n, acc},
                               gemm_.panel());
  }

  void finish(int64_t block, int64_t first, int64_t n, const Rows& rows, const PackedGemm::Factors& factors,
              const int32_t* acc, float* tile, float* residual) const {
    float bias[kBlockRows];
    const Output out = output_of(block, 1, first, n, tile, residual, bias);
    run_.output({acc, a_.exact ? nullptr : rows.sums, n, gemm_.shift(), factors.center, factors.scale, rows.scale,
                 out.bias, out.residual, out.residual_stride, a_.relu, out.y, out.stride});
    if (out.y == tile) store(block, out.channels, kBlockRows, first, n, tile);
  }

  // Where the results of a block, or of two, go from positions [first, first + n) on, and what is added to them.
  struct Output {
    const float *bias, *residual;
    int64_t residual_stride, channels;
    float* y;
    int8_t* codes;
    int64_t stride;
  };

  // Of y itself where the kernels can write it, else of `tile`. A kernel of one block writes it whole, and no codes.
  Output output_of(int64_t block, int64_t blocks, int64_t first, int64_t n, float* tile, float* residual,
                   float* bias) const {
    const int64_t wide = blocks * kBlockRows, channel = gemm_.first_row(block);
    const int64_t channels = blocks == 2 ? kBlockRows + gemm_.rows(block + 1) : gemm_.rows(block);
    const int64_t start = first_ * pixels_ + first, at = start * a_.y.channels + channel;  // channels last
    const bool whole = a_.y.channel_stride == 1 && (blocks == 2 || channels == wide);
    const bool floats = whole && a_.dtype == DType::float32;
    Output out{nullptr, nullptr, wide, channels, tile, nullptr, wide};
    if (a_.bias) {
      std::fill(std::copy_n(a_.bias + channel, channels, bias), bias + wide, 0.0f);
      out.bias = bias;
    }
    if (a_.residual && floats) {
      out.residual = static_cast<const float*>(a_.residual) + at;
      out.residual_stride = a_.y.channels;
    } else if (a_.residual) {
      load_residual(channel, channels, wide, start, n, residual);
      out.residual = residual;
    }
    if (a_.y_range ? blocks == 2 : floats) {
      out.stride = a_.y.channels;
      if (a_.y_range)
        out.codes = static_cast<int8_t*>(a_.y.data) + at;
      else
        out.y = static_cast<float*>(a_.y.data) + at;
    }
    return out;
  }

  void load_residual(int64_t channel, int64_t channels, int64_t wide, int64_t start, int64_t n, float* to) const {
    const bool last = a_.y.channel_stride == 1;
    for_runs(channel, start, n, [&](int64_t m, int64_t rows, int64_t element, int64_t row_step, int64_t step) {
      const void* const from = advance(a_.residual, element, a_.dtype);
      last ? copies_.load({from, to + m * wide, row_step, 1, wide, rows, channels, a_.dtype, false})
           : copies_.load({from, to + m * wide, step, 1, wide, channels, rows, a_.dtype, true});
    });
  }

  // A tile's results, `wide` apart, to y.
  void store(int64_t block, int64_t channels, int64_t wide, int64_t first, int64_t n, const float* tile) const {
    const bool last = a_.y.channel_stride == 1;
    const int64_t channel = gemm_.first_row(block), start = first_ * pixels_ + first;
    if (a_.y_range) {
      int8_t codes[kTile * kBlockRows], *const to = static_cast<int8_t*>(a_.y.data) + start * a_.y.channels + channel;
      run_.quantize({tile, DType::float32, 1, wide, n, channels, codes, kBlockRows, y_codes_});
      for (int64_t m = 0; m < n; ++m) std::memcpy(to + m * a_.y.channels, codes + m * kBlockRows, size_t(channels));
      return;
    }
    for_runs(channel, start, n, [&](int64_t m, int64_t rows, int64_t element, int64_t row_step, int64_t step) {
      copies_.store({tile + m * wide, advance(a_.y.data, element, a_.dtype), wide, 1, last ? row_step : step, rows,
                     channels, a_.dtype, !last});
    });
  }

  // The runs of positions [start, start + n) whose elements of y lie `row_step` apart, and their channels `step`.
  template <class Run>
  void for_runs(int64_t channel, int64_t start, int64_t n, const Run& run) const {
    const Images& y = a_.y;
    if (y.channel_stride == 1) return run(0, n, start * y.channels + channel, y.channels, 1);
    for (int64_t m = 0; m < n;) {
      const int64_t image = (start + m) / pixels_, at = (start + m) % pixels_, rows = std::min(n - m, pixels_ - at);
      run(m, rows, image * y.image_stride + channel * y.channel_stride + at, 1, y.channel_stride);
      m += rows;
    }
  }

  const PackedConv2dArgs& a_;
  const Parallel& parallel_;
  const NestedLayout& layout_;
  const PackedGemm gemm_;
  const PackedConv2dKernels run_;
  const SparseConv2dKernels copies_;
  const Walk rows_, columns_;
  const int64_t groups_, inputs_, segment_;  // channels of a group, and with their padding
  const int64_t element_;                    // bytes
  const bool joined_;
  const int64_t row_taps_, stride_;  // of the strip: taps of a row of the kernel, and between columns of outputs
  const int64_t lines_, line_;       // rows and columns of an image of the strip
  const int64_t column_, row_, image_, pixels_;  // elements of the strip; positions of an image of y
  PackedCodes codes_{0.0f, 0, -127, 127}, y_codes_{};
  float half_scale_ = 0.0f;
  int64_t images_, ranges_, first_;  // images of the strip, parts of their positions, the first of the images
  bool in_cache_;                    // whether the strip stays in the second-level cache from block to block
  std::vector<Unit> units_;
  std::vector<Region> regions_;
  std::vector<int64_t> step_;
  std::vector<float> inverse_, scale_;  // of each image
  char* strip_;
  int32_t* strip_sums_;
};

}  // namespace

void packed_conv2d(const PackedConv2dArgs& args, const Parallel& parallel) {
  const Images& y = args.y;
  if (y.n * y.channels * y.height * y.width != 0) PackedConv2d(args, parallel).run();
}

}  // namespace lcs
