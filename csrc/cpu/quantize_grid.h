#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>

namespace lcs {

// The least and the greatest of some values and 0; both NaN where a value is not finite.
struct ValueRange {
  float low, high;
};

// The code of x is q = clamp(nearest(x * inverse) + zero, lowest, highest), its value (floor(q * part) * step + offset)
// * scale: plain float32 operations in this order, so that every instruction set, Triton and eager PyTorch agree. All
// but the first and the last are exact. Of a nested code 1 / part steps of 8 bits are one step here.
struct QuantizeGrid {
  float inverse, zero, lowest, highest, part, step, offset, scale;
};

// What a grid takes from the bits alone.
struct QuantizeCodes {
  double lowest, highest, step;
};

QuantizeCodes quantize_codes(int64_t bits, bool nested);  // bits are clamped to [2, 8]

// For a range that includes 0, whatever is given. A scale below float32's least normal number counts as 0; where the
// range is not finite, every value is NaN. Nothing branches, so that the grids of many groups are computed in vectors.
[[gnu::always_inline]] inline QuantizeGrid quantize_grid(ValueRange range, const QuantizeCodes& codes) {
  constexpr double kWhole = 0x1.8p52;  // added and taken away again, rounds to whole numbers, half to even
  const bool finite = range.low - range.low == 0 & range.high - range.high == 0;
  const double low = range.low < 0 ? range.low : 0, high = range.high > 0 ? range.high : 0;
  const double scale = (high - low) / (codes.highest - codes.lowest);
  const bool spread = finite & scale >= FLT_MIN;
  const double divisor = spread ? scale : 1;
  const double nearest = codes.lowest - low / divisor + kWhole - kWhole;
  const double least = nearest < codes.lowest ? codes.lowest : nearest;
  const double zero = least > codes.highest ? codes.highest : least;
  const float flat = finite ? 0 : NAN;
  return {spread ? float(1 / divisor) : 0,
          spread ? float(zero) : 0,
          spread ? float(codes.lowest) : 0,
          spread ? float(codes.highest) : 0,
          spread ? float(1 / codes.step) : 1,
          spread ? float(codes.step) : 1,
          spread ? float((codes.step - 1) / 2 - zero) : 0,
          spread ? float(scale) : flat};
}

}  // namespace lcs
