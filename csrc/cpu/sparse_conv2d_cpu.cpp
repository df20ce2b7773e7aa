#include "lcs/sparse_conv2d.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "scratch.h"
#include "sparse_conv2d_kernels.h"
#include "sparse_conv2d_layout.h"
#include "sparse_conv2d_panel.h"
#include "sparse_conv2d_sums.h"
#include "tasks.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kTasks = 8;  // enough to keep the threads even

// A convolution on panels, in which every tap of every position is at a fixed distance.
class SparseConv2d {
 public:
  SparseConv2d(const SparseConv2dArgs& args, const Parallel& parallel, const BehindImages& behind)
      : a_(args),
        parallel_(parallel),
        behind_(behind),
        run_(sparse_conv2d_kernels()),
        rows_(args.vertical),
        columns_(args.horizontal),
        layout_(sparse_layout(args, rows_, columns_, run_)),
        stream_(layout_.large && !behind),
        panels_(args, rows_, columns_, layout_, run_, stream_),
        sums_(args.weight, run_, args.groups, args.x.channels / args.groups, panels_.channel(), taps()) {}

  // Each thread fills panels of its own, even if others hold the same: lines that another core has had are slow to
  // write.
  void run() {
    const int64_t panels = layout_.panels(a_.x.n), rows = ceil_div(a_.y.channels, ceil_div(kTasks, panels)),
                  shares = ceil_div(a_.y.channels, rows);
    const bool each = behind_ && a_.y.n >= kTasks;  // image by image, from the caches
    Left left(each ? a_.y.n : 0, layout_.blocks() * shares);
    Tasks tasks(panels * shares);
    parallel_(panels * shares, 1, [&](int64_t begin, int64_t end) {
      Tasks::Taker taker(tasks, begin, end);
      Worker worker(*this, rows, ceil_div(end - begin, shares));
      const auto next = [&] { return shares == 1 ? taker.one() : taker.half(); };
      for (Tasks::Some some = next(); some.begin < some.end; some = next())
        for (int64_t i = some.begin; i < some.end;) {
          const int64_t panel = i / shares, stop = std::min(some.end, (panel + 1) * shares), first = i % shares * rows;
          worker.multiply(panel, first, std::min(a_.y.channels, first + (stop - i) * rows));
          if (each) finish(panel, stop - i, left);
          i = stop;
        }
      if (stream_) run_.stream_end();
    });
    if (behind_ && !each) behind_(0, a_.y.n, parallel_);
  }

 private:
  // Positions that a panel's rows of y are apart as sums.
  int64_t row_sums() const { return layout_.lanes == 1 ? panels_.pitch() : layout_.columns; }
  int64_t vectors(int64_t rows) const {
    return ceil_div(((rows - 1) * row_sums() + layout_.columns) * layout_.lanes, run_.lanes);
  }
  int64_t tiles() const {
    const int64_t times = ceil_div(layout_.rows, layout_.tile_rows);
    if (layout_.lanes == 1) return times * ceil_div(vectors(layout_.tile_rows) * run_.lanes, layout_.tile_columns);
    return layout_.rows * ceil_div(layout_.columns, layout_.tile_columns);
  }
  int64_t panel_floats() const { return a_.x.channels * panels_.channel() + run_.max_vectors * run_.lanes; }

  std::vector<int64_t> taps() const {
    std::vector<int64_t> taps;
    for (size_t i = 0; i < rows_.offset.size(); ++i)
      for (size_t j = 0; j < columns_.offset.size(); ++j) {
        const int64_t phase = rows_.phase[i] * int64_t(columns_.used.size()) + columns_.phase[j];
        taps.push_back(phase * panels_.plane() +
                       (rows_.offset[i] * panels_.pitch() + columns_.offset[j]) * layout_.lanes);
      }
    return taps;
  }

  // Does what is behind the images that `shares` more of a panel complete.
  void finish(int64_t panel, int64_t shares, Left& left) const {
    const int64_t blocks = layout_.blocks(), last = std::min((panel + 1) * layout_.lanes, a_.y.n * blocks);
    for (int64_t at = panel * layout_.lanes; at < last;) {
      const int64_t image = at / blocks, stop = std::min(last, (image + 1) * blocks);
      if (left.none_after(image, (stop - at) * shares)) behind_(image, image + 1, serial);
      at = stop;
    }
  }

  // What a thread keeps from one part of its work to the next.
  class Worker {
   public:
    // Of shares of `rows` output channels, about `panels` of each.
    Worker(const SparseConv2d& conv, int64_t rows, int64_t panels)
        : c_(conv), fill_(conv.panels_), distances_(conv.sums_, rows, panels * conv.tiles()) {
      static thread_local Scratch<float> panel;
      x_ = panel.reserve(c_.panel_floats());
      c_.panels_.clear(x_);
    }

    // Output channels [begin, end) of a panel.
    void multiply(int64_t panel, int64_t begin, int64_t end) {
      const int64_t per_group = c_.a_.y.channels / c_.a_.groups, inputs = c_.a_.x.channels / c_.a_.groups;
      fill(panel, begin / per_group * inputs, ((end - 1) / per_group + 1) * inputs);
      static thread_local Scratch<float> sums;
      c_.multiply(panel, begin, end, x_, distances_.of(begin, end), sums);
    }

   private:
    void fill(int64_t panel, int64_t begin, int64_t end) {
      const bool adjoins = panel == panel_ && begin >= first_ && begin <= last_;
      if (adjoins && end <= last_) return;
      fill_(panel, adjoins ? last_ : begin, end, x_);
      panel_ = panel, first_ = adjoins ? first_ : begin, last_ = end;
    }

    const SparseConv2d& c_;
    SparsePanels::Filler fill_;
    SparseSums::Distances distances_;
    float* x_;
    int64_t panel_ = -1, first_ = 0, last_ = 0;  // that x holds, with channels [first, last)
  };

  // Output channels [begin, end) of a panel: all sums of a tile's rows first, so that y is written in long runs.
  void multiply(int64_t panel, int64_t begin, int64_t end, const float* x, const int32_t* distance,
                Scratch<float>& scratch) const {
    const int64_t lanes = layout_.lanes, tile = layout_.tile_columns, pitch = panels_.pitch();
    const int64_t height =
        lanes == 1 ? std::min(layout_.rows, a_.y.height - panel % layout_.down * layout_.rows) : layout_.rows;
    const int64_t stride = odd_lines(vectors(layout_.tile_rows) * run_.lanes);
    float* const sums = scratch.reserve((end - begin) * stride);
    const bool ends = !a_.residual;  // else ReLU follows where the sums are written
    const auto accumulate_all = [&](const float* from, int64_t all, float* to) {  // vectors, in tiles alike
      for (int64_t i = 0, n = ceil_div(all * run_.lanes, tile * lanes), v = 0, next; i < n; ++i, v = next) {
        next = (i + 1) * all / n;
        float* const tile_to = to + v * run_.lanes;
        sums_(begin, end, distance,
              {from + v * run_.lanes, tile_to, stride, int(next - v), 1, a_.scale, a_.bias, a_.relu && ends,
               ends ? a_.cap : std::numeric_limits<float>::infinity(), nullptr, 0, tile_to, stride});
      }
    };
    for (int64_t row = 0; row < height; row += layout_.tile_rows) {
      const int64_t rows = std::min(layout_.tile_rows, height - row);
      const float* const from = x + row * pitch * lanes;
      if (lanes == 1)
        accumulate_all(from, vectors(rows), sums);
      else
        for (int64_t i = 0; i < rows; ++i)
          accumulate_all(from + i * pitch * lanes, layout_.columns * lanes / run_.lanes,
                         sums + i * layout_.columns * lanes);
      panels_.write(panel, begin, end, row, rows, sums, stride);
    }
  }

  const SparseConv2dArgs& a_;
  const Parallel& parallel_;
  const BehindImages& behind_;
  SparseConv2dKernels run_;
  const Phases rows_, columns_;
  const SparseLayout layout_;
  const bool stream_;
  const SparsePanels panels_;
  const SparseSums sums_;
};

}  // namespace

void sparse_conv2d(const SparseConv2dArgs& args, const Parallel& parallel, const BehindImages& behind) {
  const Images& y = args.y;
  if (y.n * y.channels * y.height * y.width != 0) SparseConv2d(args, parallel, behind).run();
}

}  // namespace lcs
