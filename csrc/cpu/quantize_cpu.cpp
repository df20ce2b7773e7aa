#include "lcs/quantize.h"

#include <algorithm>

#include "interpolate_quantize_kernels.h"
#include "lcs/ceil_div.h"

namespace lcs {

QuantizeCodes quantize_codes(int64_t bits, bool nested) {
  const int kept = int(std::clamp<int64_t>(bits, 2, 8)), coded = nested ? 8 : kept;
  const double lowest = nested ? 0 : -(1 << (coded - 1));
  return {lowest, lowest + (1 << coded) - 1, double(1 << (coded - kept))};
}

void quantize(const QuantizeArgs& args, const Parallel& parallel) {
  const auto run = interpolate_quantize_kernels();
  const QuantizeGrid grid = quantize_grid({args.low, args.high}, quantize_codes(args.bits, false));
  const bool stream =
      args.n * size_of(args.dtype) >= kStreamed && reinterpret_cast<uintptr_t>(args.to) % kCacheLine == 0;
  parallel(ceil_div(args.n, kChunk), 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kChunk; i < std::min(end * kChunk, args.n); i += kChunk)
      run.write({advance(args.x, i, args.dtype), nullptr, advance(args.to, i, args.dtype), std::min(kChunk, args.n - i),
                 0, args.dtype, args.dtype},
                grid, stream);
  });
}

}  // namespace lcs
