#include "replay_norm.h"

#include <algorithm>

#include "line_norm_binding.h"

namespace lcs::binding {

ReplayNorm::ReplayNorm(const LineNormStep& step, ReplayValues& values, const ImagesKind& x) : y(x) {
  const auto vector = [&](const std::optional<Place>& place) {
    std::optional<Tensor> found = place ? std::optional(values.tensor(*place)) : std::nullopt;
    make_contiguous(found);
    return found;
  };
  const auto& g = step.given;
  const std::optional<Tensor> weight0 = vector(std::get<1>(g)), weight1 = vector(std::get<2>(g)),
                              bias0 = vector(std::get<3>(g)), bias1 = vector(std::get<4>(g)),
                              alpha = vector(std::get<5>(g)), mean_of = vector(std::get<6>(g)),
                              var = vector(std::get<7>(g));
  y.last &= y.size[1] != 1;  // of one channel it is contiguous, too
  const LineNormArgs args =
      norm_behind("line_norm", y.size, y.type, y.last, {weight0, weight1, bias0, bias1, alpha, mean_of, var},
                  std::nullopt, std::get<9>(g), std::get<10>(g), std::get<11>(g))
          .args;
  const auto channels = size_t(args.channels);
  vectors.resize(3 * channels);
  float *const means = vectors.data(), *const scales = means + channels, *const shifts = scales + channels;
  std::copy_n(args.mean, channels, means);
  line_norm_lines(args, scales, shifts);
  mean = means, scale = scales, shift = shifts, relu = args.relu;
}

}  // namespace lcs::binding
