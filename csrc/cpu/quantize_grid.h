#pragma once
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
// range is not finite, every value is NaN.
QuantizeGrid quantize_grid(ValueRange range, const QuantizeCodes& codes);

}  // namespace lcs
