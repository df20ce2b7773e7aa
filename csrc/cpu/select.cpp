#include "select.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace lcs {
namespace {

constexpr int64_t kFew = 128;

Ranked sort_and_select(std::span<int32_t> keys, int64_t rank) {
  std::sort(keys.begin(), keys.end(), std::greater<>());
  const int32_t key = keys[rank - 1];
  return {key, rank - (std::find(keys.begin(), keys.end(), key) - keys.begin())};
}

}  // namespace

int32_t Histogram::find(int64_t& rank) const {
  int32_t bin = kBins - 1;
  for (; bin > 0 && rank > count[bin]; --bin) rank -= count[bin];
  return bin;
}

// Each round keeps the keys of one of 2048 equal parts of the range that is left: at most three rounds for 31 bits.
Ranked select_greatest(std::span<int32_t> keys, int64_t rank) {
  while (int64_t(keys.size()) > kFew) {
    const auto [least, greatest] = std::minmax_element(keys.begin(), keys.end());
    const int32_t low = *least, range = *greatest - low;
    if (range == 0) return {low, rank};
    const int shift = std::max(0, int(std::bit_width(uint32_t(range))) - Histogram::kBits);
    Histogram histogram;
    for (int32_t key : keys) ++histogram.count[(key - low) >> shift];
    const int32_t bin = histogram.find(rank);
    const auto end = std::partition(keys.begin(), keys.end(), [=](int32_t key) { return (key - low) >> shift == bin; });
    keys = keys.first(end - keys.begin());
  }
  return sort_and_select(keys, rank);
}

}  // namespace lcs
