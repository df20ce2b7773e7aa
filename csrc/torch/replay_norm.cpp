#include "replay_norm.h"

#include <algorithm>

#include "line_norm_binding.h"

namespace lcs::binding {

ReplayNorm::ReplayNorm(const char* op, const NormPlaces& at, const ReplayValues& values, const ImagesKind& x)
    : places(at), y(x), op_(op) {
  std::array<std::optional<Tensor>, 7> given;
  for (size_t i = 0; i < given.size(); ++i) {
    if (at.vectors[i]) given[i] = values.tensor(*at.vectors[i]);
    make_contiguous(given[i]);
  }
  const auto& [weight0, weight1, bias0, bias1, alpha, means, variances] = given;
  const LineNormArgs args =
      norm_behind(op, y.size, y.type, y.last, {weight0, weight1, bias0, bias1, alpha, means, variances}, std::nullopt,
                  at.groups, at.eps, at.relu)
          .args;
  const auto channels = size_t(args.channels);
  vectors.resize(3 * channels);
  float *const first = vectors.data(), *const second = first + channels, *const third = second + channels;
  scale = second, shift = third;
  if (args.mean) {
    std::copy_n(args.mean, channels, first);
    line_norm_lines(args, second, third);
    mean = first;
  } else {
    line_norm_affine(args, second, third);
  }
}

}  // namespace lcs::binding
