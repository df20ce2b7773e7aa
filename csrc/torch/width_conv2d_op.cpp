#include "lcs/width_conv2d.h"

#include <limits>

#include "images_binding.h"
#include "lcs/width_gradient.h"
#include "replay_binding.h"
#include "width_weight_binding.h"

namespace lcs::binding {
namespace {

enum class WidthForm { floats, pairs };

WidthWeight width_weight(const Tensor& weight, const char* op) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 4 && weight.is_contiguous(), op,
                  ": weight must be contiguous (out_channels, in_channels / groups, h, w) on the CPU, got shape ",
                  shape_of(weight));
  return {weight.const_data_ptr(), factor_dtype(weight.scalar_type(), op, "weight"), weight.size(0), weight.size(1),
          weight.size(2) * weight.size(3)};
}

std::vector<int64_t> packed_shape(const WidthWeight& w, WidthForm form) {
  const int64_t blocks = width_blocks(w.out_channels);
  if (form == WidthForm::pairs) return {blocks, (w.in_channels + 1) / 2 * w.taps, 2 * kWidthBlock};
  return {blocks, w.in_channels * w.taps, kWidthBlock};
}

// Which form a packed weight must be.
WidthForm form_of(const Tensor& packed) {
  return packed.scalar_type() == ScalarType::BFloat16 ? WidthForm::pairs : WidthForm::floats;
}

// Null where `packed` is of another form.
const void* packed_data(const std::optional<Tensor>& packed, const WidthWeight& w, WidthForm form, const char* op) {
  if (!packed || form_of(*packed) != form) return nullptr;
  const void* const data = packed->const_data_ptr();
  const std::vector<int64_t> shape = packed_shape(w, form);
  STD_TORCH_CHECK(packed->is_cpu() && packed->is_contiguous() && packed->dim() == 3 &&
                      packed->scalar_type() == (form == WidthForm::pairs ? ScalarType::BFloat16 : ScalarType::Float) &&
                      packed->size(0) == shape[0] && packed->size(1) == shape[1] && packed->size(2) == shape[2],
                  op, ": packed is not what width_conv2d_pack makes of this weight, got shape ", shape_of(*packed));
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(data) % 64 == 0, op,
                  ": packed must begin at a cache line, as what width_conv2d_pack returns does");
  return data;
}

// Bands of rows are copied, which may be all; but for float32 that lies channels last, whose taps are not put together.
void check_copied(const char* op, const Tensor& x, int64_t out_channels, const Axis& vertical, const Axis& horizontal,
                  int64_t groups) {
  constexpr int kBits = 60;
  constexpr int64_t kMostLanes = 16;
  const int64_t channels = x.size(1), rows = padded_size(vertical, output_size(op, vertical, x.size(2))),
                columns = padded_size(horizontal, output_size(op, horizontal, x.size(3)));
  const bool depthwise = groups > 1 && groups == channels && groups == out_channels, last = wants_channels_last(x);
  const bool merges = channels < kWidthBlock && groups == 1 && horizontal.dilation == 1;
  if (x.size(0) * out_channels == 0 || (last && x.scalar_type() == ScalarType::Float && !depthwise && !merges)) return;
  const int64_t values = depthwise ? (last ? kMostLanes : 1) : channels + kWidthBlock;
  check_padded(op, std::max(rows, vertical.stride), columns, values, kBits);
}

}  // namespace

WidthConv2dCall width_conv2d_call(const char* op, const Tensor& x, const Tensor& weight, int64_t out_channels,
                                  const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                  const std::vector<int64_t>& dilation, int64_t groups,
                                  const std::optional<Tensor>& packed) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, op, ": x and weight must have 4 dimensions, got ", shape_of(x),
                  " and ", shape_of(weight));
  const WidthWeight w = width_weight(weight, op);
  const int64_t out = w.out_channels;
  STD_TORCH_CHECK(out_channels >= 0 && out_channels <= out, op, ": out_channels ", out_channels, " of a weight of ",
                  out);
  STD_TORCH_CHECK(
      groups >= 1 && x.size(1) % groups == 0 && x.size(1) / groups <= w.in_channels && out_channels % groups == 0, op,
      ": ", groups, " groups do not share ", x.size(1), " channels of x and ", out_channels,
      " of the result, or read more than the weight's ", w.in_channels);
  const Axis vertical = axis(op, stride, padding, dilation, weight.size(2), 0),
             horizontal = axis(op, stride, padding, dilation, weight.size(3), 1);
  check_copied(op, x, out_channels, vertical, horizontal, groups);
  return {w, vertical, horizontal, static_cast<const float*>(packed_data(packed, w, WidthForm::floats, op)),
          static_cast<const BFloat16*>(packed_data(packed, w, WidthForm::pairs, op))};
}

namespace {

constexpr const char* kWidthConv2d = "width_conv2d";

Tensor width_conv2d_pack_cpu(Tensor weight, bool pairs) {
  const WidthWeight w = width_weight(weight, kWidthConv2d);
  STD_TORCH_CHECK(!pairs || w.dtype == DType::bfloat16, kWidthConv2d, ": pairs are of a bfloat16 weight");
  const WidthForm form = pairs ? WidthForm::pairs : WidthForm::floats;
  Tensor packed = torch::stable::empty(packed_shape(w, form), pairs ? ScalarType::BFloat16 : ScalarType::Float);
  void* const data = packed.mutable_data_ptr();
  if (pairs)
    width_pack_pairs(w, static_cast<BFloat16*>(data), parallel);
  else
    width_pack(w, static_cast<float*>(data), parallel);
  return packed;
}

}  // namespace

Tensor width_conv2d_cpu(Tensor x, Tensor weight, int64_t out_channels, std::optional<Tensor> scale,
                        std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                        std::vector<int64_t> dilation, int64_t groups, bool relu, std::optional<Tensor> packed,
                        std::optional<bool> winograd, std::optional<double> cap, std::optional<Tensor> residual) {
  for (auto* vector : {&scale, &bias}) make_contiguous(*vector);
  STD_TORCH_CHECK(!cap || (relu && *cap > 0), kWidthConv2d, ": cap must be above 0, and needs relu");
  const DType dtype = activation_dtype(kWidthConv2d, x);
  const WidthConv2dCall call =
      width_conv2d_call(kWidthConv2d, x, weight, out_channels, stride, padding, dilation, groups, packed);
  const bool last = wants_channels_last(x);
  const Tensor input = last ? x : torch::stable::contiguous(x);
  Tensor y = empty_images({x.size(0), out_channels, output_size(kWidthConv2d, call.vertical, x.size(2)),
                           output_size(kWidthConv2d, call.horizontal, x.size(3))},
                          x.scalar_type(), last);
  const int64_t out = call.weight.out_channels;
  width_conv2d({images(input, const_cast<void*>(input.const_data_ptr()), last), images(y, y.mutable_data_ptr(), last),
                dtype, call.vertical, call.horizontal, groups, call.weight, call.packed, call.pairs,
                vector_of(kWidthConv2d, "scale", scale, out), vector_of(kWidthConv2d, "bias", bias, out), relu,
                !winograd   ? WidthProducts::cheapest
                : *winograd ? WidthProducts::winograd
                            : WidthProducts::direct,
                cap ? float(*cap) : std::numeric_limits<float>::infinity(),
                residual_data(kWidthConv2d, residual, y, x.scalar_type(), last)},
               parallel);
  return y;
}

constexpr int64_t kSide = 3;  // of the taps, of the gradients below

Tensor laid_out(const Tensor& t) { return wants_channels_last(t) ? t : torch::stable::contiguous(t); }

Images read(const Tensor& t) { return images(t, const_cast<void*>(t.const_data_ptr()), wants_channels_last(t)); }

Tensor width_conv2d_input_gradient_cpu(Tensor grad, Tensor weight, std::vector<int64_t> padding) {
  const char* const op = "width_conv2d_input_gradient";
  STD_TORCH_CHECK(grad.dim() == 4 && grad.is_cpu() && grad.scalar_type() == ScalarType::Float, op,
                  ": grad must be float32 images on the CPU, got ", shape_of(grad));
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_cpu() && weight.scalar_type() == ScalarType::Float &&
                      weight.is_contiguous() && weight.size(0) == grad.size(1) && weight.size(2) == kSide &&
                      weight.size(3) == kSide,
                  op, ": weight must be contiguous float32 (", grad.size(1), ", channels, 3, 3) on the CPU, got ",
                  shape_of(weight));
  STD_TORCH_CHECK(
      padding.size() == 2 && std::min(padding[0], padding[1]) >= 0 && std::max(padding[0], padding[1]) < kSide, op,
      ": padding must hold 2 numbers from 0 to 2");
  const auto size = [&](int d) {
    const int64_t of = grad.size(2 + d) + kSide - 1 - 2 * padding[size_t(d)];
    STD_TORCH_CHECK(of >= 0, op, ": no x of this padding has a result of the size of grad, ", shape_of(grad));
    return of;
  };
  const Tensor of_result = laid_out(grad);
  const bool last = wants_channels_last(of_result);
  Tensor to = empty_images({grad.size(0), weight.size(1), size(0), size(1)}, ScalarType::Float, last);
  width_input_gradient({read(of_result), images(to, to.mutable_data_ptr(), last), padding[0], padding[1],
                        static_cast<const float*>(weight.const_data_ptr())},
                       parallel);
  return to;
}

Tensor width_conv2d_weight_gradient_cpu(Tensor grad, Tensor x, std::vector<int64_t> padding) {
  const char* const op = "width_conv2d_weight_gradient";
  STD_TORCH_CHECK(grad.dim() == 4 && x.dim() == 4 && grad.is_cpu() && x.is_cpu() && grad.size(0) == x.size(0) &&
                      grad.scalar_type() == ScalarType::Float && x.scalar_type() == ScalarType::Float,
                  op, ": grad and x must be as many float32 images on the CPU, got ", shape_of(grad), " and ",
                  shape_of(x));
  const std::vector<int64_t> ones(2, 1);
  const Axis vertical = axis(op, ones, padding, ones, kSide, 0), horizontal = axis(op, ones, padding, ones, kSide, 1);
  STD_TORCH_CHECK(
      grad.size(2) == output_size(op, vertical, x.size(2)) && grad.size(3) == output_size(op, horizontal, x.size(3)),
      op, ": grad is not of the result's size, got ", shape_of(grad), " for x ", shape_of(x));
  const Tensor of_result = laid_out(grad), input = laid_out(x);
  Tensor to = torch::stable::empty({grad.size(1), x.size(1), kSide, kSide}, ScalarType::Float);  // outlives the step
  width_gradient(
      {read(of_result), read(input), vertical.padding, horizontal.padding, static_cast<float*>(to.mutable_data_ptr())},
      parallel);
  return to;
}

}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("width_conv2d", TORCH_BOX(&lcs::binding::width_conv2d_cpu));
  m.impl("width_conv2d_pack", TORCH_BOX(&lcs::binding::width_conv2d_pack_cpu));
  m.impl("width_conv2d_input_gradient", TORCH_BOX(&lcs::binding::width_conv2d_input_gradient_cpu));
  m.impl("width_conv2d_weight_gradient", TORCH_BOX(&lcs::binding::width_conv2d_weight_gradient_cpu));
}
