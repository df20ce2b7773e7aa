// A guessed bracket around the threshold lets one pass over the data decide and write nearly every weight; the few keys
// inside it are then ranked exactly. Whether the guess held is checked, and an exact radix select takes its place if
// not.
#include "lcs/interpolate_prune.h"

#include <algorithm>
#include <array>
#include <bit>
#include <climits>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "interpolate_prune_kernels.h"
#include "interpolate_prune_patches.h"
#include "lcs/ceil_div.h"
#include "select.h"

namespace lcs {
namespace {

constexpr KeyRange kKeepAll{-1, -1}, kKeepNone{INT_MAX - 1, INT_MAX - 1};
constexpr int64_t kSampleAll = 1 << 12;  // up to so many weights the sample is the whole
constexpr int64_t kRun = kBlock;         // weights sampled side by side
constexpr int64_t kGathered = 128;       // weights gathered at once
constexpr int64_t kMaxSample = 1 << 16;
constexpr double kDeviations = 4;  // half the bracket, in standard deviations of a sampled rank
constexpr int64_t kMargin = 8;     // and at least so many sampled ranks
constexpr int64_t kPerListed = 8;  // weights that could be classified in the time that one listed takes

struct Chunk {
  InterpolatePruneLayer weights;
  int64_t segment;
  int64_t slot;                   // where the lists have room for as many undecided as may be
  uint16_t* undecided = nullptr;  // offsets
  char* values = nullptr;         // theirs, as w holds them where they stay
  int32_t* keys = nullptr;        // theirs
  Census census{};
  int64_t kept = 0;                            // above the bracket
  int64_t drop = 0;                            // how many of the threshold's ties go, the first ones of the chunk
  std::unique_ptr<uint16_t[]> long_offsets{};  // what these point to where the lists were too short
  std::unique_ptr<char[]> long_values{};
  std::unique_ptr<int32_t[]> long_keys{};
};

// What is ranked together: one layer, or all of them.
struct Segment {
  std::span<Chunk> chunks;
  int64_t n, keep;
  KeyRange bracket{};
  int64_t rank = 0;                        // of the threshold, among the undecided
  int32_t middle = 0;                      // from which on the undecided are written as if they stayed
  std::unique_ptr<Histogram> undecided{};  // of the keys in the bracket; only where there is more than one chunk
  int32_t threshold = 0;
};

template <class Word>
void gather(const void* from, const uint16_t* at, int64_t n, void* to) {
  for (int64_t i = 0; i < n; ++i) static_cast<Word*>(to)[i] = static_cast<const Word*>(from)[at[i]];
}

void gather(const void* from, const uint16_t* at, int64_t n, DType type, void* to) {
  size_of(type) == 4 ? gather<uint32_t>(from, at, n, to) : gather<uint16_t>(from, at, n, to);
}

class Pruner {
 public:
  Pruner(const InterpolatePruneArgs& args, const Parallel& parallel)
      : args_(args), parallel_(parallel), run_(interpolate_prune_kernels()) {
    cut();
  }

  void run() {
    over_segments(total_, [this](Segment& s) {
      const auto [bracket, middle] = guess(s);
      s.bracket = bracket;
      s.middle = std::clamp(middle, bracket.low, bracket.high);
    });
    parallel_(int64_t(chunks_.size()), grain(total_), [this](int64_t i, int64_t end) {
      while (i < end) i = classify(i, end);
    });
    int64_t listed = 0, rest = 0;
    for (Segment& s : segments_) {
      list_all(s);
      if (!held(s)) classify_exactly(s);
      listed += narrow(s);
    }
    if (listed) over(chunks_, kPerListed * listed, [this](Chunk& c) { sift(c); });
    for (const Chunk& c : chunks_) rest += c.census.undecided;
    over_segments(rest, [this](Segment& s) { settle(s); });
    over(chunks_, kPerListed * rest, [this](Chunk& c) { resolve(c); });
  }

 private:
  // In chunks or segments; too little work, in weights, does not wake a thread.
  static int64_t grain(int64_t work) { return work < 2 * kChunk ? INT64_MAX : 1; }

  // The last ones first: they have just been worked on, and may still be cached.
  template <class Items, class Body>
  void over(Items&& items, int64_t work, Body body) {
    if (items.size() == 1) return body(items[0]);  // which may then use the threads itself
    parallel_(int64_t(items.size()), grain(work), [&](int64_t begin, int64_t end) {
      for (int64_t i = end; i-- > begin;) body(items[i]);
    });
  }

  // Large layers often lie side by side: dealt out so that no thread gets them all.
  template <class Body>
  void over_segments(int64_t work, Body body) {
    const int64_t n = int64_t(segments_.size());
    int64_t step = std::max<int64_t>(1, n * 5 / 8);
    while (std::gcd(step, n) != 1) ++step;
    if (n == 1) return body(segments_[0]);
    parallel_(n, grain(work), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(segments_[i * step % n]);
    });
  }

  InterpolatePruneLayer slice(const InterpolatePruneLayer& layer, int64_t begin, int64_t n) const {
    return {advance(layer.w0, begin, args_.in), advance(layer.w1, begin, args_.in), advance(layer.w, begin, args_.out),
            layer.mask_bits + begin / 32, n};
  }

  static int64_t list_size(int64_t n) { return std::min(n, kMaxUndecided) + kListSlack; }

  void cut() {
    const auto& layers = args_.layers;
    const bool together = args_.keep.size() == 1 && layers.size() != 1;
    std::vector<size_t> first;
    int64_t lists = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
      if (i == 0 || !together) {
        first.push_back(chunks_.size());
        segments_.push_back({{}, 0, args_.keep[together ? 0 : i]});
      }
      for (int64_t begin = 0; begin < layers[i].n; begin += kChunk) {
        const int64_t n = std::min(kChunk, layers[i].n - begin);
        chunks_.push_back({slice(layers[i], begin, n), int64_t(segments_.size()) - 1, lists});
        lists += list_size(n);
      }
      stream_ &= reinterpret_cast<uintptr_t>(layers[i].w) % kCacheLine == 0;
      segments_.back().n += layers[i].n;
      total_ += layers[i].n;
    }
    stream_ &= total_ * size_of(args_.out) >= kStreamed;
    offsets_ = std::make_unique_for_overwrite<uint16_t[]>(lists);
    values_ = std::make_unique_for_overwrite<char[]>(lists * size_of(args_.out));
    keys_ = std::make_unique_for_overwrite<int32_t[]>(lists);
    first.push_back(chunks_.size());
    for (size_t i = 0; i < segments_.size(); ++i) {
      Segment& s = segments_[i];
      s.chunks = std::span(chunks_).subspan(first[i], first[i + 1] - first[i]);
      s.keep = std::clamp<int64_t>(s.keep, 0, s.n);
    }
  }

  void place(Chunk& c, int64_t slot) const {
    c.undecided = &offsets_[slot];
    c.values = &values_[slot * size_of(args_.out)];
    c.keys = &keys_[slot];
  }

  void keys(const InterpolatePruneLayer& weights, int32_t* to) const {
    run_.keys(weights, args_.alpha, args_.in, args_.out, to);
  }

  void classify(Chunk& c, const Segment& s, int64_t room = kMaxUndecided) const {
    c.census =
        run_.classify(c.weights, args_.alpha, args_.in, args_.out, s.bracket, s.middle, {c.undecided, room}, stream_);
    c.kept = c.census.written - c.census.undecided;  // where the bracket is one key, or else of no use
    if (!c.census.listed) return;
    for (int64_t j = 0; j < c.census.undecided; j += kGathered)
      gather(c, j, std::min(kGathered, c.census.undecided - j));
    c.kept = c.census.written -
             std::count_if(c.keys, c.keys + c.census.undecided, [&](int32_t key) { return key >= s.middle; });
  }

  // Keys and values of n undecided, from the j-th on.
  void gather(const Chunk& c, int64_t j, int64_t n) const {
    alignas(64) char w0[kGathered * 4], w1[kGathered * 4];
    uint32_t mask_bits[kGathered / kBlock];
    uint16_t none[kListSlack];
    const uint16_t* const at = c.undecided + j;
    const InterpolatePruneLayer block{w0, c.weights.w1 ? w1 : nullptr, c.values + j * size_of(args_.out), mask_bits, n};
    lcs::gather(c.weights.w0, at, n, args_.in, w0);
    if (block.w1) lcs::gather(c.weights.w1, at, n, args_.in, w1);
    keys(block, c.keys + j);
    run_.classify(block, args_.alpha, args_.in, args_.out, kKeepAll, kKeepAll.low, {none, kListSlack}, false);
  }

  // Classifies from chunk i to the end of its segment, at most to `end`; returns how far it came.
  int64_t classify(int64_t i, int64_t end) {
    Segment& s = segments_[chunks_[i].segment];
    const int64_t last = std::min(end, &s.chunks.back() - chunks_.data() + 1);
    const bool count = s.chunks.size() > 1 && s.bracket.low < s.bracket.high;
    Histogram found;
    // One list behind the other, as whoever reads them again has to wait for memory where each begins.
    for (int64_t slot = chunks_[i].slot; i < last; ++i) {
      Chunk& c = chunks_[i];
      place(c, slot);
      classify(c, s);
      if (!c.census.listed) continue;
      slot += ceil_div(c.census.undecided, kBlock) * kBlock;
      if (count) found.add({c.keys, size_t(c.census.undecided)}, s.bracket);
    }
    if (!count) return last;
    const std::lock_guard lock(mutex_);
    if (!s.undecided) s.undecided = std::make_unique<Histogram>();
    *s.undecided += found;
    return last;
  }

  // Narrows the bracket to the bin of the threshold; returns how many listed keys `sift` has to compare with it.
  int64_t narrow(Segment& s) const {
    int64_t undecided = 0;
    s.rank = s.keep;
    for (const Chunk& c : s.chunks) {
      s.rank -= c.kept;
      undecided += c.census.undecided;
    }
    if (s.bracket.low == s.bracket.high || s.rank == 0 || s.rank == undecided) s.undecided.reset();
    if (!s.undecided) return 0;
    const int32_t bin = s.undecided->find(s.rank);
    s.bracket = Histogram::bins(s.bracket, bin, bin);
    return undecided;
  }

  // Drops the undecided below the bracket and keeps those above it.
  void sift(Chunk& c) const {
    const Segment& s = segments_[c.segment];
    if (!s.undecided) return;
    const int64_t n = c.census.undecided;
    Patches patches(c.weights, args_.out, c.undecided, c.values);
    each_inside(c, n, {s.middle, s.bracket.low - 1}, [&](int64_t j) { patches.drop(c.undecided[j]); });
    each_inside(c, n, {s.bracket.high + 1, s.middle - 1}, [&](int64_t j) { patches.restore(j); });
    patches.apply();
    int64_t rest = 0;
    each_inside(c, n, s.bracket, [&](int64_t j) {
      const int64_t size = size_of(args_.out);
      std::memmove(c.values + rest * size, c.values + j * size, size);
      c.keys[rest] = c.keys[j];
      c.undecided[rest++] = c.undecided[j];
    });
    c.census.undecided = rest;
  }

  // Calls body(j) for each of a chunk's first n keys that lies in the range, in order.
  template <class Body>
  void each_inside(const Chunk& c, int64_t n, KeyRange range, Body body) const {
    if (range.low > range.high) return;
    uint32_t bits[kChunk / kBlock];
    run_.inside(c.keys, n, range, bits);
    for (int64_t word = 0; word * kBlock < n; ++word) {
      const int64_t rest = n - word * kBlock;
      uint32_t set = rest < kBlock ? bits[word] & ((1u << rest) - 1) : bits[word];
      for (; set; set &= set - 1) body(word * kBlock + std::countr_zero(set));
    }
  }

  // How many runs of how many weights a chunk gives to a sample of `size` weights of its segment.
  struct Runs {
    int64_t count, length;
    int64_t total() const { return count * length; }
  };

  static Runs runs_of(const Chunk& c, const Segment& s, int64_t size) {
    const int64_t n = c.weights.n;
    if (size >= s.n) return {1, n};
    const int64_t length = std::min(kRun, n);
    return {std::clamp<int64_t>(n * size / (s.n * length), 1, n / length), length};
  }

  // Keys of short runs spread over the chunk, at places that no stride in the data can follow.
  void sample(const Chunk& c, Runs runs, int32_t* to) const {
    std::array<uint16_t, kChunk / kRun> at;
    const int64_t stride = c.weights.n / runs.count;
    uint64_t state = 0x9e3779b97f4a7c15;
    for (int64_t r = 0; r < runs.count; ++r) {
      state = state * 6364136223846793005 + 1442695040888963407;
      at[r] = uint16_t(r * stride + int64_t((state >> 33) % uint64_t(stride - runs.length + 1)));
      __builtin_prefetch(advance(c.weights.w0, at[r], args_.in));
      if (c.weights.w1) __builtin_prefetch(advance(c.weights.w1, at[r], args_.in));
    }
    for (int64_t r = 0; r < runs.count; ++r) keys(slice(c.weights, at[r], runs.length), to + r * runs.length);
  }

  std::vector<int32_t> sample(const Segment& s, int64_t size) const {
    std::vector<int64_t> at(s.chunks.size() + 1);
    for (size_t i = 0; i < s.chunks.size(); ++i) at[i + 1] = at[i] + runs_of(s.chunks[i], s, size).total();
    std::vector<int32_t> found(at.back());
    parallel_(int64_t(s.chunks.size()), grain(total_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sample(s.chunks[i], runs_of(s.chunks[i], s, size), &found[at[i]]);
    });
    return found;
  }

  Enclosed guess(const Segment& s) const {
    if (s.keep == s.n) return {kKeepAll, kKeepAll.low};
    if (s.keep == 0) return {kKeepNone, kKeepNone.low};
    // Sampling costs in proportion to the sample, ranking the bracket to n / sqrt(sample): this size balances them.
    const double balanced = 1.4 * std::cbrt(double(s.n) * double(s.n));
    const std::vector<int32_t> found = sample(s, s.n <= kSampleAll ? s.n : std::min(int64_t(balanced), kMaxSample));
    const int64_t m = found.size();
    const KeyRange all = range_of(found);
    std::array<std::span<const int32_t>, 4> lists;  // for as many threads
    for (int64_t i = 0; i < 4; ++i) lists[i] = std::span(found).subspan(i * m / 4, (i + 1) * m / 4 - i * m / 4);
    if (m == s.n) {
      const int32_t key = select_greatest(lists, all, s.keep, parallel_).key;
      return {{key, key}, key};
    }
    const double share = double(s.keep) / double(s.n);
    const int64_t rank = std::llround(share * double(m));
    const int64_t margin = kMargin + int64_t(kDeviations * std::sqrt(double(m) * share * (1 - share)));
    const int64_t first = rank - margin, last = rank + margin;
    const auto [range, middle] = enclose(lists, all, std::max<int64_t>(first, 1), std::min(last, m), parallel_);
    return {{last > m ? 0 : range.low, first < 1 ? kNanKey : range.high}, middle};
  }

  // Where the undecided crowd in few chunks, as in sorted data, these get lists that are long enough.
  void list_all(Segment& s) const {
    int64_t unlisted = 0;
    for (const Chunk& c : s.chunks) unlisted += c.census.listed ? 0 : c.census.undecided;
    if (unlisted == 0 || unlisted > s.n / kPerListed || s.bracket.low == s.bracket.high) return;
    for (Chunk& c : s.chunks) {
      if (c.census.listed) continue;
      const int64_t room = c.census.undecided + kListSlack;
      c.long_offsets = std::make_unique_for_overwrite<uint16_t[]>(room + kListSlack);
      c.long_keys = std::make_unique_for_overwrite<int32_t[]>(room + kListSlack);
      c.long_values = std::make_unique_for_overwrite<char[]>(room * size_of(args_.out));
      c.undecided = c.long_offsets.get();
      c.values = c.long_values.get();
      c.keys = c.long_keys.get();
      classify(c, s, room);
      if (s.undecided) s.undecided->add({c.keys, size_t(c.census.undecided)}, s.bracket);
    }
  }

  static bool held(const Segment& s) {
    int64_t kept = 0, undecided = 0;
    bool listed = true;
    for (const Chunk& c : s.chunks) {
      kept += c.kept;
      undecided += c.census.undecided;
      listed &= c.census.listed;
    }
    return kept <= s.keep && s.keep <= kept + undecided && (listed || s.bracket.low == s.bracket.high);
  }

  // Finds the threshold by 11, 10 and 10 bits from the top, one pass over the segment each.
  void classify_exactly(Segment& s) {
    int64_t rank = s.keep;
    int32_t prefix = 0;
    for (const int shift : {20, 10, 0}) {
      const int bits = shift == 20 ? 11 : 10;
      prefix = prefix << bits | count(s, shift, bits, prefix).find(rank);
    }
    s.bracket = {prefix, prefix};
    s.middle = prefix;
    over(s.chunks, s.n, [&](Chunk& c) {
      place(c, c.slot);
      classify(c, s);
    });
  }

  // Counts, among the keys that begin with `prefix`, the next `bits` bits, which lie at `shift`.
  Histogram count(const Segment& s, int shift, int bits, int32_t prefix) const {
    return histogram_of(int64_t(s.chunks.size()), grain(total_), parallel_,
                        [&](int64_t begin, int64_t end, Histogram& found) {
                          std::vector<int32_t> key(kChunk);
                          for (int64_t i = begin; i < end; ++i) {
                            keys(s.chunks[i].weights, key.data());
                            for (int64_t j = 0; j < s.chunks[i].weights.n; ++j)
                              if (key[j] >> (shift + bits) == prefix)
                                ++found.count[key[j] >> shift & ((1 << bits) - 1)];
                          }
                        });
  }

  // Ranks the undecided, and shares out the ties to drop: the lowest indices first.
  void settle(Segment& s) const {
    int64_t undecided = 0;
    std::vector<std::span<const int32_t>> lists;
    for (const Chunk& c : s.chunks) {
      undecided += c.census.undecided;
      lists.emplace_back(c.keys, size_t(c.census.undecided));
    }
    const bool one_key = s.bracket.low == s.bracket.high;
    Ranked ranked{s.bracket.low, s.rank, undecided};
    if (s.rank == 0)
      ranked = {INT_MAX, 0, 0};
    else if (s.rank < undecided && !one_key)
      ranked = select_greatest(lists, s.bracket, s.rank, parallel_);
    s.threshold = ranked.key;
    int64_t surplus = ranked.ties - ranked.kept;
    for (size_t i = 0; surplus > 0; ++i) {
      const auto ties = one_key ? int64_t(lists[i].size()) : std::count(lists[i].begin(), lists[i].end(), ranked.key);
      s.chunks[i].drop = std::min<int64_t>(surplus, ties);
      surplus -= s.chunks[i].drop;
    }
  }

  // Drops the undecided that lost and keeps the others.
  void resolve(const Chunk& c) const {
    const Segment& s = segments_[c.segment];
    Patches patches(c.weights, args_.out, c.undecided, c.values);
    int64_t ties = c.drop;
    const auto lost = [&](int32_t key) {
      const bool tie = (key == s.threshold) & (ties > 0);
      ties -= tie;
      return key < s.threshold || tie;
    };
    if (c.census.listed)
      for (int64_t j = 0; j < c.census.undecided; ++j) {
        const bool goes = lost(c.keys[j]), written = c.keys[j] >= s.middle;
        if (goes && written) patches.drop(c.undecided[j]);
        if (!goes && !written) patches.restore(j);
      }
    else
      resolve_unlisted(c, s, [&](int32_t key, int64_t at) {
        if (lost(key)) patches.drop(at);
      });
    patches.apply();
  }

  // The bracket is one key, whose ties have been kept so far.
  template <class Decide>
  void resolve_unlisted(const Chunk& c, const Segment& s, Decide decide) const {
    const int32_t low = s.bracket.low;
    if (s.threshold <= low && c.drop == 0) return;
    if (s.threshold > low || c.drop == c.census.undecided) {
      uint16_t list[kMaxUndecided + kListSlack];
      run_.classify(c.weights, args_.alpha, args_.in, args_.out, {low + 1, low + 1}, low + 1, {list, kMaxUndecided},
                    false);
      return;
    }
    std::vector<int32_t> key(c.weights.n);
    keys(c.weights, key.data());
    for (int64_t i = 0; i < c.weights.n; ++i)
      if (key[i] == low) decide(key[i], i);
  }

  const InterpolatePruneArgs& args_;
  const Parallel& parallel_;
  const InterpolatePruneKernels run_;
  int64_t total_ = 0;
  bool stream_ = true;
  std::vector<Segment> segments_;
  std::vector<Chunk> chunks_;
  std::mutex mutex_;
  std::unique_ptr<uint16_t[]> offsets_;
  std::unique_ptr<char[]> values_;
  std::unique_ptr<int32_t[]> keys_;
};

}  // namespace

void interpolate_prune(const InterpolatePruneArgs& args, const Parallel& parallel) { Pruner(args, parallel).run(); }

}  // namespace lcs
