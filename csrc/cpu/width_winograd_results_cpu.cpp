#include "width_winograd_results.h"

#include <algorithm>

namespace lcs {
namespace {

constexpr int64_t kSide = kWinogradResults;

}  // namespace

WidthWinogradResults::WidthWinogradResults(const WidthConv2dArgs& args, void (*results)(const WinogradResults&),
                                           const float* mean, const float* scale, const float* bias)
    : a_(args),
      copy_(width_conv2d_kernels()),
      results_(results),
      span_(kWinogradVectors * copy_.lanes),
      mean_(mean),
      scale_(scale),
      bias_(bias) {}

void WidthWinogradResults::write(const WinogradPart& part, int64_t span, const float* sums, int64_t position,
                                 float* room) const {
  const Images& y = a_.y;
  const int64_t start = span * span_, channels = std::min(span_, y.channels - start), top = kSide * part.line,
                height = std::min(kSide, y.height - top);
  const bool last = y.channel_stride == 1;
  const auto at = [&](int64_t row, int64_t column) {
    return advance(
        y.data,
        part.image * y.image_stride + (top + row) * y.row_stride + column * y.column_stride + start * y.channel_stride,
        a_.dtype);
  };
  WinogradResults r{sums + part.slot * span_,
                    position,
                    part.end - part.begin,
                    mean_ ? mean_ + start : nullptr,
                    scale_ + start,
                    bias_ + start,
                    a_.relu,
                    nullptr,
                    0,
                    0};
  int64_t begin = part.begin;
  if (last && channels == span_ && height == kSide && a_.dtype == DType::float32) {  // whole tiles need no copy
    r.tiles = std::min(part.end, y.width / kSide) - begin;
    r.to = static_cast<float*>(at(0, kSide * begin)), r.row = y.row_stride, r.column = y.column_stride;
    results_(r);
    r.from += r.tiles * span_, begin += r.tiles;
    if (begin == part.end) return;
  }
  r.tiles = part.end - begin, r.to = room, r.row = kSide * r.tiles * span_, r.column = span_;
  results_(r);
  const int64_t left = kSide * begin, width = std::min(kSide * part.end, y.width) - left;
  for (int64_t i = 0; i < height; ++i)
    copy_.store({room + i * r.row, at(i, left), span_, 1, last ? y.column_stride : y.channel_stride, width, channels,
                 a_.dtype, !last});
}

}  // namespace lcs
