#pragma once
#include "lcs/packed_conv2d.h"

namespace lcs {

// A convolution, the largest of each window, the mean of all positions, or a float32 linear layer of a single position.
enum class PackedNetworkKind { convolution, max_pool, mean, dense };

// Of x or the value of an earlier step.
struct PackedNetworkStep {
  PackedNetworkKind kind;
  int input, residual = -1;  // values: 0 is x, i + 1 what step i makes; no residual: -1
  // All but the data, numbers of images and distances of x and y, and the residual. But of a convolution only what its
  // kind has is read: y's shape, the axes, bias and ReLU.
  PackedConv2dArgs conv;
  const float* dense = nullptr;  // a linear layer's weight, channels of y x channels of x
  const float* scale = nullptr;  // of a mean, which is of x * scale + bias, then ReLU on request; null: of x
};

// Steps in order, of float32 images (channels last where x is pooled or added); the last one's float32 values are y,
// channels last. Values in between are codes where a convolution has a y_range, and else float32. NaN is the largest in
// its window.
struct PackedNetworkArgs {
  const PackedNetworkStep* steps;
  int64_t count;
  Images x, y;
  int64_t threads;  // that `parallel` has
};

// Bit for bit what packed_conv2d makes, step by step; the order of the sums of means and linear layers, and how a
// norm before a mean is rounded, depends on shapes and instruction set alone.
void packed_network(const PackedNetworkArgs& args, const Parallel& parallel);

}  // namespace lcs
