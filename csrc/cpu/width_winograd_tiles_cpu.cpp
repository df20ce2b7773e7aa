#include "width_winograd_tiles.h"

namespace lcs {
namespace {

constexpr int64_t kSide = kWinogradResults, kWindow = winograd_window(3), kPositions = winograd_positions(3);

}  // namespace

void WinogradTiles::transform(int64_t slot, int64_t first, int64_t last, float* to, int64_t floats) const {
  static thread_local Scratch<float> scratch;
  const int64_t size = window_.size, row = (kSide * kWinogradPart + size - kSide) * pixel_;
  float* const zeros = scratch.reserve(pixel_ * x_.width + kWindow * row);
  float* const sides = zeros + pixel_ * x_.width;
  std::fill_n(zeros, pixel_ * x_.width, 0.0f);
  Rows held{};
  grid_.for_parts(slot, first, last, [&](const WinogradPart& part) {
    const int64_t left = kSide * part.begin - window_.left, columns = kSide * (part.end - part.begin) + size - kSide,
                  begin = std::clamp<int64_t>(-left, 0, columns),
                  end = std::clamp<int64_t>(x_.width - left, begin, columns);
    WinogradColumns sides_of{{}, (end - begin) * pixel_, sides + begin * pixel_, row};
    for (int64_t i = 0; i < size; ++i) {
      const int64_t at = kSide * part.line - window_.above + i;
      const bool inside = at >= 0 && at < x_.height;
      sides_of.rows[i] = inside ? this->row(part.image, at, held) + (left + begin) * pixel_ : zeros;
    }
    for (int64_t i = 0; i < kWindow; ++i) {
      std::fill_n(sides + i * row, begin * pixel_, 0.0f);
      std::fill_n(sides + i * row + end * pixel_, (columns - end) * pixel_, 0.0f);
    }
    window_.columns(sides_of);
    for (int64_t c = 0; c < pixel_; c += chunk_)
      window_.rows({sides + c, row, pixel_, std::min(chunk_, pixel_ - c), part.end - part.begin,
                    to + c / chunk_ * kPositions * floats + part.slot * chunk_, floats, chunk_});
  });
}

const float* WinogradTiles::row(int64_t image, int64_t at, Rows& rows) const {
  static thread_local Scratch<float> scratch;
  const float* const from = static_cast<const float*>(x_.data) + image * x_.image_stride + at * x_.row_stride;
  if (x_.channel_stride == 1 && x_.column_stride == pixel_ && x_.channels == pixel_) return from;
  const int64_t floats = x_.width * pixel_;
  if (!rows.data) {
    rows.data = scratch.reserve(kWindow * floats);
    std::fill_n(rows.held, kWindow, -1);
    for (int64_t i = 0; i < kWindow * x_.width; ++i)
      std::fill_n(rows.data + i * pixel_ + x_.channels, pixel_ - x_.channels, 0.0f);
  }
  const int64_t slot = at % kWindow, id = image * x_.height + at;
  float* const to = rows.data + slot * floats;
  if (rows.held[slot] == id) return to;
  if (x_.channel_stride == 1)
    copy_.load({from, to, x_.column_stride, 1, pixel_, x_.width, x_.channels, DType::float32, false});
  else
    copy_.load({from, to, x_.channel_stride, x_.column_stride, pixel_, x_.channels, x_.width, DType::float32, true});
  rows.held[slot] = id;
  return to;
}

}  // namespace lcs
