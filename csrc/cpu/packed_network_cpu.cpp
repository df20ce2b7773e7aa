#include "lcs/packed_network.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "lcs/max_pool.h"
#include "lcs/parallel_region.h"
#include "max_pool_kernels.h"
#include "packed_network_kernels.h"
#include "packed_pool.h"
#include "packed_strip.h"
#include "scratch.h"
#include "second_level.h"
#include "tasks.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kImages = 8;             // that a thread takes through all steps
constexpr int64_t kStageShare = 2;         // second-level caches that a step's inputs and results may fill
constexpr int64_t kBandBytes = 512 << 10;  // of the results that are pooled as they are made
constexpr int64_t kBands = 8;              // enough to keep the threads even
constexpr int64_t kPiece = 1 << 14;        // elements that are looked through for NaN at once
constexpr int64_t kLine = 64;              // bytes
constexpr int64_t kMeans = 64;             // channels that are summed at once
constexpr int64_t kDenseRows = 40;         // of a weight
constexpr float kMaxScale = 0x1p50f, kMaxRangeScale = 0x1p30f, kMaxBias = 0x1p100f;  // whose results are finite

Images channels_last(void* data, int64_t n, const Images& shape) {
  const int64_t c = shape.channels, h = shape.height, w = shape.width;
  return {data, n, c, h, w, c * h * w, 1, w * c, c};
}

using Kind = PackedNetworkKind;

bool same(const ActivationRange& a, const ActivationRange& b) {
  return a.low == b.low && a.high == b.high && a.bits == b.bits;
}

// Whether what a convolution makes of an image's codes is finite.
bool makes_finite(const PackedConv2dArgs& a) {
  const auto within = [](const float* x, int64_t n, float most) {
    return std::all_of(x, x + n, [most](float each) { return std::abs(each) <= most; });
  };
  return within(a.weight.scales, a.weight.per_row ? a.y.channels : 1, kMaxScale) &&
         scale_of(*a.range) <= kMaxRangeScale && (!a.bias || within(a.bias, a.y.channels, kMaxBias));
}

class PackedNetwork {
 public:
  PackedNetwork(const PackedNetworkArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        run_(max_pool_kernels()),
        floats_(best(scalar::packed_network_kernels, avx2::packed_network_kernels, avx2::packed_network_kernels)),
        convs_(packed_conv2d_kernels()),
        values_(size_t(args.count + 1)),
        banded_(size_t(args.count)) {}

  void run() {
    // Images go their way alone, each in one thread, where that keeps the threads even.
    const int64_t n = a_.x.n, threads = a_.threads, each = ceil_div(n, threads);
    const bool alone = n >= threads && 5 * n >= 4 * each * threads;
    images_ = alone ? ceil_div(each, ceil_div(each, kImages)) : std::min(n, kImages);
    plan(kStageShare * second_level() * (alone ? 1 : threads));
    const auto all = [&](int64_t begin, int64_t end, const Parallel& parallel) {
      for (int64_t i = begin; i < end; i += images_) run_images(i, std::min(images_, end - i), parallel);
    };
    if (!alone) return all(0, n, parallel_);
    parallel_(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) all(n * i / threads, n * (i + 1) / threads, serial);
    });
  }

 private:
  struct Value {
    int64_t readers = 0, made = -1, read = -1;  // by which step, and by which one last: if by none, that which makes it
    int64_t offset = 0, bytes = 0;              // in the scratch memory
    bool known = false;                         // whether its images hold NaN just where what it is made of does
    const ActivationRange* twin = nullptr;      // of codes that are made beside it, for the steps that read these
    bool floats = true;                         // whether others read it
  };

  // Steps up to `end`, which run on so many images at once. Those before a stage have run on them by then, in as many
  // turns as they need.
  struct Stage {
    int64_t end, images;
  };

  bool codes(int64_t value) const { return value > 0 && a_.steps[value - 1].conv.y_range; }
  int64_t element(int64_t value) const { return codes(value) ? 1 : 4; }
  const Images& shape(int64_t value) const { return value == 0 ? a_.x : a_.steps[value - 1].conv.y; }
  int64_t size(int64_t value) const {
    const Images& y = shape(value);
    return y.channels * y.height * y.width;
  }
  const Stage& stage_of(int64_t step) const {
    return *std::find_if(stages_.begin(), stages_.end(), [step](const Stage& stage) { return step < stage.end; });
  }
  int64_t images_of(int64_t value) const {  // that are there at once: those of the stage that reads it last
    return stage_of(values_[size_t(value)].read).images;
  }
  bool takes_codes(int64_t i) const { return a_.steps[i].kind == Kind::convolution && !banded_[size_t(i)]; }
  // Whether step i reads codes that were made beside its input.
  bool reads_twin(int64_t i) const {
    const ActivationRange* const twin = values_[size_t(a_.steps[i].input)].twin;
    return twin && takes_codes(i) && same(*twin, *a_.steps[i].conv.range);
  }

  // Which convolutions are pooled as they are made, and where each value lies while it is needed.
  void plan(int64_t room) {
    for (int64_t v = 1; v <= a_.count; ++v) values_[size_t(v)].read = v - 1;
    for (int64_t i = 0; i < a_.count; ++i)
      for (const int value : {a_.steps[i].input, a_.steps[i].residual})
        if (value >= 0) ++values_[size_t(value)].readers, values_[size_t(value)].read = i;
    for (int64_t i = 0; i + 1 < a_.count; ++i) {
      const PackedNetworkStep &step = a_.steps[i], &next = a_.steps[i + 1];
      banded_[size_t(i)] = step.kind == Kind::convolution && step.residual < 0 && !step.conv.y_range &&
                           next.kind == Kind::max_pool && next.input == i + 1 && values_[size_t(i + 1)].readers == 1 &&
                           !codes(step.input);
    }
    find_twins();
    choose_stages(room);
    for (int64_t v = 1; v < a_.count; ++v)
      if (!banded_[size_t(v - 1)]) place(v);
  }

  // Large images few at once, so that they stay in the second-level cache; small ones many, for which weights are
  // unpacked once.
  void choose_stages(int64_t room) {
    int64_t most = images_;
    stages_.push_back({a_.count, most});
    for (int64_t i = a_.count - 1; i >= 0; --i) {
      if (banded_[size_t(i)]) continue;
      const PackedNetworkStep& step = a_.steps[i];
      const int input = i > 0 && banded_[size_t(i - 1)] ? a_.steps[i - 1].input : step.input;
      int64_t bytes = size(i + 1) * element(i + 1) + size(input) * element(input);
      if (step.residual >= 0) bytes += size(step.residual) * 4;
      const auto fit = std::bit_floor(uint64_t(std::max<int64_t>(room / std::max<int64_t>(bytes, 1), 1)));
      most = std::min(most, int64_t(fit));
      if (stages_.back().images != most) stages_.push_back({i + 1, most});
    }
    std::reverse(stages_.begin(), stages_.end());
  }

  bool pooled_as_made(int64_t v) const { return v > 1 && banded_[size_t(v - 2)]; }

  // As finite values make no NaN, and a convolution of an image that holds any, nothing else.
  bool knows(int64_t v) const {
    const PackedNetworkStep& step = a_.steps[v - 1];
    if (codes(v)) return true;
    if (!values_[size_t(step.input)].known) return false;
    return pooled_as_made(v) || (step.kind == Kind::convolution && makes_finite(step.conv) &&
                                 (step.residual < 0 || values_[size_t(step.residual)].known));
  }

  // Codes for all steps that would make the same ones of a convolution's float32 value, or of one that is pooled as it
  // is made. Of known values alone, as codes do not tell of NaN.
  void find_twins() {
    values_[0].known = true;
    for (int64_t v = 1; v <= a_.count; ++v) values_[size_t(v)].known = knows(v);
    for (int64_t i = 0; i < a_.count; ++i) {
      const int64_t v = a_.steps[i].input;
      if (takes_codes(i) && v > 0 && !codes(v) && values_[size_t(v)].known && !values_[size_t(v)].twin)
        values_[size_t(v)].twin = a_.steps[i].conv.range, twins_ = true;
    }
    for (Value& value : values_) value.floats = !value.twin;
    for (int64_t i = 0; i < a_.count; ++i) {
      const PackedNetworkStep& step = a_.steps[i];
      if (!reads_twin(i)) values_[size_t(step.input)].floats = true;
      if (step.residual >= 0) values_[size_t(step.residual)].floats = true;
    }
  }

  int64_t float_bytes(int64_t v) const {
    return values_[size_t(v)].floats ? ceil_div(images_of(v) * size(v) * element(v), kLine) * kLine : 0;
  }

  void place(int64_t v) {
    Value& value = values_[size_t(v)];
    const bool crosses = images_of(v) != stage_of(v - 1).images;  // steps before it run again while it is kept
    value.made = crosses ? 0 : v - 1 - pooled_as_made(v);
    value.bytes = float_bytes(v) + (value.twin ? ceil_div(images_of(v) * size(v), kLine) * kLine : 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (int64_t u = 1; u < v; ++u) {
        const Value& other = values_[size_t(u)];
        if (other.bytes && other.read >= value.made && other.offset < value.offset + value.bytes &&
            value.offset < other.offset + other.bytes)
          value.offset = other.offset + other.bytes, moved = true;
      }
    }
    bytes_ = std::max(bytes_, value.offset + value.bytes);
  }

  // Images of a group on their way through the steps: n of them from `at` on, of those from `first` on.
  struct Group {
    int64_t first, at, n;
    char* memory;
    bool* spoilt;  // of each value that is known, which images hold NaN; null: nobody asks
    const Parallel& parallel;
  };

  Images floats_of(const Group& g, int64_t value) const {
    if (value == 0) {
      Images x = a_.x;
      x.data = static_cast<float*>(x.data) + (g.first + g.at) * x.image_stride;
      x.n = g.n;
      return x;
    }
    if (value == a_.count)
      return channels_last(static_cast<float*>(a_.y.data) + (g.first + g.at) * a_.y.image_stride, g.n, a_.y);
    const int64_t at = g.at % images_of(value) * size(value) * element(value);
    return channels_last(g.memory + values_[size_t(value)].offset + at, g.n, shape(value));
  }
  int8_t* codes_of(const Group& g, int64_t value) const {
    char* const codes = g.memory + values_[size_t(value)].offset + float_bytes(value);
    return reinterpret_cast<int8_t*>(codes) + g.at % images_of(value) * size(value);
  }
  // Null: it is not known.
  bool* spoilt_of(const Group& g, int64_t value) const {
    return g.spoilt && values_[size_t(value)].known ? g.spoilt + value * images_ + g.at : nullptr;
  }

  void run_images(int64_t first, int64_t n, const Parallel& parallel) const {
    static thread_local Scratch<char> scratch;
    char* const memory = scratch.reserve(bytes_ + (a_.count + 1) * images_);
    const Group group{first, 0, n, memory, twins_ ? reinterpret_cast<bool*>(memory + bytes_) : nullptr, parallel};
    if (twins_) find_nan(floats_of(group, 0), group.spoilt, parallel);
    run_stage(group, stages_.size() - 1);
  }

  void run_stage(const Group& whole, size_t stage) const {
    for (int64_t at = 0; stage > 0 && at < whole.n; at += stages_[stage - 1].images) {
      Group part = whole;
      part.at += at;
      part.n = std::min(stages_[stage - 1].images, whole.n - at);
      run_stage(part, stage - 1);
    }
    run_steps(whole, stage > 0 ? stages_[stage - 1].end : 0, stages_[stage].end);
  }

  void run_steps(const Group& group, int64_t begin, int64_t end) const {
    const Parallel& parallel = group.parallel;
    for (int64_t i = begin; i < end; ++i) {
      const PackedNetworkStep& step = a_.steps[i];
      spread_nan(group, i);
      if (banded_[size_t(i)]) {
        spread_nan(group, i + 1);
        convolve_and_pool(group, i);
        ++i;
      } else if (step.kind == Kind::convolution) {
        convolve(group, i);
      } else if (step.kind == Kind::max_pool) {
        max_pool(pooling(step, floats_of(group, step.input), floats_of(group, i + 1)), parallel);
      } else if (step.kind == Kind::mean) {
        mean(step, floats_of(group, step.input), floats_of(group, i + 1), parallel);
      } else {
        multiply(step, floats_of(group, step.input), floats_of(group, i + 1), parallel);
      }
    }
  }

  // To what a step makes; codes are never NaN.
  void spread_nan(const Group& g, int64_t i) const {
    const PackedNetworkStep& step = a_.steps[i];
    bool* const to = spoilt_of(g, i + 1);
    for (int64_t image = 0; to && image < g.n; ++image)
      to[image] = !codes(i + 1) &&
                  (spoilt_of(g, step.input)[image] || (step.residual >= 0 && spoilt_of(g, step.residual)[image]));
  }

  void convolve(const Group& g, int64_t i) const {
    const PackedNetworkStep& step = a_.steps[i];
    PackedConv2dArgs conv = step.conv;
    conv.x = floats_of(g, step.input);
    conv.y = floats_of(g, i + 1);
    const bool twin = reads_twin(i);
    conv.x_codes = codes(step.input) || twin;
    if (twin) conv.x.data = codes_of(g, step.input);
    if (step.residual >= 0) conv.residual = floats_of(g, step.residual).data;
    conv.spoilt = spoilt_of(g, step.input);
    if (const Value& made = values_[size_t(i + 1)]; made.twin) {
      conv.y_range = made.twin;
      (made.floats ? conv.y_codes : reinterpret_cast<int8_t*&>(conv.y.data)) = codes_of(g, i + 1);
    }
    packed_conv2d(conv, g.parallel);
  }

  static MaxPoolArgs pooling(const PackedNetworkStep& step, const Images& x, const Images& y) {
    return {x, y, step.conv.vertical, step.conv.horizontal, DType::float32};
  }

  void mean(const PackedNetworkStep& step, const Images& x, const Images& y, const Parallel& parallel) const {
    const int64_t positions = x.height * x.width, parts = ceil_div(x.channels, kMeans);
    parallel(x.n * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / parts, c = i % parts * kMeans, channels = std::min(kMeans, x.channels - c);
        float* const to = static_cast<float*>(y.data) + image * y.image_stride + c;
        const float* const from = static_cast<const float*>(x.data) + image * x.image_stride + c;
        const float* const scale = step.scale ? step.scale + c : nullptr;
        const float* const shift = scale ? step.conv.bias + c : nullptr;
        floats_.sums({from, x.column_stride, positions, channels, to, scale, shift, step.conv.relu});
        for (int64_t k = 0; k < channels; ++k) to[k] /= float(positions);
      }
    });
  }

  void multiply(const PackedNetworkStep& step, const Images& x, const Images& y, const Parallel& parallel) const {
    const int64_t rows = y.channels, columns = x.channels;
    parallel(ceil_div(rows, kDenseRows), 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kDenseRows, n = std::min(end * kDenseRows, rows) - first;
      floats_.dense({step.dense + first * columns, n, columns, static_cast<const float*>(x.data), x.n,
                     step.conv.bias ? step.conv.bias + first : nullptr, step.conv.relu,
                     static_cast<float*>(y.data) + first, y.image_stride});
    });
  }

  // How a convolution's results are pooled.
  struct Pooling {
    MaxPoolArgs args;
    bool largest;  // of its sums, before they are finished
    int64_t row;   // of them or of its results: elements of a row
  };

  Pooling pooling_of(int64_t i, const Images& y) const {
    const PackedNetworkStep &step = a_.steps[i], &next = a_.steps[i + 1];
    Pooling pooling{this->pooling(next, channels_last(nullptr, 1, step.conv.y), y), false, 0};
    pooling.args.numbers = values_[size_t(i + 1)].known;  // then all of an image is NaN, or nothing
    pooling.largest = packed_pool_fits(step.conv, pooling.args);
    pooling.row = pooling.largest ? packed_pool_row_size(step.conv) : pooling.args.x.row_stride;
    return pooling;
  }

  // Rows of the convolution stay in the second-level cache until they have been pooled.
  void convolve_and_pool(const Group& g, int64_t i) const {
    const PackedNetworkStep& step = a_.steps[i];
    const Images &made = step.conv.y, x = floats_of(g, step.input), y = floats_of(g, i + 2);
    const Pooling pooling = pooling_of(i, y);
    const int64_t needed = ceil_div(made.height * pooling.row * 4, kBandBytes);
    const int64_t bands = std::min(ceil_div(needed, kBands) * kBands, y.height);
    bool* spoilt = spoilt_of(g, step.input);
    std::vector<char> own(size_t(spoilt ? 0 : x.n));
    if (!spoilt) find_nan(x, spoilt = reinterpret_cast<bool*>(own.data()), g.parallel);
    share_tasks<Rows>(g.parallel, x.n * bands, [&](int64_t task, Rows& rows) {
      const int64_t image = task / bands, band = task % bands;
      const Band part{image, y.height * band / bands, y.height * (band + 1) / bands};
      const char* const from = convolve_band(step, pooling, x, spoilt + image, part, bands, rows);
      pooling.largest ? finish_band(g, i, pooling, part, spoilt[image], reinterpret_cast<const int32_t*>(from))
                      : pool_band(g, i, pooling.args, part, reinterpret_cast<const float*>(from));
    });
  }

  // Rows [begin, end) of a pooled image.
  struct Band {
    int64_t image, begin, end;
  };
  // Rows [begin, end) of a convolution's image, that a thread has made.
  struct Rows {
    int64_t image = -1, begin = 0, end = 0;
  };

  // Those of the convolution that a band reads, of which the band before has left some; from the first one on.
  const char* convolve_band(const PackedNetworkStep& step, const Pooling& pooling, const Images& x, const bool* spoilt,
                            const Band& band, int64_t bands, Rows& made) const {
    static thread_local Scratch<char> scratch;
    const Axis &conv = step.conv.vertical, &pool = pooling.args.vertical;
    const int64_t row_bytes = pooling.row * 4, first = pooled_rows(pooling.args, band.begin).begin,
                  last = pooled_rows(pooling.args, band.end - 1).end;
    char* const rows =
        scratch.reserve((ceil_div(pooling.args.y.height, bands) * pool.stride + pool.kernel) * row_bytes);
    const bool follows = made.image == band.image && made.begin <= first && first < made.end && made.end <= last;
    const int64_t from = follows ? made.end : first;
    if (follows && first > made.begin)
      std::memmove(rows, rows + (first - made.begin) * row_bytes, size_t((from - first) * row_bytes));
    made = {band.image, first, last};
    const int64_t line = from * conv.stride - conv.padding, row = std::max<int64_t>(line, 0);
    PackedConv2dArgs part = step.conv;
    part.spoilt = spoilt;
    part.vertical.padding = row - line;
    part.x = x;
    part.x.n = 1;
    part.x.height = std::max<int64_t>(x.height - row, 0);
    part.x.data = static_cast<float*>(x.data) + band.image * x.image_stride + row * x.row_stride;
    part.y.height = last - from;
    char* const to = rows + (from - first) * row_bytes;
    part.y = channels_last(to, 1, part.y);
    if (pooling.largest) part.winograd = 0, part.largest = reinterpret_cast<int32_t*>(to);
    packed_conv2d(part, serial);
    return rows;
  }

  // By the largest of sums, of which `rows` holds those that the band reads.
  void finish_band(const Group& g, int64_t i, const Pooling& pooling, const Band& band, bool spoilt,
                   const int32_t* rows) const {
    const int64_t first = pooled_rows(pooling.args, band.begin).begin;
    const Images& y = pooling.args.y;
    const Value& made = values_[size_t(i + 2)];
    const PackedPool finished(a_.steps[i].conv, spoilt);
    PackedPoolRow row{{}, 0, nullptr, nullptr, {}};
    if (made.twin) row.grid = lcs::codes_of(*made.twin);
    for (int64_t r = band.begin; r < band.end; ++r) {
      const PooledRows read = pooled_rows(pooling.args, r);
      const int64_t at = band.image * y.image_stride + r * y.row_stride;
      row.count = int(read.end - read.begin);
      for (int k = 0; k < row.count; ++k) row.rows[k] = rows + (read.begin + k - first) * pooling.row;
      if (made.floats) row.y = static_cast<float*>(y.data) + at;
      if (made.twin) row.codes = codes_of(g, i + 2) + at;
      finished.finish(row);
    }
  }

  void pool_band(const Group& g, int64_t i, const MaxPoolArgs& pooled, const Band& band, const float* rows) const {
    static thread_local Scratch<float> scratch;
    static thread_local Scratch<int8_t> code_scratch;
    const Images& y = pooled.y;
    const Value& made = values_[size_t(i + 2)];
    const PackedCodes codes = made.twin ? lcs::codes_of(*made.twin) : PackedCodes{};
    // Whole steps are written, of which the last may reach into the row of another thread.
    int8_t* const own = y.row_stride % kStepColumns ? code_scratch.reserve(y.row_stride + kStepColumns) : nullptr;
    for (int64_t r = band.begin; r < band.end; ++r) {
      const int64_t at = band.image * y.image_stride + r * y.row_stride;
      float* const to = made.floats ? static_cast<float*>(y.data) + at : scratch.reserve(y.row_stride);
      max_pool_row(pooled, r, rows, pooled_rows(pooled, band.begin).begin, to);
      if (!made.twin) continue;
      int8_t* const row = codes_of(g, i + 2) + at;
      convs_.quantize({to, DType::float32, 1, y.row_stride, 1, y.row_stride, own ? own : row, y.row_stride, codes});
      if (own) std::copy_n(own, y.row_stride, row);
    }
  }

  void find_nan(const Images& x, bool* spoilt, const Parallel& parallel) const {
    const int64_t n = x.channels * x.height * x.width, pieces = ceil_div(n, kPiece);
    std::fill_n(spoilt, x.n, false);
    parallel(x.n * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / pieces, from = i % pieces * kPiece;
        const float* const at = static_cast<const float*>(x.data) + image * x.image_stride + from;
        if (run_.nan(at, std::min(kPiece, n - from)))
          std::atomic_ref(spoilt[image]).store(true, std::memory_order_relaxed);
      }
    });
  }

  const PackedNetworkArgs& a_;
  const Parallel& parallel_;
  const MaxPoolKernels run_;
  const PackedNetworkKernels floats_;
  const PackedConv2dKernels convs_;
  std::vector<Value> values_;
  std::vector<bool> banded_;
  std::vector<Stage> stages_;
  int64_t images_ = 1, bytes_ = 0;
  bool twins_ = false;  // whether there are codes beside values
};

}  // namespace

void packed_network(const PackedNetworkArgs& args, const Parallel& parallel) {
  if (args.x.n == 0) return;
  parallel_region(parallel, [&](const Parallel& loops) { PackedNetwork(args, loops).run(); });
}

}  // namespace lcs
