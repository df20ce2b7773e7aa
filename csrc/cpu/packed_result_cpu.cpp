#include "packed_result.h"

#include <algorithm>
#include <cstring>

#include "packed_strip.h"

namespace lcs {

PackedResult::PackedResult(const PackedConv2dArgs& args, bool pairs)
    : a_(args),
      pairs_(pairs),
      run_(packed_conv2d_kernels()),
      copies_(sparse_conv2d_kernels()),
      pixels_(args.y.height * args.y.width) {
  if (a_.y_range) codes_ = codes_of(*a_.y_range);
}

PackedResult::Output PackedResult::output(const Channels& c, int64_t start, int64_t n, float* tile, float* residual,
                                          float* bias) const {
  const int64_t at = start * a_.y.channels + c.first;  // channels last
  const bool whole = a_.y.channel_stride == 1 && (c.part || c.n == c.wide);
  const bool direct = whole && a_.dtype == DType::float32;
  Output out{nullptr, nullptr, c.wide, tile, nullptr, c.wide};
  if (a_.bias && bias) {
    std::fill(std::copy_n(a_.bias + c.first, c.n, bias), bias + c.wide, 0.0f);
    out.bias = bias;
  }
  if (a_.residual && direct) {
    out.residual = static_cast<const float*>(a_.residual) + at;
    out.residual_stride = a_.y.channels;
  } else if (a_.residual) {
    load_residual(c, start, n, residual);
    out.residual = residual;
  }
  int8_t* const codes = codes_of_y();
  if ((!codes || c.codes) && (!floats() || direct)) {
    out.stride = a_.y.channels;
    out.codes = codes ? codes + at : nullptr;
    out.y = floats() ? static_cast<float*>(a_.y.data) + at : nullptr;
  }
  return out;
}

void PackedResult::load_residual(const Channels& c, int64_t start, int64_t n, float* to) const {
  const bool last = a_.y.channel_stride == 1;
  for_runs(c.first, start, n, [&](int64_t m, int64_t rows, int64_t element, int64_t row_step, int64_t step) {
    const void* const from = advance(a_.residual, element, a_.dtype);
    last ? copies_.load({from, to + m * c.wide, row_step, 1, c.wide, rows, c.n, a_.dtype, false})
         : copies_.load({from, to + m * c.wide, step, 1, c.wide, c.n, rows, a_.dtype, true});
  });
}

void PackedResult::store(const Channels& c, int64_t start, int64_t n, const float* tile) const {
  const bool last = a_.y.channel_stride == 1;
  if (a_.y_range) {
    int8_t codes[kTile * kBlockRows], *const to = codes_of_y() + start * a_.y.channels + c.first;
    run_.quantize({tile, DType::float32, 1, c.wide, n, c.n, codes, kBlockRows, codes_});
    for (int64_t m = 0; m < n; ++m) std::memcpy(to + m * a_.y.channels, codes + m * kBlockRows, size_t(c.n));
  }
  if (!floats()) return;
  for_runs(c.first, start, n, [&](int64_t m, int64_t rows, int64_t element, int64_t row_step, int64_t step) {
    copies_.store({tile + m * c.wide, advance(a_.y.data, element, a_.dtype), c.wide, 1, last ? row_step : step, rows,
                   c.n, a_.dtype, !last});
  });
}

// The runs of positions [start, start + n) whose elements of y lie `row_step` apart, and their channels `step`.
template <class Run>
void PackedResult::for_runs(int64_t channel, int64_t start, int64_t n, const Run& run) const {
  const Images& y = a_.y;
  if (y.channel_stride == 1) return run(0, n, start * y.channels + channel, y.channels, 1);
  for (int64_t m = 0; m < n;) {
    const int64_t image = (start + m) / pixels_, at = (start + m) % pixels_, rows = std::min(n - m, pixels_ - at);
    run(m, rows, image * y.image_stride + channel * y.channel_stride + at, 1, y.channel_stride);
    m += rows;
  }
}

}  // namespace lcs
