#pragma once
#include <cstdint>
#include <span>

#include "lcs/dtype.h"
#include "lcs/interpolate_prune_layer.h"

// The CUDA side of interpolate_prune. All that the pointers name lies in device memory; nothing here waits for the
// device, so a CUDA graph can record it. A `stream` is a cudaStream_t; what is returned is a cudaError_t, 0 for
// success.
namespace lcs::cuda {

struct InterpolatePruneArgs {
  std::span<const InterpolatePruneLayer> layers;
  const int64_t* keep;  // one count per layer, or with `together` a single one over all layers; clamped to [0, n]
  bool together;
  const float* alpha;
  DType in, out;  // of w0 and w1; of w
};

// As lcs::interpolate_prune, bit for bit. `workspace`: so many bytes as interpolate_prune_workspace says, aligned
// to 16.
int64_t interpolate_prune_workspace(const InterpolatePruneArgs& args);
int interpolate_prune(const InterpolatePruneArgs& args, void* workspace, void* stream);

struct InterpolatePruneBackwardArgs {
  std::span<const InterpolatePruneBackwardLayer> layers;
  const float* alpha;
  float* grad_alpha;  // null: not wanted
  DType in, out;      // of w0, w1 and their gradients; of grad
};

// As lcs::interpolate_prune_backward; the order of alpha's sum depends on the sizes of the layers alone.
int64_t interpolate_prune_backward_workspace(const InterpolatePruneBackwardArgs& args);
int interpolate_prune_backward(const InterpolatePruneBackwardArgs& args, void* workspace, void* stream);

// What a cudaError_t means.
const char* error_text(int error);

}  // namespace lcs::cuda
