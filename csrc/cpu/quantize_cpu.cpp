#include "lcs/quantize.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "dispatch.h"
#include "interpolate_quantize_kernels.h"

namespace lcs {

QuantizeCodes quantize_codes(int64_t bits, bool nested) {
  const int kept = int(std::clamp<int64_t>(bits, 2, 8)), coded = nested ? 8 : kept;
  const double lowest = nested ? 0 : -(1 << (coded - 1));
  return {lowest, lowest + (1 << coded) - 1, double(1 << (coded - kept))};
}

QuantizeGrid quantize_grid(ValueRange range, const QuantizeCodes& codes) {
  constexpr double kWhole = 0x1.8p52;  // added and taken away again, rounds to whole numbers, half to even
  if (!std::isfinite(range.low) || !std::isfinite(range.high)) return {0, 0, 0, 0, 1, 1, 0, NAN};
  const double low = std::min<double>(range.low, 0), high = std::max<double>(range.high, 0);
  const double scale = (high - low) / (codes.highest - codes.lowest);
  if (scale < FLT_MIN) return {0, 0, 0, 0, 1, 1, 0, 0};
  const double zero = std::clamp(codes.lowest - low / scale + kWhole - kWhole, codes.lowest, codes.highest);
  return {float(1 / scale),
          float(zero),
          float(codes.lowest),
          float(codes.highest),
          float(1 / codes.step),
          float(codes.step),
          float((codes.step - 1) / 2 - zero),
          float(scale)};
}

void quantize(const QuantizeArgs& args, const Parallel& parallel) {
  const auto run = best(scalar::interpolate_quantize_kernels, avx2::interpolate_quantize_kernels,
                        avx512::interpolate_quantize_kernels);
  const QuantizeGrid grid = quantize_grid({args.low, args.high}, quantize_codes(args.bits, false));
  const bool stream =
      args.n * size_of(args.dtype) >= kStreamed && reinterpret_cast<uintptr_t>(args.to) % kCacheLine == 0;
  parallel((args.n + kChunk - 1) / kChunk, 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kChunk; i < std::min(end * kChunk, args.n); i += kChunk)
      run.write({advance(args.x, i, args.dtype), nullptr, advance(args.to, i, args.dtype), std::min(kChunk, args.n - i),
                 0, args.dtype, args.dtype},
                grid, stream);
  });
}

}  // namespace lcs
