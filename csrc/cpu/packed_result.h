#pragma once
#include <cstdint>

#include "lcs/packed_conv2d.h"
#include "packed_conv2d_kernels.h"
#include "packed_gemm.h"
#include "sparse_conv2d_kernels.h"

namespace lcs {

constexpr int64_t kTile = 120;  // positions at once: whole rows of every instruction set's registers

// Where the results of a packed convolution go. Output positions of all images are numbered in order.
class PackedResult {
 public:
  // `pairs`: of kernels that take two blocks at once.
  PackedResult(const PackedConv2dArgs& args, const PackedGemm& gemm, bool pairs);

  // Whether results of two blocks, and what is added to them, are float32 or codes right in their places.
  bool direct() const { return pairs_ && a_.y.channel_stride == 1 && a_.dtype == DType::float32; }
  int64_t pixels() const { return pixels_; }  // positions of an image
  const PackedCodes& codes() const { return codes_; }

  // Where the results of a block, or of two, go from position `start` on, and what is added to them.
  struct Output {
    const float *bias, *residual;
    int64_t residual_stride, channels;
    float* y;
    int8_t* codes;
    int64_t stride;
  };

  // Of y itself where the kernels can write it, else of `tile`, as `residual` of n positions. A kernel of one block
  // writes it whole, and no codes.
  Output output(int64_t block, int64_t blocks, int64_t start, int64_t n, float* tile, float* residual,
                float* bias) const;

  // A tile's results, `wide` apart, to y; of codes at most kTile.
  void store(int64_t block, int64_t channels, int64_t wide, int64_t start, int64_t n, const float* tile) const;

 private:
  void load_residual(int64_t channel, int64_t channels, int64_t wide, int64_t start, int64_t n, float* to) const;
  template <class Run>
  void for_runs(int64_t channel, int64_t start, int64_t n, const Run& run) const;

  const PackedConv2dArgs& a_;
  const PackedGemm& gemm_;
  const bool pairs_;
  const PackedConv2dKernels run_;
  const SparseConv2dKernels copies_;
  const int64_t pixels_;
  PackedCodes codes_{};  // of y
};

}  // namespace lcs
