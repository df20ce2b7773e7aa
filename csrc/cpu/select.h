#pragma once
#include <cstdint>
#include <span>

namespace lcs {

// Of some keys in descending order, the one at a rank, and how many equal to it lie at or before that rank.
struct Ranked {
  int32_t key;
  int64_t equal;
};

// The key of rank `rank` (1 is the greatest) in linear time. Reorders `keys`, all >= 0. Needs 1 <= rank <= keys.size().
Ranked select_greatest(std::span<int32_t> keys, int64_t rank);

// Counts of keys by their bits [shift, shift + 11), and the search for a rank among them from the top.
struct Histogram {
  static constexpr int kBits = 11, kBins = 1 << kBits;
  int64_t count[kBins] = {};

  // The bin in which `rank` falls, counted from the greatest; reduces `rank` by what lies in the bins above.
  int32_t find(int64_t& rank) const;
};

}  // namespace lcs
