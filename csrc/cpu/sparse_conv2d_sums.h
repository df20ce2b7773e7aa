#pragma once
#include <cstdint>
#include <vector>

#include "lcs/sparse_pack.h"
#include "sparse_conv2d_kernels.h"

namespace lcs {

// How a sparse convolution walks its weight: where each value finds its x, and what the kernels are given of it.
class SparseSums {
 public:
  // Of a weight of `rows` output channels in `groups`, with `inputs` input channels each, `channel` floats apart; of
  // every tap, how far it is from the first, in floats.
  SparseSums(const SparsePrepack& weight, const SparseConv2dKernels& kernels, int64_t groups, int64_t inputs,
             int64_t channel, const std::vector<int64_t>& taps);

  // The offsets of all values, where `tiles` would look them up again and again. Each thread has its own, as writing
  // what another has just read is slow.
  class Distances {
   public:
    // Of parts of `rows` output channels, which are looked up when they are first asked for.
    Distances(const SparseSums& sums, int64_t rows, int64_t tiles);
    const int32_t* of(int64_t begin, int64_t end);  // at least of these output channels; null: not worth it

   private:
    const SparseSums& s_;
    const int64_t rows_;
    int32_t* all_ = nullptr;
    std::vector<bool> known_;
  };

  // The offsets of all values, to be shared by threads that are yet to begin; false: they are too large.
  bool look_up(int32_t* to) const;

  // Of output channels [begin, end). `tile` tells all but the weight: `acc` and `residual` from channel `begin` on,
  // `scale` and `bias` of all.
  void operator()(int64_t begin, int64_t end, const int32_t* distance, SparseTile tile) const;

 private:
  bool fits() const;
  void look_up(int64_t begin, int64_t end, int32_t* to) const;

  const SparsePrepack& weight_;
  void (*const accumulate_)(const SparseTile&);
  const int64_t per_group_, group_, block_;  // output channels; floats of x from group to group and block to block
  std::vector<int64_t> offset_;
  int64_t reach_ = 0;  // the largest offset
};

}  // namespace lcs
