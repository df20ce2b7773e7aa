#include "lcs/line_norm.h"

#include <tuple>

#include "line_norm_binding.h"
#include "replay_binding.h"

namespace lcs::binding {
namespace {

void check_vector(const Tensor& t, int64_t channels, const char* op, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 1 && t.size(0) >= channels && t.is_contiguous(), op, ": ", name,
                  " must be a contiguous vector of at least ", channels, " on the CPU, got shape ", shape_of(t));
}

LineVector ends(const std::optional<Tensor>& end0, const std::optional<Tensor>& end1, int64_t channels, ScalarType like,
                const char* op, const char* name0, const char* name1) {
  STD_TORCH_CHECK(end0 || !end1, op, ": ", name1, " without ", name0);
  if (!end0) return {nullptr, nullptr, DType::float32};
  check_vector(*end0, channels, op, name0);
  const ScalarType type = end0->scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == like, op, ": ", name0, " must be float32 or of x's dtype");
  if (!end1) return {end0->const_data_ptr(), nullptr, dtype_of(type, op, name0)};
  check_vector(*end1, channels, op, name1);
  STD_TORCH_CHECK(end1->scalar_type() == type && end1->size(0) == end0->size(0), op, ": ", name1,
                  " must have the shape and the dtype of ", name0, ", got shape ", shape_of(*end1));
  return {end0->const_data_ptr(), end1->const_data_ptr(), dtype_of(type, op, name0)};
}

// Sets args.weight, args.bias and args.alpha, for x of args.channels channels and of `type`.
void take_line(const char* op, LineNormArgs& args, ScalarType type, const LineVectors& line) {
  STD_TORCH_CHECK(line.alpha || (!line.weight1 && !line.bias1), op, ": a line needs an alpha");
  args.weight = ends(line.weight0, line.weight1, args.channels, type, op, "weight0", "weight1");
  args.bias = ends(line.bias0, line.bias1, args.channels, type, op, "bias0", "bias1");
  args.alpha = line.alpha ? scalar_of<float>(*line.alpha, ScalarType::Float, op, "alpha") : 0;
}

// Whether x, which is not contiguous, lies as channels last.
bool has_channels_last(const Tensor& x) {
  if (x.dim() < 4 || x.dim() > 5) return false;
  int64_t expected = x.size(1);
  for (int64_t d = x.dim() - 1; d >= 2; expected *= x.size(d--))
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
  return (x.size(1) == 1 || x.stride(1) == 1) && (x.size(0) == 1 || x.stride(0) == expected);
}

// Of such a shape, channels last or contiguous.
Tensor laid_out(const Tensor& t, const std::vector<int64_t>& shape, ScalarType type, bool last, const char* op,
                const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && has_shape(t, shape) && t.scalar_type() == type, op, ": ", name,
                  " must be of x's shape ", shape_of(shape), " and dtype on the CPU, got shape ", shape_of(t));
  if (last ? has_channels_last(t) : t.is_contiguous()) return t;
  if (!last) return torch::stable::contiguous(t);
  std::vector<int64_t> strides(shape.size(), 1);
  strides[0] = shape[1];
  for (size_t d = shape.size() - 1; d >= 2; strides[0] *= shape[d--]) strides[d] = strides[0];
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  Tensor copy = empty_strided(shape, strides, dtype);
  return torch::stable::copy_(copy, t);
}

const float* given(const char* op, const std::optional<Tensor>& t, int64_t channels, const char* name) {
  if (!t) return nullptr;
  check_vector(*t, channels, op, name);
  STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float, op, ": ", name, " must be float32");
  return static_cast<const float*>(t->const_data_ptr());
}

// What every norm takes, checked.
LineNormArgs arguments(const char* op, const std::vector<int64_t>& shape, ScalarType type, bool last,
                       const LineVectors& line, int64_t groups, double eps, bool relu) {
  STD_TORCH_CHECK(line.mean.has_value() == line.var.has_value(), op, ": give both mean and var, or neither");
  LineNormArgs args{};
  args.dtype = dtype_of(type, op, "x");
  args.n = shape[0], args.channels = shape[1], args.pixels = 1;
  for (size_t d = 2; d < shape.size(); ++d) args.pixels *= shape[d];
  STD_TORCH_CHECK(line.mean || (groups >= 1 && args.channels % groups == 0), op, ": ", groups, " groups do not divide ",
                  args.channels, " channels of x");
  args.mean = given(op, line.mean, args.channels, "mean"), args.var = given(op, line.var, args.channels, "var");
  STD_TORCH_CHECK(eps >= 0, op, ": eps must be at least 0, got ", eps);
  args.groups = groups, args.eps = eps, args.relu = relu;
  args.last = last || args.pixels == 1;
  take_line(op, args, type, line);
  return args;
}

}  // namespace

NormBehind norm_behind(const char* op, const std::vector<int64_t>& shape, ScalarType type, bool last,
                       const LineVectors& line, const std::optional<Tensor>& residual, int64_t groups, double eps,
                       bool relu) {
  last &= shape[1] != 1;  // of one channel it is contiguous, too, as line_norm takes it
  NormBehind behind{arguments(op, shape, type, last, line, groups, eps, relu), std::nullopt};
  if (residual) {
    behind.residual = laid_out(*residual, shape, type, last, op, "residual");
    behind.args.residual = behind.residual->const_data_ptr();
  }
  return behind;
}

namespace {

Tensor checked_input(const Tensor& x, bool& last) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() >= 2, kLineNorm, ": x must be (n, channels, ...) on the CPU, got shape ",
                  shape_of(x));
  const bool contiguous = x.is_contiguous();
  last = !contiguous && has_channels_last(x);
  return contiguous || last ? x : torch::stable::contiguous(x);
}

// What forward and backward take alike, checked; x is laid out already.
lcs::LineNormArgs arguments(const Tensor& x, bool last, const LineVectors& line, int64_t groups, double eps,
                            bool relu) {
  lcs::LineNormArgs args = arguments(kLineNorm, sizes_of(x), x.scalar_type(), last, line, groups, eps, relu);
  args.x = x.const_data_ptr();
  return args;
}

}  // namespace

std::tuple<Tensor, Tensor> line_norm_cpu(Tensor x, std::optional<Tensor> weight0, std::optional<Tensor> weight1,
                                         std::optional<Tensor> bias0, std::optional<Tensor> bias1,
                                         std::optional<Tensor> alpha, std::optional<Tensor> mean,
                                         std::optional<Tensor> var, std::optional<Tensor> residual, int64_t groups,
                                         double eps, bool relu) {
  for (auto* vector : {&weight0, &weight1, &bias0, &bias1, &mean, &var}) make_contiguous(*vector);
  bool last;
  const Tensor input = checked_input(x, last);
  const LineVectors line{weight0, weight1, bias0, bias1, alpha, mean, var};
  lcs::LineNormArgs args = arguments(input, last, line, groups, eps, relu);
  const std::optional<Tensor> other =
      residual ? std::optional(laid_out(*residual, sizes_of(input), x.scalar_type(), last, kLineNorm, "residual"))
               : std::nullopt;
  Tensor y = empty_laid_out_as(input);
  const int64_t shape[] = {2, args.n, groups}, strides[] = {args.n * groups, groups, 1}, none[] = {0}, one[] = {1};
  Tensor statistics = mean ? empty_strided(none, one, aoti_torch_dtype_float32())
                           : empty_strided(shape, strides, aoti_torch_dtype_float32());
  if (!mean) {
    args.means = static_cast<float*>(statistics.mutable_data_ptr());
    args.rstds = args.means + args.n * groups;
  }
  args.residual = other ? other->const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  lcs::line_norm(args, parallel);
  return {y, statistics};
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> line_norm_backward_cpu(
    Tensor grad, Tensor x, std::optional<Tensor> weight0, std::optional<Tensor> weight1, std::optional<Tensor> bias0,
    std::optional<Tensor> bias1, std::optional<Tensor> alpha, std::optional<Tensor> mean, std::optional<Tensor> var,
    Tensor statistics, int64_t groups, double eps, bool relu) {
  for (auto* vector : {&weight0, &weight1, &bias0, &bias1, &mean, &var}) make_contiguous(*vector);
  bool last;
  const Tensor input = checked_input(x, last);
  const LineVectors line{weight0, weight1, bias0, bias1, alpha, mean, var};
  lcs::LineNormArgs args = arguments(input, last, line, groups, eps, relu);
  if (!mean) {
    STD_TORCH_CHECK(statistics.is_cpu() && statistics.scalar_type() == ScalarType::Float &&
                        statistics.is_contiguous() && statistics.numel() == 2 * args.n * groups,
                    kLineNorm, ": statistics must be the (2, n, groups) float32 values of the forward, got shape ",
                    shape_of(statistics));
    args.means = const_cast<float*>(static_cast<const float*>(statistics.const_data_ptr()));
    args.rstds = args.means + args.n * groups;
  }
  const Tensor g = laid_out(grad, sizes_of(input), x.scalar_type(), last, kLineNorm, "grad");
  Tensor grad_x = empty_laid_out_as(input);
  const int64_t one[] = {1};
  const auto grad_of = [&](const std::optional<Tensor>& end) {
    const int64_t size[] = {end ? end->size(0) : 0};
    return empty_strided(size, one, aoti_torch_dtype_float32());
  };
  Tensor weights[] = {grad_of(weight0), grad_of(weight1)}, biases[] = {grad_of(bias0), grad_of(bias1)};
  const auto data = [](Tensor& t, bool wanted) { return wanted ? static_cast<float*>(t.mutable_data_ptr()) : nullptr; };
  const double grad_alpha = lcs::line_norm_backward(
      {args,
       g.const_data_ptr(),
       grad_x.mutable_data_ptr(),
       {data(weights[0], weight0.has_value()), data(weights[1], weight1.has_value()), weights[0].numel()},
       {data(biases[0], bias0.has_value()), data(biases[1], bias1.has_value()), biases[0].numel()}},
      parallel);
  const int64_t none[] = {0};
  const bool has_line = weight1 || bias1;
  Tensor to_alpha = empty_strided({none, size_t(!has_line)}, {one, size_t(!has_line)}, aoti_torch_dtype_float32());
  if (has_line) *static_cast<float*>(to_alpha.mutable_data_ptr()) = float(grad_alpha);
  return {grad_x, weights[0], weights[1], biases[0], biases[1], to_alpha};
}

}  // namespace
}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("line_norm", TORCH_BOX(&lcs::binding::line_norm_cpu));
  m.impl("line_norm_backward", TORCH_BOX(&lcs::binding::line_norm_backward_cpu));
}
