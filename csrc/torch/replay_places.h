#pragma once
#include <algorithm>
#include <utility>

#include "lcs/lane_images.h"
#include "replay_code.h"
#include "replay_values.h"

// What tells of a step of `replay` whether it can take lanes.
namespace lcs::binding {

constexpr int64_t kMostBorder = 8;  // of images in lanes; a wider one would take more memory than most images

inline bool is_constant(const std::optional<Place>& place) { return !place || place->is_constant(); }

// The arguments that say whether a step can take lanes, by their places in the schema.
struct ConvPlaces {
  const Place& x;
  const std::vector<int64_t>& padding;
  const std::optional<Place>& residual;
  bool takes = false;  // constants alone, besides images

  explicit ConvPlaces(const SparseConv2dStep& step)
      : x(std::get<0>(step.given)), padding(std::get<6>(step.given)), residual(std::get<14>(step.given)) {
    const auto& g = step.given;
    const std::vector<Place>& prepack = std::get<11>(g);
    takes = std::get<1>(g).is_constant() && std::get<2>(g).is_constant() && is_constant(std::get<4>(g)) &&
            is_constant(std::get<12>(g)) && std::all_of(prepack.begin(), prepack.end(), is_constant);
  }

  int64_t border() const { return padding.empty() ? 0 : *std::max_element(padding.begin(), padding.end()); }
  bool could_take_lanes() const { return takes && !x.is_constant() && border() <= kMostBorder; }
};

struct NormPlaces {
  const Place& x;
  const std::optional<Place>&mean, &var, &residual;
  bool takes = false;  // constants alone, besides images

  explicit NormPlaces(const LineNormStep& step)
      : x(std::get<0>(step.given)),
        mean(std::get<6>(step.given)),
        var(std::get<7>(step.given)),
        residual(std::get<8>(step.given)) {
    const auto& g = step.given;
    takes = is_constant(std::get<1>(g)) && is_constant(std::get<2>(g)) && is_constant(std::get<3>(g)) &&
            is_constant(std::get<4>(g)) && is_constant(std::get<5>(g)) && is_constant(mean) && is_constant(var);
  }

  bool could_take_lanes() const { return takes && !x.is_constant() && mean && var && !residual; }
};

// Whether neighbours' blocks have all that a border takes.
inline bool holds(const LaneGrid& grid, int64_t border) {
  return (grid.down == 1 || border <= grid.height) && (grid.across == 1 || border <= grid.width);
}

template <size_t... i>
SparseConv2dGiven given_to(const SparseConv2dStep& step, ReplayValues& values, std::index_sequence<i...>) {
  const auto tensor = [&](Place place) { return values.tensor(place); };
  return {step.argument<i + 1>(tensor)...};  // all but x, the first, and the residual, the last
}

inline SparseConv2dGiven given_to(const SparseConv2dStep& step, ReplayValues& values) {
  return given_to(step, values, std::make_index_sequence<13>());
}

}  // namespace lcs::binding
