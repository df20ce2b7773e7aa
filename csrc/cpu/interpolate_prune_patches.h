#pragma once
#include <cstring>

#include "interpolate_prune_kernels.h"

namespace lcs {

// Weights of a chunk that were written otherwise than they turned out; collected, so that memory is asked for all at
// once. Of the undecided it takes offsets, and values as w holds them.
class Patches {
 public:
  Patches(const InterpolatePruneLayer& chunk, DType out, const uint16_t* undecided, const char* values)
      : chunk_(chunk), out_(out), undecided_(undecided), values_(values) {}

  // The weight at offset `at` goes.
  void drop(int64_t at) {
    dropped_[drops_++] = uint16_t(at);
    if (drops_ == kAtOnce) apply();
  }

  // The j-th undecided stays.
  void restore(int64_t j) {
    restored_[restores_++] = uint16_t(j);
    if (restores_ == kAtOnce) apply();
  }

  void apply() { size_of(out_) == 4 ? apply<uint32_t>() : apply<uint16_t>(); }

 private:
  static constexpr int64_t kAtOnce = 128;

  template <class Word>
  void apply() {
    Word* const w = static_cast<Word*>(chunk_.w);
    for (int64_t i = 0; i < drops_; ++i) __builtin_prefetch(w + dropped_[i], 1);
    for (int64_t i = 0; i < restores_; ++i) __builtin_prefetch(w + undecided_[restored_[i]], 1);
    for (int64_t i = 0; i < drops_; ++i) {
      const uint16_t at = dropped_[i];
      w[at] = 0;
      chunk_.mask_bits[at / kBlock] &= ~(1u << at % kBlock);
    }
    for (int64_t i = 0; i < restores_; ++i) {
      const uint16_t at = undecided_[restored_[i]];
      std::memcpy(w + at, values_ + restored_[i] * sizeof(Word), sizeof(Word));
      chunk_.mask_bits[at / kBlock] |= 1u << at % kBlock;
    }
    drops_ = restores_ = 0;
  }

  const InterpolatePruneLayer& chunk_;
  const DType out_;
  const uint16_t* const undecided_;
  const char* const values_;
  uint16_t dropped_[kAtOnce], restored_[kAtOnce];
  int64_t drops_ = 0, restores_ = 0;
};

}  // namespace lcs
