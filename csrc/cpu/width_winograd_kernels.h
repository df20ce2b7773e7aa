#pragma once
#include <cstdint>

#include "dispatch.h"

// What each instruction set implements of Winograd's convolutions in float32 (arXiv 1509.09308): F(4 x 4, 3 x 3) at the
// points 0, 1, -1, 1/2, -2 and infinity; and F(4 x 4, 4 x 4), at -1/2 too, for the halves that a kernel of 7 x 7 or
// 8 x 8 taps at stride 2 has on x split by the remainders of rows and columns modulo 2. Results
// A^T [(G w G^T) * (B^T x B)] A, the products summed over channels before A, with rows of G for the points' powers:
// that of p is 1 p p^2 (p^3), that of infinity 0 0 (0) 1. Of three taps
//
//         1  -3/2  -2   3/2   1  0           1  1/3 -1/3 -16/15  1/15  0
//         0   -1  1/2   5/2   1  0     A^T = 0  1/3  1/3  -8/15 -2/15  0
//   B^T = 0    1 -5/2   1/2   1  0           0  1/3 -1/3  -4/15  4/15  0
//         0   -2  -1     2    1  0           0  1/3  1/3  -2/15 -8/15  1
//         0  1/2  -1   -1/2   1  0
//         0    1 -3/2   -2   3/2 1
//
// and of four
//
//         1/2  1/4 -5/2 -5/4   2   1  0           2  2/9  2/3 -16/15 -2/45 -16/9  0
//          0  -1/2 -3/4  7/4   3   1  0     A^T = 0  2/9 -2/3  -8/15  4/45   8/9  0
//          0   1/2 -1/4 -9/4   1   1  0           0  2/9  2/3  -4/15 -8/45  -4/9  0
//   B^T =  0   -1  -5/2   0   5/2  1  0           0  2/9 -2/3  -2/15 16/45   2/9  1
//          0   1/4   0  -5/4   0   1  0
//          0   1   -3/2  -2   3/2  1  0
//          0   1/2  1/4 -5/2 -5/4  2  1
namespace lcs {

constexpr int kWinogradResults = 4;  // a side
constexpr int winograd_window(int taps) { return kWinogradResults + taps - 1; }
constexpr int winograd_positions(int taps) { return winograd_window(taps) * winograd_window(taps); }
constexpr int kWinogradMostTaps = 4;
constexpr int kWinogradVectors = 2;  // of output channels that are multiplied together: a span

// G w G^T of 3 x 3 taps, of some channels of x in the same block of the weight and a span, to
// [position][channel][output channel]. The weight of output channels 16 b and up begins at from + b * block; a tap's of
// its input channels lie next to each other, `stored` of them, in rows of 16.
struct WinogradWeights {
  const float* from;
  int64_t first, outputs, block;  // output channels: that of the span, and how many there are; floats
  int64_t stored, channels;
  float* to;
  int64_t position;  // floats from one position to the next
};

// The same of the at most 8 x 8 taps of a weight at stride 2, of all channels of x, for x split to channels [remainder
// of the row][remainder of the column][channel], or [of the row][channel][of the column] where that says so.
struct WinogradSplitWeights {
  WinogradWeights of;
  int64_t height, width;  // taps
  bool pairs;
};

// B^T of floats, to as many rows.
struct WinogradColumns {
  const float* rows[winograd_window(kWinogradMostTaps)];  // whole vectors
  int64_t floats;
  float* to;
  int64_t row;  // floats from one to the next
};

// That times B, of some channels of tiles next to each other, to [position][tile].
struct WinogradRows {
  const float* from;
  int64_t row, column;      // floats from one to the next
  int64_t channels, tiles;  // the first: whole vectors
  float* to;
  int64_t position, tile;  // floats from one to the next
};

// Products of all positions, to [position][tile][output channel]; added to what is there but for the first channels.
struct WinogradProducts {
  const float* x;
  const float* weight;
  float* to;
  int64_t tiles, tile, channels;                  // the second: floats from one to the next
  int64_t x_position, weight_position, position;  // floats from one to the next, of each
  bool first;
};

// A^T m A of tiles next to each other, times a scale and plus a bias, or normed: (A^T m A - mean) * scale + bias; to
// rows of columns of a span.
struct WinogradResults {
  const float* from;
  int64_t position, tiles;           // the first: floats from one to the next
  const float *mean, *scale, *bias;  // the first: null where there is no norm
  bool relu;
  float* to;
  int64_t row, column;  // floats from one to the next
};

// Of so many taps.
struct WinogradSide {
  void (*columns)(const WinogradColumns& c);
  void (*rows)(const WinogradRows& r);
  void (*products)(const WinogradProducts& p);
  void (*results)(const WinogradResults& r);
};

struct WidthWinogradKernels {
  int lanes;
  void (*weights)(const WinogradWeights& w);
  void (*split_weights)(const WinogradSplitWeights& w);
  WinogradSide three, four;
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

// Of the best instruction set in use.
inline WidthWinogradKernels width_winograd_kernels() {
  return best(scalar::width_winograd_kernels, avx2::width_winograd_kernels, avx512::width_winograd_kernels);
}

}  // namespace lcs
