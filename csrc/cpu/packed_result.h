#pragma once
#include <cstdint>

#include "lcs/packed_conv2d.h"
#include "packed_conv2d_kernels.h"
#include "sparse_conv2d_kernels.h"

namespace lcs {

constexpr int64_t kTile = 120;  // positions at once: whole rows of every instruction set's registers

// Where the results of a packed convolution go. Output positions of all images are numbered in order.
class PackedResult {
 public:
  // `pairs`: of kernels that take two blocks at once.
  PackedResult(const PackedConv2dArgs& args, bool pairs);

  // Whether results of up to two blocks, and what is added to them, are float32 and codes right in their places.
  bool direct() const { return pairs_ && a_.y.channel_stride == 1 && a_.dtype == DType::float32; }
  int64_t pixels() const { return pixels_; }  // positions of an image
  const PackedCodes& codes() const { return codes_; }

  // That a kernel makes at once, `wide` apart in a tile. `part`: it writes fewer than these in their places, too.
  // `codes`: it writes codes.
  struct Channels {
    int64_t first, n, wide;
    bool part, codes;
  };

  // Where the results go from position `start` on, and what is added to them.
  struct Output {
    const float *bias, *residual;
    int64_t residual_stride;
    float* y;  // null: of these there are codes alone
    int8_t* codes;
    int64_t stride;
  };

  // Of y itself where the kernel can write all of it, else of `tile`, as `residual` of n positions. `bias` null: none
  // is wanted.
  Output output(const Channels& channels, int64_t start, int64_t n, float* tile, float* residual, float* bias) const;

  // A tile's results to y; of codes at most kTile.
  void store(const Channels& channels, int64_t start, int64_t n, const float* tile) const;

 private:
  bool floats() const { return !a_.y_range || a_.y_codes; }  // whether y holds them
  int8_t* codes_of_y() const {
    return !a_.y_range ? nullptr : a_.y_codes ? a_.y_codes : static_cast<int8_t*>(a_.y.data);
  }
  void load_residual(const Channels& channels, int64_t start, int64_t n, float* to) const;
  template <class Run>
  void for_runs(int64_t channel, int64_t start, int64_t n, const Run& run) const;

  const PackedConv2dArgs& a_;
  const bool pairs_;
  const PackedConv2dKernels run_;
  const SparseConv2dKernels copies_;
  const int64_t pixels_;
  PackedCodes codes_{};  // of y
};

}  // namespace lcs
