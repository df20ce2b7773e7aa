#include "lcs/packed_linear.h"

#include <algorithm>
#include <cstring>

#include "lcs/ceil_div.h"
#include "packed_gemm.h"
#include "scratch.h"
#include "sparse_conv2d_kernels.h"
#include "tasks.h"

namespace lcs {
namespace {

// Between rows of x, which would otherwise lie in the same few sets of the cache where columns are many.
constexpr int64_t kGap = 64;

constexpr int64_t kTasks = 32;  // enough to keep the threads even

// Rows of x from which two blocks of the weight are unpacked whole before they are multiplied.
constexpr int64_t kPairLeast = 24;

// Rows of x up to which sums are looked up, at a price for each; an unpacked weight serves any number of them.
constexpr int64_t look_up_rows(int bits) { return bits >= 7 ? 1 : bits >= 4 ? 2 : 3; }

class PackedLinear {
 public:
  PackedLinear(const PackedLinearArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        layout_(args.weight.layout),
        gemm_(args.weight, args.bits, args.bias, args.relu, args.exact),
        copies_(sparse_conv2d_kernels()),
        groups_(layout_.groups()),
        padded_(layout_.steps() * kStepColumns),
        look_up_(!args.exact && gemm_.kernels().lookup && args.rows <= look_up_rows(args.bits)),
        tiled_(!look_up_ && gemm_.kernels().tile_rows > 0) {}

  void run() {
    static thread_local Scratch<char> scratch;
    const int64_t x_bytes = row_bytes(), bytes = padded_ + kGap;
    const int64_t tables = look_up_ ? layout_.steps() * kTableBytes : 0;
    // Per row: tables or x, int8 x, corrections, sums, scale, distance. Then the steps' distances.
    const int64_t largest = std::max(x_bytes, tables) + bytes + groups_ * 12 + 4 + 8;
    char* at = scratch.reserve(a_.rows * largest + layout_.steps() * 8 + 7 * 64);
    const auto take = [&]<class T>(T*& array, int64_t n) {
      array = reinterpret_cast<T*>(at);
      at += (n * int64_t(sizeof(T)) + 63) / 64 * 64;
    };
    take(tables_, a_.rows * tables);
    take(x_, look_up_ || (gemm_.panel() == Panel::bytes && !tiled_) ? 0 : a_.rows * x_bytes);
    take(bytes_, a_.rows * bytes);
    take(corrections_, a_.rows * groups_);
    take(sums_, a_.rows * groups_);
    take(scale_, a_.rows);
    take(row_, a_.rows);
    take(step_, layout_.steps());
    for (int64_t m = 0; m < a_.rows; ++m) row_[m] = m * x_bytes;
    for (int64_t s = 0; s < layout_.steps(); ++s) step_[s] = s * kStepColumns * element_bytes(gemm_.panel());
    tiled_ ? run_tiles() : run_rows();
    look_up_ ? run_look_up() : run_multiply();
  }

 private:
  const void* x(int64_t row, int64_t column) const { return advance(a_.x, row * layout_.columns + column, a_.dtype); }

  int64_t row_bytes() const { return padded_ * element_bytes(gemm_.panel()) + kGap; }
  int8_t* bytes_of(int64_t row) const { return bytes_ + row * (padded_ + kGap); }

  void run_rows() const {
    parallel_(a_.rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) make_row(m, x_ + row_[m]);
      for (int64_t m = begin; m < end && look_up_; ++m) tabulate(m);
    });
  }

  void run_tiles() const {
    const int64_t most = gemm_.kernels().tile_rows, tiles = RowTiles{kMaxPackedRows, most}.count();
    parallel_(parts_.count() * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = parts_.begin(i / tiles), tile = i % tiles;
        const RowTiles part{parts_.begin(i / tiles + 1) - first, most};
        if (tile < part.count()) make_tile(first + part.begin(tile), first + part.begin(tile + 1));
      }
    });
  }

  // See PackedMultiply.
  void make_tile(int64_t begin, int64_t end) const {
    static thread_local Scratch<char> scratch;
    constexpr int64_t kFour = 4;
    const int64_t bytes = padded_ * element_bytes(gemm_.panel());
    char* const row = scratch.reserve(bytes);
    for (int64_t m = begin; m < end; ++m) {
      char* to = x_ + begin * row_bytes() + (m - begin) * kFour;
      const char* const from = make_row(m, row);
      for (int64_t i = 0; i < bytes; i += kFour, to += (end - begin) * kFour) std::memcpy(to, from + i, kFour);
    }
  }

  // Row m of x as it is multiplied, at `to` or where it lies.
  const char* make_row(int64_t m, char* to) const {
    if (a_.exact) {
      widen(m, reinterpret_cast<float*>(to));
      return to;
    }
    quantize(m);
    if (gemm_.panel() != Panel::words || look_up_) return reinterpret_cast<const char*>(bytes_of(m));
    gemm_.kernels().widen(bytes_of(m), padded_, reinterpret_cast<int16_t*>(to));
    return to;
  }

  // A row in float32, each segment padded with zeros.
  void widen(int64_t m, float* to) const {
    std::memset(to, 0, size_t(padded_) * 4);
    for_segments([&](int64_t, int64_t column, int64_t n, int64_t offset) {
      copies_.load({x(m, column), to + offset, 0, 1, 0, 1, n, a_.dtype, false});
    });
    scale_[m] = 0.5f;
  }

  void quantize(int64_t m) const {
    const Quantization q(gemm_.kernels().largest(x(m, 0), a_.dtype, layout_.columns));
    int8_t* const to = bytes_of(m);
    std::memset(to, 0, size_t(padded_));
    scale_[m] = q.half_scale;
    for_segments([&](int64_t group, int64_t column, int64_t n, int64_t offset) {
      sums_[m * groups_ + group] =
          q.inverse > 0.0f ? gemm_.kernels().quantize(x(m, column), a_.dtype, n, q.inverse, to + offset) : 0;
    });
  }

  void tabulate(int64_t m) const {
    const int64_t steps = layout_.segment_steps();
    for (int64_t g = 0; g < groups_; ++g)
      corrections_[m * groups_ + g] = gemm_.kernels().tables(bytes_of(m) + g * steps * kStepColumns, steps,
                                                             tables_ + (m * layout_.steps() + g * steps) * kTableBytes);
  }

  template <class Segment>
  void for_segments(const Segment& segment) const {
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t column = g * layout_.segment();
      segment(g, column, std::min(layout_.segment(), layout_.columns - column),
              g * layout_.segment_steps() * kStepColumns);
    }
  }

  void store(const float* tile, int64_t block, int64_t row, int64_t rows) const {
    copies_.store({tile, advance(a_.y, row * layout_.rows + gemm_.first_row(block), a_.dtype), kBlockRows, 1,
                   layout_.rows, rows, gemm_.rows(block), a_.dtype, false});
  }

  void run_look_up() const {
    const int64_t blocks = layout_.blocks(), all = ceil_div(blocks, kMaxLookupBlocks);
    const int64_t tasks = std::min(all, kTasks);
    share_tasks<int>(parallel_, tasks, [&](int64_t task, int) {
      float tile[kMaxLookupBlocks * kBlockRows];
      for (int64_t i = all * task / tasks; i < all * (task + 1) / tasks; ++i)
        for (int64_t m = 0; m < a_.rows; ++m) {
          const int64_t block = i * kMaxLookupBlocks, n = std::min(kMaxLookupBlocks, blocks - block);
          gemm_.look_up(block, n, tables_ + m * layout_.steps() * kTableBytes, corrections_ + m * groups_,
                        sums_ + m * groups_, scale_[m], tile);
          for (int64_t b = 0; b < n; ++b) store(tile + b * kBlockRows, block + b, m, 1);
        }
    });
  }

  void run_multiply() const {
    const int64_t blocks = layout_.blocks(), parts = parts_.count();
    const int64_t pairs = gemm_.pairs() && a_.rows >= kPairLeast ? blocks / 2 : 0, units = blocks - pairs;
    const int64_t all = units * parts, tasks = std::min(all, kTasks);
    share_tasks<int>(parallel_, tasks, [&](int64_t task, int) {
      for (int64_t i = all * task / tasks; i < all * (task + 1) / tasks; ++i) {
        const int64_t unit = i % units, row = parts_.begin(i / units), rows = parts_.begin(i / units + 1) - row;
        unit < pairs ? multiply_pair(2 * unit, unit + 1 < pairs, row, rows) : multiply(unit + pairs, row, rows);
      }
    });
  }

  void multiply(int64_t block, int64_t row, int64_t rows) const {
    const bool bytes = gemm_.panel() == Panel::bytes && !tiled_;
    const char* const from = bytes ? reinterpret_cast<const char*>(bytes_) : x_ + (tiled_ ? row * row_bytes() : 0);
    alignas(64) float tile[kMaxPackedRows * kBlockRows];
    gemm_.multiply(
        block, {from, row_ + row, step_, rows, sums_ + row * groups_, scale_ + row, tiled_ ? row_bytes() : 0}, tile);
    store(tile, block, row, rows);
  }

  // `more`: whether the two blocks after these come next.
  void multiply_pair(int64_t block, bool more, int64_t row, int64_t rows) const {
    static thread_local Scratch<char> scratch;
    const int64_t panel_size = layout_.steps() * kPairStepBytes, first = gemm_.first_row(block);
    const int64_t channels = kBlockRows + gemm_.rows(block + 1);
    char* const panel = scratch.reserve(panel_size + kMaxPackedRows * kPairRows * 4);
    float* const tile = reinterpret_cast<float*>(panel + panel_size);
    gemm_.expand_pair(block, 2, 0, layout_.steps(), panel, nullptr);
    const PackedRun all{0, layout_.steps()};
    const PackedGemm::PairFactors factors = gemm_.pair_factors(block, 2);
    const bool direct = a_.dtype == DType::float32;
    float* const y = direct ? static_cast<float*>(a_.y) + row * layout_.rows + first : tile;
    float bias[kPairRows] = {};
    if (a_.bias) std::copy_n(a_.bias + first, channels, bias);
    alignas(64) const int32_t start[kPairRows] = {};
    gemm_.kernels().multiply_pair({panel,
                                   &all,
                                   1,
                                   reinterpret_cast<const char*>(bytes_),
                                   row_ + row,
                                   step_,
                                   rows,
                                   start,
                                   {nullptr,
                                    sums_ + row,
                                    layout_.columns,
                                    gemm_.shift(),
                                    factors.center,
                                    factors.scale,
                                    scale_ + row,
                                    a_.bias ? bias : nullptr,
                                    nullptr,
                                    0,
                                    a_.relu,
                                    int(channels),
                                    y,
                                    nullptr,
                                    direct ? layout_.rows : kPairRows,
                                    {}},
                                   gemm_.planes(more ? block + 2 : block),
                                   layout_.plane_bytes(),
                                   more ? a_.bits : 0});
    if (!direct)
      copies_.store({tile, advance(a_.y, row * layout_.rows + first, a_.dtype), kPairRows, 1, layout_.rows, rows,
                     channels, a_.dtype, false});
  }

  const PackedLinearArgs& a_;
  const Parallel& parallel_;
  const NestedLayout& layout_;
  const PackedGemm gemm_;
  const SparseConv2dKernels copies_;
  const int64_t groups_, padded_;
  const bool look_up_, tiled_;
  const RowTiles parts_{a_.rows, kMaxPackedRows};  // multiplied apart
  uint8_t* tables_ = nullptr;
  char* x_ = nullptr;
  int8_t* bytes_ = nullptr;
  int64_t* corrections_ = nullptr;
  int32_t* sums_ = nullptr;
  float* scale_ = nullptr;
  int64_t *row_ = nullptr, *step_ = nullptr;
};

}  // namespace

void packed_linear(const PackedLinearArgs& args, const Parallel& parallel) {
  if (args.rows > 0 && args.weight.layout.rows > 0) PackedLinear(args, parallel).run();
}

}  // namespace lcs
