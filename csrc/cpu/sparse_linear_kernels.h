#pragma once
#include <cstdint>

#include "lcs/sparse_pack.h"

// What each instruction set implements of the sparse product with a single vector, and AMX of that with many rows.
namespace lcs {

// y[row] = start + sum over the row's values of value * x[index]; start is the bias at first (null: 0), else y[row].
struct SparseDots {
  const float* x;
  const int32_t* count;
  const uint16_t* index;
  const float* values;
  const float* bias;
  float* y;
  int64_t rows;
  bool first, relu;
};

struct SparseLinearKernels {
  void (*dots)(const SparseDots& dots);
};

constexpr int64_t kSparseTileBytes = 1024;                                        // 16 rows of 32 bfloat16
constexpr int64_t kSparseTilesAtOnce = 16;                                        // column tiles of a block, unpacked
constexpr int64_t kSparsePanelBytes = kSparseTilesAtOnce * 2 * kSparseTileBytes;  // into the first-level cache

// Up to 16 rows of x as tiles, column tile after column tile, with zeros around.
struct SparseTileRows {
  const BFloat16* x;
  int64_t rows, columns;
  char* to;
};

// acc[m][n] += the sum over the columns of x[m] * w[row n of the block].
struct SparseTileProduct {
  const SparseTiles* weight;
  int64_t block;
  const char* x;  // tiles as SparseTileRows makes them
  int64_t tiles;  // of rows of x
  char* panel;    // kSparsePanelBytes, on a cache line's border
  float* acc;     // tiles * 16 x 32
};

struct SparseTileKernels {
  bool (*pack)(const SparseTileRows& rows);  // whether all were finite
  void (*multiply)(const SparseTileProduct& product);
};

namespace amx {
SparseTileKernels sparse_tile_kernels();
}
namespace scalar {
SparseLinearKernels sparse_linear_kernels();
}
namespace avx2 {
SparseLinearKernels sparse_linear_kernels();
}
namespace avx512 {
SparseLinearKernels sparse_linear_kernels();
}

}  // namespace lcs
