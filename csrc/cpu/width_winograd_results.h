#pragma once
#include "lcs/width_conv2d.h"
#include "width_conv2d_kernels.h"
#include "width_winograd_kernels.h"
#include "width_winograd_tiles.h"

namespace lcs {

// What makes results of a span's sums, [position][tile][output channel], and writes them where they belong.
class WidthWinogradResults {
 public:
  // Of whole spans: as of WinogradResults.
  WidthWinogradResults(const WidthConv2dArgs& args, void (*results)(const WinogradResults&), const float* mean,
                       const float* scale, const float* bias);

  // position: floats of `sums` from one position to the next.
  void write(const WinogradPart& part, int64_t span, const float* sums, int64_t position, float* room) const;

 private:
  const WidthConv2dArgs& a_;
  const WidthConv2dKernels copy_;
  void (*const results_)(const WinogradResults&);
  const int64_t span_;
  const float *mean_, *scale_, *bias_;
};

}  // namespace lcs
