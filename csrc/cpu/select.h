#pragma once
#include <cstdint>
#include <functional>
#include <span>

#include "lcs/parallel.h"

namespace lcs {

// Of some keys in descending order, the one at a rank, and how many equal to it lie at or before that rank.
struct Ranked {
  int32_t key;
  int64_t equal;
};

// Counts of keys by some 11 of their bits, and the search for a rank among them from the greatest.
struct Histogram {
  static constexpr int kBits = 11, kBins = 1 << kBits;
  int64_t count[kBins] = {};

  // The bin in which `rank` (1 is the greatest) falls; reduces `rank` by what lies in the bins above.
  int32_t find(int64_t& rank) const;
};

// Sums the histograms of pieces of [0, n), each filled by `add(begin, end, histogram)` on a thread of its own.
Histogram histogram_of(int64_t n, int64_t grain, const Parallel& parallel,
                       const std::function<void(int64_t begin, int64_t end, Histogram&)>& add);

// The key of rank `rank` in linear time; 1 <= rank <= number of keys. All keys lie in [low, high], low >= 0.
Ranked select_greatest(std::span<const std::span<const int32_t>> lists, int32_t low, int32_t high, int64_t rank,
                       const Parallel& parallel);

}  // namespace lcs
