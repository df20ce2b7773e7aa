#pragma once
#include <cstdint>

// What each instruction set implements of Winograd's convolutions in float32 (arXiv 1509.09308) at the points 0, 1, -1,
// 1/2, -2 and infinity: F(4 x 4, 3 x 3), and F(3 x 3, 4 x 4) for the halves that a kernel of 7 x 7 or 8 x 8 taps at
// stride 2 has on x split by the remainders of rows and columns modulo 2. Results A^T [(G w G^T) * (B^T x B)] A, the
// products summed over channels before A, with as many columns of G as taps, rows of A^T as results,
//
//       1   0    0    0           1  -3/2  -2   3/2   1  0           1  1/3 -1/3 -16/15  1/15  0
//       1   1    1    1           0   -1  1/2   5/2   1  0     A^T = 0  1/3  1/3  -8/15 -2/15  0
//   G = 1  -1    1   -1     B^T = 0    1 -5/2   1/2   1  0           0  1/3 -1/3  -4/15  4/15  0
//       1  1/2  1/4  1/8          0   -2  -1     2    1  0           0  1/3  1/3  -2/15 -8/15  1
//       1  -2    4   -8           0  1/2  -1   -1/2   1  0
//       0   0    0    1           0    1 -3/2   -2   3/2 1
//
// and the 1 of infinity stands at the last result and the last tap.
namespace lcs {

constexpr int kWinogradWindow = 6, kWinogradPositions = kWinogradWindow * kWinogradWindow;
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

// B^T of floats, to six rows.
struct WinogradColumns {
  const float* rows[kWinogradWindow];  // whole vectors
  int64_t floats;
  float* to;
  int64_t row;  // floats from one to the next
};

// That times B, of some channels of tiles next to each other, to [position][tile].
struct WinogradRows {
  const float* from;
  int64_t row, column;               // floats from one to the next
  int64_t channels, tiles, results;  // the first: whole vectors; the last: columns from a tile to the next
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
  int64_t position, tiles, results;  // the last: 3 or 4 a side
  const float *mean, *scale, *bias;  // the first: null where there is no norm
  bool relu;
  float* to;
  int64_t row, column;  // floats from one to the next
};

struct WidthWinogradKernels {
  int lanes;
  void (*weights)(const WinogradWeights& w);
  void (*split_weights)(const WinogradSplitWeights& w);
  void (*columns)(const WinogradColumns& c);
  void (*rows)(const WinogradRows& r);
  void (*products)(const WinogradProducts& p);
  void (*results)(const WinogradResults& r);
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
