#pragma once
#include <cstdint>

// What each instruction set implements of a network of packed convolutions beside these.
namespace lcs {

// y[o * channels + c] = the largest of x[i * channels + c], of the columns i from o * stride - padding on, `kernel` of
// them, that lie in [0, columns).
struct LargestColumns {
  const float* x;
  int64_t columns, channels;
  int64_t kernel, stride, padding;
  float* y;
  int64_t outputs;
};

// NaN is the largest.
struct PackedNetworkKernels {
  bool (*nan)(const float* x, int64_t n);               // whether there is one
  void (*larger)(const float* x, int64_t n, float* y);  // y = the larger of x and y
  void (*columns)(const LargestColumns& largest);
};

namespace scalar {
PackedNetworkKernels packed_network_kernels();
}
namespace avx2 {
PackedNetworkKernels packed_network_kernels();
}

}  // namespace lcs
