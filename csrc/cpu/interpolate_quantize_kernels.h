#pragma once
#include "blocks.h"
#include "dispatch.h"
#include "keys.h"
#include "lcs/dtype.h"
#include "quantize_grid.h"

// What each instruction set implements, on weights that share a scale, or on groups of them.
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
  // Range, grid and values of every `group` consecutive weights of a chunk of any length, its last group maybe shorter.
  // `stream`: the values of groups that begin at a cache line go past the caches.
  void (*groups)(const QuantizeChunk& chunk, int64_t group, const QuantizeCodes& codes, bool stream);
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

// Of the best instruction set in use.
inline InterpolateQuantizeKernels interpolate_quantize_kernels() {
  return best(scalar::interpolate_quantize_kernels, avx2::interpolate_quantize_kernels,
              avx512::interpolate_quantize_kernels);
}

}  // namespace lcs
