#include "lcs/sparse_conv2d.h"

#include "images_binding.h"
#include "replay_binding.h"
#include "sparse_conv2d_binding.h"

namespace lcs::binding {
namespace {

// Of a weight whose sizes fit x.
SparseConv2dArgs checked_args(const char* op, const ImagesKind& x, const SparseConv2dGiven& given) {
  const std::vector<int64_t>& shape = given.weight_shape;
  STD_TORCH_CHECK(x.size.size() == 4 && shape.size() == 4, op, ": x must be (n, c, h, w), got shape ",
                  shape_of(x.size));
  STD_TORCH_CHECK(!given.cap || (given.relu && *given.cap > 0), op, ": cap must be above 0, and needs relu");
  SparseConv2dArgs args{};
  args.dtype = dtype_of(x.type, op, "x");
  args.vertical = axis(op, given.stride, given.padding, given.dilation, shape[2], 0);
  args.horizontal = axis(op, given.stride, given.padding, given.dilation, shape[3], 1);
  args.groups = given.groups;
  args.relu = given.relu;
  if (given.cap) args.cap = float(*given.cap);
  STD_TORCH_CHECK(given.groups >= 1 && x.size[1] == given.groups * shape[1] && shape[0] % given.groups == 0, op,
                  ": x has ", x.size[1], " channels, a weight of ", shape[0], " x ", shape[1], " in ", given.groups,
                  " groups takes ", given.groups * shape[1]);
  const int64_t taps = shape[2] * shape[3];
  STD_TORCH_CHECK(given.block % taps == 0, op, ": block ", given.block, " is not whole channels of ", taps, " taps");
  return args;
}

}  // namespace

ImagesKind images_kind(const char* op, const Tensor& x) {
  activation_dtype(op, x);
  return {sizes_of(x), x.scalar_type(), x.dim() == 4 && wants_channels_last(x)};
}

SparseConv2dCall::SparseConv2dCall(const char* op, const ImagesKind& kind, SparseConv2dGiven all)
    : x(kind), given(std::move(all)), args(checked_args(op, kind, given)) {
  const std::vector<int64_t>& shape = given.weight_shape;
  make_contiguous(given.bias);
  make_contiguous(given.scale);
  args.bias = vector_of(op, "bias", given.bias, shape[0]);
  args.scale = vector_of(op, "scale", given.scale, shape[0]);
  weight = prepacked(op, given.mask_bits, given.values, shape[0], shape[1] * shape[2] * shape[3], given.block,
                     given.prepack);
  args.weight = weight.prepack;
  y = {{x.size[0], shape[0], output_size(op, args.vertical, x.size[2]), output_size(op, args.horizontal, x.size[3])},
       x.type,
       x.last};
  args.x = images(x.size, nullptr, x.last);
  args.y = images(y.size, nullptr, y.last);
}

Tensor SparseConv2dCall::result_of(Tensor& input) {
  if (!x.last) input = torch::stable::contiguous(input);
  Tensor made = empty_images(y.size, y.type, y.last);
  args.x.data = const_cast<void*>(input.const_data_ptr());
  args.y.data = made.mutable_data_ptr();
  return made;
}

Tensor sparse_conv2d_cpu(Tensor x, Tensor mask_bits, Tensor values, std::vector<int64_t> weight_shape,
                         std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation, int64_t groups, bool relu, int64_t block,
                         std::vector<Tensor> prepack, std::optional<Tensor> scale, std::optional<double> cap,
                         std::optional<Tensor> residual) {
  SparseConv2dCall call(
      kSparseConv2d, images_kind(kSparseConv2d, x),
      {mask_bits, values, weight_shape, bias, stride, padding, dilation, groups, relu, block, prepack, scale, cap});
  Tensor y = call.result_of(x);
  call.args.residual = residual_data(kSparseConv2d, residual, y, call.y.type, call.y.last);
  lcs::sparse_conv2d(call.args, parallel);
  return y;
}

}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("sparse_conv2d", TORCH_BOX(&lcs::binding::sparse_conv2d_cpu)); }
