#include "lcs/packed_conv2d.h"

#include "nested_weight_binding.h"
#include "packed_conv2d_binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kPackedConv2d = "packed_conv2d";

// A range to round to, if its ends are given.
std::optional<lcs::ActivationRange> range_of(const std::optional<Tensor>& low, const std::optional<Tensor>& high,
                                             const char* name_low, const char* name_high, int64_t bits) {
  if (!low) return {};
  return lcs::ActivationRange{scalar_of<float>(*low, ScalarType::Float, kPackedConv2d, name_low),
                              scalar_of<float>(*high, ScalarType::Float, kPackedConv2d, name_high),
                              width_of(kPackedConv2d, bits)};
}

Tensor packed_conv2d_cpu(Tensor x, Tensor planes, Tensor scales, Tensor zero_points, std::vector<int64_t> weight_shape,
                         int64_t bits, std::optional<Tensor> bias, std::vector<int64_t> stride,
                         std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
                         std::optional<Tensor> low, std::optional<Tensor> high, int64_t x_bits, bool relu, bool exact,
                         std::vector<Tensor> prepack, std::optional<Tensor> residual, std::optional<Tensor> y_low,
                         std::optional<Tensor> y_high, int64_t y_bits) {
  make_contiguous(bias);
  STD_TORCH_CHECK(x.dim() == 4 && weight_shape.size() == 4, kPackedConv2d, ": x must be (n, c, h, w), got shape ",
                  shape_of(x));
  STD_TORCH_CHECK(weight_shape[2] >= 1 && weight_shape[3] >= 1, kPackedConv2d, ": a kernel of ", weight_shape[2], " x ",
                  weight_shape[3], " has no taps");
  const lcs::Axis vertical = axis(kPackedConv2d, stride, padding, dilation, weight_shape[2], 0),
                  horizontal = axis(kPackedConv2d, stride, padding, dilation, weight_shape[3], 1);
  const int64_t out = weight_shape[0], columns = weight_shape[1] * weight_shape[2] * weight_shape[3];
  STD_TORCH_CHECK(groups >= 1 && x.size(1) == groups * weight_shape[1] && out % groups == 0, kPackedConv2d, ": x has ",
                  x.size(1), " channels, a weight of ", out, " x ", weight_shape[1], " in ", groups, " groups takes ",
                  groups * weight_shape[1]);
  STD_TORCH_CHECK(low.has_value() == high.has_value(), kPackedConv2d, ": give both ends of x's range, or none");
  STD_TORCH_CHECK(y_low.has_value() == y_high.has_value(), kPackedConv2d, ": give both ends of y's range, or none");
  const bool x_codes = x.scalar_type() == ScalarType::Char, codes = x_codes || y_low;
  STD_TORCH_CHECK(!x_codes || (low && !exact), kPackedConv2d, ": x holds codes (int8): give their range, not `exact`");
  const int64_t most = low ? lcs::kMaxRangedTerms : lcs::kMaxPackedTerms;
  STD_TORCH_CHECK(exact || columns <= most, kPackedConv2d, ": sums of ", columns,
                  " products run by the reference, above ", most);
  const Nested weight =
      nested(kPackedConv2d, planes, scales, zero_points,
             lcs::packed_conv2d_layout(out, weight_shape[1], weight_shape[2], weight_shape[3], groups), prepack);
  const ScalarType float_type = x_codes ? ScalarType::Float : x.scalar_type();
  const lcs::DType dtype = x_codes ? lcs::DType::float32 : activation_dtype(kPackedConv2d, x);
  const bool x_last = x_codes || wants_channels_last(x), last = codes || x_last;
  const Tensor input = x_last && is_channels_last(x) ? x
                       : x_last ? torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast)
                                : torch::stable::contiguous(x);
  Tensor y = empty_images({x.size(0), out, output_size(kPackedConv2d, vertical, x.size(2)),
                           output_size(kPackedConv2d, horizontal, x.size(3))},
                          y_low ? ScalarType::Char : float_type, last);
  const auto range = range_of(low, high, "low", "high", x_bits);
  const auto y_range = range_of(y_low, y_high, "y_low", "y_high", y_bits);
  lcs::PackedConv2dArgs args{images(input, const_cast<void*>(input.const_data_ptr()), x_last),
                             images(y, y.mutable_data_ptr(), last),
                             dtype,
                             vertical,
                             horizontal,
                             weight.prepack,
                             width_of(kPackedConv2d, bits, weight.prepack.depth),
                             vector_of(kPackedConv2d, "bias", bias, out),
                             range ? &*range : nullptr,
                             relu,
                             exact,
                             x_codes,
                             y_range ? &*y_range : nullptr,
                             residual_data(kPackedConv2d, residual, y, float_type, last)};
  args.depthwise = lcs::packed_conv2d_depthwise(out, weight_shape[1], groups);
  check_packed_images(kPackedConv2d, args);
  lcs::packed_conv2d(args, parallel);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("packed_conv2d", TORCH_BOX(&packed_conv2d_cpu)); }
