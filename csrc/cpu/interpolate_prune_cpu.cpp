// A guessed bracket around the threshold lets one pass over the data decide and write nearly every weight; the few keys
// inside it are then ranked exactly. Whether the guess held is checked, and an exact radix select takes its place if
// not.
#include "lcs/interpolate_prune.h"

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "dispatch.h"
#include "interpolate_prune_kernels.h"
#include "select.h"

namespace lcs {
namespace {

constexpr KeyRange kKeepAll{-1, -1}, kKeepNone{INT_MAX - 1, INT_MAX - 1};
constexpr int64_t kSampleAll = 1 << 12;  // up to so many weights the sample is the whole
constexpr int64_t kRun = 32;             // weights sampled side by side: a block of the kernels
constexpr int64_t kAhead = 64;           // weights fetched ahead
constexpr int64_t kMaxSample = 1 << 16;
constexpr double kDeviations = 4;  // half the bracket, in standard deviations of a sampled rank
constexpr int64_t kMargin = 8;     // and at least so many sampled ranks
constexpr int64_t kPerListed = 8;  // weights that could be classified in the time that one listed takes

InterpolatePruneKernels kernels() {
  return best(scalar::interpolate_prune_kernels, avx2::interpolate_prune_kernels, avx512::interpolate_prune_kernels);
}

struct Chunk {
  InterpolatePruneLayer weights;
  int64_t segment;
  uint16_t* undecided;  // offsets
  int32_t* keys;        // theirs
  Census census;
  int64_t drop;                                // how many of the threshold's ties go, the first ones of the chunk
  std::unique_ptr<uint16_t[]> long_offsets{};  // what undecided and keys point to where they were too short
  std::unique_ptr<int32_t[]> long_keys{};
};

// What is ranked together: one layer, or all of them.
struct Segment {
  std::span<Chunk> chunks;
  int64_t n, keep;
  KeyRange bracket{};
  std::unique_ptr<Histogram> undecided{};  // of the keys in the bracket; only where there is more than one chunk
  int32_t threshold = 0;
};

// Makes weights of a chunk zero.
template <class Word>
struct Dropper {
  Word* w;
  uint32_t* mask_bits;
  Word spare = 0;

  explicit Dropper(const InterpolatePruneLayer& chunk) : w(static_cast<Word*>(chunk.w)), mask_bits(chunk.mask_bits) {}

  // No branch, which could not be predicted, and no access to a weight that stays.
  Word* target(bool lost, int64_t i) { return lost ? w + i : &spare; }
  void fetch(bool lost, int64_t i) { __builtin_prefetch(target(lost, i), 1, 2); }
  void where(bool lost, int64_t i) {
    *target(lost, i) = 0;
    mask_bits[i / 32] &= ~(uint32_t(lost) << (i % 32));
  }
};

class Pruner {
 public:
  Pruner(const InterpolatePruneArgs& args, const Parallel& parallel)
      : args_(args), parallel_(parallel), run_(kernels()) {
    cut();
  }

  void run() {
    over_segments(total_, [this](Segment& s) { s.bracket = guess(s); });
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

  template <class Items, class Body>
  void over(Items&& items, int64_t work, Body body) {
    if (items.size() == 1) return body(items[0]);  // which may then use the threads itself
    parallel_(int64_t(items.size()), grain(work), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(items[i]);
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
        chunks_.push_back({slice(layers[i], begin, n), int64_t(segments_.size()) - 1, nullptr, nullptr, {}, 0});
        lists += list_size(n);
      }
      segments_.back().n += layers[i].n;
      total_ += layers[i].n;
    }
    offsets_ = std::make_unique_for_overwrite<uint16_t[]>(lists);
    keys_ = std::make_unique_for_overwrite<int32_t[]>(lists);
    lists = 0;
    for (Chunk& c : chunks_) {
      c.undecided = &offsets_[lists];
      c.keys = &keys_[lists];
      lists += list_size(c.weights.n);
    }
    first.push_back(chunks_.size());
    for (size_t i = 0; i < segments_.size(); ++i) {
      Segment& s = segments_[i];
      s.chunks = std::span(chunks_).subspan(first[i], first[i + 1] - first[i]);
      s.keep = std::clamp<int64_t>(s.keep, 0, s.n);
    }
  }

  void keys(const InterpolatePruneLayer& weights, int32_t* to) const {
    run_.keys(weights, args_.alpha, args_.in, args_.out, to);
  }

  void classify(Chunk& c, KeyRange bracket, int64_t room = kMaxUndecided) const {
    c.census = run_.classify(c.weights, args_.alpha, args_.in, args_.out, bracket, {c.undecided, room});
    if (c.census.listed) run_.keys_at(c.weights.w, args_.out, c.undecided, c.census.undecided, c.keys);
  }

  // Classifies from chunk i to the end of its segment, at most to `end`; returns how far it came.
  int64_t classify(int64_t i, int64_t end) {
    Segment& s = segments_[chunks_[i].segment];
    const int64_t last = std::min(end, &s.chunks.back() - chunks_.data() + 1);
    const bool count = s.chunks.size() > 1 && s.bracket.low < s.bracket.high;
    Histogram found;
    for (; i < last; ++i) {
      Chunk& c = chunks_[i];
      classify(c, s.bracket);
      if (count && c.census.listed) found.add({c.keys, size_t(c.census.undecided)}, s.bracket);
    }
    if (!count) return last;
    const std::lock_guard lock(mutex_);
    if (!s.undecided) s.undecided = std::make_unique<Histogram>();
    *s.undecided += found;
    return last;
  }

  // Narrows the bracket to the bin of the threshold; returns how many listed keys `sift` has to compare with it.
  int64_t narrow(Segment& s) const {
    int64_t rank = s.keep, undecided = 0;
    for (const Chunk& c : s.chunks) {
      rank -= c.census.kept;
      undecided += c.census.undecided;
    }
    if (s.bracket.low == s.bracket.high || rank == 0 || rank == undecided) s.undecided.reset();
    if (!s.undecided) return 0;
    const int32_t bin = s.undecided->find(rank);
    s.bracket = Histogram::bins(s.bracket, bin, bin);
    return undecided;
  }

  // Drops the undecided below the bracket and keeps those above it.
  void sift(Chunk& c) const { size_of(args_.out) == 4 ? sift<uint32_t>(c) : sift<uint16_t>(c); }

  template <class Word>
  void sift(Chunk& c) const {
    const Segment& s = segments_[c.segment];
    if (!s.undecided) return;
    const KeyRange bracket = s.bracket;
    Dropper<Word> drop(c.weights);
    int64_t rest = 0;
    for (int64_t j = 0; j < c.census.undecided; ++j) {
      const int64_t ahead = std::min(j + kAhead, c.census.undecided - 1);
      drop.fetch(c.keys[ahead] < bracket.low, c.undecided[ahead]);
      const int32_t key = c.keys[j];
      const uint16_t at = c.undecided[j];
      drop.where(key < bracket.low, at);
      c.census.kept += key > bracket.high;
      c.keys[rest] = key;
      c.undecided[rest] = at;
      rest += (key >= bracket.low) & (key <= bracket.high);
    }
    c.census.undecided = rest;
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

  KeyRange guess(const Segment& s) const {
    if (s.keep == s.n) return kKeepAll;
    if (s.keep == 0) return kKeepNone;
    // Sampling costs in proportion to the sample, ranking the bracket to n / sqrt(sample): this size balances them.
    const double balanced = 2 * std::cbrt(double(s.n) * double(s.n));
    const std::vector<int32_t> found = sample(s, s.n <= kSampleAll ? s.n : std::min(int64_t(balanced), kMaxSample));
    const std::span<const int32_t> list = found;
    const KeyRange all = range_of(list);
    const int64_t m = found.size();
    if (m == s.n) {
      const int32_t key = select_greatest({&list, 1}, all, s.keep, parallel_).key;
      return {key, key};
    }
    const double share = double(s.keep) / double(s.n);
    const int64_t rank = std::llround(share * double(m));
    const int64_t margin = kMargin + int64_t(kDeviations * std::sqrt(double(m) * share * (1 - share)));
    const int64_t first = rank - margin, last = rank + margin;
    const KeyRange middle = enclose({&list, 1}, all, std::max<int64_t>(first, 1), std::min(last, m), parallel_);
    return {last > m ? 0 : middle.low, first < 1 ? kNanKey : middle.high};
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
      c.undecided = c.long_offsets.get();
      c.keys = c.long_keys.get();
      classify(c, s.bracket, room);
      if (s.undecided) s.undecided->add({c.keys, size_t(c.census.undecided)}, s.bracket);
    }
  }

  static bool held(const Segment& s) {
    int64_t kept = 0, undecided = 0;
    bool listed = true;
    for (const Chunk& c : s.chunks) {
      kept += c.census.kept;
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
    over(s.chunks, s.n, [&](Chunk& c) { classify(c, s.bracket); });
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
    int64_t rank = s.keep, undecided = 0;
    std::vector<std::span<const int32_t>> lists;
    for (const Chunk& c : s.chunks) {
      rank -= c.census.kept;
      undecided += c.census.undecided;
      lists.emplace_back(c.keys, size_t(c.census.undecided));
    }
    const bool one_key = s.bracket.low == s.bracket.high;
    Ranked ranked{s.bracket.low, rank, undecided};
    if (rank == 0)
      ranked = {INT_MAX, 0, 0};
    else if (rank < undecided && !one_key)
      ranked = select_greatest(lists, s.bracket, rank, parallel_);
    s.threshold = ranked.key;
    int64_t surplus = ranked.ties - ranked.kept;
    for (size_t i = 0; surplus > 0; ++i) {
      const auto ties = one_key ? int64_t(lists[i].size()) : std::count(lists[i].begin(), lists[i].end(), ranked.key);
      s.chunks[i].drop = std::min<int64_t>(surplus, ties);
      surplus -= s.chunks[i].drop;
    }
  }

  // Drops the undecided that lost; without a list they are all the threshold's ties.
  template <class Word>
  void resolve(const Chunk& c, int32_t threshold) const {
    Dropper<Word> drop(c.weights);
    int64_t ties = c.drop;
    const auto lost = [&](int32_t key) {
      const bool tie = (key == threshold) & (ties > 0);  // no branch: it could not be predicted
      ties -= tie;
      return (key < threshold) | tie;
    };
    if (c.census.listed) {
      for (int64_t j = 0; j < c.census.undecided; ++j) drop.where(lost(c.keys[j]), c.undecided[j]);
    } else {
      std::vector<int32_t> key(c.weights.n);
      run_.keys({c.weights.w, nullptr, nullptr, nullptr, c.weights.n}, 0, args_.out, args_.out, key.data());
      const int32_t low = segments_[c.segment].bracket.low;
      for (int64_t i = 0; i < c.weights.n; ++i) drop.where(key[i] == low && lost(key[i]), i);
    }
  }

  void resolve(const Chunk& c) const {
    const Segment& s = segments_[c.segment];
    if (s.threshold <= s.bracket.low && c.drop == 0) return;
    if (!c.census.listed && (s.threshold > s.bracket.low || c.drop == c.census.undecided)) {
      const KeyRange above{s.bracket.low + 1,
                           s.bracket.low + 1};  // the bracket is one key, and no weight that has it stays
      run_.classify(c.weights, args_.alpha, args_.in, args_.out, above, {c.undecided, kMaxUndecided});
      return;
    }
    size_of(args_.out) == 4 ? resolve<uint32_t>(c, s.threshold) : resolve<uint16_t>(c, s.threshold);
  }

  const InterpolatePruneArgs& args_;
  const Parallel& parallel_;
  const InterpolatePruneKernels run_;
  int64_t total_ = 0;
  std::vector<Segment> segments_;
  std::vector<Chunk> chunks_;
  std::mutex mutex_;
  std::unique_ptr<uint16_t[]> offsets_;
  std::unique_ptr<int32_t[]> keys_;
};

}  // namespace

void interpolate_prune(const InterpolatePruneArgs& args, const Parallel& parallel) { Pruner(args, parallel).run(); }

double interpolate_prune_backward(const InterpolatePruneBackwardArgs& args, const Parallel& parallel) {
  std::vector<InterpolatePruneBackwardLayer> chunks;
  for (const auto& layer : args.layers)
    for (int64_t begin = 0; begin < layer.n; begin += kChunk)
      chunks.push_back({advance(layer.grad, begin, args.out), advance(layer.w0, begin, args.in),
                        advance(layer.w1, begin, args.in), layer.mask_bits + begin / 32,
                        advance(layer.grad_w0, begin, args.in), advance(layer.grad_w1, begin, args.in),
                        std::min(kChunk, layer.n - begin)});
  std::vector<double> share(chunks.size());
  const InterpolatePruneKernels run = kernels();
  parallel(int64_t(chunks.size()), 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) share[i] = run.backward(chunks[i], args.alpha, args.in, args.out);
  });
  double total = 0;
  for (double part : share) total += part;
  return total;
}

}  // namespace lcs
