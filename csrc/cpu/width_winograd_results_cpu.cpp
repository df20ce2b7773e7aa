#include "width_winograd_results.h"

#include <algorithm>

#include "dispatch.h"

namespace lcs {

WidthWinogradResults::WidthWinogradResults(const WidthConv2dArgs& args, int64_t side, const float* mean,
                                           const float* scale, const float* bias)
    : a_(args),
      copy_(best(scalar::width_conv2d_kernels, avx2::width_conv2d_kernels, avx512::width_conv2d_kernels)),
      run_(best(scalar::width_winograd_kernels, avx2::width_winograd_kernels, avx512::width_winograd_kernels)),
      side_(side),
      span_(kWinogradVectors * run_.lanes),
      mean_(mean),
      scale_(scale),
      bias_(bias) {}

void WidthWinogradResults::write(const WinogradPart& part, int64_t span, const float* sums, int64_t position,
                                 float* room) const {
  const Images& y = a_.y;
  const int64_t start = span * span_, channels = std::min(span_, y.channels - start), top = side_ * part.line,
                height = std::min(side_, y.height - top);
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
                    side_,
                    mean_ ? mean_ + start : nullptr,
                    scale_ + start,
                    bias_ + start,
                    a_.relu,
                    nullptr,
                    0,
                    0};
  int64_t begin = part.begin;
  if (last && channels == span_ && height == side_ && a_.dtype == DType::float32) {  // whole tiles need no copy
    r.tiles = std::min(part.end, y.width / side_) - begin;
    r.to = static_cast<float*>(at(0, side_ * begin)), r.row = y.row_stride, r.column = y.column_stride;
    run_.results(r);
    r.from += r.tiles * span_, begin += r.tiles;
    if (begin == part.end) return;
  }
  r.tiles = part.end - begin, r.to = room, r.row = side_ * r.tiles * span_, r.column = span_;
  run_.results(r);
  const int64_t left = side_ * begin, width = std::min(side_ * part.end, y.width) - left;
  for (int64_t i = 0; i < height; ++i)
    copy_.store({room + i * r.row, at(i, left), span_, 1, last ? y.column_stride : y.channel_stride, width, channels,
                 a_.dtype, !last});
}

}  // namespace lcs
