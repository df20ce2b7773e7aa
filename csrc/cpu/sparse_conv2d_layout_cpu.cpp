#include <algorithm>
#include <array>

#include "dispatch.h"
#include "second_level.h"
#include "sparse_conv2d_layout.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kPanelBytes = 512 << 10;    // about half a core's second-level cache
constexpr int64_t kOnlyPanelBytes = 1 << 20;  // the same where sums are written at once
constexpr int64_t kTileFloats = 128;          // of a row, whose input of some channels fits the first-level cache
constexpr int64_t kBlock = 16;                // positions along a side of a block at most
constexpr int64_t kSumBytes = 256 << 10;      // of sums, written before they fall out of the second-level cache
constexpr int64_t kPanels = 2;                // at least, where they are high enough: one for each of few threads
constexpr int64_t kStreamed = 8 << 20;        // bytes of a result that the caches would not hold
constexpr size_t kRemembered = 256;           // layouts of a thread, which calls of small layers would wait for

// What a float of each costs on one core, relative to a multiplication at the peak of AVX-512; fitted to times of 3 x 3
// convolutions of 64 to 512 channels.
constexpr double kWide = 1.1, kNarrow = 1.25, kCrossing = 1.35;  // a multiplication; whose load crosses a cache line
constexpr double kValue = 11, kCrossingValue = 25;               // of a value, for every tile
constexpr double kSum = 3;                       // each time that a block of the weight comes back to it
constexpr double kTransposed = 8, kCopied = 26;  // to a panel
constexpr double kWritten = 3.5;                 // from sums, transposed
constexpr double kBehind = 13, kMemory = 5.5;    // of panels that caches do not hold, of x and y

// Sums that are not added up in order; then convolutions after each other cannot hand each other images in lanes.
constexpr double kUnordered = 1.5;

// With AVX2 multiplications wait where a tile's input of a block, or a panel with its sums, outgrows its cache: shares
// of one for as much again. There other costs differ, too.
constexpr double kFirstLevel = 32 << 10, kCrowdedFirst = 0.08, kCrowdedSecond = 0.1, kNarrowValue = 18;
constexpr double kNarrowTransposed = 11, kNarrowWritten = 5;

class Chooser {
 public:
  Chooser(const SparseConv2dArgs& args, const Phases& vertical, const Phases& horizontal)
      : a_(args),
        rows_(vertical),
        columns_(horizontal),
        phases_(vertical.used.size() * horizontal.used.size()),
        values_(args.weight.start[args.weight.blocks()]),
        large_(args.y.n * args.y.channels * args.y.height * args.y.width * size_of(args.dtype) >= kStreamed) {}

  // All that the choice depends on.
  using Question = std::array<int64_t, 19>;
  Question question(const SparseConv2dKernels& run) const {
    const Axis &v = a_.vertical, &h = a_.horizontal;
    return {a_.y.n,     a_.y.channels,      a_.y.height, a_.y.width, a_.x.channels,
            a_.x.width, a_.weight.blocks(), values_,     run.lanes,  int64_t(a_.dtype) * 2 + may_stream(run),
            v.stride,   v.padding,          v.dilation,  v.kernel,   h.stride,
            h.padding,  h.dilation,         h.kernel,    large_};
  }

  SparseLayout best(SparseConv2dKernels& kernels) const {
    SparseLayout found = neighbours(kernels);
    double least = neighbours_cost(found, kernels) * disorder(found, kernels);
    if (kernels.lanes == 1) return found;
    const SparseConv2dKernels own = kernels, narrow = avx2::sparse_conv2d_kernels();
    const bool stalls = own.lanes == narrow.lanes;
    const auto consider = [&](const SparseConv2dKernels& with) {
      for_blocks(with, stalls, [&](const SparseLayout& layout) {
        const double cost = lanes_cost(layout, with, stalls) * disorder(layout, with);
        if (cost < least) least = cost, found = layout, kernels = with;
      });
    };
    consider(own);
    if (!stalls) consider(narrow);
    return found;
  }

 private:
  static double disorder(const SparseLayout& layout, const SparseConv2dKernels& run) {
    return layout.least_tile < run.ordered_vectors ? kUnordered : 1;
  }

  SparseLayout neighbours(const SparseConv2dKernels& run) const {
    const int64_t height = a_.y.height, reach = rows_.reach, pitch = sparse_pitch(a_, columns_);
    SparseLayout found;
    found.columns = a_.y.width;
    found.large = may_stream(run);
    const int64_t least = std::min(height, 2 * reach + 2), bytes = found.large ? kOnlyPanelBytes : kPanelBytes,
                  row_bytes = std::max<int64_t>(phases_ * pitch * a_.x.channels * 4, 1);
    int64_t strips = ceil_div(height, std::clamp(bytes / row_bytes - reach, least, height));
    const auto vectors = [&](int64_t rows) { return ceil_div((rows - 1) * pitch + a_.y.width, run.lanes); };
    if (const int64_t wanted = std::min(height, kPanels / a_.y.n);
        strips < wanted && vectors(height / wanted) >= run.ordered_vectors)
      strips = wanted;
    found.rows = ceil_div(height, strips);
    found.down = ceil_div(height, found.rows);
    const int64_t most = run.max_vectors;
    const auto tiles = [&](int64_t rows) { return ceil_div(found.rows, rows) * ceil_div(vectors(rows), most); };
    // Where y goes past the caches, few rows are summed before they are written, so that it does not wait until the
    // end, if they take about as few tiles.
    found.tile_rows = found.rows;
    if (found.large)
      for (found.tile_rows = 1; 8 * tiles(found.tile_rows) > 9 * tiles(found.rows);) ++found.tile_rows;
    const int64_t all = vectors(found.tile_rows);
    found.tile_columns = ceil_div(all, ceil_div(all, most)) * run.lanes;
    // Of the last rows of a block, or of the last block.
    const auto last_rows = [&](int64_t rows) { return (rows - 1) % found.tile_rows + 1; };
    const int64_t last = vectors(std::min(last_rows(found.rows), last_rows(height - (found.down - 1) * found.rows)));
    found.least_tile = last / ceil_div(last * run.lanes, found.tile_columns);
    return found;
  }

  // Whether y is large, and its rows are whole pieces of `stream_lanes` at such addresses.
  bool may_stream(const SparseConv2dKernels& run) const {
    const Images& y = a_.y;
    const int64_t unaligned = y.width | y.row_stride | y.channel_stride | y.image_stride;
    return y.channel_stride != 1 && unaligned % run.stream_lanes == 0 &&
           reinterpret_cast<uintptr_t>(y.data) % (run.stream_lanes * size_of(a_.dtype)) == 0 && large_;
  }

  double neighbours_cost(const SparseLayout& l, const SparseConv2dKernels& run) const {
    const int64_t pitch = sparse_pitch(a_, columns_), read = (l.rows + rows_.reach) * pitch;
    const double floats = double(ceil_div((l.rows - 1) * pitch + l.columns, run.lanes) * run.lanes),
                 tiles = floats / double(l.tile_columns);
    const bool whole = columns_.reach == 0 && (rows_.reach == 0 || pitch % run.lanes == 0);
    return double(l.panels(a_.y.n)) *
           (double(values_) * (floats * (whole ? kWide : kCrossing) + tiles * (whole ? kValue : kCrossingValue)) +
            double(a_.y.channels * a_.weight.blocks()) * floats * kSum +
            double(a_.x.channels * phases_ * read) * (l.panels(a_.y.n) == 1 ? 2 : 1) * kCopied);
  }

  // f(layout) for blocks of different sizes, and on request tiles of two.
  template <class F>
  void for_blocks(const SparseConv2dKernels& run, bool halves, const F& f) const {
    const int64_t most = tile_vectors(run);
    for_sizes(a_.y.height, [&](int64_t rows) {
      for_sizes(a_.y.width, [&](int64_t columns) {
        for (int64_t tile = most; tile >= most / (halves ? 2 : 1); tile -= most / 2) {
          f(of_lanes(rows, columns, run.lanes, run, tile));
          for (int64_t vectors = 2; columns * vectors <= tile; vectors *= 2)
            f(of_lanes(rows, columns, vectors * run.lanes, run, tile));
        }
      });
    });
  }

  static int64_t tile_vectors(const SparseConv2dKernels& run) {
    return std::min<int64_t>(run.max_vectors, kTileFloats / run.lanes);
  }

  template <class F>
  static void for_sizes(int64_t length, const F& f) {
    for (int64_t size = std::min(length, kBlock), pieces; size > 0; size = pieces == length ? 0 : size - 1) {
      pieces = ceil_div(length, size);
      size = ceil_div(length, pieces);
      f(size);
    }
  }

  SparseLayout of_lanes(int64_t rows, int64_t columns, int64_t lanes, const SparseConv2dKernels& run,
                        int64_t tile) const {
    SparseLayout l;
    l.lanes = lanes, l.rows = rows, l.columns = columns;
    l.down = ceil_div(a_.y.height, rows), l.across = ceil_div(a_.y.width, columns);
    l.tile_columns = ceil_div(columns, ceil_div(columns * lanes / run.lanes, tile));
    l.least_tile = columns * lanes / run.lanes / ceil_div(columns, l.tile_columns);
    const int64_t row_bytes = a_.y.channels * columns * lanes * 4;
    l.tile_rows = std::clamp<int64_t>(kSumBytes / row_bytes, 1, rows);
    return l;
  }

  double lanes_cost(const SparseLayout& l, const SparseConv2dKernels& run, bool stalls) const {
    const double positions = double(l.rows * l.columns * l.lanes),
                 tiles = double(l.rows * ceil_div(l.columns, l.tile_columns)),
                 filled =
                     double(a_.x.channels * phases_ * (l.rows + rows_.reach) * (l.columns + columns_.reach) * l.lanes),
                 written = double(a_.y.channels) * positions, memory = large_ ? kMemory : 0;
    const int64_t panels = l.panels(a_.y.n);
    const double multiplication = (run.lanes == 16 ? kWide : kNarrow) * (stalls ? 1 + crowded(l, filled * 4) : 1),
                 second = double(second_level());
    // Of one panel, two threads fill as many.
    return double(panels) *
           (double(values_) * (positions * multiplication + tiles * (stalls ? kNarrowValue : kValue)) +
            written * (double(a_.weight.blocks()) * kSum + (stalls ? kNarrowWritten : kWritten) + memory) +
            filled * (panels == 1 ? 2 : 1) *
                ((stalls ? kNarrowTransposed : kTransposed) + (filled * 4 > 1.05 * second ? kBehind : 0) + memory));
  }

  // What a multiplication takes longer, of a panel of so many bytes.
  double crowded(const SparseLayout& l, double panel) const {
    const double channels = double(ceil_div(a_.x.channels, std::max<int64_t>(a_.weight.blocks(), 1))),
                 tile =
                     channels * double(phases_ * (rows_.reach + 1) * (l.tile_columns + columns_.reach) * l.lanes) * 4,
                 sums = double(a_.y.channels * l.tile_rows * l.columns * l.lanes) * 4,
                 held = double(second_level()) * 2 / 3;
    return kCrowdedFirst * std::clamp(tile / kFirstLevel - 1, 0.0, 2.0) +
           kCrowdedSecond * std::clamp((panel + sums) / held - 1, 0.0, 1.5);
  }

  const SparseConv2dArgs& a_;
  const Phases &rows_, &columns_;
  const int64_t phases_, values_;
  const bool large_;  // y is too large for the caches
};

}  // namespace

int64_t sparse_pitch(const SparseConv2dArgs& args, const Phases& horizontal) {
  const int64_t reach = horizontal.reach, width = args.y.width + reach;
  int64_t left = reach, right = reach;
  for (const int64_t remainder : horizontal.used) {
    const Inside inside(args.horizontal, remainder, args.x.width, 0, width);
    left = std::min(left, inside.begin);
    right = std::min(right, width - inside.end);
  }
  return width - std::min(left, right);
}

SparseLayout sparse_layout(const SparseConv2dArgs& args, const Phases& vertical, const Phases& horizontal,
                           SparseConv2dKernels& kernels) {
  struct Known {
    Chooser::Question question;
    SparseLayout layout;
    SparseConv2dKernels kernels;
  };
  static thread_local std::array<Known, kRemembered> known{};  // at first of no images, which nobody asks for
  const Chooser chooser(args, vertical, horizontal);
  const Chooser::Question question = chooser.question(kernels);
  uint64_t hash = 0;
  for (const int64_t part : question) hash = (hash ^ uint64_t(part)) * 0x9e3779b97f4a7c15, hash ^= hash >> 32;
  Known& found = known[hash % kRemembered];
  if (found.question != question) {
    found.layout = chooser.best(kernels);
    found.kernels = kernels;
    found.question = question;
  }
  kernels = found.kernels;
  return found.layout;
}

}  // namespace lcs
