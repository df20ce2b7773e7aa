#pragma once
#include <cstdint>

#include "lcs/dtype.h"

// What each instruction set implements of a convolution at a width by Winograd's F(6 x 6, 3 x 3) in float32 (arXiv
// 1509.09308): results A^T [(G w G^T) * (B^T x B)] A, the products summed over input channels before A. Tiles of r
// results a side, 6, or 4 or 2 where an image ends, are multiplied at r + 2 points: the first r + 1 of
// 0, 1, -1, 2, -2, 1/2, -1/2, and infinity, so that all read the same G w G^T,
//
//         1   0   0
//         1   1   1
//         1  -1   1                         1  0 -21/4   0    21/4   0  -1  0
//     G = 1   2   4                         0  1   1   -17/4 -17/4   1   1  0
//         1  -2   4      B^T of 6 results = 0 -1   1    17/4 -17/4  -1   1  0
//         4   2   1                         0 1/2 1/4   -5/2  -5/4   2   1  0
//         4  -2   1                         0 -1/2 1/4   5/2  -5/4  -2   1  0
//         0   0   1                         0  2   4    -5/2   -5   1/2  1  0
//                                           0 -2   4     5/2   -5  -1/2  1  0
//                                           0 -1   0    21/4    0  -21/4 0  1
//
// whose elements are small binary fractions; what that leaves to divide by, 90 a side whatever r is, comes last.
namespace lcs {

constexpr int kWinograd6Window = 8, kWinograd6Results = 6;  // a side, the most
constexpr int kWinograd6Positions = kWinograd6Window * kWinograd6Window;

// The first `channels` of a block of 16 output channels' weights, from tap to tap and from channel to channel as
// packed, to [position][channel][output channel of the block].
struct WidthWinograd6Weights {
  const void* from;
  int64_t tap;  // elements from one tap to the next
  int64_t channels;
  float* to;
  int64_t position;  // floats from one position to the next
};

// B^T x B of a window, channels last, to rows of whole vectors. height, width: results of the tile.
struct WidthWinograd6Input {
  const void* rows[kWinograd6Window];  // of `dtype`, at column 0 of the image; any where it is zeros
  int64_t steps[kWinograd6Window];     // elements from one column to the next; 0: to zeros
  int64_t left;                        // column of the image where the window begins
  int first, last;                     // columns of the window [first, last) that are inside
  DType dtype;
  int height, width;
  int64_t begin, end;  // channels
  float* to;           // of channel `begin`
  int64_t position;
};

// A^T m A of one tile's sums, times a scale and plus a bias.
struct WidthWinograd6Output {
  const float* sums;
  int64_t position;
  int height, width, vectors;
  const float *scale, *bias;
  bool relu;
  DType dtype;
  void* to[kWinograd6Results];  // rows, of `dtype`, at the tile's first column
  int64_t step;                 // elements from one column to the next
  int rows, columns;            // that are wanted
};

struct WidthWinograd6Kernels {
  void (*weights)(const WidthWinograd6Weights& w);  // of floats, or of pairs of bfloat16, as that instruction set reads
  void (*input)(const WidthWinograd6Input& in);
  void (*output)(const WidthWinograd6Output& out);
};

namespace scalar {
WidthWinograd6Kernels width_winograd6_kernels();
}
namespace avx2 {
WidthWinograd6Kernels width_winograd6_kernels();
}
namespace avx512 {
WidthWinograd6Kernels width_winograd6_kernels();
}
namespace bf16 {  // weights: of pairs
WidthWinograd6Kernels width_winograd6_kernels();
}

}  // namespace lcs
