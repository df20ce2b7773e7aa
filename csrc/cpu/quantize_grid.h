#pragma once
#include <cfloat>
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

// A grid not yet rounded to float32; or those of a vector of ranges.
template <class Double>
struct WideGrid {
  Double inverse, zero, lowest, highest, part, step, offset, scale;
};

// For ranges that include 0, whatever is given. A scale below float32's least normal number counts as 0; where the
// range is not finite, every value is NaN.
template <class Double>
[[gnu::always_inline]] inline WideGrid<Double> wide_grid(const Double& least, const Double& greatest,
                                                         const QuantizeCodes& codes) {
  constexpr double kWhole = 0x1.8p52;  // added and taken away again, rounds to whole numbers, half to even
  const Double none{}, one = none + 1, lowest = none + codes.lowest, highest = none + codes.highest;
  const Double error = (least - least) + (greatest - greatest);  // 0 or NaN
  const Double low = least < none ? least : none, high = greatest > none ? greatest : none;
  const Double scale = (high - low) / (codes.highest - codes.lowest) + error;
  const auto spread = scale >= none + FLT_MIN;
  const Double divisor = spread ? scale : one;
  Double zero = codes.lowest - low / divisor + kWhole - kWhole;
  zero = zero < lowest ? lowest : zero;
  zero = zero > highest ? highest : zero;
  return {spread ? 1 / divisor : none,
          spread ? zero : none,
          spread ? lowest : none,
          spread ? highest : none,
          spread ? none + 1 / codes.step : one,
          spread ? none + codes.step : one,
          spread ? (codes.step - 1) / 2 - zero : none,
          scale < none + FLT_MIN ? none : scale};
}

inline QuantizeGrid quantize_grid(ValueRange range, const QuantizeCodes& codes) {
  const auto wide = wide_grid<double>(range.low, range.high, codes);
  return {float(wide.inverse), float(wide.zero), float(wide.lowest), float(wide.highest),
          float(wide.part),    float(wide.step), float(wide.offset), float(wide.scale)};
}

}  // namespace lcs
