#include "select.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <mutex>

namespace lcs {
namespace {

using Lists = std::span<const std::span<const int32_t>>;

constexpr int64_t kFew = 128;               // keys that are simply sorted
constexpr int64_t kWorthAThread = 1 << 14;  // keys

int64_t total(Lists lists) {
  int64_t n = 0;
  for (const auto& keys : lists) n += int64_t(keys.size());
  return n;
}

Ranked sort_and_select(std::vector<int32_t> keys, int64_t rank) {
  std::sort(keys.begin(), keys.end(), std::greater<>());
  const int32_t key = keys[rank - 1];
  return {key, rank - (std::find(keys.begin(), keys.end(), key) - keys.begin())};
}

// The keys in [low, high] of all lists.
std::vector<int32_t> collect(Lists lists, int32_t low, int32_t high) {
  std::vector<int32_t> found;
  for (const auto& keys : lists)
    for (int32_t key : keys)
      if (key >= low && key <= high) found.push_back(key);
  return found;
}

}  // namespace

int32_t Histogram::find(int64_t& rank) const {
  int32_t bin = kBins - 1;
  for (; bin > 0 && rank > count[bin]; --bin) rank -= count[bin];
  return bin;
}

Histogram histogram_of(int64_t n, int64_t grain, const Parallel& parallel,
                       const std::function<void(int64_t, int64_t, Histogram&)>& add) {
  Histogram sum;
  std::mutex mutex;
  parallel(n, grain, [&](int64_t begin, int64_t end) {
    Histogram piece;
    add(begin, end, piece);
    const std::lock_guard lock(mutex);
    for (int bin = 0; bin < Histogram::kBins; ++bin) sum.count[bin] += piece.count[bin];
  });
  return sum;
}

// Each round keeps the keys of one of 2048 equal parts of the range that is left: at most three rounds for 31 bits.
Ranked select_greatest(Lists lists, int32_t low, int32_t high, int64_t rank, const Parallel& parallel) {
  std::vector<int32_t> found;
  std::span<const int32_t> rest;
  for (int64_t n = total(lists); n > kFew; n = total(lists)) {
    if (low == high) return {low, rank};
    const int shift = std::max(0, int(std::bit_width(uint32_t(high - low))) - Histogram::kBits);
    const int64_t grain = std::max<int64_t>(1, kWorthAThread * int64_t(lists.size()) / n);
    const int32_t bin =
        histogram_of(int64_t(lists.size()), grain, parallel, [&](int64_t begin, int64_t end, Histogram& histogram) {
          for (int64_t i = begin; i < end; ++i)
            for (int32_t key : lists[i]) ++histogram.count[(key - low) >> shift];
        }).find(rank);
    low += bin << shift;
    high = std::min(high, low + ((1 << shift) - 1));
    found = collect(lists, low, high);
    rest = found;
    lists = {&rest, 1};
  }
  return sort_and_select(collect(lists, low, high), rank);
}

}  // namespace lcs
