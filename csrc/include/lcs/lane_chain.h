#pragma once
#include <cstdint>
#include <limits>
#include <optional>
#include <variant>
#include <vector>

#include "lcs/images.h"
#include "lcs/lane_images.h"
#include "lcs/parallel.h"
#include "lcs/sparse_pack.h"

namespace lcs {

// Sparse convolutions and norms after each other, on float32 images in lanes: bit by bit what sparse_conv2d and
// line_norm of contiguous x make.
struct LaneChainArgs {
  // What steps read and make: `images`, but for their data, which lie `at` floats from the start of the memory.
  struct Value {
    LaneImages images;
    int64_t at;
  };

  // To lanes and from them, by the places of values; the first images are those of the first pass.
  struct Load {
    Images from;
    size_t to;
  };
  struct Store {
    size_t from;
    Images to;
  };
  // Of each channel, as line_norm_lines has them: (x - mean) * scale + shift; y may be x, or the residual.
  struct Norm {
    size_t x, y;
    std::optional<size_t> residual;
    const float *mean, *scale, *shift;  // null: those of Statistics
    int64_t vectors;                    // at which these are then
    bool relu;
  };
  // The statistics of each image's groups of channels, where no vector has two images: for every group of lanes, at
  // `vectors` floats from the start of the memory, the mean, the scale and the shift of each channel.
  struct Statistics {
    size_t x;
    int64_t vectors;
    int64_t groups;
    double eps;
    const float *weight, *bias;  // of each channel
  };
  struct Conv {
    size_t x, y;
    std::optional<size_t> residual;  // y, or another value
    Axis vertical, horizontal;
    int64_t groups;
    SparsePrepack weight;
    const float *scale = nullptr, *bias = nullptr;
    bool relu = false;
    float cap = std::numeric_limits<float>::infinity();
    std::optional<Norm> behind;  // of y, made with it
  };
  using Step = std::variant<Load, Store, Statistics, Norm, Conv>;

  std::vector<Value> values;
  std::vector<Step> steps;
  int64_t passes;  // of all steps, each on as many images
  int64_t floats;  // of memory, which a pass takes
  float* memory;   // of each pass after the other, whose steps threads share; null: each thread has its own, and takes
                   // whole passes
};

void lane_chain(const LaneChainArgs& args, const Parallel& parallel);

// Floats of a pass that threads should share: what a step makes is in the cache that they share, mostly.
int64_t lane_chain_shared_floats();

// Floats of a pass that a thread should take as a whole: what a step makes is in its core's second-level cache, mostly,
// when the next one reads it.
int64_t lane_chain_floats();

}  // namespace lcs
