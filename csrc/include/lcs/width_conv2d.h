#pragma once
#include <cstdint>
#include <limits>

#include "lcs/ceil_div.h"
#include "lcs/dtype.h"
#include "lcs/images.h"
#include "lcs/parallel.h"

namespace lcs {

// A packed weight is float32, [block of kWidthBlock output channels][block of as many input channels][tap][input
// channel of the block][output channel of the block], zeros past the last output channel, and nothing past the last
// input channel: the first channels of either kind are the first of their blocks.
constexpr int64_t kWidthBlock = 16;

inline int64_t width_blocks(int64_t out_channels) { return ceil_div(out_channels, kWidthBlock); }

// A weight of out_channels rows of in_channels * taps.
struct WidthWeight {
  const void* data;
  DType dtype;
  int64_t out_channels, in_channels, taps;
};

void width_pack(const WidthWeight& weight, float* packed, const Parallel& parallel);

// The same form of a bfloat16 weight with pairs of input channels, the first in the lower half, in place of channels
// and their floats, the last filled up with 0: rows of 64 bytes, as vdpbf16ps and AMX tiles read them.
void width_pack_pairs(const WidthWeight& weight, BFloat16* packed, const Parallel& parallel);

// How x is multiplied by `packed` or `pairs` of 3 x 3 taps at stride 1, and x of few channels by `packed` of 7 x 7 or 8
// x 8 taps at stride 2, without dilation, in one group: directly or by Winograd's F(4 x 4, 3 x 3) of float32, F(6 x 6,
// 3 x 3) of bfloat16 or F(4 x 4, 4 x 4) of either, in float32, as costs less, or as asked for.
enum class WidthProducts { cheapest, direct, winograd };

// y = x convolved with the first y.channels by x.channels / groups channels of the weight, times a scale and plus a
// bias per channel, then ReLU and a cap on request; accumulated in float32, rounded once.
struct WidthConv2dArgs {
  Images x, y;  // x is only read; both compact
  DType dtype;  // of both
  Axis vertical, horizontal;
  int64_t groups;  // as many as channels of x and of y: depthwise
  WidthWeight weight;
  const float* packed;        // the whole weight, at a cache line's start; null: what is used of it is packed here
  const BFloat16* pairs;      // likewise, read where x is bfloat16, in one group, and the instruction set multiplies it
  const float *scale, *bias;  // of y.channels; null: none
  bool relu;
  WidthProducts products = WidthProducts::cheapest;
  float cap = std::numeric_limits<float>::infinity();  // what ReLU ends at, as 6 of ReLU6; infinity: nothing
  const void* residual = nullptr;  // added to what has been rounded, before ReLU; laid out as y; null: none
};

// The order of each sum depends on shapes and instruction set alone.
void width_conv2d(const WidthConv2dArgs& args, const Parallel& parallel);

}  // namespace lcs
