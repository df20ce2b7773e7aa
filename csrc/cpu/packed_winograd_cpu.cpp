#include "packed_winograd.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "scratch.h"
#include "tasks.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kSide = 2, kWindow = 4;  // of a tile, and of what it reads
constexpr int64_t kOutputs = kSide * kSide;
constexpr int64_t kBandTiles = 30;   // about so many are multiplied at once
constexpr int64_t kFewUnits = 2;     // pairs of blocks that every thread may transform, and keep
constexpr int64_t kLeastTiles = 64;  // that pay for transforming two blocks of the weight again
constexpr int64_t kTasks = 16;       // enough to keep the threads even
constexpr int64_t kLine = 64;        // bytes, between tiles, whose distance would else be a power of two

// What Winograd's products of two blocks take beyond their products (a cycle each, of 64 rows and a channel) and beyond
// what others do, measured: for a tile, and for a channel of the weight.
constexpr int64_t kTileCycles = 400, kWeightCycles = 90;

int64_t taps_inside(const Walk& axis, int64_t size, int64_t outputs) {
  int64_t taps = 0;
  for (const TapRun& run : tap_runs(axis, size, outputs)) taps += (run.end - run.begin) * (run.last - run.first);
  return taps;
}

bool is_plain(const Axis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; }

}  // namespace

bool packed_conv2d_by_winograd(const PackedConv2dArgs& a) {
  const NestedLayout& layout = a.weight.layout;
  const PackedGemm gemm(a.weight, a.bits, nullptr, false, a.exact);
  const bool fits = is_plain(a.vertical) && is_plain(a.horizontal) && layout.parts == 1 && layout.joined == 1 &&
                    layout.blocks() % 2 == 0 && a.bits <= kWinogradBits && a.range &&
                    a.range->bits <= kWinogradInputBits && gemm.pairs() && gemm.kernels().multiply_winograd;
  if (!fits || a.winograd) return fits && *a.winograd;
  const StripGeometry g(a, gemm.panel());
  const int64_t tiles = g.images * ceil_div(a.y.height, kSide) * ceil_div(a.y.width, kSide);
  const int64_t taps = taps_inside(g.rows, a.x.height, a.y.height) * taps_inside(g.columns, a.x.width, a.y.width);
  const int64_t winograd = tiles * (kWinogradPositions * g.segment + kTileCycles) + kWeightCycles * g.segment;
  return winograd < g.images * taps * g.segment;
}

// Of the images of a strip: their tiles, row by row, and bands of whole rows of them. Some are in memory.
struct PackedWinograd::Tiles {
  int64_t columns, rows, band;  // tiles of a row, rows of all images, rows of a band
  int64_t bytes;                // of a tile
  int64_t first = 0;            // row in memory
  uint8_t* x = nullptr;
  int64_t* place = nullptr;  // of its outputs each, as the kernels take them
  int32_t* sums = nullptr;
  float* scale = nullptr;

  int64_t bands() const { return ceil_div(rows, band); }
  int64_t count() const { return rows * columns; }
  int64_t at(int64_t row) const { return (row - first) * columns; }

  // Memory for `n` rows from `row` on.
  void hold(int64_t row, int64_t n, Scratch<char>& scratch) {
    const int64_t tiles = n * columns;
    char* const memory = scratch.reserve(tiles * (bytes + kOutputs * (8 + 4 + 4)));
    first = row;
    x = reinterpret_cast<uint8_t*>(memory);
    place = reinterpret_cast<int64_t*>(memory + tiles * bytes);
    sums = reinterpret_cast<int32_t*>(place + tiles * kOutputs);
    scale = reinterpret_cast<float*>(sums + tiles * kOutputs);
  }
};

// Two blocks of the weight, transformed by the thread that multiplies them.
struct PackedWinograd::Panel {
  int64_t block = -1;
  char* panel = nullptr;
  float* tile = nullptr;  // memory for a band's results, and what is added to them
  PackedGemm::PairFactors factors;
  alignas(64) int32_t start[kWinogradPositions * kPairRows];
};

PackedWinograd::PackedWinograd(const PackedConv2dArgs& args, const PackedGemm& gemm, const PackedStrip& strip,
                               const PackedResult& result, const Parallel& parallel)
    : a_(args),
      gemm_(gemm),
      strip_(strip),
      result_(result),
      parallel_(parallel),
      image_rows_(ceil_div(args.y.height, kSide)) {}

// What a thread keeps from task to task.
struct PackedWinograd::Panels {
  Panel of[kFewUnits];
};

bool PackedWinograd::multiply(int64_t first, int64_t images) const {
  Tiles tiles{ceil_div(a_.y.width, kSide), images * image_rows_, 0, 0};
  tiles.bytes = kWinogradPositions * strip_.geometry().segment + kLine;
  const bool few = a_.weight.layout.blocks() / 2 <= kFewUnits;
  tiles.band = few ? 1 : std::max<int64_t>(kBandTiles / tiles.columns, 1);
  return few ? multiply_bands(first, tiles) : multiply_units(first, tiles);
}

// Each row of tiles is multiplied by the whole weight as soon as it is transformed.
bool PackedWinograd::multiply_bands(int64_t first, const Tiles& all) const {
  const int64_t units = a_.weight.layout.blocks() / 2;
  std::atomic<bool> fits{true};
  share_tasks<Panels>(parallel_, all.bands(), [&](int64_t band, Panels& panels) {
    static thread_local Scratch<char> scratch;
    Tiles tiles = all;
    const int64_t row = band * tiles.band, last = std::min(row + tiles.band, tiles.rows);
    tiles.hold(row, last - row, scratch);
    if (!transform(tiles, row, last)) fits.store(false, std::memory_order_relaxed);
    for (int64_t unit = 0; unit < units; ++unit) multiply(first, tiles, unit, band, band + 1, panels);
  });
  return fits;
}

// Blocks are transformed as seldom as possible, after all tiles.
bool PackedWinograd::multiply_units(int64_t first, Tiles& tiles) const {
  static thread_local Scratch<char> scratch;
  tiles.hold(0, tiles.rows, scratch);
  std::atomic<bool> fits{true};
  parallel_(tiles.rows, 1, [&](int64_t begin, int64_t end) {
    if (!transform(tiles, begin, end)) fits.store(false, std::memory_order_relaxed);
  });
  if (!fits) return false;
  const int64_t units = a_.weight.layout.blocks() / 2;
  const int64_t ranges =
      std::clamp<int64_t>(std::min(ceil_div(kTasks, units), tiles.count() / kLeastTiles), 1, tiles.bands());
  share_tasks<Panels>(parallel_, units * ranges, [&](int64_t i, Panels& panels) {
    const int64_t range = i % ranges;
    multiply(first, tiles, i / ranges, tiles.bands() * range / ranges, tiles.bands() * (range + 1) / ranges, panels);
  });
  return true;
}

bool PackedWinograd::transform(const Tiles& tiles, int64_t begin, int64_t end) const {
  bool fits = true;
  for (int64_t row = begin; row < end; ++row) {
    find_outputs(tiles, row);
    fits &= transform(tiles, row);
  }
  return fits;
}

bool PackedWinograd::transform(const Tiles& tiles, int64_t row) const {
  const StripGeometry& g = strip_.geometry();
  const int64_t image = row / image_rows_, line = row % image_rows_ * kSide;
  WinogradInput in{{},
                   g.column,
                   g.line,
                   g.segment,
                   strip_.codes().zero,
                   strip_.codes().lowest,
                   a_.range->bits,
                   tiles.columns,
                   tiles.x + tiles.at(row) * tiles.bytes,
                   tiles.bytes};
  for (int64_t i = 0; i < kWindow; ++i)
    in.rows[i] =
        reinterpret_cast<const int8_t*>(strip_.data()) + image * g.image + std::min(line + i, g.lines - 1) * g.row;
  return gemm_.kernels().winograd_input(in);
}

// Of a row of tiles: where their outputs go, the sums of what these read, less the zero point, and the scale of x.
void PackedWinograd::find_outputs(const Tiles& tiles, int64_t row) const {
  const StripGeometry& g = strip_.geometry();
  const int64_t image = row / image_rows_, begin = tiles.at(row) * kOutputs, width = a_.y.width;
  std::fill_n(tiles.place + begin, tiles.columns * kOutputs, int64_t{-1});
  std::fill_n(tiles.scale + begin, tiles.columns * kOutputs, strip_.scale(image));
  const int64_t from = result_.direct() ? 0 : position(row / tiles.band * tiles.band);
  for (int64_t i = 0; i < kSide; ++i) {
    const int64_t line = row % image_rows_ * kSide + i;
    if (line == a_.y.height) break;
    const int32_t* const sums = strip_.sums(0, image, line, 0);
    for (int64_t c = 0; c < width; ++c) {
      const int64_t at = begin + c / kSide * kOutputs + i * kSide + c % kSide;
      const int32_t window = sums[c] + sums[c + g.line] + sums[c + 2 * g.line];
      tiles.sums[at] = int32_t(window - strip_.zero() * a_.weight.layout.columns);
      tiles.place[at] = position(row) - from + i * width + c;
    }
  }
}

// Of the first output of a row of tiles, among those of the strip's images.
int64_t PackedWinograd::position(int64_t row) const {
  const int64_t line = row % image_rows_ * kSide;
  return row / image_rows_ * result_.pixels() + line * a_.y.width;
}

void PackedWinograd::expand(int64_t block, const Tiles& tiles, Scratch<char>& scratch, Panel& to) const {
  const NestedLayout& layout = a_.weight.layout;
  const int64_t steps = layout.segment_steps(), size = kWinogradPositions * winograd_position_bytes(steps);
  const int64_t tile = result_.direct() ? 0 : tiles.band * tiles.columns * kOutputs * kPairRows;
  to.block = block;
  to.panel = scratch.reserve(size + 2 * tile * 4);
  to.tile = reinterpret_cast<float*>(to.panel + size);
  to.factors = gemm_.pair_factors(block);
  for (int32_t& center : to.factors.center) center += 1 << a_.weight.depth;  // codes are less half of what they may be
  gemm_.kernels().winograd_weights({gemm_.planes(block), layout.plane_bytes(), layout.steps() * kBlockRows, steps,
                                    layout.segment(), a_.bits, to.panel, to.start});
}

// Bands [begin, end), at once where results go right to their places.
void PackedWinograd::multiply(int64_t first, const Tiles& tiles, int64_t unit, int64_t begin, int64_t end,
                              Panels& panels) const {
  static thread_local Scratch<char> scratch[kFewUnits];
  const int64_t slot = a_.weight.layout.blocks() / 2 <= kFewUnits ? unit : 0;
  Panel& panel = panels.of[slot];
  if (panel.block != 2 * unit) expand(2 * unit, tiles, scratch[slot], panel);
  const int64_t bands = result_.direct() ? end - begin : 1;
  float bias[kPairRows];
  for (int64_t band = begin; band < end; band += bands) {
    const int64_t row = band * tiles.band, last = std::min((band + bands) * tiles.band, tiles.rows);
    const int64_t tile = tiles.at(row), at = tile * kOutputs;
    const int64_t from = result_.direct() ? 0 : position(row), n = position(last) - position(row);
    const int64_t start = first * result_.pixels() + from;
    const PackedResult::Output out =
        result_.output(panel.block, 2, start, n, panel.tile, panel.tile + n * kPairRows, bias);
    const PackedPairOutput output{tiles.place + at,    tiles.sums + at,  gemm_.shift(),     panel.factors.center,
                                  panel.factors.scale, tiles.scale + at, out.bias,          out.residual,
                                  out.residual_stride, a_.relu,          int(out.channels), out.y,
                                  out.codes,           out.stride,       result_.codes()};
    gemm_.kernels().multiply_winograd({panel.panel, panel.start, a_.weight.layout.segment_steps(),
                                       tiles.x + tile * tiles.bytes, tiles.bytes, tiles.at(last) - tile, output});
    if (!out.codes && out.y == panel.tile) result_.store(panel.block, out.channels, kPairRows, start, n, panel.tile);
  }
}

}  // namespace lcs
