#pragma once
#include <algorithm>

#include "lcs/width_conv2d.h"
#include "walk.h"
#include "width_strided.h"
#include "width_winograd.h"
#include "width_winograd6.h"

// What follows a convolution at a width, done to a few images at a time: what the convolution has written of them is
// still in the second-level cache.
namespace lcs {

// How all images together are multiplied, by which any of them then are.
inline WidthProducts width_products(const WidthConv2dArgs& a) {
  return width_conv2d_by_winograd(a) || width_conv2d_by_winograd6(a) || width_conv2d_strided(a)
             ? WidthProducts::winograd
             : WidthProducts::direct;
}

// Calls each(begin, end, parallel) for images [begin, end), which are shared out among the threads; or all threads do
// it, where there are few. a.products: not `cheapest`.
template <class Each>
void for_images(const WidthConv2dArgs& a, const Parallel& parallel, const Each& each) {
  constexpr int64_t kPixels = 400;  // of the images that go together, so that their convolution's tiles are whole
  constexpr int64_t kWinogradPixels = 900;  // likewise, so that transforming weights for each costs little
  constexpr int64_t kGroups = 8;            // enough for threads to share evenly
  const Images& y = a.y;
  const int64_t pixels = a.products == WidthProducts::winograd ? kWinogradPixels : kPixels,
                together = std::clamp<int64_t>(pixels / (y.height * y.width), 1, y.n), groups = ceil_div(y.n, together);
  if (groups < kGroups) return each(0, y.n, parallel);
  parallel(groups, 1, [&](int64_t begin, int64_t end) {
    const Parallel alone = serial;
    for (int64_t i = begin; i < end; ++i) each(i * together, std::min((i + 1) * together, y.n), alone);
  });
}

}  // namespace lcs
