#include "packed_winograd.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "scratch.h"
#include "tasks.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kBandTiles = 30;             // about so many are multiplied at once
constexpr int64_t kFewUnits = 2;               // pairs of blocks that every thread may transform, and keep, where they
constexpr int64_t kFewPanelBytes = 640 << 10;  // take no more than this of its second-level cache
constexpr int64_t kLeastTiles = 64;            // that pay for transforming two blocks of the weight again
constexpr int64_t kTasks = 16;                 // enough to keep the threads even
constexpr int64_t kLine = 64;                  // bytes, between tiles, whose distance would else be a power of two

}  // namespace

int packed_conv2d_winograd(const PackedConv2dArgs& a) {
  const NestedLayout& layout = a.weight.layout;
  const PackedGemm gemm(a.weight, a.bits, nullptr, false, a.exact);
  const bool fits = is_plain(a.vertical) && is_plain(a.horizontal) && layout.parts == 1 && layout.joined == 1 &&
                    layout.blocks() % 2 == 0 && layout.groups() == 1 && !a.exact;
  if (!fits || (a.winograd && *a.winograd == 0)) return 0;
  const bool few = a.bits <= kWinogradBits && a.range && a.range->bits <= kWinogradInputBits;
  const auto can = [&](const WinogradKernels& kernels) {
    return kernels.side && (kernels.side == 4 || few) && (!a.winograd || *a.winograd == kernels.side);
  };
  const StripGeometry g(a, Panel::bytes);
  const int64_t taps =
      taps_inside(a.vertical, a.x.height, a.y.height) * taps_inside(a.horizontal, a.x.width, a.y.width);
  const auto cost = [&](const WinogradKernels& kernels) {
    const WinogradCosts of = kernels.costs(a.bits);
    const int64_t tiles = g.images * ceil_div(a.y.height, kernels.side) * ceil_div(a.y.width, kernels.side);
    return tiles * (of.products * g.segment + of.tile) + of.weight * g.segment;
  };
  int64_t least = a.winograd ? std::numeric_limits<int64_t>::max() : g.images * taps * g.segment;
  int side = 0;
  const WinogradKernels &small = gemm.kernels().winograd_2x2, &large = gemm.kernels().winograd_4x4;
  if (can(small) && cost(small) < least) least = cost(small), side = small.side;
  if (can(large) && cost(large) < least) side = large.side;
  return side;
}

// Of the images of a strip: their tiles, row by row, and bands of whole rows of them. Some are in memory.
struct PackedWinograd::Tiles {
  int64_t columns, rows, band;  // tiles of a row, rows of all images, rows of a band
  int64_t outputs;              // of a tile
  int64_t position, bytes;      // of a position of a tile, and of all
  int64_t most = 0;             // of a task
  int pieces = 1;               // of two blocks of the weight, multiplied at once
  int64_t first = 0;            // row in memory
  char* x = nullptr;
  int64_t* place = nullptr;  // of its outputs each, as the kernels take them
  int32_t* sums = nullptr;
  float* scale = nullptr;

  int64_t bands() const { return ceil_div(rows, band); }
  int64_t count() const { return rows * columns; }
  int64_t at(int64_t row) const { return (row - first) * columns; }

  // Memory for `n` rows from `row` on.
  void hold(int64_t row, int64_t n, Scratch<char>& scratch) {
    const int64_t tiles = n * columns;
    x = scratch.reserve(tiles * (bytes + outputs * (8 + 4 + 4)));
    first = row;
    place = reinterpret_cast<int64_t*>(x + tiles * bytes);
    sums = reinterpret_cast<int32_t*>(place + tiles * outputs);
    scale = reinterpret_cast<float*>(sums + tiles * outputs);
  }
};

// Two blocks of the weight, of which some channels of some pieces are transformed by the thread that multiplies them.
struct PackedWinograd::Panel {
  int64_t block = -1, part = -1;
  WinogradPieces pieces{};
  int64_t position = 0;  // bytes of a position
  char* panel = nullptr;
  char* codes = nullptr;
  float* tile = nullptr;    // memory for a band's results, and what is added to them
  int32_t* sums = nullptr;  // of channels before, of all outputs
  PackedGemm::PairFactors factors;
  alignas(64) int32_t start[16 * kPairRows];
};

PackedWinograd::PackedWinograd(const PackedConv2dArgs& args, int side, const PackedGemm& gemm, const PackedStrip& strip,
                               const PackedResult& result, const Parallel& parallel)
    : a_(args),
      run_(side == 2 ? gemm.kernels().winograd_2x2 : gemm.kernels().winograd_4x4),
      gemm_(gemm),
      strip_(strip),
      result_(result),
      parallel_(parallel),
      image_rows_(ceil_div(args.y.height, run_.side)) {}

// What a thread keeps from task to task.
struct PackedWinograd::Panels {
  Panel of[kFewUnits];
};

// Channels that are multiplied one after the other.
int64_t PackedWinograd::parts() const {
  return run_.channels ? std::max<int64_t>(ceil_div(strip_.geometry().segment, run_.channels), 1) : 1;
}

bool PackedWinograd::multiply(int64_t first, int64_t images) const {
  const int64_t segment = strip_.geometry().segment, units = a_.weight.layout.blocks() / 2;
  Tiles tiles{ceil_div(a_.y.width, run_.side), images * image_rows_, 0, run_.outputs(), segment * run_.element, 0};
  tiles.bytes = run_.positions() * tiles.position + kLine;
  const bool few = parts() == 1 && units <= kFewUnits && units * tiles.bytes * kPairRows <= kFewPanelBytes;
  tiles.most = tiles.columns;
  tiles.band = few ? 1 : std::max<int64_t>(kBandTiles / tiles.columns, 1);
  tiles.pieces = run_.pieces;
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
  tiles.most = ceil_div(tiles.bands(), ranges) * tiles.band * tiles.columns;
  if (result_.direct() && (ranges == 1 || parts() > 1)) tiles.pieces = 1;  // else the next range finds them all
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
  const int64_t image = row / image_rows_, line = row % image_rows_ * run_.side;
  WinogradInput in{{},
                   g.column,
                   g.line,
                   g.segment,
                   strip_.codes().zero,
                   strip_.codes().lowest,
                   a_.range ? a_.range->bits : 8,
                   tiles.columns,
                   tiles.x + tiles.at(row) * tiles.bytes,
                   tiles.position,
                   tiles.bytes};
  for (int64_t i = 0; i < run_.window(); ++i)
    in.rows[i] =
        reinterpret_cast<const int8_t*>(strip_.data()) + image * g.image + std::min(line + i, g.lines - 1) * g.row;
  return run_.input(in);
}

// Of a row of tiles: where their outputs go, the sums of what these read, less the zero point, and the scale of x.
void PackedWinograd::find_outputs(const Tiles& tiles, int64_t row) const {
  const StripGeometry& g = strip_.geometry();
  const int64_t image = row / image_rows_, begin = tiles.at(row) * tiles.outputs, width = a_.y.width, side = run_.side;
  std::fill_n(tiles.place + begin, tiles.columns * tiles.outputs, int64_t{-1});
  std::fill_n(tiles.scale + begin, tiles.columns * tiles.outputs, strip_.scale(image));
  const int64_t from = result_.direct() ? 0 : position(row / tiles.band * tiles.band);
  const int32_t zeros = int32_t(strip_.zero() * a_.weight.layout.columns);
  for (int64_t i = 0; i < side; ++i) {
    const int64_t line = row % image_rows_ * side + i;
    if (line == a_.y.height) break;
    const int32_t* const sums = strip_.sums(0, image, line, 0);
    const int64_t place = position(row) - from + i * width;
    for (int64_t tile = 0; tile < tiles.columns; ++tile) {
      const int64_t column = tile * side, inside = std::min(side, width - column);
      const int64_t at = begin + tile * tiles.outputs + i * side;
      for (int64_t j = 0; j < inside; ++j) {
        const int32_t* const of = sums + column + j;
        tiles.sums[at + j] = of[0] + of[g.line] + of[2 * g.line] - zeros;
        tiles.place[at + j] = place + column + j;
      }
    }
  }
}

// Of the first output of a row of tiles, among those of the strip's images.
int64_t PackedWinograd::position(int64_t row) const {
  const int64_t line = row % image_rows_ * run_.side;
  return row / image_rows_ * result_.pixels() + line * a_.y.width;
}

// Memory for two blocks, and for what becomes of a task's tiles.
void PackedWinograd::hold(int64_t block, const Tiles& tiles, Scratch<char>& scratch, Panel& to) const {
  const int64_t channels = ceil_div(ceil_div(strip_.geometry().segment, parts()), kStepColumns) * kStepColumns;
  to.position = channels * run_.element * (kPairRows / run_.pieces * tiles.pieces) + kLine;
  const int64_t size = run_.positions() * to.position;
  const int64_t tile = result_.direct() ? 0 : tiles.band * tiles.columns * tiles.outputs * kPairRows;
  const int64_t sums = parts() == 1 ? 0 : tiles.most * tiles.outputs * kPairRows;
  const int64_t codes = run_.pieces == 1 ? 0 : winograd_codes_bytes(channels / kStepColumns);
  to.panel = scratch.reserve(size + codes + (2 * tile + sums) * 4);
  to.codes = to.panel + size;
  to.tile = reinterpret_cast<float*>(to.codes + codes);
  to.sums = reinterpret_cast<int32_t*>(to.tile + 2 * tile);
  to.block = block;
  to.part = -1;
  to.factors = gemm_.pair_factors(block, 2);
  for (int32_t& center : to.factors.center) center += 1 << a_.weight.depth;  // codes are less half of what they may be
}

// Of the panel's blocks.
void PackedWinograd::expand(int64_t part, WinogradPieces pieces, Panel& to) const {
  const NestedLayout& layout = a_.weight.layout;
  const int64_t steps = layout.segment_steps(), first = steps * part / parts(), end = steps * (part + 1) / parts();
  run_.weights({gemm_.planes(to.block) + first * kBlockRows, layout.plane_bytes(), layout.steps() * kBlockRows, steps,
                end - first, layout.segment() - first * kStepColumns, a_.bits, to.panel, to.position, strip_.zero(),
                part > 0, to.start, pieces, to.codes});
  to.part = part, to.pieces = pieces;
}

// Bands [begin, end) by two blocks.
void PackedWinograd::multiply(int64_t first, const Tiles& tiles, int64_t unit, int64_t begin, int64_t end,
                              Panels& panels) const {
  static thread_local Scratch<char> scratch[kFewUnits];
  const int64_t slot = a_.weight.layout.blocks() / 2 <= kFewUnits ? unit : 0;
  Panel& panel = panels.of[slot];
  if (panel.block != 2 * unit) hold(2 * unit, tiles, scratch[slot], panel);
  for (int64_t part = 0; part < parts(); ++part)
    for (int piece = 0; piece < run_.pieces; piece += tiles.pieces) {
      if (panel.part != part || panel.pieces.begin != piece) expand(part, {piece, piece + tiles.pieces}, panel);
      multiply(first, tiles, begin, end, panel);
    }
}

// By the panel's channels, at once where results go right to their places.
void PackedWinograd::multiply(int64_t first, const Tiles& tiles, int64_t begin, int64_t end, Panel& panel) const {
  const int64_t steps = a_.weight.layout.segment_steps(), channel = steps * panel.part / parts();
  const int64_t bands = result_.direct() ? end - begin : 1, first_tile = tiles.at(begin * tiles.band);
  const PackedResult::Channels channels{gemm_.first_row(panel.block), gemm_.rows(panel.block, 2), kPairRows, true,
                                        true};
  float bias[kPairRows];
  for (int64_t band = begin; band < end; band += bands) {
    const int64_t row = band * tiles.band, last = std::min((band + bands) * tiles.band, tiles.rows);
    const int64_t tile = tiles.at(row), at = tile * tiles.outputs;
    const int64_t from = result_.direct() ? 0 : position(row), n = position(last) - position(row);
    const int64_t start = first * result_.pixels() + from;
    const PackedResult::Output out = result_.output(channels, start, n, panel.tile, panel.tile + n * kPairRows, bias);
    const PackedPairOutput output{tiles.place + at,
                                  tiles.sums + at,
                                  a_.weight.layout.columns,
                                  gemm_.shift(),
                                  panel.factors.center,
                                  panel.factors.scale,
                                  tiles.scale + at,
                                  out.bias,
                                  out.residual,
                                  out.residual_stride,
                                  a_.relu,
                                  int(channels.n),
                                  out.y,
                                  out.codes,
                                  out.stride,
                                  result_.codes()};
    const bool finished = panel.part + 1 == parts();
    run_.multiply({panel.panel, panel.pieces, panel.position, panel.start, steps * (panel.part + 1) / parts() - channel,
                   tiles.x + tile * tiles.bytes + channel * kStepColumns * run_.element, tiles.position, tiles.bytes,
                   tiles.at(last) - tile, output, panel.sums + (tile - first_tile) * tiles.outputs * kPairRows,
                   panel.part > 0, finished});
    if (finished && out.y == panel.tile) result_.store(channels, start, n, panel.tile);
  }
}

}  // namespace lcs
