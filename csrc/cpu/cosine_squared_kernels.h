#pragma once
#include "keys.h"
#include "lcs/cosine_squared_layer.h"
#include "lcs/dtype.h"

// What each instruction set implements, on one chunk of a layer.
namespace lcs {

struct CosineSquaredKernels {
  CosineSums (*sums)(const CosineSquaredLayer& chunk, DType dtype);
  // grad_w0 = cross * w1 + own0 * w0 and grad_w1 = cross * w0 + own1 * w1
  void (*backward)(const CosineSquaredLayer& chunk, float cross, float own0, float own1, DType dtype);
};

namespace scalar {
CosineSquaredKernels cosine_squared_kernels();
}
namespace avx2 {
CosineSquaredKernels cosine_squared_kernels();
}
namespace avx512 {
CosineSquaredKernels cosine_squared_kernels();
}

}  // namespace lcs
