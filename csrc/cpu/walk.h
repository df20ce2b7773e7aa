#pragma once
#include <cstdint>

#include "lcs/images.h"

namespace lcs {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An axis of a convolution as kernels on padded copies (strips) walk it: strip coordinate s is input coordinate
// s * step - padding, and output o and tap k meet at o * stride + k * dilation. A single tap leaves out what lies
// between its strides.
struct Walk {
  int64_t step, stride, dilation, padding, kernel;

  explicit Walk(const Axis& a)
      : step(a.kernel == 1 ? a.stride : 1),
        stride(a.kernel == 1 ? 1 : a.stride),
        dilation(a.dilation),
        padding(a.padding),
        kernel(a.kernel) {}

  int64_t length(int64_t outputs) const { return (outputs - 1) * stride + (kernel - 1) * dilation + 1; }
  int64_t first() const { return ceil_div(padding, step); }  // coordinate inside the input, and the one past its last
  int64_t last(int64_t size) const { return ceil_div(size + padding, step); }
};

}  // namespace lcs
