#include "width_pack.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "scratch.h"
#include "walk.h"
#include "width_conv2d_kernels.h"

namespace lcs {
namespace {

// Calls put(block, first output channel, first input channel, input channels) for each block of the first `out` by `in`
// channels of a weight, [input channel][tap][output channel].
template <class Put>
void for_blocks(const WidthWeight& w, int64_t out, int64_t in, int64_t together, const Parallel& parallel, Put put) {
  const WidthConv2dKernels run = width_conv2d_kernels();
  const int64_t row = w.in_channels * w.taps, inputs = ceil_div(in, together);
  parallel(width_blocks(out) * inputs, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch<float> scratch;
    float* const block = scratch.reserve(together * w.taps * kWidthBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first_out = i / inputs * kWidthBlock, first_in = i % inputs * together;
      const int64_t rows = std::min(kWidthBlock, out - first_out), n = std::min(together, in - first_in);
      if (rows < kWidthBlock) std::memset(block, 0, size_t(n * w.taps * kWidthBlock) * sizeof(float));
      run.load({advance(w.data, first_out * row + first_in * w.taps, w.dtype), block, row, 1, kWidthBlock, rows,
                n * w.taps, w.dtype, true});
      put(block, first_out, first_in, n);
    }
  });
}

}  // namespace

void width_pack_part(const WidthWeight& w, int64_t out, int64_t in, float* packed, const Parallel& parallel) {
  for_blocks(w, out, in, kWidthBlock, parallel, [&](const float* block, int64_t o, int64_t i, int64_t n) {
    float* to = packed + (o * in + i * kWidthBlock) * w.taps;
    for (int64_t tap = 0; tap < w.taps; ++tap)
      for (int64_t c = 0; c < n; ++c, to += kWidthBlock)
        std::memcpy(to, block + (c * w.taps + tap) * kWidthBlock, kWidthBlock * sizeof(float));
  });
}

void width_pack(const WidthWeight& weight, float* packed, const Parallel& parallel) {
  width_pack_part(weight, weight.out_channels, weight.in_channels, packed, parallel);
}

void width_pack_turned(const WidthWeight& w, float* packed, const Parallel& parallel) {
  const WidthConv2dKernels run = width_conv2d_kernels();
  const int64_t outputs = w.in_channels, inputs = w.out_channels, parts = ceil_div(inputs, kWidthBlock);
  parallel(width_blocks(outputs) * parts, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch<float> scratch;
    float* const taps = scratch.reserve(w.taps * kWidthBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first_out = i / parts * kWidthBlock, first_in = i % parts * kWidthBlock;
      const int64_t rows = std::min(kWidthBlock, outputs - first_out), n = std::min(kWidthBlock, inputs - first_in);
      float* const to = packed + (first_out * inputs + first_in * kWidthBlock) * w.taps;
      std::fill_n(taps, w.taps * kWidthBlock, 0.0f);
      for (int64_t c = 0; c < n; ++c) {
        run.load({advance(w.data, ((first_in + c) * outputs + first_out) * w.taps, w.dtype), taps, w.taps, 1,
                  kWidthBlock, rows, w.taps, w.dtype, true});
        for (int64_t tap = 0; tap < w.taps; ++tap)
          std::memcpy(to + ((w.taps - 1 - tap) * n + c) * kWidthBlock, taps + tap * kWidthBlock,
                      kWidthBlock * sizeof(float));
      }
    }
  });
}

void width_pack_pairs(const WidthWeight& w, BFloat16* packed, const Parallel& parallel) {
  const int64_t pairs = ceil_div(w.in_channels, 2);
  for_blocks(w, w.out_channels, w.in_channels, 2 * kWidthBlock, parallel,
             [&](const float* block, int64_t o, int64_t i, int64_t n) {
               BFloat16* to = packed + (o * pairs + i / 2 * kWidthBlock) * w.taps * 2;
               for (int64_t tap = 0; tap < w.taps; ++tap)
                 for (int64_t c = 0; c < n; c += 2)
                   for (int64_t k = 0; k < kWidthBlock; ++k, to += 2)
                     for (int64_t half = 0; half < 2; ++half) {
                       const float* const at = block + ((c + half) * w.taps + tap) * kWidthBlock + k;
                       to[half].bits = c + half < n ? uint16_t(std::bit_cast<uint32_t>(*at) >> 16) : 0;
                     }
             });
}

}  // namespace lcs
