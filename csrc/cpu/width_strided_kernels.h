#pragma once
#include <cstdint>

#include "lcs/dtype.h"

// What each instruction set implements of a convolution of 7 x 7 or 8 x 8 taps at stride 2 by Winograd's F(3 x 3, 4 x
// 4) in float32 (arXiv 1509.09308). Split by the remainders of rows and columns modulo 2, x has 4 times the channels,
// on which the taps of each remainder, at most 4 x 4, go at stride 1: results A^T [(G w G^T) * (B^T x B)] A, the
// products summed over those channels before A, at the points 0, 1, -1, 1/2, -2 and infinity,
//
//         1    0     0     0            1  -3/2  -2   3/2   1  0           1  1  1   1   1  0
//        1/3  1/3   1/3   1/3           0   -1  1/2   5/2   1  0     A^T = 0  1 -1  1/2 -2  0
//   G = -1/3  1/3  -1/3   1/3     B^T = 0    1 -5/2   1/2   1  0           0  1  1  1/4  4  1
//      -16/15 -8/15 -4/15 -2/15         0   -2  -1     2    1  0
//        1/15 -2/15  4/15 -8/15         0  1/2  -1   -1/2   1  0
//         0    0     0     1            0    1 -3/2   -2   3/2 1
namespace lcs {

constexpr int kStridedWindow = 6, kStridedResults = 3, kStridedTaps = 4;  // a side
constexpr int kStridedPositions = kStridedWindow * kStridedWindow;
constexpr int kStridedVectors = 2;  // of output channels that are multiplied together

// G w G^T of a span of kStridedVectors vectors of output channels, to [position][channel][output channel]. The weight
// of output channels 16 b and up begins at from + b * block; a tap's of its input channels lie next to each other,
// `stored` of them, in rows of 16.
struct StridedWeights {
  const float* from;
  int64_t first, outputs, block;  // output channels: that of the span, and how many there are; floats
  int64_t stored, channels;
  int64_t height, width;  // taps
  float* to;
  int64_t position;  // floats from one position to the next
  bool pairs;        // of split channels: both columns of a channel, then the next; else all channels of a column
};

// B^T of `columns` columns of whole vectors of channels, to [6][column].
struct StridedColumns {
  const float* from;
  int64_t row, columns, channels;  // floats from one row to the next; the last two: of both
  float* to;
};

// That times B, of tiles next to each other, to [position][tile].
struct StridedRows {
  const float* from;
  int64_t columns, channels, tiles;
  float* to;
  int64_t position;
};

// Products of all positions, to [position][tile][output channel].
struct StridedProducts {
  const float* x;
  const float* weight;
  float* to;
  int64_t tiles, tile, channels;                  // the second: floats from one to the next
  int64_t x_position, weight_position, position;  // floats from one to the next, of each
};

// A^T m A of tiles next to each other, times a scale and plus a bias, to 3 rows of positions of a span.
struct StridedResults {
  const float* from;
  int64_t position, tiles;
  const float *scale, *bias;
  bool relu;
  float* to;
  int64_t row;
};

struct WidthStridedKernels {
  int lanes;
  void (*weights)(const StridedWeights& w);
  void (*columns)(const StridedColumns& c);
  void (*rows)(const StridedRows& r);
  void (*products)(const StridedProducts& p);
  void (*results)(const StridedResults& r);
};

namespace scalar {
WidthStridedKernels width_strided_kernels();
}
namespace avx2 {
WidthStridedKernels width_strided_kernels();
}
namespace avx512 {
WidthStridedKernels width_strided_kernels();
}

}  // namespace lcs
