#pragma once
#include "blocks.h"
#include "keys.h"
#include "lcs/dtype.h"
#include "quantize_grid.h"

// What each instruction set implements, on up to a chunk of weights that share a scale.
namespace lcs {

struct QuantizeChunk {
  const void *w0, *w1;  // w1 null: a point
  void* w;
  int64_t n;
  float alpha;
  DType in, out;
};

struct InterpolateQuantizeKernels {
  ValueRange (*range)(const QuantizeChunk& chunk);
  // `stream`: w goes past the caches; it then begins at a cache line.
  void (*write)(const QuantizeChunk& chunk, const QuantizeGrid& grid, bool stream);
};

namespace scalar {
InterpolateQuantizeKernels interpolate_quantize_kernels();
}
namespace avx2 {
InterpolateQuantizeKernels interpolate_quantize_kernels();
}
namespace avx512 {
InterpolateQuantizeKernels interpolate_quantize_kernels();
}

}  // namespace lcs
