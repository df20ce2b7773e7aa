#include "packed_result.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "packed_strip.h"

namespace lcs {

PackedResult::PackedResult(const PackedConv2dArgs& args, const PackedGemm& gemm, bool pairs)
    : a_(args),
      gemm_(gemm),
      pairs_(pairs),
      run_(best(scalar::packed_conv2d_kernels, avx2::packed_conv2d_kernels, avx2::packed_conv2d_kernels)),
      copies_(best(scalar::sparse_conv2d_kernels, avx2::sparse_conv2d_kernels, avx512::sparse_conv2d_kernels)),
      pixels_(args.y.height * args.y.width) {
  if (a_.y_range) codes_ = codes_of(*a_.y_range);
}

PackedResult::Output PackedResult::output(int64_t block, int64_t blocks, int64_t start, int64_t n, float* tile,
                                          float* residual, float* bias) const {
  const int64_t wide = blocks * kBlockRows, channel = gemm_.first_row(block);
  const int64_t channels = blocks == 2 ? kBlockRows + gemm_.rows(block + 1) : gemm_.rows(block);
  const int64_t at = start * a_.y.channels + channel;  // channels last
  const bool whole = a_.y.channel_stride == 1 && (blocks == 2 || channels == wide);
  const bool floats = whole && a_.dtype == DType::float32;
  Output out{nullptr, nullptr, wide, channels, tile, nullptr, wide};
  if (a_.bias) {
    std::fill(std::copy_n(a_.bias + channel, channels, bias), bias + wide, 0.0f);
    out.bias = bias;
  }
  if (a_.residual && floats) {
    out.residual = static_cast<const float*>(a_.residual) + at;
    out.residual_stride = a_.y.channels;
  } else if (a_.residual) {
    load_residual(channel, channels, wide, start, n, residual);
    out.residual = residual;
  }
  if (a_.y_range ? blocks == 2 : floats) {
    out.stride = a_.y.channels;
    if (a_.y_range)
      out.codes = static_cast<int8_t*>(a_.y.data) + at;
    else
      out.y = static_cast<float*>(a_.y.data) + at;
  }
  return out;
}

void PackedResult::load_residual(int64_t channel, int64_t channels, int64_t wide, int64_t start, int64_t n,
                                 float* to) const {
  const bool last = a_.y.channel_stride == 1;
  for_runs(channel, start, n, [&](int64_t m, int64_t rows, int64_t element, int64_t row_step, int64_t step) {
    const void* const from = advance(a_.residual, element, a_.dtype);
    last ? copies_.load({from, to + m * wide, row_step, 1, wide, rows, channels, a_.dtype, false})
         : copies_.load({from, to + m * wide, step, 1, wide, channels, rows, a_.dtype, true});
  });
}

void PackedResult::store(int64_t block, int64_t channels, int64_t wide, int64_t start, int64_t n,
                         const float* tile) const {
  const bool last = a_.y.channel_stride == 1;
  const int64_t channel = gemm_.first_row(block);
  if (a_.y_range) {
    int8_t codes[kTile * kBlockRows], *const to = static_cast<int8_t*>(a_.y.data) + start * a_.y.channels + channel;
    run_.quantize({tile, DType::float32, 1, wide, n, channels, codes, kBlockRows, codes_});
    for (int64_t m = 0; m < n; ++m) std::memcpy(to + m * a_.y.channels, codes + m * kBlockRows, size_t(channels));
    return;
  }
  for_runs(channel, start, n, [&](int64_t m, int64_t rows, int64_t element, int64_t row_step, int64_t step) {
    copies_.store({tile + m * wide, advance(a_.y.data, element, a_.dtype), wide, 1, last ? row_step : step, rows,
                   channels, a_.dtype, !last});
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
