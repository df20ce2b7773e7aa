#include "lcs/width_conv2d_norm.h"

#include <algorithm>

#include "scratch.h"
#include "walk.h"
#include "width_strided.h"
#include "width_winograd.h"
#include "width_winograd6.h"

namespace lcs {
namespace {

constexpr int64_t kPixels = 400;          // of the images that go together, so that their convolution's tiles are whole
constexpr int64_t kWinogradPixels = 900;  // likewise, so that transforming weights for each costs little
constexpr int64_t kGroups = 8;            // enough for threads to share evenly

// Images [begin, end) of a call.
void run(const WidthConv2dNormArgs& args, int64_t begin, int64_t end, const Parallel& parallel) {
  static thread_local Scratch<float> between, statistics;
  WidthConv2dArgs conv = args.conv;
  LineNormArgs norm = samples_of(args.norm, begin, end);
  const int64_t n = end - begin;
  conv.x.n = conv.y.n = n;
  conv.x.data = advance(conv.x.data, begin * conv.x.image_stride, conv.dtype);
  conv.y.data = between.reserve(n * conv.y.image_stride);
  norm.x = conv.y.data;
  if (args.pool) norm.y = conv.y.data;
  norm.means = statistics.reserve(2 * n * norm.groups);
  norm.rstds = norm.means + n * norm.groups;
  width_conv2d(conv, parallel);
  line_norm(norm, parallel);
  if (!args.pool) return;
  MaxPoolArgs pool = *args.pool;
  pool.x = conv.y;
  pool.y.n = n;
  pool.y.data = advance(pool.y.data, begin * pool.y.image_stride, pool.dtype);
  max_pool(pool, parallel);
}

}  // namespace

void width_conv2d_norm(const WidthConv2dNormArgs& whole, const Parallel& parallel) {
  const Images& y = whole.conv.y;
  if (y.n * y.image_stride == 0) return;
  WidthConv2dNormArgs args = whole;
  // As all images together are multiplied.
  const WidthConv2dArgs& conv = whole.conv;
  const bool winograd = width_conv2d_by_winograd(conv) || width_conv2d_by_winograd6(conv) || width_conv2d_strided(conv);
  args.conv.products = winograd ? WidthProducts::winograd : WidthProducts::direct;
  const int64_t pixels = winograd ? kWinogradPixels : kPixels;
  const int64_t together = std::clamp<int64_t>(pixels / (y.height * y.width), 1, y.n);
  const int64_t groups = ceil_div(y.n, together);
  if (groups < kGroups) return run(args, 0, y.n, parallel);
  parallel(groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(args, i * together, std::min((i + 1) * together, y.n), serial);
  });
}

}  // namespace lcs
