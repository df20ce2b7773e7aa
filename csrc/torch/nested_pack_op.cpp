#include "nested_weight_binding.h"

namespace lcs::binding {
namespace {

const uint32_t* plane_words_of(const char* op, const Tensor& planes, int64_t n) {
  STD_TORCH_CHECK(planes.is_cpu() && planes.scalar_type() == ScalarType::Int && planes.is_contiguous() &&
                      planes.dim() == 2 && planes.size(0) >= 2 && planes.size(0) <= kPlanes &&
                      planes.size(1) == plane_words(n),
                  op, ": planes must be 2 to ", kPlanes, " x ", plane_words(n), " contiguous int32 words for ", n,
                  " weights, got shape ", shape_of(planes));
  return static_cast<const uint32_t*>(planes.const_data_ptr());
}

NestedScales scales_of(const char* op, const Tensor& scales, const Tensor& zero_points, const NestedLayout& layout) {
  const auto fits = [&](const Tensor& t, ScalarType type) {
    return t.is_cpu() && t.is_contiguous() && t.scalar_type() == type && t.dim() == 2 &&
           (t.size(0) == 1 || t.size(0) == layout.rows) && t.size(1) == layout.groups();
  };
  STD_TORCH_CHECK(
      fits(scales, ScalarType::Float) && fits(zero_points, ScalarType::Byte) && same_shape(scales, zero_points), op,
      ": scales (float32) and zero_points (uint8) must both be 1 or ", layout.rows, " x ", layout.groups(),
      " and contiguous, got shapes ", shape_of(scales), " and ", shape_of(zero_points));
  return {static_cast<const float*>(scales.const_data_ptr()), static_cast<const uint8_t*>(zero_points.const_data_ptr()),
          scales.size(0) == layout.rows};
}

// Without its planes.
NestedPrepack scaled(const Tensor& planes, const NestedScales& s, const NestedLayout& layout) {
  return {layout, nullptr, s.scales, s.zero_points, s.per_row, int(planes.size(0))};
}

void check_layout(const char* op, const NestedLayout& l) {
  STD_TORCH_CHECK(l.rows >= 0 && l.columns >= 0 && l.group >= 1 && l.taps >= 1 && l.parts >= 1 && l.joined >= 1 &&
                      l.taps % l.joined == 0 && l.columns % l.taps == 0 && l.rows % l.parts == 0,
                  op, ": ", l.rows, " rows and ", l.columns, " columns do not fit a group of ", l.group, " columns, ",
                  l.taps, " taps of which ", l.joined, " are joined, and ", l.parts, " parts");
}

Tensor codes_of(const char* op, const Tensor& planes, int64_t n, int bits) {
  const uint32_t* const words = plane_words_of(op, planes, n);
  Tensor codes = torch::stable::empty({n}, ScalarType::Byte);
  nested_codes(words, n, bits, static_cast<uint8_t*>(codes.mutable_data_ptr()), parallel);
  return codes;
}

Tensor prepack(const char* op, const Tensor& planes, const NestedLayout& layout) {
  const int depth = int(planes.size(0));
  const Tensor codes = codes_of(op, planes, layout.rows * layout.columns, depth);
  Tensor made = torch::stable::empty({depth, layout.plane_bytes()}, ScalarType::Byte);
  nested_prepack(layout, static_cast<const uint8_t*>(codes.const_data_ptr()), depth,
                 static_cast<uint8_t*>(made.mutable_data_ptr()), parallel);
  return made;
}

Tensor nested_pack_cpu(Tensor codes, int64_t depth) {
  constexpr const char* kOp = "nested_pack";
  STD_TORCH_CHECK(codes.is_cpu() && codes.scalar_type() == ScalarType::Byte, kOp,
                  ": codes must be uint8 on the CPU, got dtype ", int(codes.scalar_type()));
  STD_TORCH_CHECK(depth >= 2 && depth <= kPlanes, kOp, ": depth must lie in [2, ", kPlanes, "], got ", depth);
  codes = torch::stable::contiguous(codes);
  const int64_t n = codes.numel();
  Tensor planes = torch::stable::empty({depth, plane_words(n)}, ScalarType::Int);
  nested_pack(static_cast<const uint8_t*>(codes.const_data_ptr()), n, int(depth),
              static_cast<uint32_t*>(planes.mutable_data_ptr()), parallel);
  return planes;
}

Tensor nested_unpack_cpu(Tensor planes, Tensor scales, Tensor zero_points, std::vector<int64_t> shape, int64_t group,
                         int64_t bits) {
  constexpr const char* kOp = "nested_unpack";
  STD_TORCH_CHECK(!shape.empty(), kOp, ": shape must have at least one dimension");
  int64_t columns = 1;
  for (size_t d = 0; d < shape.size(); ++d) {
    STD_TORCH_CHECK(shape[d] >= 0, kOp, ": shape holds ", shape[d]);
    columns *= d ? shape[d] : 1;
  }
  const NestedLayout layout{shape[0], columns, group, 1, 1};
  check_layout(kOp, layout);
  plane_words_of(kOp, planes, shape[0] * columns);
  const NestedPrepack weight = scaled(planes, scales_of(kOp, scales, zero_points, layout), layout);
  const Tensor codes = codes_of(kOp, planes, shape[0] * columns, width_of(kOp, bits, weight.depth));
  Tensor w = torch::stable::empty(shape, ScalarType::Float);
  nested_values(weight, static_cast<const uint8_t*>(codes.const_data_ptr()), int(bits),
                static_cast<float*>(w.mutable_data_ptr()), parallel);
  return w;
}

Tensor nested_prepack_cpu(Tensor planes, int64_t rows, int64_t columns, int64_t group, int64_t taps, int64_t parts,
                          int64_t joined) {
  constexpr const char* kOp = "nested_prepack";
  const NestedLayout layout{rows, columns, group, taps, parts, joined};
  check_layout(kOp, layout);
  plane_words_of(kOp, planes, rows * columns);
  return prepack(kOp, planes, layout);
}

}  // namespace

int width_of(const char* op, int64_t bits, int64_t planes) {
  STD_TORCH_CHECK(bits >= 2 && bits <= planes, op, ": bits must lie in [2, ", planes, "], got ", bits);
  return int(bits);
}

Nested nested(const char* op, const Tensor& planes, const NestedScales& scales, const NestedLayout& layout,
              const Tensor* part) {
  check_layout(op, layout);
  plane_words_of(op, planes, layout.rows * layout.columns);
  Nested made{scaled(planes, scales, layout), part ? *part : prepack(op, planes, layout)};
  const Tensor& p = made.planes;
  STD_TORCH_CHECK(p.is_cpu() && p.is_contiguous() && p.scalar_type() == ScalarType::Byte && p.dim() == 2 &&
                      p.size(0) == planes.size(0) && p.size(1) == layout.plane_bytes(),
                  op, ": prepack is not what nested_prepack makes of this weight, got shape ", shape_of(p));
  made.prepack.planes = static_cast<const uint8_t*>(p.const_data_ptr());
  return made;
}

Nested nested(const char* op, const Tensor& planes, const Tensor& scales, const Tensor& zero_points,
              const NestedLayout& layout, const std::vector<Tensor>& parts) {
  check_layout(op, layout);
  plane_words_of(op, planes, layout.rows * layout.columns);
  STD_TORCH_CHECK(parts.size() <= 1, op, ": prepack is not what nested_prepack makes of this weight, got ",
                  parts.size(), " tensors");
  return nested(op, planes, scales_of(op, scales, zero_points, layout), layout, parts.empty() ? nullptr : &parts[0]);
}

}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("nested_pack", TORCH_BOX(&lcs::binding::nested_pack_cpu));
  m.impl("nested_unpack", TORCH_BOX(&lcs::binding::nested_unpack_cpu));
  m.impl("nested_prepack", TORCH_BOX(&lcs::binding::nested_prepack_cpu));
}
