#include "sparse_conv2d_panel.h"

#include <algorithm>
#include <cstring>

#include "scratch.h"
#include "walk.h"

namespace lcs {
namespace {

int64_t place(const Images& t, int64_t image, int64_t channel, int64_t row, int64_t column) {
  return image * t.image_stride + channel * t.channel_stride + row * t.row_stride + column * t.column_stride;
}

void* at(const Images& t, DType dtype, int64_t place) { return static_cast<char*>(t.data) + size_of(dtype) * place; }

}  // namespace

SparsePanels::SparsePanels(const SparseConv2dArgs& args, const Phases& vertical, const Phases& horizontal,
                           const SparseLayout& layout, const SparseConv2dKernels& kernels, bool stream)
    : a_(args), rows_(vertical), columns_(horizontal), layout_(layout), run_(kernels), stream_(stream) {
  pitch_ = layout.lanes == 1 ? sparse_pitch(args, horizontal) : layout.columns + horizontal.reach;
  plane_ = (layout.rows + vertical.reach) * pitch_ * layout.lanes;
  const int64_t phases = int64_t(vertical.used.size() * horizontal.used.size());
  channel_ = odd_lines(phases * plane_ + horizontal.reach * layout.lanes);
}

SparsePanels::Lane SparsePanels::lane(int64_t panel, int64_t i) const {
  const int64_t block = panel * layout_.lanes + i, image = block / layout_.blocks(), within = block % layout_.blocks();
  return {image, within / layout_.across * layout_.rows, within % layout_.across * layout_.columns, image < a_.x.n};
}

void SparsePanels::clear(float* panel) const {
  if (layout_.lanes == 1) std::memset(panel, 0, size_t(a_.x.channels * channel_) * sizeof(float));
}

void SparsePanels::Filler::operator()(int64_t panel, int64_t begin, int64_t end, float* to) {
  if (p_.layout_.lanes == 1) return p_.fill_rows(panel, begin, end, to);
  if (panel != of_) p_.squares_of_x(panel, squares_);
  of_ = panel;
  p_.fill_lanes(squares_, begin, end, to);
}

// Of a panel of one block: all its rows. Rows outside the image are zeros.
void SparsePanels::fill_rows(int64_t panel, int64_t begin, int64_t end, float* to) const {
  const int64_t image = panel / layout_.down, row0 = panel % layout_.down * layout_.rows,
                width = a_.y.width + columns_.reach, step = a_.horizontal.stride;
  for (size_t i = 0; i < rows_.used.size(); ++i) {
    const Inside rows(a_.vertical, rows_.used[i], a_.x.height, row0, layout_.rows + rows_.reach);
    for (size_t j = 0; j < columns_.used.size(); ++j) {
      float* const plane = to + int64_t(i * columns_.used.size() + j) * plane_;
      const Inside columns(a_.horizontal, columns_.used[j], a_.x.width, 0, width);
      for (int64_t c = begin; c < end; ++c) {
        float* const p = plane + c * channel_;
        std::fill(p, p + (rows.begin - row0) * pitch_, 0.0f);
        std::fill(p + (rows.end - row0) * pitch_, p + plane_, 0.0f);
      }
      const int64_t n = columns.end - columns.begin;
      if (n == 0 || rows.begin == rows.end) continue;
      const auto from = [&](int64_t c, int64_t row) {
        return at(a_.x, a_.dtype, place(a_.x, image, c, row, columns.first));
      };
      float* row_to = plane + (rows.begin - row0) * pitch_ + columns.begin;
      if (!x_last()) {
        for (int64_t c = begin; c < end; ++c)
          run_.load({from(c, rows.first), row_to + c * channel_, a_.vertical.stride * a_.x.row_stride, step, pitch_,
                     rows.end - rows.begin, n, a_.dtype, false});
        continue;
      }
      for (int64_t row = rows.begin, x = rows.first; row < rows.end; ++row, x += a_.vertical.stride, row_to += pitch_)
        run_.load({from(begin, x), row_to + begin * channel_, step * a_.x.column_stride, 1, channel_, n, end - begin,
                   a_.dtype, true});
    }
  }
}

// What each channel of a panel is copied from; or, channels last, each 8 channels.
void SparsePanels::squares_of_x(int64_t panel, std::vector<LaneSquare>& squares) const {
  const int64_t vertical = a_.vertical.stride, horizontal = a_.horizontal.stride, width = x_last() ? 1 : kLaneSquare;
  squares.clear();
  std::vector<Lane> lanes(layout_.lanes);
  for (int64_t l = 0; l < layout_.lanes; ++l) lanes[l] = lane(panel, l);
  for (size_t i = 0; i < rows_.used.size(); ++i)
    for (size_t j = 0; j < columns_.used.size(); ++j)
      for (int64_t row = 0; row < layout_.rows + rows_.reach; ++row)
        for (int64_t column = 0; column < pitch_; column += width)
          for (int64_t first = 0; first < layout_.lanes; first += kLaneSquare) {
            const int64_t columns = std::min(width, pitch_ - column);
            LaneSquare& s = squares.emplace_back();
            s.panel = int64_t(i * columns_.used.size() + j) * plane_ + (row * pitch_ + column) * layout_.lanes + first;
            s.columns = x_last() ? kLaneSquare : columns;
            for (int64_t l = 0; l < kLaneSquare; ++l) {
              const Lane& lane = lanes[first + l];
              const int64_t at = (lane.row + row) * vertical + rows_.used[i] - a_.vertical.padding,
                            left = (lane.column + column) * horizontal + columns_.used[j] - a_.horizontal.padding;
              const int64_t begin = left < 0 ? std::min(ceil_div(-left, horizontal), columns) : 0,
                            end = std::clamp(ceil_div(a_.x.width - left, horizontal), begin, columns);
              const bool inside = lane.exists && at >= 0 && at < a_.x.height;
              s.row[l] = place(a_.x, lane.image, 0, at, left);
              s.exist[l] = !inside || begin == end ? 0 : x_last() ? 255 : uint8_t((1 << end) - (1 << begin));
            }
          }
}

void SparsePanels::fill_lanes(const std::vector<LaneSquare>& squares, int64_t begin, int64_t end, float* to) const {
  LaneCopy copy{at(a_.x, a_.dtype, begin * a_.x.channel_stride),
                to + begin * channel_,
                squares.data(),
                int64_t(squares.size()),
                a_.horizontal.stride,
                layout_.lanes,
                end - begin,
                a_.x.channel_stride,
                channel_,
                a_.dtype};
  if (!x_last()) return run_.load_lanes(copy);
  copy.step = 1, copy.panel_step = channel_, copy.count = 1;
  copy.stride = kLaneSquare, copy.panel_stride = kLaneSquare * channel_;
  each_channel_square(squares, copy, end - begin, run_.load_lanes);
}

void SparsePanels::write(int64_t panel, int64_t begin, int64_t end, int64_t row, int64_t rows, float* sums,
                         int64_t stride) const {
  if (layout_.lanes > 1) return write_lanes(panel, begin, end, row, rows, sums, stride);
  if (a_.residual) add_rows(panel, begin, end, row, rows, sums, stride);
  write_rows(panel, begin, end, row, rows, sums, stride);
}

// The residual of a panel of one block, a row of all channels at a time.
void SparsePanels::add_rows(int64_t panel, int64_t begin, int64_t end, int64_t row, int64_t rows, float* sums,
                            int64_t stride) const {
  static thread_local Scratch<float> scratch;
  const int64_t image = panel / layout_.down, row0 = panel % layout_.down * layout_.rows + row, width = a_.y.width,
                channels = end - begin;
  float* const residual = scratch.reserve(channels * width);
  for (int64_t i = 0; i < rows; ++i) {
    const void* const from = advance(a_.residual, place(a_.y, image, begin, row0 + i, 0), a_.dtype);
    if (y_last())
      run_.load({from, residual, a_.y.column_stride, 1, width, width, channels, a_.dtype, true});
    else
      run_.load({from, residual, a_.y.channel_stride, 1, width, channels, width, a_.dtype, false});
    for (int64_t c = 0; c < channels; ++c)
      run_.add(residual + c * width, width, floor(), a_.cap, sums + c * stride + i * pitch_);
  }
}

void SparsePanels::write_rows(int64_t panel, int64_t begin, int64_t end, int64_t row, int64_t rows, const float* sums,
                              int64_t stride) const {
  const int64_t image = panel / layout_.down, row0 = panel % layout_.down * layout_.rows + row, width = a_.y.width;
  const auto to = [&](int64_t c, int64_t row) { return at(a_.y, a_.dtype, place(a_.y, image, c, row, 0)); };
  if (!y_last()) {
    for (int64_t c = begin; c < end; ++c, sums += stride)
      run_.store({sums, to(c, row0), pitch_, 1, a_.y.row_stride, rows, width, a_.dtype, false, stream_});
    return;
  }
  for (int64_t i = 0; i < rows; ++i)
    run_.store(
        {sums + i * pitch_, to(begin, row0 + i), stride, 1, a_.y.column_stride, end - begin, width, a_.dtype, true});
}

// What rows [row, row + rows) of all blocks are copied to, in channel 0; or, channels last, in the first kLaneSquare.
std::vector<LaneSquare> SparsePanels::squares_of_y(int64_t panel, int64_t row, int64_t rows) const {
  std::vector<LaneSquare> squares;
  for (int64_t first = 0; first < layout_.lanes; first += kLaneSquare) {
    Lane lanes[kLaneSquare];
    for (int64_t l = 0; l < kLaneSquare; ++l) lanes[l] = lane(panel, first + l);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t next = 0, columns; next < layout_.columns; next += columns) {
        columns = y_last() ? 1 : std::min(kLaneSquare, layout_.columns);
        const int64_t column = std::min(next, layout_.columns - columns);  // whole squares, if the last two overlap
        LaneSquare& s = squares.emplace_back();
        s.panel = (i * layout_.columns + column) * layout_.lanes + first;
        s.columns = y_last() ? kLaneSquare : columns;
        for (int64_t l = 0; l < kLaneSquare; ++l) {
          const Lane& at = lanes[l];
          const bool inside = at.exists && at.row + row + i < a_.y.height;
          s.row[l] = place(a_.y, at.image, 0, at.row + row + i, at.column + column);
          const int64_t there = inside ? std::clamp<int64_t>(a_.y.width - at.column - column, 0, columns) : 0;
          s.exist[l] = uint8_t((1 << (y_last() ? there * kLaneSquare : there)) - 1);
        }
      }
  }
  return squares;
}

void SparsePanels::write_lanes(int64_t panel, int64_t begin, int64_t end, int64_t row, int64_t rows, const float* sums,
                               int64_t stride) const {
  std::vector<LaneSquare> squares = squares_of_y(panel, row, rows);
  LaneCopy copy{at(a_.y, a_.dtype, begin * a_.y.channel_stride),
                const_cast<float*>(sums),
                squares.data(),
                int64_t(squares.size()),
                1,
                layout_.lanes,
                end - begin,
                a_.y.channel_stride,
                stride,
                a_.dtype,
                advance(a_.residual, begin * a_.y.channel_stride, a_.dtype),
                floor(),
                a_.cap};
  if (!y_last()) return run_.store_lanes(copy);
  copy.panel_step = stride, copy.count = 1;
  copy.stride = kLaneSquare, copy.panel_stride = kLaneSquare * stride;
  each_channel_square(squares, copy, end - begin, run_.store_lanes);
}

}  // namespace lcs
