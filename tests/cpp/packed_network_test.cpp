// The bits of packed_conv2d and loops, step by step, on every instruction set and for every way to split the work;
// means and linear layers add up what float32 holds. A page that faults lies next to each array.
#include "lcs/packed_network.h"

#include "conv_case.h"
#include "lcs/max_pool.h"

namespace {

using namespace lcs;
using namespace lcs::test;

using Kind = PackedNetworkKind;
constexpr std::initializer_list<Isa> kMore{Isa::avx512_vnni, Isa::amx};
constexpr int kDepth = 4;  // planes of a weight

// In halves and in units.
constexpr ActivationRange kWide{-60.0f, 67.5f, 8}, kFew{-7.0f, 8.0f, 4};

struct Step {
  Kind kind;
  int input, residual;
  int64_t out, groups;
  Axis axis;
  const ActivationRange *range, *y_range;
};

struct Case {
  int64_t n, in, height, width, threads;
  std::vector<Step> steps;
};

Step conv(int input, int64_t out, Axis axis, const ActivationRange* range, const ActivationRange* y_range = nullptr,
          int residual = -1, int64_t groups = 1) {
  return {Kind::convolution, input, residual, out, groups, axis, range, y_range};
}
Step pool(int input, Axis axis) { return {Kind::max_pool, input, -1, 0, 1, axis, nullptr, nullptr}; }
Step mean(int input) { return {Kind::mean, input, -1, 0, 1, {1, 0, 1, 1}, nullptr, nullptr}; }
Step dense(int input, int64_t out) { return {Kind::dense, input, -1, out, 1, {1, 0, 1, 1}, nullptr, nullptr}; }

constexpr Axis kOne{1, 0, 1, 1}, kThree{1, 1, 1, 3}, kHalved{2, 1, 1, 3}, kPair{2, 0, 1, 2};

// Sizes and threads such that threads share steps, or take images of their own; and images that go few at once.
std::vector<Case> cases() {
  const std::vector<Step> blocks{conv(0, 40, {2, 3, 1, 7}, &kWide),
                                 pool(1, kHalved),
                                 conv(2, 40, kThree, &kFew, &kFew),
                                 conv(3, 40, kThree, &kFew, nullptr, 2),
                                 conv(4, 24, kHalved, &kFew, &kFew),
                                 conv(4, 24, {2, 0, 1, 1}, &kFew),
                                 conv(5, 24, kThree, &kFew, nullptr, 6),
                                 mean(7),
                                 dense(8, 45)};
  const std::vector<Step> depthwise{conv(0, 9, kThree, &kFew, &kFew),
                                    conv(1, 9, kHalved, &kFew, &kWide, -1, 9),
                                    conv(2, 5, kOne, &kWide),
                                    pool(3, kPair),
                                    conv(4, 5, kThree, &kWide, nullptr, 4),
                                    mean(5)};
  const std::vector<Step> pooled{pool(0, kHalved), conv(1, 5, kThree, &kWide), pool(2, kThree),
                                 conv(3, 5, kOne, &kFew, nullptr, 3), conv(4, 6, kOne, &kFew)};
  const std::vector<Step> narrow{conv(0, 5, kThree, &kWide), pool(1, kThree), conv(2, 5, kOne, &kFew, nullptr, 2)};
  const std::vector<Step> large{conv(0, 8, kOne, &kFew),
                                conv(0, 32, kOne, &kFew),
                                pool(2, kThree),
                                conv(3, 32, kOne, &kFew, nullptr, 3),
                                conv(4, 8, kOne, &kFew, nullptr, 1),
                                pool(5, {4, 0, 1, 4})};
  return {{1, 3, 32, 30, 3, blocks},
          {2, 3, 32, 30, 1, blocks},
          {9, 3, 32, 30, 3, blocks},
          {0, 3, 32, 30, 3, blocks},
          {3, 6, 9, 14, 3, depthwise},
          {10, 6, 9, 14, 3, depthwise},
          {3, 5, 7, 9, 3, pooled},
          {19, 5, 7, 9, 1, pooled},
          {2, 4, 7, 9, 3, narrow},
          {5, 2, 90, 90, 2, large},
          {2, 4, 6, 5, 3, {conv(0, 7, kThree, &kWide)}}};
}

// The arrays that a step reads.
struct Arrays {
  Guarded planes, scales, zero_points, bias, dense;

  Arrays(const NestedLayout& l, const Step& s, int64_t channels, int64_t in, uint32_t seed, Guard guard)
      : planes(size_t(kDepth * l.plane_bytes()), guard),
        scales(size_t(channels * 4), guard),
        zero_points(size_t(channels), guard),
        bias(size_t(channels * 4), guard),
        dense(size_t(s.kind == Kind::dense ? channels * in * 4 : 0), guard) {
    std::mt19937 random(seed);
    const Guarded codes(size_t(l.rows * l.columns), guard);
    for (int64_t i = 0; i < l.rows * l.columns; ++i) codes.as<uint8_t>()[i] = uint8_t(random() % (1 << kDepth));
    for (int64_t i = 0; i < channels; ++i) {
      scales.as<float>()[i] = 0.25f / float(1 << random() % 2);
      zero_points.as<uint8_t>()[i] = uint8_t(random() % (1 << kDepth));
    }
    fill(bias, channels, DType::float32, seed);
    if (s.kind == Kind::dense) fill(dense, channels * in, DType::float32, seed + 1);
    nested_prepack(l, codes.as<uint8_t>(), kDepth, planes.as<uint8_t>(), backwards);
  }
};

class Network {
 public:
  Network(const Case& c, bool last, Guard guard) : x_(size_t(c.n * c.in * c.height * c.width * 4), guard) {
    const int64_t size = c.in * c.height * c.width;
    std::mt19937 random(uint32_t(c.n));
    for (int64_t i = 0; i < c.n * size; ++i) x_.as<float>()[i] = float(int(random() % 255) - 127) / 2;
    if (c.n > 1) x_.as<float>()[c.n * size - 1] = __builtin_nanf("");
    values_.push_back(images(x_.as(), c.n, c.in, c.height, c.width, last));
    for (const Step& s : c.steps) add(s, guard);
    for (const PackedNetworkStep& step : steps_) run(step);
  }

  void check(const Parallel& parallel, int64_t threads, Guard guard) const {
    const Images& wanted = values_.back();
    const Guarded y(size_t(count(wanted) * 4), guard);
    Images made = wanted;
    made.data = y.as();
    packed_network({steps_.data(), int64_t(steps_.size()), values_[0], made, threads}, parallel);
    for (int64_t i = 0; i < count(wanted); ++i) {
      const float a = y.as<float>()[i], b = static_cast<const float*>(wanted.data)[i];
      CHECK(a == b || (a != a && b != b));
    }
  }

 private:
  void add(const Step& s, Guard guard) {
    const Images& x = values_[size_t(s.input)];
    const int64_t out = s.out ? s.out : x.channels, in = x.channels / s.groups;
    const bool single = s.kind == Kind::mean;
    const int64_t height = single ? 1 : output_size(s.axis, x.height),
                  width = single ? 1 : output_size(s.axis, x.width);
    const NestedLayout layout = packed_conv2d_layout(out, in, s.axis.kernel, s.axis.kernel, s.groups);
    const Arrays& a = arrays_.emplace_back(layout, s, out, x.channels, uint32_t(steps_.size()), guard);
    Guarded& y = made_.emplace_back(size_t(x.n * out * height * width * (s.y_range ? 1 : 4)), guard);
    PackedNetworkStep step{
        s.kind, s.input, s.residual, {}, a.dense.as<float>(), single ? a.scales.as<float>() : nullptr};
    step.conv.x = x, step.conv.y = images(y.as(), x.n, out, height, width, true);
    step.conv.dtype = DType::float32, step.conv.vertical = step.conv.horizontal = s.axis;
    step.conv.weight = {layout, a.planes.as<uint8_t>(), a.scales.as<float>(), a.zero_points.as<uint8_t>(), true,
                        kDepth};
    step.conv.bits = steps_.size() % 2 ? 3 : kDepth, step.conv.bias = a.bias.as<float>();
    step.conv.range = s.range, step.conv.y_range = s.y_range, step.conv.relu = steps_.size() % 3 != 2;
    step.conv.depthwise = packed_conv2d_depthwise(out, in, s.groups);
    values_.push_back(step.conv.y);
    steps_.push_back(step);
  }

  void run(const PackedNetworkStep& s) const {
    if (s.kind == Kind::convolution) return convolve(s);
    const Images& y = s.conv.y;
    const MaxPoolArgs pooling{s.conv.x, y, s.conv.vertical, s.conv.horizontal, DType::float32};
    const auto value = [&](int64_t n, int64_t c, int64_t row, int64_t column) {
      if (s.kind == Kind::max_pool) return largest(pooling, n, c, row, column);
      return s.kind == Kind::mean ? mean_of(s, n, c) : product(s, n, c);
    };
    for (int64_t n = 0; n < y.n; ++n)
      for (int64_t c = 0; c < y.channels; ++c)
        for (int64_t row = 0; row < y.height; ++row)
          for (int64_t column = 0; column < y.width; ++column)
            static_cast<float*>(y.data)[at(y, n, c, row, column)] = value(n, c, row, column);
  }

  void convolve(const PackedNetworkStep& s) const {
    PackedConv2dArgs conv = s.conv;
    conv.x_codes = s.input > 0 && steps_[size_t(s.input - 1)].conv.y_range;
    if (s.residual >= 0) conv.residual = values_[size_t(s.residual)].data;
    packed_conv2d(conv, serial);
  }

  static float mean_of(const PackedNetworkStep& s, int64_t n, int64_t c) {
    const Images& x = s.conv.x;
    double sum = 0;
    for (int64_t i = 0; i < x.height * x.width; ++i) {
      const double value = get(x.data, at(x, n, c, i / x.width, i % x.width), DType::float32);
      const double normed = value * s.scale[c] + s.conv.bias[c];
      sum += s.conv.relu && normed < 0 ? 0 : normed;
    }
    return float(sum) / float(x.height * x.width);
  }

  static float product(const PackedNetworkStep& s, int64_t n, int64_t c) {
    const Images& x = s.conv.x;
    double sum = s.conv.bias[c];
    for (int64_t i = 0; i < x.channels; ++i)
      sum += double(s.dense[c * x.channels + i]) * get(x.data, at(x, n, i, 0, 0), DType::float32);
    return float(s.conv.relu && sum < 0 ? 0 : sum);
  }

  const Guarded x_;
  std::deque<Arrays> arrays_;
  std::deque<Guarded> made_;
  std::vector<Images> values_;
  std::vector<PackedNetworkStep> steps_;
};

void check(const Case& c, bool last, Guard guard) {
  set_max_isa(isas(kMore).back());
  const Network network(c, last, guard);
  for (const Isa isa : isas(kMore))
    for (const Parallel& parallel : ways(isa)) {
      set_max_isa(isa);
      network.check(parallel, c.threads, guard);
    }
}

}  // namespace

int main() {
  isas(kMore);
  for (const Case& c : cases())
    for (const Guard guard : kGuards) check(c, guard == Guard::behind || c.steps[0].kind == Kind::max_pool, guard);
}
