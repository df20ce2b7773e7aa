#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "binding.h"
#include "lcs/images.h"

// What the convolutions' bindings share: memory formats and geometry, checked.
namespace lcs::binding {

inline bool is_channels_last(const Tensor& x) {
  const int64_t c = x.size(1), h = x.size(2), w = x.size(3);
  const auto stride = x.strides();
  return (c == 1 || stride[1] == 1) && (w == 1 || stride[3] == c) && (h == 1 || stride[2] == w * c) &&
         (x.size(0) == 1 || stride[0] == h * w * c);
}

// Whether x, which is not contiguous as NCHW, is as channels last.
inline bool wants_channels_last(const Tensor& x) { return !x.is_contiguous() && is_channels_last(x); }

inline Tensor empty_images(const std::vector<int64_t>& size, ScalarType type, bool last) {
  const auto [c, h, w] =
      std::array{std::max<int64_t>(size[1], 1), std::max<int64_t>(size[2], 1), std::max<int64_t>(size[3], 1)};
  const int64_t nchw[] = {c * h * w, h * w, w, 1}, channels_last[] = {c * h * w, 1, w * c, c};
  return empty_strided(size, {last ? channels_last : nchw, 4}, int32_t(type));
}

inline Images images(const std::vector<int64_t>& size, void* data, bool last) {
  const int64_t n = size[0], c = size[1], h = size[2], w = size[3];
  if (last) return {data, n, c, h, w, c * h * w, 1, w * c, c};
  return {data, n, c, h, w, c * h * w, h * w, w, 1};
}
inline Images images(const Tensor& t, void* data, bool last) {
  return images({t.size(0), t.size(1), t.size(2), t.size(3)}, data, last);
}

// Whether t, on the CPU, is of such a size and type, and compact, channels last or NCHW.
inline bool lies_as(const Tensor& t, const std::vector<int64_t>& size, ScalarType type, bool last) {
  return has_shape(t, size) && t.is_cpu() && t.scalar_type() == type &&
         (t.numel() == 0 || (last ? is_channels_last(t) : t.is_contiguous()));
}

// Of a residual of `type` that lies as y does, channels last or NCHW; null where there is none.
inline const void* residual_data(const char* op, const std::optional<Tensor>& residual, const Tensor& y,
                                 ScalarType type, bool last) {
  if (!residual) return nullptr;
  STD_TORCH_CHECK(lies_as(*residual, sizes_of(y), type, last), op,
                  ": residual must be laid out as the result, of shape ", shape_of(y), ", got ", shape_of(*residual));
  return residual->const_data_ptr();
}

inline Axis axis(const char* op, const Axis& given) {
  constexpr int64_t kMost = INT32_MAX;  // so that no coordinate overflows; products of two may, see check_padded
  const auto [stride, padding, dilation, kernel] = given;
  STD_TORCH_CHECK(kernel >= 1 && kernel <= kMost, op, ": a kernel of ", kernel, " is out of range");
  STD_TORCH_CHECK(stride >= 1 && padding >= 0 && dilation >= 1 && std::max({stride, padding, dilation}) <= kMost, op,
                  ": stride ", stride, ", padding ", padding, " or dilation ", dilation, " is out of range");
  return given;
}

inline Axis axis(const char* op, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                 const std::vector<int64_t>& dilation, int64_t kernel, size_t d) {
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                  ": stride, padding and dilation must hold 2 numbers each");
  return axis(op, {stride[d], padding[d], dilation[d], kernel});
}

inline int64_t output_size(const char* op, const Axis& a, int64_t size) {
  const int64_t left = size + 2 * a.padding - a.dilation * (a.kernel - 1) - 1;
  STD_TORCH_CHECK(left >= 0, op, ": the kernel of ", a.kernel, " does not fit the padded input of ",
                  size + 2 * a.padding);
  return lcs::output_size(a, size);
}

// How much of the padded input `outputs` read; a single tap leaves out what lies between its strides.
inline int64_t padded_size(const Axis& a, int64_t outputs) {
  return a.kernel == 1 ? outputs : (outputs - 1) * a.stride + a.dilation * (a.kernel - 1) + 1;
}

// Of a kernel that copies an image with its padding, `values` of each position: at most 2^bits, so that no size of the
// copy overflows.
inline void check_padded(const char* op, int64_t rows, int64_t columns, int64_t values, int bits) {
  STD_TORCH_CHECK(double(rows) * double(columns) * double(values) <= std::ldexp(1.0, bits), op,
                  ": an image of x with its padding would be ", rows, " x ", columns, " positions of ", values,
                  " values, more than 2^", bits, "; take a smaller padding, stride or dilation");
}

}  // namespace lcs::binding
