#pragma once
#include <cstdint>

#include "dispatch.h"
#include "width_winograd_kernels.h"

// What each instruction set implements of the weight's gradient of F(4 x 4, 3 x 3): with A, B and G of
// width_winograd_kernels.h, g the gradient of a tile's 4 x 4 results and d the tile's window, it is
// G^T [(A g A^T) * (B^T d B)] G, the products summed over all tiles before G.
namespace lcs {

// Sums over tiles of products at all positions, to [position][channel of grad][channel of a span of x]; added to what
// is there but for the first tiles.
struct GradientProducts {
  const float *grad, *x;  // [position][tile][channel]
  float* to;
  int64_t tiles, outputs, grad_tile, x_tile;    // the second: channels of grad; then floats from one tile to the next
  int64_t grad_position, x_position, position;  // floats from one to the next, of each
  bool first;
};

// G^T m G of those sums, to (channel of grad, channel of x, 3, 3).
struct GradientResults {
  const float* from;
  int64_t position, outputs, inputs;  // the last: channels of x, a span or less
  float* to;
  int64_t row;  // floats from one channel of grad to the next
};

struct WidthGradientKernels {
  int lanes;
  void (*columns)(const WinogradColumns& c);  // A times 4 rows, to 6
  void (*rows)(const WinogradRows& r);        // that times A^T
  void (*products)(const GradientProducts& p);
  void (*results)(const GradientResults& r);
};

namespace scalar {
WidthGradientKernels width_gradient_kernels();
}
namespace avx2 {
WidthGradientKernels width_gradient_kernels();
}
namespace avx512 {
WidthGradientKernels width_gradient_kernels();
}

// Of the best instruction set in use.
inline WidthGradientKernels width_gradient_kernels() {
  return best(scalar::width_gradient_kernels, avx2::width_gradient_kernels, avx512::width_gradient_kernels);
}

}  // namespace lcs
