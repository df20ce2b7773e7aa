#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "lcs/ceil_div.h"
#include "lcs/images.h"

namespace lcs {

// Pieces of a length, none longer than `most`, that are as long as each other but for the last: how long.
inline int64_t piece_of(int64_t length, int64_t most) { return ceil_div(length, ceil_div(length, most)); }

// Floats to an odd number of cache lines, so that neighbours fall on other sets.
inline int64_t odd_lines(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

// An axis of a convolution as kernels on padded copies (strips) walk it: strip coordinate s is input coordinate
// s * step - padding, and output o and tap k meet at o * stride + k * dilation. A single tap leaves out what lies
// between its strides.
struct Walk {
  int64_t step, stride, dilation, padding, kernel;

  explicit Walk(const Axis& a)
      : step(a.kernel == 1 ? a.stride : 1),
        stride(a.kernel == 1 ? 1 : a.stride),
        dilation(a.dilation),
        padding(a.padding),
        kernel(a.kernel) {}

  int64_t length(int64_t outputs) const { return (outputs - 1) * stride + (kernel - 1) * dilation + 1; }
  int64_t first() const { return ceil_div(padding, step); }  // coordinate inside the input, and the one past its last
  int64_t last(int64_t size) const { return ceil_div(size + padding, step); }
};

// Outputs [begin, end) of an axis, which its taps [first, last) reach inside the input, and no other.
struct TapRun {
  int64_t begin, end, first, last;
};

inline std::vector<TapRun> tap_runs(const Walk& axis, int64_t size, int64_t outputs) {
  std::vector<TapRun> runs;
  runs.reserve(4);  // mostly of the beginning, the middle and the end
  const int64_t whole = axis.last(size) - 1 - (axis.kernel - 1) * axis.dilation;  // of the last with every tap inside
  for (int64_t i = 0; i < outputs;) {
    const auto tap_at = [&](int64_t coordinate) {
      return std::clamp<int64_t>(ceil_div(coordinate - i * axis.stride, axis.dilation), 0, axis.kernel);
    };
    const int64_t first = tap_at(axis.first()), last = tap_at(axis.last(size)), begin = i++;
    if (first == 0 && last == axis.kernel) i = std::clamp(whole / axis.stride + 1, i, outputs);
    if (!runs.empty() && runs.back().first == first && runs.back().last == last)
      runs.back().end = i;
    else
      runs.push_back({begin, i, first, last});
  }
  return runs;
}

// What Winograd's products of 3 x 3 taps take.
inline bool is_plain(const Axis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; }

// Pairs of an output and a tap that meet inside the input, along an axis of stride 1 that is not dilated.
inline int64_t taps_inside(const Axis& axis, int64_t size, int64_t outputs) {
  int64_t n = 0;
  for (int64_t tap = 0; tap < axis.kernel; ++tap)
    n += std::max<int64_t>(std::min(outputs, size + axis.padding - tap) - std::max<int64_t>(axis.padding - tap, 0), 0);
  return n;
}

// Where the taps of one axis find their input once it is split by its remainders modulo the stride ("phases"), so that
// neighbours in the output read neighbours. Phase p holds the padded coordinates p, p + stride, ...
struct Phases {
  std::vector<int64_t> used;           // remainders that some tap reads
  std::vector<int64_t> phase, offset;  // of each tap: place in `used`, and distance in that phase
  int64_t reach = 0;                   // the largest offset

  explicit Phases(const Axis& axis);
};

// The coordinates o in [from, from + n) of phase `remainder` that fall on the input, o * stride + remainder - padding
// in [0, size).
struct Inside {
  int64_t begin, end, first;  // first: the input coordinate of `begin`

  Inside(const Axis& axis, int64_t remainder, int64_t size, int64_t from, int64_t n);
};

inline Phases::Phases(const Axis& axis) {
  for (int64_t k = 0; k < axis.kernel; ++k) {
    const int64_t at = k * axis.dilation, remainder = at % axis.stride;
    const auto found = std::find(used.begin(), used.end(), remainder);
    phase.push_back(found - used.begin());
    if (found == used.end()) used.push_back(remainder);
    offset.push_back(at / axis.stride);
    reach = std::max(reach, offset.back());
  }
}

inline Inside::Inside(const Axis& axis, int64_t remainder, int64_t size, int64_t from, int64_t n) {
  const int64_t shift = axis.padding - remainder;  // input = o * stride - shift
  begin = std::clamp(shift <= 0 ? int64_t{0} : ceil_div(shift, axis.stride), from, from + n);
  end = std::clamp(size + shift <= 0 ? int64_t{0} : ceil_div(size + shift, axis.stride), begin, from + n);
  first = begin * axis.stride - shift;
}

}  // namespace lcs
