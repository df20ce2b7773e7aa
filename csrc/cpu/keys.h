#pragma once
#include <cstdint>

namespace lcs {

// A key is the magnitude of a weight as the bits of its float32, ordered like the magnitude; every NaN is this one,
// above infinity.
constexpr int32_t kNanKey = 0x7f800001;

// Closed at both ends; 0 <= low.
struct KeyRange {
  int32_t low, high;
};

}  // namespace lcs
