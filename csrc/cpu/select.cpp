#include "select.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <numeric>
#include <vector>

namespace lcs {
namespace {

constexpr int64_t kFew = 128;               // keys that are simply sorted
constexpr int64_t kWorthAThread = 1 << 14;  // keys

int64_t total(KeyLists lists) {
  int64_t n = 0;
  for (const auto& keys : lists) n += int64_t(keys.size());
  return n;
}

// The bits above which 2048 bins cover the range.
int shift_of(KeyRange range) {
  return std::max(0, int(std::bit_width(uint32_t(range.high - range.low))) - Histogram::kBits);
}

// Of the keys inside `range`.
Histogram count(KeyLists lists, KeyRange range, const Parallel& parallel) {
  const int64_t n = total(lists),
                grain = n < 2 * kWorthAThread ? INT64_MAX : 1 + int64_t(lists.size()) * kWorthAThread / n;
  return histogram_of(int64_t(lists.size()), grain, parallel, [=](int64_t begin, int64_t end, Histogram& histogram) {
    for (int64_t i = begin; i < end; ++i) histogram.add(lists[i], range);
  });
}

std::vector<int32_t> collect(KeyLists lists, KeyRange range) {
  std::vector<int32_t> found;
  for (const auto& keys : lists)
    for (int32_t key : keys)
      if (key >= range.low && key <= range.high) found.push_back(key);
  return found;
}

}  // namespace

void Histogram::add(std::span<const int32_t> keys, KeyRange range) {
  const uint32_t width = uint32_t(range.high - range.low);
  const int shift = shift_of(range);
  for (int32_t key : keys)
    if (const uint32_t offset = uint32_t(key - range.low); offset <= width) ++count[offset >> shift];
}

void Histogram::operator+=(const Histogram& other) {
  for (int bin = 0; bin < kBins; ++bin) count[bin] += other.count[bin];
}

KeyRange Histogram::bins(KeyRange range, int32_t from, int32_t to) {
  const int shift = shift_of(range);
  const int64_t high = range.low + ((int64_t{to} + 1) << shift) - 1;
  return {range.low + (from << shift), int32_t(std::min<int64_t>(range.high, high))};
}

KeyRange range_of(std::span<const int32_t> keys) {
  int32_t low = keys[0], high = keys[0];
  for (int32_t key : keys) low = std::min(low, key), high = std::max(high, key);
  return {low, high};
}

int32_t Histogram::find(int64_t& rank) const {
  int32_t bin = kBins - 1;
  for (; bin > 0 && rank > count[bin]; --bin) rank -= count[bin];
  return bin;
}

int32_t Histogram::place(KeyRange range, int64_t rank) const {
  const int32_t bin = find(rank);
  const KeyRange part = bins(range, bin, bin);
  return part.high - int32_t(double(part.high - part.low) * double(rank) / double(std::max<int64_t>(count[bin], 1)));
}

Histogram histogram_of(int64_t n, int64_t grain, const Parallel& parallel,
                       const std::function<void(int64_t, int64_t, Histogram&)>& add) {
  Histogram sum;
  std::mutex mutex;
  parallel(n, grain, [&](int64_t begin, int64_t end) {
    Histogram piece;
    add(begin, end, piece);
    const std::lock_guard lock(mutex);
    sum += piece;
  });
  return sum;
}

Enclosed enclose(KeyLists lists, KeyRange range, int64_t first, int64_t last, const Parallel& parallel) {
  const int64_t wanted = last - first + 1;
  for (int round = 0; round < 2 && range.low < range.high; ++round) {
    const Histogram histogram = count(lists, range, parallel);
    const int32_t middle = histogram.place(range, std::midpoint(first, last));
    int64_t rank = last;
    const int32_t from = histogram.find(rank);
    rank = first;
    const int32_t to = histogram.find(rank);
    last -= first - rank;
    first = rank;
    range = Histogram::bins(range, from, to);
    const int64_t found = std::accumulate(histogram.count + from, histogram.count + to + 1, int64_t{0});
    if (found <= wanted + wanted / 8) return {range, middle};
  }
  KeyRange found{range.high, range.low};
  for (const auto& keys : lists)
    for (int32_t key : keys)
      if (key >= range.low && key <= range.high) found = {std::min(found.low, key), std::max(found.high, key)};
  return {found, std::midpoint(found.low, found.high)};
}

// Each round keeps one of 2048 equal parts of the range: at most three rounds for 31 bits.
Ranked select_greatest(KeyLists lists, KeyRange range, int64_t rank, const Parallel& parallel) {
  std::vector<int32_t> found;
  std::span<const int32_t> rest;
  while (total(lists) > kFew) {
    if (range.low == range.high) return {range.low, rank, total(lists)};
    const int32_t bin = count(lists, range, parallel).find(rank);
    range = Histogram::bins(range, bin, bin);
    found = collect(lists, range);
    rest = found;
    lists = {&rest, 1};
  }
  found = collect(lists, range);
  std::sort(found.begin(), found.end(), std::greater<>());
  const auto [from, to] = std::equal_range(found.begin(), found.end(), found[rank - 1], std::greater<>());
  return {*from, rank - (from - found.begin()), to - from};
}

}  // namespace lcs
