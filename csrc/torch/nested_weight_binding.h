#pragma once
#include "binding.h"
#include "lcs/nested_pack.h"

// The fields of a NestedWeight as the packed ops' schemas take them, checked.
namespace lcs::binding {

// A prepack and what keeps it alive. `part`, or the only one of `parts`, is what nested_prepack returned for this
// weight; without it, it is made here.
struct Nested {
  NestedPrepack prepack;
  Tensor planes;
};

// Of each row, or of all.
struct NestedScales {
  const float* scales;
  const uint8_t* zero_points;
  bool per_row;
};

Nested nested(const char* op, const Tensor& planes, const NestedScales& scales, const NestedLayout& layout,
              const Tensor* part);
Nested nested(const char* op, const Tensor& planes, const Tensor& scales, const Tensor& zero_points,
              const NestedLayout& layout, const std::vector<Tensor>& parts);

// From 2 to the planes that there are.
int width_of(const char* op, int64_t bits, int64_t planes = kPlanes);

}  // namespace lcs::binding
