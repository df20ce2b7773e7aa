#pragma once
#include <vector>

#include "binding.h"
#include "lcs/width_conv2d.h"

// A convolution's weight of all widths, and what width_conv2d_pack makes of it, checked.
namespace lcs::binding {

// The arguments of a convolution but for its images, checked.
struct WidthConv2dCall {
  WidthWeight weight;
  Axis vertical, horizontal;
  const float* packed;
  const BFloat16* pairs;
};

WidthConv2dCall width_conv2d_call(const char* op, const Tensor& x, const Tensor& weight, int64_t out_channels,
                                  const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                  const std::vector<int64_t>& dilation, int64_t groups,
                                  const std::optional<Tensor>& packed);

}  // namespace lcs::binding
