#include "lcs/packed_conv2d.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "packed_conv2d_kernels.h"
#include "packed_depthwise.h"
#include "packed_gemm.h"
#include "packed_pool.h"
#include "packed_result.h"
#include "packed_strip.h"
#include "packed_winograd.h"
#include "scratch.h"
#include "tasks.h"

namespace lcs {
namespace {

constexpr int64_t kRangeBytes = 384 << 10;  // of a strip, what stays in the second-level cache from block to block
constexpr int64_t kTasks = 16;              // enough to keep the threads even
constexpr int64_t kLeastPixels = 96;        // that pay for unpacking a block of the weight
constexpr int64_t kFewUnits = 2;            // that every thread may unpack, and keep
constexpr int64_t kFewPixels = 48;          // at once, where it does
constexpr int64_t kChunkBytes = 16 << 10;   // of a panel: half of the first-level cache

// The input becomes a strip. Then each block of the weight is unpacked, and meets the strip of many output positions.
class PackedConv2d {
 public:
  PackedConv2d(const PackedConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        layout_(args.weight.layout),
        gemm_(args.weight, args.bits, nullptr, false, args.exact),
        run_(packed_conv2d_kernels()),
        winograd_(packed_conv2d_winograd(args)),
        strip_(args, gemm_, winograd_ ? Panel::bytes : gemm_.panel(), parallel),
        g_(strip_.geometry()),
        result_(args, winograd_ || gemm_.pairs()),
        pixels_(result_.pixels()) {}

  void run() {
    choose_units();
    if (!winograd_) choose_parts();
    // Of what strides leave out, nothing is added up.
    adds_late_ = !winograd_ && g_.is_input && g_.rows.kernel * g_.row_taps == 1 &&
                 int64_t(units_.size()) <= kFewUnits * g_.rows.stride * g_.stride;
    std::optional<PackedWinograd> winograd;
    if (winograd_) winograd.emplace(a_, winograd_, gemm_, strip_, result_, parallel_);
    for (first_ = 0; first_ < a_.x.n; first_ += g_.images) {
      const int64_t images = std::min(g_.images, a_.x.n - first_);
      strip_.fill(first_, images, !adds_late_);
      if (winograd && winograd->multiply(first_, images)) continue;
      if (regions_.empty()) choose_parts();  // of codes that do not fit Winograd's
      a_.largest ? multiply_largest() : multiply(images);
    }
  }

 private:
  // Blocks of a part that are multiplied at once.
  struct Unit {
    int64_t block, blocks;
  };

  void choose_units() {
    const int64_t most = gemm_.pairs() ? 2 : 1, blocks = layout_.part_blocks();
    units_.reserve(size_t(layout_.parts * ceil_div(blocks, most)));
    for (int64_t part = 0; part < layout_.parts; ++part)
      for (int64_t b = 0; b < blocks; b += most) units_.push_back({part * blocks + b, std::min(most, blocks - b)});
  }

  // Output positions whose windows reach equally far out of the image, and the steps of what they read inside it. The
  // positions of `g_.images` images are numbered region by region, and in a region image by image.
  struct Region {
    int64_t row, rows, column, columns;
    TapRun row_taps, column_taps;
    int64_t first_run, runs, steps;
  };

  void choose_parts() {
    choose_regions();
    choose_ranges();
  }

  // One for all where results do not go right to their places.
  void choose_regions() {
    const bool several = gemm_.pairs() && result_.direct(), columns_too = several && !a_.largest && !g_.joined;
    const int64_t height = a_.y.height, width = a_.y.width;
    const TapRun all_rows{0, height, 0, g_.rows.kernel}, all_columns{0, width, 0, g_.row_taps};
    std::vector<TapRun> rows, columns;
    if (several) rows = tap_runs(g_.rows, a_.x.height, height);
    if (columns_too) columns = tap_runs(g_.columns, a_.x.width, width);
    regions_.reserve(std::max<size_t>(rows.size(), 1) * std::max<size_t>(columns.size(), 1));
    runs_.reserve(regions_.capacity() * size_t(g_.rows.kernel));
    for (const TapRun& r : several ? std::span(rows) : std::span(&all_rows, 1)) {
      const bool apart = columns_too && g_.images * (r.end - r.begin) > 1;  // corners of more than a position
      for (const TapRun& c : apart ? std::span(columns) : std::span(&all_columns, 1)) {
        Region region{r.begin, r.end - r.begin, c.begin, c.end - c.begin, r, c, int64_t(runs_.size()), 0, 0};
        add_runs(region);
        // Rows that follow each other are one.
        if (!a_.largest && region.columns == width && g_.rows.stride * g_.line == width * g_.stride)
          region.columns *= std::exchange(region.rows, 1);
        regions_.push_back(region);
      }
    }
  }

  // Taps that follow each other are one.
  void add_runs(Region& region) {
    const int64_t steps = layout_.segment_steps();
    const TapRun &rows = region.row_taps, &columns = region.column_taps;
    for (int64_t tap = rows.first; tap < rows.last; ++tap) {
      const PackedRun run{(tap * g_.row_taps + columns.first) * steps, (tap * g_.row_taps + columns.last) * steps};
      region.steps += run.end - run.begin;
      if (region.runs > 0 && runs_.back().end == run.begin)
        runs_.back().end = run.end;
      else
        runs_.push_back(run), ++region.runs;
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
    const int64_t pixels = g_.images * pixels_, blocks = int64_t(units_.size());
    ranges_ = std::clamp<int64_t>(g_.images * g_.image * g_.element / kRangeBytes, 1, ceil_div(pixels, kLeastPixels));
    in_cache_ = ranges_ == 1;
    few_ = in_cache_ && blocks <= kFewUnits;
    if (is_serial(parallel_)) return;  // no threads to keep even
    const int64_t tasks = few_ ? 2 * kTasks : kTasks, least = few_ ? kFewPixels : kLeastPixels;
    while (ranges_ * (few_ ? 1 : blocks) < tasks && ceil_div(pixels, 2 * ranges_) >= least) ranges_ *= 2;
  }

  // Ranges of a unit come after each other; where units are few, or the strip does not stay in the cache, units of a
  // range.
  void multiply(int64_t images) const {
    const int64_t units = int64_t(units_.size()), tasks = units * ranges_;
    const bool by_unit = in_cache_ && !few_;
    share_tasks<Panels>(parallel_, tasks, [&](int64_t i, Panels& panels) {
      const int64_t unit = by_unit ? i / ranges_ : i % units, range = by_unit ? i % ranges_ : i / units;
      UnitPanel& panel = panels.of[few_ ? unit : 0];
      multiply(unit, images, position(images, range, ranges_), position(images, range + 1, ranges_), panel);
    });
  }

  // Of a block's rows: minus the zero point of x times the sum of their codes.
  void correct(const char* panel, int32_t* to) const {
    int32_t sums[kBlockRows] = {};
    if (strip_.zero() != 0) {
      const int8_t bytes[kStepColumns] = {1, 1, 1, 1, 1, 1, 1, 1};
      const int16_t words[kStepColumns] = {1, 1, 1, 1, 1, 1, 1, 1};
      const char* const ones =
          gemm_.panel() == Panel::bytes ? reinterpret_cast<const char*>(bytes) : reinterpret_cast<const char*>(words);
      const int64_t row = 0;
      const std::vector<int64_t> same(size_t(layout_.steps()));
      gemm_.kernels().multiply({panel, layout_.steps(), a_.bits, ones, &row, same.data(), 1, sums}, gemm_.panel());
    }
    for (int i = 0; i < kBlockRows; ++i) to[i] = -strip_.zero() * sums[i];
  }

  // A unit of the weight, unpacked by the thread that multiplies it.
  struct UnitPanel {
    int64_t unit = -1;
    char* panel = nullptr;
    char* more = nullptr;  // memory for a tile's results
    PackedGemm::Factors factors;
    PackedGemm::PairFactors pair_factors;
    int32_t* start = nullptr;  // of each region and place: minus the zero point of x times the sum of the codes
  };

  // What a thread keeps from task to task.
  struct Panels {
    UnitPanel of[kFewUnits];
  };

  char* reserve(int64_t unit, int64_t bytes) const {
    static thread_local Scratch<char> scratch[kFewUnits];
    return scratch[few_ ? unit : 0].reserve(bytes);
  }

  // A unit of the weight times the output positions [begin, end) of the strip's images.
  void multiply(int64_t unit, int64_t images, int64_t begin, int64_t end, UnitPanel& panel) const {
    const bool pair = gemm_.pairs();
    if (panel.unit != unit) pair ? expand_pair(unit, panel) : expand(unit, panel);
    panel.unit = unit;
    int64_t first = 0;
    for (const Region& region : regions_) {
      const int64_t size = images * region.rows * region.columns;
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, size);
      first += size;
      if (from >= to) continue;
      const int64_t tiles = ceil_div(to - from, kTile);
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t at = from + (to - from) * t / tiles, n = from + (to - from) * (t + 1) / tiles - at;
        pair ? multiply_pair(region, at, n, t == 0, panel) : multiply_block(region, at, n, panel);
      }
    }
  }

  void expand(int64_t unit, UnitPanel& to) const {
    const int64_t block = units_[size_t(unit)].block, tile = kTile * kBlockRows * 4;
    const int64_t size = layout_.steps() * panel_bytes(gemm_.panel());
    to.panel = reserve(unit, size + 3 * tile + kBlockRows * 4);
    to.more = to.panel + size;
    to.start = reinterpret_cast<int32_t*>(to.more + 3 * tile);
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
    const auto [block, blocks] = units_[size_t(unit)];
    const int64_t size = layout_.steps() * kPairStepBytes, tiles = 2 * kTile * kPairRows * 4;
    const int64_t steps = layout_.segment_steps(), taps = strip_.zero() ? layout_.segments() : 0;
    const int64_t starts = int64_t(regions_.size()) * kPairRows;
    to.panel = reserve(unit, size + tiles + (starts + taps * kPairRows) * 4);
    to.more = to.panel + size;
    to.start = reinterpret_cast<int32_t*>(to.more + tiles);
    int32_t* const sums = to.start + starts;
    to.pair_factors = gemm_.pair_factors(block, blocks);
    for (int64_t tap = 0; tap < taps; ++tap)
      gemm_.expand_pair(block, blocks, tap * steps, steps, to.panel + tap * steps * kPairStepBytes,
                        sums + tap * kPairRows);
    if (!taps) gemm_.expand_pair(block, blocks, 0, layout_.steps(), to.panel, nullptr);
    std::fill_n(to.start, starts, 0);
    for (size_t r = 0; r < regions_.size() && taps; ++r) find_start(regions_[r], sums, to.start + r * kPairRows);
  }

  // From the sums of the codes of each tap.
  void find_start(const Region& region, const int32_t* sums, int32_t* start) const {
    for (int64_t i = region.row_taps.first; i < region.row_taps.last; ++i)
      for (int64_t j = region.column_taps.first; j < region.column_taps.last; ++j)
        for (int place = 0; place < kPairRows; ++place) start[place] += sums[(i * g_.row_taps + j) * kPairRows + place];
    for (int place = 0; place < kPairRows; ++place) start[place] *= -strip_.zero();
  }

  // Of output positions: where their windows begin, the sums of these less the zero point of x, the scale of x, and
  // where their results go, from position `base` on.
  struct Rows {
    int64_t x[kTile];
    int32_t sums[kTile];
    float scale[kTile];
    int64_t place[kTile];
  };

  // All but its channels and where its results go.
  PackedPairMultiply product(const Region& region, int64_t block, int64_t n, const Rows& rows,
                             const UnitPanel& panel) const {
    const PackedGemm::PairFactors& factors = panel.pair_factors;
    return {panel.panel,
            runs_.data() + region.first_run,
            region.runs,
            strip_.data() + block / layout_.part_blocks() * g_.segment,
            rows.x,
            strip_.steps(),
            n,
            panel.start + (&region - regions_.data()) * kPairRows,
            {rows.place, rows.sums, layout_.columns, gemm_.shift(), factors.center, factors.scale, rows.scale, nullptr,
             nullptr, 0, a_.relu, 0, nullptr, nullptr, 0, result_.codes()},
            nullptr,
            layout_.plane_bytes(),
            0};
  }

  // Of an image, unit by unit and row by row.
  void multiply_largest() const {
    const int64_t row_size = packed_pool_row_size(a_), size = row_size / int64_t(units_.size());
    UnitPanel panel;
    for (size_t unit = 0; unit < units_.size(); ++unit) {
      expand_pair(int64_t(unit), panel);
      panel.unit = int64_t(unit);
      for (const Region& region : regions_)
        for (int64_t r = 0; r < region.rows; ++r)
          multiply_largest(region, r, panel, a_.largest + (region.row + r) * row_size + int64_t(unit) * size);
    }
  }

  void multiply_largest(const Region& region, int64_t row, const UnitPanel& panel, int32_t* to) const {
    static_assert(kTile % 2 == 0);
    const auto [block, blocks] = units_[size_t(panel.unit)];
    int32_t before[kPairRows];
    std::fill_n(before, kPairRows, std::numeric_limits<int32_t>::min());
    for (int64_t c = 0; c < region.columns; c += kTile, to += kTile / 2 * kPairRows) {
      const int64_t n = std::min(kTile, region.columns - c);
      Rows rows;
      find_rows(region, block, row * region.columns + c, n, rows);
      PackedPairMultiply product = this->product(region, block, n, rows, panel);
      product.output.channels = int(gemm_.rows(block, blocks));
      gemm_.kernels().multiply_pair_largest(product, before, to);
    }
  }

  void multiply_pair(const Region& region, int64_t first, int64_t n, bool load_next, const UnitPanel& panel) const {
    const int64_t units = int64_t(units_.size()), unit = panel.unit;
    const auto [block, blocks] = units_[size_t(unit)];
    float* const tile = reinterpret_cast<float*>(panel.more);
    const bool more = load_next && unit + 1 < units;
    Rows rows;
    find_rows(region, block, first, n, rows);
    float bias[kPairRows];
    const int64_t start = first_ * pixels_ + base(first);
    const PackedResult::Channels channels{gemm_.first_row(block), gemm_.rows(block, blocks), kPairRows, true, true};
    const PackedResult::Output out = result_.output(channels, start, n, tile, tile + kTile * kPairRows, bias);
    PackedPairMultiply product = this->product(region, block, n, rows, panel);
    product.output.bias = out.bias;
    product.output.residual = out.residual;
    product.output.residual_stride = out.residual_stride;
    product.output.channels = int(channels.n);
    product.output.y = out.y;
    product.output.codes = out.codes;
    product.output.stride = out.stride;
    product.next = gemm_.planes(more ? units_[size_t(unit + 1)].block : block);
    product.planes = more ? a_.bits : 0;
    gemm_.kernels().multiply_pair(product);
    if (out.y == tile) result_.store(channels, start, n, tile);
  }

  int64_t base(int64_t first) const { return regions_.size() > 1 ? 0 : first; }

  void find_rows(const Region& region, int64_t block, int64_t first, int64_t n, Rows& to) const {
    const int64_t part = block / layout_.part_blocks(), positions = region.rows * region.columns;
    int64_t image = first / positions, r = first % positions / region.columns, c = first % region.columns;
    for (int64_t m = 0; m < n; c = 0) {
      const int64_t run = std::min(n - m, region.columns - c), row = region.row + r, column = region.column + c;
      const int64_t line = row * g_.rows.stride, at = column * g_.stride;
      const int64_t from = g_.element * (image * g_.image + line * g_.row + at * g_.column),
                    step = g_.element * g_.stride * g_.column;
      const int64_t place = image * pixels_ + row * a_.y.width + column - base(first);
      for (int64_t i = 0; i < run; ++i) to.x[m + i] = from + i * step, to.place[m + i] = place + i;
      std::fill_n(to.scale + m, run, strip_.scale(image));
      if (adds_late_)
        add_late(from, step, run, to.sums + m);
      else if (!a_.exact)
        add_sums(strip_.sums(part, image, line, at), run, to.sums + m);
      m += run;
      if (++r == region.rows) r = 0, ++image;
    }
  }

  // Of n positions, of a single tap.
  void add_late(int64_t from, int64_t step, int64_t n, int32_t* to) const {
    run_.sums(reinterpret_cast<const int8_t*>(strip_.data()) + from, step, g_.segment, n, to);
    for (int64_t m = 0; m < n; ++m) to[m] -= int32_t(strip_.zero() * layout_.columns);
  }

  void add_sums(const int32_t* from, int64_t n, int32_t* to) const {
    const int64_t taps = g_.rows.kernel, row = g_.rows.dilation * g_.line;
    std::fill_n(to, n, int32_t(-strip_.zero() * layout_.columns));
    for (int64_t i = 0; i < taps; i += kTapsAtOnce) {
      const int64_t at_once = std::min(taps - i, kTapsAtOnce);
      (at_once == 1 ? add_rows<1> : at_once == 2 ? add_rows<2> : add_rows<3>)(from + i * row, row, g_.stride, n, to);
    }
  }

  static constexpr int64_t kTapsAtOnce = 3;

  template <int kRows>
  static void add_rows(const int32_t* from, int64_t row, int64_t stride, int64_t n, int32_t* to) {
    const auto add = [&](int64_t step) {
      for (int64_t m = 0; m < n; ++m) {
        int32_t sum = 0;
        for (int i = 0; i < kRows; ++i) sum += from[i * row + m * step];
        to[m] += sum;
      }
    };
    stride == 1 ? add(1) : add(stride);
  }

  void multiply_tile(int64_t block, int64_t n, const Rows& rows, const char* panel, int32_t* acc) const {
    const int64_t step_bytes = panel_bytes(gemm_.panel()), at_once = kChunkBytes / step_bytes;
    const char* const x = strip_.data() + block / layout_.part_blocks() * g_.segment * g_.element;
    for (int64_t step = 0; step < layout_.steps(); step += at_once)
      gemm_.kernels().multiply({panel + step * step_bytes, std::min(at_once, layout_.steps() - step), a_.bits, x,
                                rows.x, strip_.steps() + step, n, acc},
                               gemm_.panel());
  }

  void finish(int64_t block, int64_t first, int64_t n, const Rows& rows, const PackedGemm::Factors& factors,
              const int32_t* acc, float* tile, float* residual) const {
    float bias[kBlockRows];
    const int64_t start = first_ * pixels_ + first;
    const PackedResult::Channels channels{gemm_.first_row(block), gemm_.rows(block), kBlockRows, false, false};
    const PackedResult::Output out = result_.output(channels, start, n, tile, residual, bias);
    run_.output({acc, a_.exact ? nullptr : rows.sums, n, gemm_.shift(), factors.center, factors.scale, rows.scale,
                 out.bias, out.residual, out.residual_stride, a_.relu, out.y, out.stride});
    if (out.y == tile) result_.store(channels, start, n, tile);
  }

  const PackedConv2dArgs& a_;
  const Parallel& parallel_;
  const NestedLayout& layout_;
  const PackedGemm gemm_;
  const PackedConv2dKernels run_;
  const int winograd_;  // the side of its tiles; 0: none
  PackedStrip strip_;
  const StripGeometry& g_;
  const PackedResult result_;
  const int64_t pixels_;    // positions of an image of y
  int64_t ranges_, first_;  // parts of the positions of the strip, its first image
  bool in_cache_, few_;     // whether the strip stays in the second-level cache from unit to unit; these are few
  bool adds_late_ = false;  // whether a tile adds up what it reads of the strip itself, as that takes no fork
  std::vector<Unit> units_;
  std::vector<Region> regions_;
  std::vector<PackedRun> runs_;  // of all regions
};

}  // namespace

void packed_conv2d(const PackedConv2dArgs& args, const Parallel& parallel) {
  const Images& y = args.y;
  if (y.n * y.channels * y.height * y.width == 0) return;
  args.depthwise ? packed_depthwise(args, parallel) : PackedConv2d(args, parallel).run();
}

NestedLayout packed_conv2d_layout(int64_t out, int64_t in, int64_t height, int64_t width, int64_t groups) {
  const int64_t taps = height * width, columns = in * taps, group = std::max<int64_t>(columns, 1);
  if (packed_conv2d_depthwise(out, in, groups)) return {out, columns, group, 1, 1};
  return {out, columns, group, taps, groups, in < NestedLayout::kStep ? width : 1};
}

}  // namespace lcs
