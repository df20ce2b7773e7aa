#pragma once
#include "blocks.h"
#include "dispatch.h"
#include "keys.h"
#include "lcs/interpolate_prune_layer.h"

// What each instruction set implements, on one chunk of a layer.
namespace lcs {

constexpr int64_t kMaxUndecided = 1 << 11;  // offsets a chunk can list at first
constexpr int64_t kListSlack = 32;          // kernels write whole vectors

// Room for the offsets of a chunk's undecided weights; kListSlack more can be written to.
struct UndecidedList {
  uint16_t* offsets;
  int64_t room;
};

struct Census {
  int64_t written = 0;    // weights kept for now
  int64_t undecided = 0;  // keys in it
  bool listed = true;     // whether every undecided weight's offset fitted the list
};

struct InterpolatePruneKernels {
  // keys[i] for i in [0, n)
  void (*keys)(const InterpolatePruneLayer& chunk, float alpha, DType in, DType out, int32_t* keys);
  // Prunes keys below the bracket and keeps those above. Those inside, the undecided, it lists in order, and for now
  // keeps them from `middle` on. `stream`: w goes past the caches; it then begins at a cache line.
  Census (*classify)(const InterpolatePruneLayer& chunk, float alpha, DType in, DType out, KeyRange bracket,
                     int32_t middle, UndecidedList undecided, bool stream);
  // bits: which of n keys lie in the range. Whole blocks of 32 keys are read, and told as if they were there.
  void (*inside)(const int32_t* keys, int64_t n, KeyRange range, uint32_t* bits);
  // Returns the chunk's share of alpha's gradient.
  double (*backward)(const InterpolatePruneBackwardLayer& chunk, float alpha, DType in, DType out);
};

namespace scalar {
InterpolatePruneKernels interpolate_prune_kernels();
}
namespace avx2 {
InterpolatePruneKernels interpolate_prune_kernels();
}
namespace avx512 {
InterpolatePruneKernels interpolate_prune_kernels();
}

// Of the best instruction set in use.
inline InterpolatePruneKernels interpolate_prune_kernels() {
  return best(scalar::interpolate_prune_kernels, avx2::interpolate_prune_kernels, avx512::interpolate_prune_kernels);
}

}  // namespace lcs
