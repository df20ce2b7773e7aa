#pragma once
#include "keys.h"
#include "lcs/interpolate_prune_layer.h"

// What each instruction set implements, on one chunk of a layer.
namespace lcs {

constexpr int64_t kChunk = 1 << 14;         // weights of a chunk at most, so that an offset fits 16 bits
constexpr int64_t kMaxUndecided = 1 << 11;  // offsets a chunk can list at first
constexpr int64_t kListSlack = 32;          // kernels write whole vectors

// Room for the offsets of a chunk's undecided weights; kListSlack more can be written to.
struct UndecidedList {
  uint16_t* offsets;
  int64_t room;
};

struct Census {
  int64_t kept = 0;       // keys above the bracket
  int64_t undecided = 0;  // keys in it
  bool listed = true;     // whether every undecided weight's offset fitted the list
};

struct InterpolatePruneKernels {
  // keys[i] for i in [0, n)
  void (*keys)(const InterpolatePruneLayer& chunk, float alpha, DType in, DType out, int32_t* keys);
  // Prunes keys below the bracket, keeps those above, and keeps for now and lists in order those inside: the undecided.
  Census (*classify)(const InterpolatePruneLayer& chunk, float alpha, DType in, DType out, KeyRange bracket,
                     UndecidedList undecided);
  // keys[j] of w[offsets[j]] for j in [0, n)
  void (*keys_at)(const void* w, DType out, const uint16_t* offsets, int64_t n, int32_t* keys);
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

}  // namespace lcs
