#pragma once
#include <cstdint>
#include <functional>
#include <span>

#include "keys.h"
#include "lcs/parallel.h"

// Ranks among integer keys, counted from 1 for the greatest, in linear time.
namespace lcs {

using KeyLists = std::span<const std::span<const int32_t>>;

// Counts by 11 bits of the keys.
struct Histogram {
  static constexpr int kBits = 11, kBins = 1 << kBits;
  int64_t count[kBins] = {};

  // The keys inside `range`, which is cut into at most kBins parts of one size.
  void add(std::span<const int32_t> keys, KeyRange range);
  void operator+=(const Histogram& other);

  // The bin in which `rank` falls; reduces `rank` by what lies in the bins above.
  int32_t find(int64_t& rank) const;

  // About where the key of `rank` lies in `range`.
  int32_t place(KeyRange range, int64_t rank) const;

  // The keys of `range` that `add` counts in the bins `from` to `to`.
  static KeyRange bins(KeyRange range, int32_t from, int32_t to);
};

// From the least to the greatest of `keys`, of which there are some.
KeyRange range_of(std::span<const int32_t> keys);

// Sums the histograms of pieces of [0, n), each filled by `add` on a thread of its own.
Histogram histogram_of(int64_t n, int64_t grain, const Parallel& parallel,
                       const std::function<void(int64_t begin, int64_t end, Histogram&)>& add);

struct Enclosed {
  KeyRange range;
  int32_t middle;  // about where the middle rank lies
};

// A range that holds the keys from rank `first` to rank `last`, and of other keys at most an eighth as many. Where keys
// lie too close for that it is at most 2^-21 of `within` wider than it must be, and both its ends are keys.
Enclosed enclose(KeyLists lists, KeyRange within, int64_t first, int64_t last, const Parallel& parallel);

struct Ranked {
  int32_t key;
  int64_t kept, ties;  // keys equal to it: those at or before its rank, and all
};

// The key at `rank`, which exists; all keys lie in `within`.
Ranked select_greatest(KeyLists lists, KeyRange within, int64_t rank, const Parallel& parallel);

}  // namespace lcs
