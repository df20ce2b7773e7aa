#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "lcs/sparse_conv2d.h"
#include "sparse_conv2d_kernels.h"
#include "sparse_conv2d_layout.h"

namespace lcs {

// Brings x into panels and sums out of them.
class SparsePanels {
 public:
  SparsePanels(const SparseConv2dArgs& args, const Phases& vertical, const Phases& horizontal,
               const SparseLayout& layout, const SparseConv2dKernels& kernels, bool stream);

  int64_t channel() const { return channel_; }  // floats from one input channel to the next
  int64_t plane() const { return plane_; }      // from phase to phase
  int64_t pitch() const { return pitch_; }      // positions from row to row

  void clear(float* panel) const;  // what is never filled, left and right of rows

  // Fills panels one after the other with channels of x.
  class Filler {
   public:
    explicit Filler(const SparsePanels& panels) : p_(panels) {}
    void operator()(int64_t panel, int64_t begin, int64_t end, float* to);

   private:
    const SparsePanels& p_;
    int64_t of_ = -1;  // the panel that the squares are of
    std::vector<LaneSquare> squares_;
  };

  // The sums of output channels [begin, end), `stride` floats each, of `rows` rows from `row` on of all blocks, with
  // the residual, which may be added to them in place.
  void write(int64_t panel, int64_t begin, int64_t end, int64_t row, int64_t rows, float* sums, int64_t stride) const;

 private:
  // Where a lane's block lies; `image` is that of the first lane where there is no block.
  struct Lane {
    int64_t image, row, column;
    bool exists;
  };

  Lane lane(int64_t panel, int64_t i) const;
  bool x_last() const { return a_.x.channel_stride == 1; }
  bool y_last() const { return a_.y.channel_stride == 1; }
  void squares_of_x(int64_t panel, std::vector<LaneSquare>& squares) const;
  void fill_rows(int64_t panel, int64_t begin, int64_t end, float* to) const;
  void fill_lanes(const std::vector<LaneSquare>& squares, int64_t begin, int64_t end, float* to) const;
  float floor() const { return a_.relu ? 0.0f : -std::numeric_limits<float>::infinity(); }
  void add_rows(int64_t panel, int64_t begin, int64_t end, int64_t row, int64_t rows, float* sums,
                int64_t stride) const;
  void write_rows(int64_t panel, int64_t begin, int64_t end, int64_t row, int64_t rows, const float* sums,
                  int64_t stride) const;
  std::vector<LaneSquare> squares_of_y(int64_t panel, int64_t row, int64_t rows) const;
  void write_lanes(int64_t panel, int64_t begin, int64_t end, int64_t row, int64_t rows, const float* sums,
                   int64_t stride) const;

  const SparseConv2dArgs& a_;
  const Phases &rows_, &columns_;
  const SparseLayout& layout_;
  const SparseConv2dKernels& run_;
  const bool stream_;
  int64_t pitch_, plane_, channel_;
};

}  // namespace lcs
