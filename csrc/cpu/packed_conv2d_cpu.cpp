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
constexpr int64_t kTasks = 8;                  // enough to keep the threads even
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
    if (a_.exact || a_.x_codes || (a_.range && reads_all())) return;
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
    // Ranges of a unit, or where the strip does not stay in the cache units of a range, come after each other.
    const int64_t units = int64_t(units_.size()), pixels = images * pixels_;
    parallel_(units * ranges_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t unit = in_cache_ ? i / ranges_ : i % units, range = in_cache_ ? i % ranges_ : i / units;
        if (in_cache_) i = std::min(end, (unit + 1) * ranges_) - 1;
        const int64_t last = in_cache_ ? i % ranges_ : range;
        const int64_t from = pixels * range / ranges_, to = pixels * (last + 1) / ranges_;
        units_[size_t(unit)].blocks == 2 ? multiply_pair(unit, from, to)
                                         : multiply(units_[size_t(unit)].block, from, to);
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
    for (int64_t group = 0; group < groups_; ++group, from += lines().group)
      for (int64_t column = 0; column < line_; ++column) {
        const T* const first = from + column * columns_.stride * inputs_;
        T* const at = to + column * column_ + group * segment_;
        if (columns_.dilation == 1) {
          std::memcpy(at, first, size_t(n) * sizeof(T));
        } else {
          for (int64_t tap = 0; tap < columns_.kernel; ++tap)
            std::memcpy(at + tap * inputs_, first + tap * columns_.dilation * inputs_, size_t(inputs_) * sizeof(T));
        }
        std::memset(at + n, 0, size_t(segment_ - n) * sizeof(T));
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
    if (run_.quantize({advance(x.data, in.from + channel * x.channel_stride, a_.dtype), a_.dtype, x.channel_stride, step,
                       dense ? 1 : n, dense ? n * channels : channels, to, column, codes}))
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

  // A block of the weight times the output positions [begin, end) of the strip's images.
  void multiply(int64_t block, int64_t begin, int64_t end) const {
    static thread_local Scratch<char> scratch;
    const int64_t panel_size = layout_.steps() * panel_bytes(gemm_.panel()), tile_size = kTile * kBlockRows;
    char* const panel = scratch.reserve(panel_size + 3 * tile_size * 4);
    int32_t* const acc = reinterpret_cast<int32_t*>(panel + panel_size);
    float* const tile = reinterpret_cast<float*>(acc + tile_size);
    const PackedGemm::Factors factors = gemm_.factors(block, 0);
    gemm_.expand(block, 0, layout_.steps(), factors, panel);
    int32_t start[kBlockRows] = {};
    if (!a_.exact) correct(panel, start);
    const int64_t tiles = ceil_div(end - begin, kTile);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = begin + (end - begin) * i / tiles, last = begin + (end - begin) * (i + 1) / tiles;
      for (int64_t m = 0; m < last - first; ++m) std::memcpy(acc + m * kBlockRows, start, sizeof start);
      Rows rows;
      find_rows(block, first, last - first, rows);
      multiply_tile(block, last - first, rows, panel, acc);
      finish(block, first, last - first, rows, factors, acc, tile, tile + tile_size);
    }
  }

  void multiply_pair(int64_t unit, int64_t begin, int64_t end) const {
    static thread_local Scratch<char> scratch;
    const int64_t units = int64_t(units_.size()), block = units_[size_t(unit)].block;
    const int64_t panel_size = layout_.steps() * kPairStepBytes;
    char* const panel = scratch.reserve(panel_size + 2 * kTile * kPairRows * 4);
    float* const tile = reinterpret_cast<float*>(panel + panel_size);
    const PackedGemm::PairFactors factors = gemm_.pair_factors(block);
    alignas(64) int32_t start[kPairRows] = {};
    gemm_.expand_pair(block, panel, codes_.zero ? start : nullptr);
    for (int32_t& sum : start) sum *= -codes_.zero;
    const bool more = unit + 1 < units && units_[size_t(unit + 1)].blocks == 2;
    const uint8_t* const next = gemm_.planes(more ? units_[size_t(unit + 1)].block : block);
    const int64_t tiles = ceil_div(end - begin, kTile);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = begin + (end - begin) * t / tiles, n = begin + (end - begin) * (t + 1) / tiles - first;
      Rows rows;
      find_rows(block, first, n, rows);
      float bias[kPairRows];
      const Output out = output_of(block, 2, first, n, tile, tile + kTile * kPairRows, bias);
      const char* const x = strip_ + block / layout_.part_blocks() * segment_;
      gemm_.kernels().multiply_pair(
          {panel,
           layout_.steps(),
           x,
           rows.x,
           step_.data(),
           n,
           start,
           {rows.sums, gemm_.shift(), factors.center, factors.scale, rows.scale, out.bias, out.residual,
            out.residual_stride, a_.relu, int(out.channels), out.y, out.codes, out.stride, y_codes_},
           next,
           layout_.plane_bytes(),
           t == 0 && more ? a_.bits : 0});
      if (!out.codes && out.y == tile) store(block, out.channels, kPairRows, first, n, tile);
    }
  }

  // Of output positions: where their windows begin, the sums of these less the zero point of x, and the scale of x.
  struct Rows {
    int64_t x[kTile];
    int32_t sums[kTile];
    float scale[kTile];
  };

  void find_rows(int64_t block, int64_t first, int64_t n, Rows& to) const {
    const int64_t width = a_.y.width, part = block / layout_.part_blocks();
    int64_t image = first / pixels_, row = first % pixels_ / width, column = first % width;
    for (int64_t m = 0; m < n;) {
      const int64_t run = std::min(n - m, width - column), line = row * rows_.stride, at = column * stride_;
      const int64_t from = element_ * (image * image_ + line * row_ + at * column_), step = element_ * stride_ * column_;
      for (int64_t i = 0; i < run; ++i) to.x[m + i] = from + i * step;
      std::fill_n(to.scale + m, run, scale_[size_t(first_ + image)]);
      if (!a_.exact) add_sums(strip_sums_ + ((part * images_ + image) * lines_ + line) * line_ + at, run, to.sums + m);
      m += run;
      column = 0;
      if (++row == a_.y.height) row = 0, ++image;
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
      gemm_.kernels().multiply({panel + step * step_bytes, std::min(at_once, layout_.steps() - step), a_.bits, x, rows.x,
                                step_.data() + step, n, acc},
                               gemm_.panel());
  }

  void finish(int64_t block, int64_t first, int64_t n, const Rows& rows, const PackedGemm::Factors& factors,
              const int32_t* acc, float* tile, float* residual) const {
    float bias[kBlockRows];
    const Output out = output_of(block, 1, first, n, tile, residual, bias);
    run_.output({acc, a_.exact ? nullptr : rows.sums, n, gemm_.shift(), factors.center, factors.scale, rows.scale, out.bias, out.residual, out.residual_stride, a_.relu, out.y, out.stride});
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
  const int64_t groups_, inputs_, segment_;      // channels of a group, and with their padding
  const int64_t element_;                        // bytes
  const bool joined_;
  const int64_t row_taps_, stride_;  // of the strip: taps of a row of the kernel, and between columns of outputs
  const int64_t lines_, line_;       // rows and columns of an image of the strip
  const int64_t column_, row_, image_, pixels_;  // elements of the strip; positions of an image of y
  PackedCodes codes_{0.0f, 0, -127, 127}, y_codes_{};
  float half_scale_ = 0.0f;
  int64_t images_, ranges_, first_;  // images of the strip, parts of their positions, the first of the images
  bool in_cache_;                    // whether the strip stays in the second-level cache from block to block
  std::vector<Unit> units_;
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
