#pragma once
#include <algorithm>
#include <cstdint>

#include "lcs/images.h"
#include "scratch.h"
#include "width_conv2d_kernels.h"
#include "width_winograd_kernels.h"

namespace lcs {

constexpr int64_t kWinogradPart = 8;  // tiles next to each other whose results stay in the first-level cache

// Tiles next to each other, [begin, end) of a line of them, the first of which is `slot` of those that are dealt with
// together.
struct WinogradPart {
  int64_t slot, image, line, begin, end;
};

// The tiles of images, row by row: `lines` of `columns` of each image.
struct WinogradGrid {
  int64_t lines, columns;

  // Calls each(part) for tiles [first, last), the first of which is `slot`.
  template <class Each>
  void for_parts(int64_t slot, int64_t first, int64_t last, const Each& each) const {
    for (int64_t tile = first, n; tile < last; tile += n, slot += n) {
      const int64_t row = tile / columns, column = tile % columns;
      n = std::min({kWinogradPart, columns - column, last - tile});
      each(WinogradPart{slot, row / lines, row % lines, column, column + n});
    }
  }
};

// Where a tile's rows and columns come from, and by what they are transformed: `window` of them, of which that of tile
// t begins 4 t - padding.
struct WinogradWindow {
  int64_t size, above, left;
  void (*columns)(const WinogradColumns& c);
  void (*rows)(const WinogradRows& r);
};

// What is made of the windows of float32 images' tiles, zeros outside of the images, in this order: chunk of channels,
// position, tile, channel. `pixel`: channels in whole vectors.
class WinogradTiles {
 public:
  WinogradTiles(const Images& x, const WinogradWindow& window, const WinogradGrid& grid, int64_t pixel, int64_t chunk)
      : x_(x), window_(window), grid_(grid), copy_(width_conv2d_kernels()), pixel_(pixel), chunk_(chunk) {}

  // Of tiles [first, last), the first of which is `slot`; a position has `floats`.
  void transform(int64_t slot, int64_t first, int64_t last, float* to, int64_t floats) const;

 private:
  // Of x, channels last and in whole vectors, where they are not so in memory: those that were copied last.
  struct Rows {
    float* data = nullptr;
    int64_t held[winograd_window(3)];
  };

  const float* row(int64_t image, int64_t at, Rows& rows) const;

  const Images x_;
  const WinogradWindow window_;
  const WinogradGrid grid_;
  const WidthConv2dKernels copy_;
  const int64_t pixel_, chunk_;
};

}  // namespace lcs
