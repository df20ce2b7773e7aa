#include "lcs/sparse_conv2d.h"

#include "images_binding.h"
#include "replay_binding.h"
#include "sparse_conv2d_binding.h"

namespace lcs::binding {

SparseConv2dCall sparse_conv2d_call(const char* op, const Tensor& x, const Tensor& mask_bits, const Tensor& values,
                                    const std::vector<int64_t>& weight_shape, const std::optional<Tensor>& bias,
                                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                    const std::vector<int64_t>& dilation, int64_t groups, bool relu, int64_t block,
                                    const std::vector<Tensor>& prepack) {
  STD_TORCH_CHECK(x.dim() == 4 && weight_shape.size() == 4, op, ": x must be (n, c, h, w), got shape ", shape_of(x));
  const Axis vertical = axis(op, stride, padding, dilation, weight_shape[2], 0),
             horizontal = axis(op, stride, padding, dilation, weight_shape[3], 1);
  const int64_t out = weight_shape[0], taps = weight_shape[2] * weight_shape[3], columns = weight_shape[1] * taps;
  STD_TORCH_CHECK(groups >= 1 && x.size(1) == groups * weight_shape[1] && out % groups == 0, op, ": x has ", x.size(1),
                  " channels, a weight of ", out, " x ", weight_shape[1], " in ", groups, " groups takes ",
                  groups * weight_shape[1]);
  STD_TORCH_CHECK(block % taps == 0, op, ": block ", block, " is not whole channels of ", taps, " taps");
  Prepacked weight = prepacked(op, mask_bits, values, out, columns, block, prepack);
  const DType dtype = activation_dtype(op, x);
  const bool last = wants_channels_last(x);
  const Tensor input = last ? x : torch::stable::contiguous(x);
  Tensor y =
      empty_images({x.size(0), out, output_size(op, vertical, x.size(2)), output_size(op, horizontal, x.size(3))},
                   x.scalar_type(), last);
  const SparseConv2dArgs args{images(input, const_cast<void*>(input.const_data_ptr()), last),
                              images(y, y.mutable_data_ptr(), last),
                              dtype,
                              vertical,
                              horizontal,
                              groups,
                              weight.prepack,
                              vector_of(op, "bias", bias, out),
                              relu};
  return {last, input, y, std::move(weight), args};
}

Tensor sparse_conv2d_cpu(Tensor x, Tensor mask_bits, Tensor values, std::vector<int64_t> weight_shape,
                         std::optional<Tensor> bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation, int64_t groups, bool relu, int64_t block,
                         std::vector<Tensor> prepack, std::optional<Tensor> scale, std::optional<double> cap,
                         std::optional<Tensor> residual) {
  make_contiguous(bias);
  make_contiguous(scale);
  STD_TORCH_CHECK(!cap || (relu && *cap > 0), "sparse_conv2d: cap must be above 0, and needs relu");
  SparseConv2dCall call = sparse_conv2d_call("sparse_conv2d", x, mask_bits, values, weight_shape, bias, stride, padding,
                                             dilation, groups, relu, block, prepack);
  call.args.scale = vector_of("sparse_conv2d", "scale", scale, weight_shape[0]);
  if (cap) call.args.cap = float(*cap);
  call.args.residual = residual_data("sparse_conv2d", residual, call.y, x.scalar_type(), call.last);
  lcs::sparse_conv2d(call.args, parallel);
  return call.y;
}

}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("sparse_conv2d", TORCH_BOX(&lcs::binding::sparse_conv2d_cpu)); }
