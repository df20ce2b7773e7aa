#include "select.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "lcs/fork_join.h"

namespace {

using Lists = std::vector<std::vector<int32_t>>;

std::vector<int32_t> sorted(const Lists& lists) {
  std::vector<int32_t> keys;
  for (const auto& list : lists) keys.insert(keys.end(), list.begin(), list.end());
  std::sort(keys.begin(), keys.end(), std::greater<>());
  return keys;
}

void check_select(lcs::KeyLists lists, lcs::KeyRange within, const std::vector<int32_t>& keys, int64_t rank,
                  const lcs::Parallel& parallel) {
  const lcs::Ranked found = lcs::select_greatest(lists, within, rank, parallel);
  const auto [from, to] = std::equal_range(keys.begin(), keys.end(), keys[rank - 1], std::greater<>());
  CHECK(found.key == *from && found.kept == rank - (from - keys.begin()) && found.ties == to - from);
}

// Not many more keys than wanted, or else two rounds of 2048 bins, each up to twice a 2048th of its range wide: no end
// is a bin of the second round too far out.
void check_enclose(lcs::KeyLists lists, lcs::KeyRange within, const std::vector<int32_t>& keys, int64_t first,
                   int64_t last, const lcs::Parallel& parallel) {
  const auto [found, middle] = lcs::enclose(lists, within, first, last, parallel);
  const int64_t high = keys[first - 1], low = keys[last - 1], wanted = last - first + 1;
  CHECK(found.low <= low && high <= found.high);
  CHECK(found.low <= middle && middle <= found.high);
  const int64_t inside =
      std::count_if(keys.begin(), keys.end(), [&](int32_t key) { return key >= found.low && key <= found.high; });
  if (inside <= wanted + wanted / 8) return;
  const int64_t bin = (high - low + 2 * (int64_t{within.high} - within.low) / 1024) / 1024 + 1;
  CHECK(low - found.low <= bin && found.high - high <= bin);
  CHECK(std::binary_search(keys.begin(), keys.end(), found.low, std::greater<>()));
  CHECK(std::binary_search(keys.begin(), keys.end(), found.high, std::greater<>()));
}

void check(const Lists& lists, int32_t low, int32_t high) {
  const std::vector<std::span<const int32_t>> spans(lists.begin(), lists.end());
  const std::vector<int32_t> keys = sorted(lists);
  const int64_t n = int64_t(keys.size());
  for (const lcs::Parallel& parallel : {lcs::Parallel(lcs::serial), lcs::fork_join(3)})
    for (const int64_t rank : {int64_t{1}, n / 7 + 1, n / 2 + 1, n}) {
      check_select(spans, {low, high}, keys, rank, parallel);
      for (const int64_t last : {rank, (rank + n + 1) / 2, n})
        check_enclose(spans, {low, high}, keys, rank, last, parallel);
    }
}

// `n` keys of [low, high], dealt to lists of uneven length.
void check_range(int64_t n, int32_t low, int32_t high) {
  std::mt19937 random{uint32_t(n)};
  std::uniform_int_distribution<int32_t> key(low, high);
  Lists lists(n > 20 ? 7 : 1);
  for (int64_t i = 0; i < n; ++i) lists[random() % (random() % lists.size() + 1)].push_back(key(random));
  check(lists, low, high);
}

void check_histogram() {
  lcs::Histogram histogram;
  histogram.count[3] = 5;
  histogram.count[2000] = 2;
  for (const auto& [rank, bin, left] : {std::array<int64_t, 3>{1, 2000, 1}, {2, 2000, 2}, {3, 3, 1}, {7, 3, 5}}) {
    int64_t rest = rank;
    CHECK(histogram.find(rest) == bin && rest == left);
  }
  const lcs::Histogram sum = lcs::histogram_of(
      1000, 10, lcs::fork_join(4), [](int64_t begin, int64_t end, lcs::Histogram& h) { h.count[1] += end - begin; });
  CHECK(sum.count[1] == 1000 && std::accumulate(sum.count, sum.count + lcs::Histogram::kBins, int64_t{0}) == 1000);
}

}  // namespace

int main() {
  constexpr int32_t kGreatest = 0x7f800001;
  for (const int64_t n : {1, 2, 127, 128, 129, 130, 3000, 100'000}) {
    check_range(n, 0, kGreatest);
    check_range(n, 0, 5);
    check_range(n, 77, 77);
    check_range(n, kGreatest - 1, kGreatest);
    check_range(n, 0x3f800000, 0x3f800000 + 2048);
  }
  check({{}, {9}, {}}, 0, kGreatest);
  check_histogram();
}
