#pragma once
#include "binding.h"
#include "lcs/line_norm.h"

// A norm's scale and shift on a line, checked against the channels that they are for.
namespace lcs::binding {

struct LineVectors {
  const std::optional<Tensor>&weight0, &weight1, &bias0, &bias1, &alpha;
};

// Sets args.weight, args.bias and args.alpha, for x of args.channels channels and of `type`.
void take_line(const char* op, LineNormArgs& args, ScalarType type, const LineVectors& line);

}  // namespace lcs::binding
