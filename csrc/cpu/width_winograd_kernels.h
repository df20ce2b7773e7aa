#pragma once
#include <cstdint>

// What each instruction set implements of a convolution at a width by Winograd's F(2 x 2, 3 x 3) in float32 (arXiv
// 1509.09308): of 2 x 2 results A^T [(G w G^T) * (B^T x B)] A, the products summed over input channels before A, with
//
//         1  0 -1  0        1    0    0            1  1  1  0
//   B^T = 0  1  1  0    G = 1/2  1/2  1/2    A^T = 0  1 -1 -1
//         0 -1  1  0        1/2 -1/2  1/2
//         0  1  0 -1        0    0    1
namespace lcs {

constexpr int kWinogradWindow = 4, kWinogradResults = 4;  // the former: of x, a side

// B^T x B of a window, channels last, to rows of whole vectors.
struct WidthWinogradInput {
  const float* at[kWinogradWindow * kWinogradWindow];
  int64_t channels;
  float* to;
  int64_t position;  // floats from one of the 16 to the next
};

// A^T m A of one window's sums, times a scale and plus a bias.
struct WidthWinogradOutput {
  const float* sums;
  int64_t position;
  int vectors;
  const float *scale, *bias;
  bool relu;
  float* to[kWinogradResults];  // null: not wanted
};

struct WidthWinogradKernels {
  void (*input)(const WidthWinogradInput& in);
  void (*output)(const WidthWinogradOutput& out);
};

namespace scalar {
WidthWinogradKernels width_winograd_kernels();
}
namespace avx2 {
WidthWinogradKernels width_winograd_kernels();
}
namespace avx512 {
WidthWinogradKernels width_winograd_kernels();
}

}  // namespace lcs
