#include "lcs/packed_network.h"

#include <algorithm>

#include "nested_weight_binding.h"
#include "packed_conv2d_binding.h"

namespace {

using namespace lcs::binding;
using Kind = lcs::PackedNetworkKind;
constexpr const char* kPackedNetwork = "packed_network";

// In the order of the schema's numbers.
struct Numbers {
  int64_t kind, input, residual, out_channels, in_channels, kernel_h, kernel_w, stride_h, stride_w, padding_h,
      padding_w, dilation_h, dilation_w, groups, bits, x_bits, y_bits, relu, prepacked, biased, scales;
};
constexpr int64_t kNumbers = sizeof(Numbers) / sizeof(int64_t);

// Values that steps read one after the other, of one tensor.
template <class T>
class Values {
 public:
  Values(const Tensor& of, ScalarType type, const char* name) : name_(name), n_(of.numel()) {
    STD_TORCH_CHECK(of.is_cpu() && of.is_contiguous() && of.dim() == 1 && of.scalar_type() == type, kPackedNetwork,
                    ": ", name, " must be a contiguous vector of the schema's dtype on the CPU, got shape ",
                    shape_of(of));
    data_ = static_cast<const T*>(of.const_data_ptr());
  }

  const T* some(int64_t n, size_t step) {
    STD_TORCH_CHECK(n <= n_ - at_, kPackedNetwork, ": step ", step, " reads ", name_, " up to ", at_ + n,
                    ", and there are ", n_);
    at_ += n;
    return data_ + at_ - n;
  }

  void check_end() const {
    STD_TORCH_CHECK(at_ == n_, kPackedNetwork, ": the steps take ", at_, " ", name_, ", got ", n_);
  }

 private:
  const char* name_;
  const T* data_;
  int64_t n_, at_ = 0;
};

class Builder {
 public:
  Builder(const Tensor& x, const std::vector<Tensor>& weights, const Tensor& floats, const Tensor& zero_points,
          const Tensor& numbers)
      : tensors_(weights),
        floats_(floats, ScalarType::Float, "floats"),
        zero_points_(zero_points, ScalarType::Byte, "zero_points") {
    STD_TORCH_CHECK(numbers.is_cpu() && numbers.is_contiguous() && numbers.scalar_type() == ScalarType::Long &&
                        numbers.dim() == 2 && numbers.size(0) >= 1 && numbers.size(1) == kNumbers,
                    kPackedNetwork, ": numbers must be steps x ", kNumbers, " contiguous int64 on the CPU, got shape ",
                    shape_of(numbers));
    const auto count = size_t(numbers.size(0));
    values_.reserve(count + 1);
    values_.push_back({images(x, nullptr, true), false});
    steps_.reserve(count);
    ranges_.reserve(2 * count);
    weights_.reserve(count);
    const int64_t* row = static_cast<const int64_t*>(numbers.const_data_ptr());
    for (step_ = 0; step_ < count; ++step_, row += kNumbers) {
      Numbers n;
      std::copy_n(row, kNumbers, reinterpret_cast<int64_t*>(&n));
      add(n);
    }
    STD_TORCH_CHECK(next_ == tensors_.size(), kPackedNetwork, ": the steps take ", next_, " weights, got ",
                    tensors_.size());
    floats_.check_end();
    zero_points_.check_end();
    STD_TORCH_CHECK(!values_.back().codes, kPackedNetwork, ": the last step makes codes");
  }

  const std::vector<lcs::PackedNetworkStep>& steps() const { return steps_; }
  const lcs::Images& last() const { return values_.back().shape; }

 private:
  struct Value {
    lcs::Images shape;
    bool codes;
  };

  const Tensor& next() {
    STD_TORCH_CHECK(next_ < tensors_.size(), kPackedNetwork, ": step ", step_, " lacks a weight");
    return tensors_[next_++];
  }

  const lcs::ActivationRange* range(int64_t bits) {
    const float* const ends = floats_.some(2, step_);
    ranges_.push_back({ends[0], ends[1], width_of(kPackedNetwork, bits)});
    return &ranges_.back();
  }

  void add(const Numbers& n) {
    STD_TORCH_CHECK(n.input >= 0 && n.input <= int64_t(step_) && n.residual >= -1 && n.residual <= int64_t(step_),
                    kPackedNetwork, ": step ", step_, " reads a value that is not there yet");
    STD_TORCH_CHECK(n.kernel_h >= 1 && n.kernel_w >= 1, kPackedNetwork, ": step ", step_, " has a kernel of ",
                    n.kernel_h, " x ", n.kernel_w);
    const Value x = values_[size_t(n.input)];
    STD_TORCH_CHECK(n.kind >= 0 && n.kind <= int64_t(Kind::dense), kPackedNetwork, ": step ", step_, " is of kind ",
                    n.kind);
    STD_TORCH_CHECK(n.residual < 0 || n.kind == int64_t(Kind::convolution), kPackedNetwork, ": step ", step_,
                    " adds a residual, and is no convolution");
    lcs::PackedNetworkStep step{Kind(n.kind), int(n.input), int(n.residual), {}};
    lcs::PackedConv2dArgs& a = step.conv;
    a.vertical = axis(kPackedNetwork, {n.stride_h, n.padding_h, n.dilation_h, n.kernel_h});
    a.horizontal = axis(kPackedNetwork, {n.stride_w, n.padding_w, n.dilation_w, n.kernel_w});
    a.x = x.shape;
    a.y = x.shape;
    a.y.height = output_size(kPackedNetwork, a.vertical, x.shape.height);
    a.y.width = output_size(kPackedNetwork, a.horizontal, x.shape.width);
    if (step.kind == Kind::convolution)
      convolve(n, x, a);
    else if (step.kind == Kind::max_pool)
      pool(x, a);
    else
      reduce(n, x, step);
    values_.push_back({a.y, a.y_range != nullptr});
    steps_.push_back(step);
  }

  void pool(const Value& x, const lcs::PackedConv2dArgs& a) const {
    STD_TORCH_CHECK(!x.codes, kPackedNetwork, ": step ", step_, " pools codes");
    for (const lcs::Axis* axis : {&a.vertical, &a.horizontal})
      STD_TORCH_CHECK(2 * axis->padding <= axis->kernel && axis->dilation == 1, kPackedNetwork, ": step ", step_,
                      " has a padding of more than half of its window, or is dilated");
  }

  // The mean, of windows of the whole image; or a linear layer.
  void reduce(const Numbers& n, const Value& x, lcs::PackedNetworkStep& step) {
    lcs::PackedConv2dArgs& a = step.conv;
    const bool dense = step.kind == Kind::dense;
    STD_TORCH_CHECK(n.input > 0 && !x.codes, kPackedNetwork, ": step ", step_,
                    " must read a float32 value of an earlier step");
    if (!dense) a.y.height = a.y.width = 1;
    STD_TORCH_CHECK(a.y.height == 1 && a.y.width == 1 && x.shape.height * x.shape.width > 0 &&
                        (!dense || x.shape.height * x.shape.width == 1),
                    kPackedNetwork, ": step ", step_, dense ? " must read a single position, gets " : " averages ",
                    x.shape.height, " x ", x.shape.width);
    if (!dense) return norm(n, step);
    const Tensor& weight = next();
    STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float && weight.is_cpu() && weight.is_contiguous() &&
                        has_shape(weight, {n.out_channels, x.shape.channels}),
                    kPackedNetwork, ": step ", step_, " takes a contiguous float32 weight of ", n.out_channels, " x ",
                    x.shape.channels, ", got ", shape_of(weight));
    step.dense = static_cast<const float*>(weight.const_data_ptr());
    if (n.biased) a.bias = floats_.some(n.out_channels, step_);
    a.relu = n.relu != 0;
    a.y.channels = n.out_channels;
  }

  // Of what is averaged.
  void norm(const Numbers& n, lcs::PackedNetworkStep& step) {
    const int64_t channels = step.conv.y.channels;
    STD_TORCH_CHECK(n.scales == 0 || n.scales == channels, kPackedNetwork, ": step ", step_, " has ", n.scales,
                    " scales, not 0 or ", channels);
    if (n.scales == 0) return;
    step.scale = floats_.some(channels, step_);
    step.conv.bias = floats_.some(channels, step_);
    step.conv.relu = n.relu != 0;
  }

  void convolve(const Numbers& n, const Value& x, lcs::PackedConv2dArgs& a) {
    STD_TORCH_CHECK(n.groups >= 1 && x.shape.channels == n.groups * n.in_channels && n.out_channels >= 0 &&
                        n.out_channels % n.groups == 0,
                    kPackedNetwork, ": step ", step_, " has ", n.groups, " groups of ", n.in_channels, " and ",
                    n.out_channels, " channels, and gets ", x.shape.channels);
    const int64_t columns = n.in_channels * n.kernel_h * n.kernel_w;
    STD_TORCH_CHECK(columns <= lcs::kMaxRangedTerms, kPackedNetwork, ": step ", step_, " sums ", columns, " products");
    STD_TORCH_CHECK(n.scales == 1 || n.scales == n.out_channels, kPackedNetwork, ": step ", step_, " has ", n.scales,
                    " scales, not 1 or ", n.out_channels);
    const Tensor& planes = next();
    const Tensor* const prepack = n.prepacked ? &next() : nullptr;
    const NestedScales scales{floats_.some(n.scales, step_), zero_points_.some(n.scales, step_),
                              n.scales == n.out_channels};
    weights_.push_back(
        nested(kPackedNetwork, planes, scales,
               lcs::packed_conv2d_layout(n.out_channels, n.in_channels, n.kernel_h, n.kernel_w, n.groups), prepack));
    a.dtype = lcs::DType::float32;
    a.weight = weights_.back().prepack;
    a.depthwise = lcs::packed_conv2d_depthwise(n.out_channels, n.in_channels, n.groups);
    a.bits = width_of(kPackedNetwork, n.bits, a.weight.depth);
    a.range = range(n.x_bits);
    if (n.biased) a.bias = floats_.some(n.out_channels, step_);
    a.relu = n.relu != 0;
    a.exact = false;
    a.y.channels = n.out_channels;
    if (n.y_bits) a.y_range = range(n.y_bits);
    check_packed_images(kPackedNetwork, a);
    if (n.residual < 0) return;
    const Value& residual = values_[size_t(n.residual)];
    const lcs::Images& r = residual.shape;
    STD_TORCH_CHECK(!residual.codes && r.channels == a.y.channels && r.height == a.y.height && r.width == a.y.width,
                    kPackedNetwork, ": the residual of step ", step_, " must be a float32 value of the result's shape");
  }

  const std::vector<Tensor>& tensors_;
  Values<float> floats_;
  Values<uint8_t> zero_points_;
  size_t step_ = 0, next_ = 0;
  std::vector<Value> values_;
  std::vector<lcs::PackedNetworkStep> steps_;
  std::vector<lcs::ActivationRange> ranges_;  // which steps point to
  std::vector<Nested> weights_;
};

Tensor packed_network_cpu(Tensor x, std::vector<Tensor> weights, Tensor floats, Tensor zero_points, Tensor numbers,
                          std::vector<int64_t> size) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float, kPackedNetwork,
                  ": x must be float32 (n, c, h, w), got shape ", shape_of(x));
  const Builder network(x, weights, floats, zero_points, numbers);
  const auto needs_last = [](const lcs::PackedNetworkStep& step) {  // of x
    return (step.kind == Kind::max_pool && step.input == 0) || step.residual == 0;
  };
  const bool is_last = wants_channels_last(x);
  const bool last = is_last || std::any_of(network.steps().begin(), network.steps().end(), needs_last);
  const Tensor input = is_last ? x
                       : last  ? torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast)
                               : torch::stable::contiguous(x);
  lcs::Images made = network.last();
  const std::vector<int64_t> found{made.channels, made.height, made.width};
  const bool flat = size.size() == 1 && made.height == 1 && made.width == 1 && size[0] == made.channels;
  STD_TORCH_CHECK(flat || size == found, kPackedNetwork, ": the steps make ", shape_of(found), ", not ",
                  shape_of(size));
  Tensor y = flat ? torch::stable::empty({x.size(0), made.channels}, ScalarType::Float)
                  : empty_images({x.size(0), made.channels, made.height, made.width}, ScalarType::Float, true);
  const int64_t c = made.channels, w = made.width;
  made = {y.mutable_data_ptr(), x.size(0), c, made.height, w, c * w * made.height, 1, w * c, c};
  lcs::packed_network({network.steps().data(), int64_t(network.steps().size()),
                       images(input, const_cast<void*>(input.const_data_ptr()), last), made,
                       forked() ? 1 : int64_t(torch::stable::get_num_threads())},
                      parallel);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("packed_network", TORCH_BOX(&packed_network_cpu)); }
