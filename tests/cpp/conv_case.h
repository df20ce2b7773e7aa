#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "lcs/images.h"
#include "lcs/max_pool.h"
#include "sparse_case.h"

// What the tests of the convolutions share.
namespace lcs::test {

inline Images images(void* data, int64_t n, int64_t c, int64_t h, int64_t w, bool last) {
  if (last) return {data, n, c, h, w, c * h * w, 1, w * c, c};
  return {data, n, c, h, w, c * h * w, h * w, w, 1};
}

inline int64_t count(const Images& t) { return t.n * t.channels * t.height * t.width; }

inline int64_t at(const Images& t, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * t.image_stride + c * t.channel_stride + h * t.row_stride + w * t.column_stride;
}

// x, clamped where limits are given, in zeros as wide as the padding.
class Padded {
 public:
  Padded(const Images& x, DType dtype, const Axis& vertical, const Axis& horizontal, const float* limits = nullptr)
      : channels_(x.channels), height_(x.height + 2 * vertical.padding), width_(x.width + 2 * horizontal.padding) {
    values_.resize(size_t(x.n * channels_ * height_ * width_));
    for (int64_t n = 0; n < x.n; ++n)
      for (int64_t c = 0; c < channels_; ++c)
        for (int64_t h = 0; h < x.height; ++h)
          for (int64_t w = 0; w < x.width; ++w) {
            const float value = get(x.data, at(x, n, c, h, w), dtype);
            values_[offset(n, c, h + vertical.padding, w + horizontal.padding)] =
                limits ? std::clamp(value, limits[0], limits[1]) : value;
          }
  }
  const double* row(int64_t n, int64_t c, int64_t h, int64_t w) const { return values_.data() + offset(n, c, h, w); }

 private:
  size_t offset(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return size_t(((n * channels_ + c) * height_ + h) * width_ + w);
  }

  int64_t channels_, height_, width_;
  std::vector<double> values_;
};

// Left to no sanitizer: it is most of a test's arithmetic, and none of what is tested.
[[gnu::no_sanitize("address", "thread", "undefined"), gnu::noinline]]
inline void add_products(double* sums, int64_t n, double weight, const double* x, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) sums[i] += weight * x[i * stride];
}

// Where y's values lie, and the sums that they are made from: of x and `weights`, one after the other for each output
// channel, in double, which holds them.
template <class Each>
void convolve(const Padded& x, const std::vector<double>& weights, const Images& y, int64_t inputs, int64_t groups,
              const Axis& vertical, const Axis& horizontal, const Each& each) {
  const int64_t columns = inputs * vertical.kernel * horizontal.kernel;
  std::vector<double> sums(size_t(y.width));
  for (int64_t n = 0; n < y.n; ++n)
    for (int64_t o = 0; o < y.channels; ++o)
      for (int64_t row = 0; row < y.height; ++row) {
        std::fill(sums.begin(), sums.end(), 0.0);
        const double* weight = weights.data() + o * columns;
        for (int64_t i = 0; i < inputs; ++i)
          for (int64_t p = 0; p < vertical.kernel; ++p)
            for (int64_t q = 0; q < horizontal.kernel; ++q)
              add_products(sums.data(), y.width, *weight++,
                           x.row(n, o / (y.channels / groups) * inputs + i,
                                 row * vertical.stride + p * vertical.dilation, q * horizontal.dilation),
                           horizontal.stride);
        for (int64_t column = 0; column < y.width; ++column) each(at(y, n, o, row, column), o, sums[size_t(column)]);
      }
}

// Of a window; NaN is the largest, as it is larger than nothing else.
inline float largest(const MaxPoolArgs& a, int64_t n, int64_t c, int64_t row, int64_t column) {
  float most = -__builtin_inff();
  for (int64_t i = 0; i < a.vertical.kernel; ++i)
    for (int64_t j = 0; j < a.horizontal.kernel; ++j) {
      const int64_t h = row * a.vertical.stride - a.vertical.padding + i,
                    w = column * a.horizontal.stride - a.horizontal.padding + j;
      if (h < 0 || h >= a.x.height || w < 0 || w >= a.x.width) continue;
      const float x = get(a.x.data, at(a.x, n, c, h, w), a.dtype);
      if (!(x <= most) && most == most) most = x;
    }
  return most;
}

}  // namespace lcs::test
