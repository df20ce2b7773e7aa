#pragma once
#include <optional>
#include <span>
#include <vector>

#include "binding.h"
#include "lcs/interpolate_prune.h"

// The list of layers that interpolate_prune and interpolate_prune_foreach have in common, checked and allocated.
namespace lcs::binding {

struct Pruned {
  std::vector<Tensor> w, mask_bits;
};

// `keep`: one count per layer, or one over all of them.
Pruned prune(const char* op, const std::vector<Tensor>& w0s, const std::vector<Tensor>& w1s, const Tensor& alpha,
             std::span<const int64_t> keep, std::optional<ScalarType> dtype);

struct PruneGradients {
  std::vector<Tensor> w0, w1;
  double alpha;
};

// `w0s` and `w1s` empty: alpha's gradient is not wanted.
PruneGradients prune_backward(const char* op, const std::vector<Tensor>& grads, const std::vector<Tensor>& w0s,
                              const std::vector<Tensor>& w1s, const Tensor& alpha, const std::vector<Tensor>& mask_bits,
                              bool line, ScalarType dtype);

}  // namespace lcs::binding
