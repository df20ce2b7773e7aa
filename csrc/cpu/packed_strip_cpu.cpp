#include "packed_strip.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

#include "quantize_grid.h"
#include "scratch.h"

namespace lcs {
namespace {

constexpr int64_t kBehind = 64;                // bytes behind a strip that may be read, too
constexpr int64_t kStripBytes = 2 << 20;       // of the images that are quantised before they are multiplied
constexpr int64_t kPiece = 1 << 14;            // elements of which the largest is looked for
constexpr int64_t kChannels = 16, kRun = 256;  // read at once of NCHW images: channels, and elements of each

QuantizeGrid grid_of(const ActivationRange& range) {
  return quantize_grid({range.low, range.high}, quantize_codes(range.bits, false));
}

// Whether x holds codes that need neither padding nor any other order.
bool lies_ready(const PackedConv2dArgs& a, Panel panel) {
  const Images& x = a.x;
  const NestedLayout& layout = a.weight.layout;
  return a.x_codes && panel == Panel::bytes && !a.depthwise && layout.parts == 1 && layout.joined == 1 &&
         x.channels == layout.segment_steps() * kStepColumns && a.vertical.padding == 0 && a.horizontal.padding == 0 &&
         x.channel_stride == 1 && x.column_stride == x.channels && x.row_stride == x.width * x.channels &&
         x.image_stride == x.height * x.row_stride;
}

// Of x itself, which leaves nothing out.
Walk walk_of(const Axis& axis, bool is_input) {
  Walk walk(axis);
  if (is_input) walk.step = 1, walk.stride = axis.stride;
  return walk;
}

}  // namespace

PackedCodes codes_of(const ActivationRange& range) {
  const QuantizeGrid grid = grid_of(range);
  return {grid.inverse, int(grid.zero), int(grid.lowest), int(grid.highest)};
}

float scale_of(const ActivationRange& range) { return grid_of(range).scale; }

StripGeometry::StripGeometry(const PackedConv2dArgs& args, Panel panel)
    : is_input(lies_ready(args, panel)),
      rows(walk_of(args.vertical, is_input)),
      columns(walk_of(args.horizontal, is_input)),
      groups(args.weight.layout.parts),
      inputs(args.x.channels / groups),
      segment(args.depthwise ? ceil_div(inputs, kStepColumns) * kStepColumns
                             : args.weight.layout.segment_steps() * kStepColumns),
      element(element_bytes(panel)),
      joined(args.weight.layout.joined > 1),
      row_taps(joined ? 1 : columns.kernel),
      stride(joined ? 1 : columns.stride),
      lines(is_input ? args.x.height : rows.length(args.y.height)),
      line(is_input ? args.x.width
           : joined ? args.y.width
                    : columns.length(args.y.width)),
      column(groups * segment),
      row(line * column),
      image(lines * row) {
  images = std::clamp<int64_t>(kStripBytes / std::max<int64_t>(image * element, 1), 1, args.x.n);
  images = ceil_div(args.x.n, ceil_div(args.x.n, images));
}

PackedStrip::PackedStrip(const PackedConv2dArgs& args, const PackedGemm& gemm, Panel panel, const Parallel& parallel)
    : a_(args),
      gemm_(gemm),
      parallel_(parallel),
      panel_(panel),
      run_(packed_conv2d_kernels()),
      copies_(sparse_conv2d_kernels()),
      g_(args, panel) {
  static thread_local Scratch<char> scratch;
  const int64_t sums = this->sums() ? g_.groups * g_.images * g_.lines * g_.line : 0;
  const int64_t bytes = g_.is_input ? 0 : (g_.images * g_.image * g_.element + 63) / 64 * 64;
  const int64_t steps = a_.depthwise ? 0 : a_.weight.layout.steps(), all_sums = ceil_div(sums, 2) * 2;
  data_ = own_ = scratch.reserve(bytes + all_sums * 4 + steps * 8 + a_.x.n * 8 + kBehind);
  sums_ = reinterpret_cast<int32_t*>(own_ + bytes);
  steps_ = reinterpret_cast<int64_t*>(sums_ + all_sums);
  inverse_ = reinterpret_cast<float*>(steps_ + steps);
  scale_ = inverse_ + a_.x.n;
  if (a_.range) codes_ = codes_of(*a_.range);
  if (!a_.depthwise) find_steps();
  find_scales();
}

void PackedStrip::find_steps() {
  int64_t* step = steps_;
  for (int64_t row = 0; row < g_.rows.kernel; ++row)
    for (int64_t tap = 0; tap < g_.row_taps; ++tap) {
      const int64_t at = row * g_.rows.dilation * g_.row + tap * g_.columns.dilation * g_.column;
      for (int64_t c = 0; c < g_.segment; c += kStepColumns) *step++ = g_.element * (at + c);
    }
}

void PackedStrip::fill(int64_t first, int64_t n, bool adds) {
  first_ = first;
  if (g_.is_input) data_ = static_cast<const char*>(a_.x.data) + first * g_.image;
  if (g_.is_input && !adds) return;
  const bool by_row = !g_.is_input && (a_.x.channel_stride == 1 || a_.exact);
  const int64_t at_once = by_row ? 1 : ceil_div(kRun, a_.x.width + 1);
  const int64_t bands = ceil_div(g_.lines, at_once);
  parallel_(n * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / bands, line = i % bands * at_once, last = std::min(line + at_once, g_.lines);
      if (g_.is_input)
        add_up(data_ + image * g_.image + line * g_.row, image, line, last);
      else
        a_.exact ? copy(image, line) : quantize(image, line, last);
    }
  });
}

// Whether the strip leaves out nothing of the images: then quantising it meets every NaN.
bool PackedStrip::reads_all() const {
  const auto all = [](const Walk& walk, int64_t size, int64_t outputs) {
    return walk.step == 1 && walk.last(size) <= walk.length(outputs);
  };
  return all(g_.rows, a_.x.height, a_.y.height) && all(g_.columns, a_.x.width, a_.y.width);
}

// Of every image: how it is quantised, and what half of a unit is worth.
void PackedStrip::find_scales() {
  std::fill_n(inverse_, a_.x.n, codes_.inverse);
  std::fill_n(scale_, a_.x.n, a_.exact || !a_.range ? 0.5f : scale_of(*a_.range) * 0.5f);
  for (int64_t image = 0; a_.spoilt && image < a_.x.n; ++image)
    if (a_.spoilt[image]) scale_[image] = std::numeric_limits<float>::quiet_NaN();
  if (a_.exact || a_.x_codes || a_.spoilt || (a_.range && reads_all())) return;
  const int64_t n = a_.x.channels * a_.x.height * a_.x.width, pieces = ceil_div(n, kPiece);
  std::vector<float> largest(size_t(a_.x.n * pieces));
  parallel_(a_.x.n * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % pieces * kPiece;
      largest[size_t(i)] = gemm_.kernels().largest(advance(a_.x.data, i / pieces * a_.x.image_stride + from, a_.dtype),
                                                   a_.dtype, std::min(kPiece, n - from));
    }
  });
  for (int64_t image = 0; image < a_.x.n; ++image) {
    int32_t most = 0;  // as bits, among which NaN comes last
    for (int64_t i = 0; i < pieces; ++i)
      most = std::max(most, std::bit_cast<int32_t>(largest[size_t(image * pieces + i)]));
    const float found = std::bit_cast<float>(most);
    const Quantization q(found);
    if (!a_.range) inverse_[image] = q.inverse;
    if (!a_.range || std::isnan(found)) scale_[image] = q.half_scale;
  }
}

PackedStrip::Inside PackedStrip::inside(int64_t image, int64_t row) const {
  const int64_t columns = g_.columns.length(a_.y.width), begin = std::min(g_.columns.first(), columns);
  if (row < g_.rows.first() || row >= g_.rows.last(a_.x.height)) return {0, 0, 0};
  const int64_t end = std::clamp(g_.columns.last(a_.x.width), begin, columns);
  const Images& x = a_.x;
  return {begin, end,
          (first_ + image) * x.image_stride + (row * g_.rows.step - g_.rows.padding) * x.row_stride +
              (begin * g_.columns.step - g_.columns.padding) * x.column_stride};
}

PackedStrip::Lines PackedStrip::lines() const {
  if (!g_.joined) return {g_.column, g_.segment, g_.row};
  const int64_t group = g_.columns.length(a_.y.width) * g_.inputs + kStepColumns;  // whole steps are written
  return {g_.inputs, group, g_.groups * group};
}

// Of each column of a row of the strip, and each group: what a row of the kernel reads there.
template <class T>
void PackedStrip::join(const T* from, T* to) const {
  const int64_t n = g_.columns.kernel * g_.inputs;
  for (int64_t group = 0; group < g_.groups; ++group, from += lines().group, to += g_.segment) {
    if (sizeof(T) == 1 && g_.columns.dilation == 1) {
      join_words(reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to));
      continue;
    }
    for (int64_t column = 0; column < g_.line; ++column) {
      const T* const first = from + column * g_.columns.stride * g_.inputs;
      for (int64_t tap = 0; tap < g_.columns.kernel; ++tap)
        std::copy_n(first + tap * g_.columns.dilation * g_.inputs, g_.inputs,
                    to + column * g_.column + tap * g_.inputs);
      std::fill_n(to + column * g_.column + n, g_.segment - n, T{0});
    }
  }
}

namespace {

// Of each column of a row its words, of which the last one is masked. `kWords`: how many there are; 0: any number.
template <int kWords>
void copy_words(const char* from, int64_t from_step, char* to, int64_t to_step, int64_t columns, int64_t words,
                uint64_t mask) {
  const int64_t last = (kWords ? kWords : words) - 1;
  for (int64_t column = 0; column < columns; ++column, from += from_step, to += to_step) {
    for (int64_t i = 0; i < last; ++i) std::memcpy(to + i * kStepColumns, from + i * kStepColumns, kStepColumns);
    uint64_t word;
    std::memcpy(&word, from + last * kStepColumns, kStepColumns);
    word &= mask;
    std::memcpy(to + last * kStepColumns, &word, kStepColumns);
  }
}

}  // namespace

// By whole steps, as what comes behind a line may be read.
void PackedStrip::join_words(const char* from, char* to) const {
  const int64_t words = g_.segment / kStepColumns, last = g_.columns.kernel * g_.inputs - (words - 1) * kStepColumns;
  if (words == 0) return;
  char kept[kStepColumns] = {};
  std::fill_n(kept, last, char(-1));
  constexpr void (*kCopies[])(const char*, int64_t, char*, int64_t, int64_t, int64_t, uint64_t) = {
      copy_words<0>, copy_words<1>, copy_words<2>, copy_words<3>, copy_words<4>};
  kCopies[words < int64_t(std::size(kCopies)) ? words : 0](from, g_.columns.stride * g_.inputs, to, g_.column, g_.line,
                                                           words, std::bit_cast<uint64_t>(kept));
}

// A row of the strip in float32.
void PackedStrip::copy(int64_t image, int64_t row) const {
  static thread_local Scratch<float> scratch;
  float* const strip = reinterpret_cast<float*>(own_) + image * g_.image + row * g_.row;
  const Lines line = lines();
  float* const to = g_.joined ? scratch.reserve(line.row) : strip;
  const Inside in = inside(image, row);
  const Images& x = a_.x;
  std::memset(to, 0, size_t(line.row) * 4);
  for (int64_t group = 0; group < g_.groups && in.begin < in.end; ++group) {
    const void* const from = advance(x.data, in.from + group * g_.inputs * x.channel_stride, a_.dtype);
    float* const first = to + in.begin * line.column + group * line.group;
    const int64_t step = g_.columns.step * x.column_stride, n = in.end - in.begin;
    if (x.channel_stride == 1)
      copies_.load({from, first, step, 1, line.column, n, g_.inputs, a_.dtype, false});
    else
      copies_.load({from, first, x.channel_stride, step, line.column, g_.inputs, n, a_.dtype, true});
  }
  if (g_.joined) join(to, strip);
}

// Rows [begin, end) of the strip in integers, and their sums.
void PackedStrip::quantize(int64_t image, int64_t begin, int64_t end) {
  static thread_local Scratch<int8_t> scratch;
  const bool bytes = panel_ == Panel::bytes;
  const Lines line = lines();
  char* const strip = own_ + (image * g_.image + begin * g_.row) * g_.element;
  const int64_t rows = end - begin, strip_size = bytes ? 0 : rows * g_.row;
  int8_t* const own = scratch.reserve(strip_size + (g_.joined ? rows * line.row : 0));
  int8_t* const codes = bytes ? reinterpret_cast<int8_t*>(strip) : own;
  int8_t* const to = g_.joined ? own + strip_size : codes;
  const int64_t at_once = a_.x.channel_stride == 1 ? g_.inputs : kChannels;
  for (int64_t group = 0; group < g_.groups; ++group)
    for (int64_t c = 0; c < g_.inputs; c += at_once)
      for (int64_t row = begin; row < end; ++row)
        quantize_row(image, row, group * g_.inputs + c, std::min(at_once, g_.inputs - c),
                     to + (row - begin) * line.row + group * line.group + c);
  for (int64_t row = begin; row < end; ++row) {
    int8_t* const at = to + (row - begin) * line.row;
    pad(inside(image, row), at);
    if (g_.joined) join(at, codes + (row - begin) * g_.row);
  }
  if (sums()) add_up(reinterpret_cast<const char*>(codes), image, begin, end);
  if (!bytes) gemm_.kernels().widen(codes, rows * g_.row, reinterpret_cast<int16_t*>(strip));
}

// What rows [begin, end) sum to.
void PackedStrip::add_up(const char* codes, int64_t image, int64_t begin, int64_t end) const {
  const int64_t rows = end - begin;
  for (int64_t group = 0; group < g_.groups; ++group) {
    int32_t* const sums = sums_ + ((group * g_.images + image) * g_.lines + begin) * g_.line;
    run_.sums(reinterpret_cast<const int8_t*>(codes) + group * g_.segment, g_.column, g_.segment, rows * g_.line, sums);
    for (int64_t row = 0; row < rows && g_.row_taps > 1; ++row) add_taps(sums + row * g_.line);
  }
}

// Of the columns of a row, each at which a window may begin: the sums of all that a row of the kernel reads there.
void PackedStrip::add_taps(int32_t* sums) const {
  static thread_local Scratch<int32_t> scratch;
  int32_t* const own = scratch.reserve(g_.line);
  std::copy_n(sums, g_.line, own);
  const int64_t n = g_.line - (g_.row_taps - 1) * g_.columns.dilation;
  for (int64_t tap = 1; tap < g_.row_taps; ++tap) {
    const int32_t* const from = own + tap * g_.columns.dilation;
    for (int64_t c = 0; c < n; ++c) sums[c] += from[c];
  }
}

// The columns of a row outside the image hold the code of 0 in every channel.
void PackedStrip::pad(const Inside& in, int8_t* to) const {
  const Lines line = lines();
  const int64_t columns = g_.columns.length(a_.y.width);
  for (int64_t group = 0; group < g_.groups; ++group, to += line.group) {
    if (g_.groups > 1 || g_.inputs < g_.segment) {
      for (int64_t column = 0; column < columns; ++column) {
        if (column == in.begin) column = in.end;
        if (column == columns) break;
        std::memset(to + column * line.column, codes_.zero, size_t(g_.inputs));
        if (!g_.joined) std::memset(to + column * line.column + g_.inputs, 0, size_t(g_.segment - g_.inputs));
      }
    } else {
      std::memset(to, codes_.zero, size_t(in.begin * line.column));
      std::memset(to + in.end * line.column, codes_.zero, size_t((columns - in.end) * line.column));
    }
  }
}

// What of a row lies inside the image, of some channels.
void PackedStrip::quantize_row(int64_t image, int64_t row, int64_t channel, int64_t channels, int8_t* to) {
  const Inside in = inside(image, row);
  if (in.begin == in.end) return;
  const Images& x = a_.x;
  const int64_t step = g_.columns.step * x.column_stride, column = lines().column, n = in.end - in.begin;
  const bool dense = x.channel_stride == 1 && step == channels && column == channels;  // as a single pixel
  to += in.begin * column;
  if (a_.x_codes) {  // all of a group's channels
    const int8_t* from = static_cast<const int8_t*>(x.data) + in.from + channel;
    if (dense) {
      std::memcpy(to, from, size_t(n * channels));
      return;
    }
    for (int64_t i = 0; i < n; ++i, from += step, to += column) {
      std::memcpy(to, from, size_t(channels));
      if (!g_.joined) std::memset(to + channels, 0, size_t(g_.segment - channels));
    }
    return;
  }
  PackedCodes codes = codes_;
  codes.inverse = inverse_[first_ + image];
  if (run_.quantize({advance(x.data, in.from + channel * x.channel_stride, a_.dtype), a_.dtype, x.channel_stride, step,
                     dense ? 1 : n, dense ? n * channels : channels, to, column, codes}))
    std::atomic_ref(scale_[first_ + image]).store(std::numeric_limits<float>::quiet_NaN(), std::memory_order_relaxed);
}

}  // namespace lcs
