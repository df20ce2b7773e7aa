#pragma once
#include "lcs/width_conv2d.h"
#include "width_conv2d_kernels.h"
#include "width_winograd_kernels.h"

namespace lcs {

// Whether a convolution goes by Winograd's F(4 x 4, 4 x 4) on x split by its stride: 7 x 7 or 8 x 8 taps at stride 2 of
// few channels, as networks begin with, no dilation, one group, and a packed weight of floats; by default where an
// image has enough tiles and the result enough channels.
bool width_conv2d_strided(const WidthConv2dArgs& args);

// Lines of tiles of an image are a band; bands are shared out among the threads. Each splits x of a band by its
// remainders, channels last, transforms that of some tiles next to each other, multiplies it at all positions of the
// window by the weights of a span of output channels, and transforms the sums.
class WidthStrided {
 public:
  static constexpr int64_t kRows = kWinogradResults;  // of y, a line of tiles

  // Transforms the weights, to memory that the next one of this thread takes. mean: null, or of y.channels, of a norm
  // whose scale and bias are those of args.
  WidthStrided(const WidthConv2dArgs& args, const float* mean, const Parallel& parallel);

  void run(const Parallel& parallel) const;
  // Rows of one image from line `first` on, all that `to` holds, a single image.
  void rows(int64_t image, int64_t first, const Images& to) const;

 private:
  struct Place;
  struct Room {
    float *sides, *x, *sums, *results;
  };

  bool last() const { return a_.x.channel_stride == 1; }
  int64_t piece() const { return last() ? 2 * a_.x.channels : 2; }  // floats

  void transform_weights(int64_t span, float* to) const;
  void band(const Place& place, int64_t lines) const;
  void split_band(int64_t image, int64_t first, int64_t n, float* to) const;
  const float* floats(int64_t image, int64_t row, float* room) const;
  void split_row(const float* from, float* to) const;
  void multiply(const Place& place, int64_t tile, int64_t tiles, const float* x, const Room& room) const;

  const WidthConv2dArgs& a_;
  const WidthConv2dKernels copy_;
  const WidthWinogradKernels run_;
  const int64_t channels_, pixel_;     // of split x; floats of a pixel of it
  const int64_t span_, spans_;         // output channels that are multiplied together
  const int64_t lines_, tiles_, row_;  // of tiles, of an image; tiles of each; pixels of a row of split x
  const int64_t block_;                // tiles that are multiplied together
  const float *weights_, *mean_, *scale_, *bias_;
};

}  // namespace lcs
