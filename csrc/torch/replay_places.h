#pragma once
#include <algorithm>
#include <array>
#include <utility>

#include "lcs/lane_images.h"
#include "replay_code.h"
#include "replay_values.h"
#include "sparse_conv2d_binding.h"

// What tells of a step of `replay` whether it can take lanes, by the places of arguments in the schema.
namespace lcs::binding {

constexpr int64_t kMostBorder = 8;  // of images in lanes; a wider one would take more memory than most images

inline bool is_constant(const std::optional<Place>& place) { return !place || place->is_constant(); }

struct NormPlaces {
  Place x;                                      // of one behind a convolution not used
  std::array<std::optional<Place>, 7> vectors;  // weight0, weight1, bias0, bias1, alpha, mean and var
  std::optional<Place> residual;
  int64_t groups;
  double eps;
  bool relu;

  explicit NormPlaces(const LineNormStep& step)
      : x(step.get<0>()),
        vectors{step.get<1>(), step.get<2>(), step.get<3>(), step.get<4>(),
                step.get<5>(), step.get<6>(), step.get<7>()},
        residual(step.get<8>()),
        groups(step.get<9>()),
        eps(step.get<10>()),
        relu(step.get<11>()) {}
  explicit NormPlaces(const SparseConv2dNormStep& step)
      : x{},
        vectors{step.get<11>(), step.get<12>(), step.get<13>(), step.get<14>(), step.get<15>(), {}, {}},
        residual(step.get<16>()),
        groups(step.get<17>()),
        eps(step.get<18>()),
        relu(step.get<19>()) {}

  bool is_given() const { return vectors[5].has_value(); }  // whether mean and variance are
  bool could_take_lanes() const {
    return !x.is_constant() && std::all_of(vectors.begin(), vectors.end(), is_constant) &&
           vectors[5].has_value() == vectors[6].has_value();
  }
};

// Of a convolution, and the norm that is a part of it.
struct ConvPlaces {
  Place x;
  int64_t border;
  std::optional<Place> residual;  // of the convolution
  std::optional<NormPlaces> norm;
  bool could_take_lanes;

  explicit ConvPlaces(const SparseConv2dStep& step) : x(step.get<0>()), residual(step.get<14>()) {
    look(step.get<1>(), step.get<2>(), step.get<4>(), step.get<6>(), step.get<11>());
    could_take_lanes = could_take_lanes && is_constant(step.get<12>());
  }
  explicit ConvPlaces(const SparseConv2dNormStep& step) : x(step.get<0>()), norm(step) {
    look(step.get<1>(), step.get<2>(), step.get<4>(), step.get<6>(), step.get<10>());
    could_take_lanes = could_take_lanes && norm->could_take_lanes();
  }

 private:
  void look(Place mask_bits, Place values, const std::optional<Place>& bias, const std::vector<int64_t>& padding,
            const std::vector<Place>& prepack) {
    border = padding.empty() ? 0 : *std::max_element(padding.begin(), padding.end());
    could_take_lanes = !x.is_constant() && border <= kMostBorder && mask_bits.is_constant() && values.is_constant() &&
                       is_constant(bias) && std::all_of(prepack.begin(), prepack.end(), is_constant);
  }
};

// Whether neighbours' blocks have all that a border takes.
inline bool holds(const LaneGrid& grid, int64_t border) {
  return (grid.down == 1 || border <= grid.height) && (grid.across == 1 || border <= grid.width);
}

// What a step is given besides images and a norm.
inline SparseConv2dGiven given_to(const SparseConv2dStep& step, const ReplayValues& values) {
  const auto tensor = [&](Place place) { return values.tensor(place); };
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return SparseConv2dGiven{step.argument<i + 1>(tensor)...};
  }(std::make_index_sequence<13>());
}
inline SparseConv2dGiven given_to(const SparseConv2dNormStep& step, const ReplayValues& values) {
  const auto tensor = [&](Place place) { return values.tensor(place); };
  return {step.argument<1>(tensor),
          step.argument<2>(tensor),
          step.get<3>(),
          step.argument<4>(tensor),
          step.get<5>(),
          step.get<6>(),
          step.get<7>(),
          step.get<8>(),
          false,
          step.get<9>(),
          step.argument<10>(tensor),
          std::nullopt,
          std::nullopt};
}

}  // namespace lcs::binding
