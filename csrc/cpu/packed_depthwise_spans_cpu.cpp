#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "lcs/isa.h"
#include "packed_depthwise.h"
#include "packed_depthwise_kernels.h"
#include "packed_gemm.h"
#include "packed_result.h"
#include "packed_strip.h"
#include "scratch.h"
#include "tasks.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr int64_t kTasks = 16;             // enough to keep the threads even
constexpr int64_t kLeastPositions = 64;    // of a task, where channels can be shared out, too
constexpr int64_t kMostPhases = 16;        // where spans are of several positions: more would have too few spans each
constexpr int64_t kCacheBytes = 24 << 10;  // half of the first-level cache

int64_t spans_until_repeated(int64_t channels) { return channels / std::gcd(channels, int64_t{kSpan}); }

// The input becomes a strip, all channels next to each other, and spans of outputs meet their taps. At stride 1 what a
// tap reads for the next position follows what it reads for this one: there a row's outputs are cut into spans whatever
// position they are of, and every so many spans the same channels come again. Else a span is of one position. Spans of
// the same channels, a phase, share a weight.
class DepthwiseSpans {
 public:
  DepthwiseSpans(const PackedConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        gemm_(args.weight, args.bits, nullptr, false, false),
        strip_(args, gemm_, Panel::bytes, parallel),
        g_(strip_.geometry()),
        result_(args, true),
        channels_(args.y.channels),
        flows_((channels_ < kSpan || result_.direct()) && g_.columns.stride == 1 && g_.column == channels_ &&
               channels_ % kSpan && spans_until_repeated(channels_) <= kMostPhases),
        parts_(!flows_ || result_.direct()),
        phases_(flows_ ? spans_until_repeated(channels_) : ceil_div(channels_, kSpan)) {
    for (int64_t i = 0; i < g_.rows.kernel; ++i)
      for (int64_t j = 0; j < g_.columns.kernel; ++j)
        taps_.push_back(i * g_.rows.dilation * g_.row + j * g_.columns.dilation * g_.column);
    taps_.resize(size_t(ceil_div(used(), 4) * 4));  // the last ones of weight 0
  }

  void run() {
    static thread_local Scratch<uint8_t> scratch;
    const std::vector<Phase> phases = expand(scratch.reserve(phases_ * weight_bytes()));
    for (int64_t first = 0; first < a_.x.n; first += g_.images) {
      const int64_t images = std::min(g_.images, a_.x.n - first);
      strip_.fill(first, images, false);
      const int64_t tasks = ceil_div(kTasks, images), height = a_.y.height,
                    least = parts_ ? ceil_div(result_.pixels(), kLeastPositions) : height,
                    bands = std::clamp<int64_t>(tasks, 1, std::min(height, least)),
                    shares = parts_ ? std::clamp<int64_t>(ceil_div(tasks, bands), 1, phases_) : 1;
      struct None {};
      share_tasks<None>(parallel_, images * bands * shares, [&](int64_t i, None&) {
        const int64_t share = i % shares, band = i / shares % bands, image = i / (shares * bands);
        const int64_t row = height * band / bands, end = height * (band + 1) / bands;
        const Some some{phases_ * share / shares, phases_ * (share + 1) / shares};
        // Planes of y are written one after the other.
        const int64_t at_once = flows_ || result_.direct() ? some.end - some.begin : 1;
        for (int64_t p = some.begin; p < some.end; p += at_once)
          multiply(phases, {p, p + at_once}, {first, image, row, end - row});
      });
    }
  }

 private:
  // By places.
  struct Phase {
    const uint8_t* weight;
    int32_t start[kSpan], center[kSpan];
    float scale[kSpan], bias[kSpan];
  };

  // Phases.
  struct Some {
    int64_t begin, end;
  };

  // Rows of an image; `first` is that of the strip.
  struct Band {
    int64_t first, image, row, rows;
  };

  int64_t used() const { return g_.rows.kernel * g_.columns.kernel; }
  int64_t weight_bytes() const { return int64_t(taps_.size()) * kSpan; }

  std::vector<Phase> expand(uint8_t* memory) const {
    std::vector<Phase> phases(static_cast<size_t>(phases_));
    parallel_(phases_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        uint8_t* const weight = memory + p * weight_bytes();
        phases[size_t(p)].weight = weight;
        expand(p * kSpan, weight, phases[size_t(p)]);
      }
    });
    return phases;
  }

  // Of a span's outputs from `first` on, with zeros for those that there are not.
  void expand(int64_t first, uint8_t* weight, Phase& to) const {
    static thread_local Scratch<uint8_t> scratch;
    const NestedLayout& layout = a_.weight.layout;
    const NestedPrepack& w = a_.weight;
    const int64_t taps = int64_t(taps_.size()), n = flows_ ? kSpan : std::min<int64_t>(kSpan, channels_ - first);
    uint8_t* const codes = scratch.reserve(taps * kSpan + layout.steps() * kStepColumns * kBlockRows);
    uint8_t* const columns = codes + taps * kSpan;  // of a block
    std::fill_n(codes, taps * kSpan, uint8_t{0});
    for (int64_t i = 0, run; i < n; i += run) {
      const int64_t channel = (first + i) % channels_, row = channel % kBlockRows;
      run = std::min({n - i, kBlockRows - row, channels_ - channel});
      vnni::packed_depthwise_codes(gemm_.planes(channel / kBlockRows), layout.plane_bytes(), a_.bits, layout.steps(),
                                   columns);
      for (int64_t tap = 0; tap < taps; ++tap)
        std::memcpy(codes + tap * kSpan + i, columns + tap * kBlockRows + row, size_t(run));
    }
    vnni::packed_depthwise_weight(codes, taps, weight, to.start);
    for (int64_t i = 0; i < kSpan; ++i) {
      const int place = span_place(int(i));
      const bool exists = i < n;
      const int64_t channel = exists ? (first + i) % channels_ : 0, at = w.per_row ? channel : 0;
      const int32_t center = w.center(w.zero_points[at], a_.bits), sum = to.start[place];
      to.start[place] = -strip_.zero() * ((sum << gemm_.shift()) + center * int32_t(used()));
      to.center[place] = center & 0xffff;
      to.scale[place] = exists ? w.scales[at] : 0.0f;
      to.bias[place] = exists && a_.bias ? a_.bias[channel] : 0.0f;
    }
  }

  // Few rows at once, whose x stays in the first-level cache from phase to phase, or results until they are stored.
  void multiply(const std::vector<Phase>& phases, const Some& some, const Band& band) const {
    const int64_t reach = (g_.rows.kernel - 1) * g_.rows.dilation + 1,
                  results = a_.y.width * wide() * int64_t{sizeof(float)},
                  fit = result_.direct() ? (kCacheBytes / std::max<int64_t>(g_.row, 1) - reach) / g_.rows.stride + 1
                                         : 2 * kCacheBytes / results,
                  at_once = std::clamp<int64_t>(fit, 1, band.rows);
    for (int64_t done = 0, rows; done < band.rows; done += rows) {
      rows = std::min(at_once, band.rows - done);
      const Band part{band.first, band.image, band.row + done, rows};
      if (flows_) {
        multiply(phases.data(), some, {0, channels_, wide(), true, true}, part);
        continue;
      }
      for (int64_t p = some.begin; p < some.end; ++p) {
        const int64_t first = p * kSpan, n = std::min<int64_t>(kSpan, channels_ - first);
        multiply(phases.data(), {p, p + 1}, {first, n, wide(), true, true}, part);
      }
    }
  }

  // Channels of a tile.
  int64_t wide() const { return flows_ ? channels_ : kSpan; }

  // Phases that make some channels.
  void multiply(const Phase* phases, const Some& some, const PackedResult::Channels& channels, const Band& band) const {
    static thread_local Scratch<float> scratch;
    const int64_t width = a_.y.width, n = band.rows * width,
                  start = (band.first + band.image) * result_.pixels() + band.row * width;
    float* const tile = scratch.reserve(2 * n * wide());
    const PackedResult::Output out = result_.output(channels, start, n, tile, tile + n * wide(), nullptr);
    for (int64_t p = some.begin; p < some.end; ++p) {
      if (!flows_) {
        multiply({channels.first, 0, width, g_.columns.stride * g_.column, 1, channels.n}, phases[p], band, out);
        continue;
      }
      const int64_t first = p * kSpan, period = phases_ * kSpan, outputs = width * channels_ - first,
                    whole = outputs < kSpan ? 0 : (outputs - kSpan) / period + 1, last = first + whole * period,
                    left = outputs - whole * period;
      if (whole) multiply({first, first, whole, period, period / channels_, kSpan}, phases[p], band, out);
      if (left > 0) multiply({last, last, 1, 0, 0, left}, phases[p], band, out);
    }
    if (out.y == tile) result_.store(channels, start, n, tile);
  }

  // Of each row: where they begin in x and in the results; how many; from one to the next in x and in positions.
  struct Spans {
    int64_t x, y, n, x_step, step, outputs;
  };

  void multiply(const Spans& s, const Phase& phase, const Band& band, const PackedResult::Output& out) const {
    const float row_scale = strip_.scale(band.image);
    PackedDepthwiseSpans args{};
    args.x = strip_.data() + band.image * g_.image + band.row * g_.rows.stride * g_.row + s.x;
    args.taps = taps_.data(), args.count = int64_t(taps_.size()), args.used = used();
    args.rows = band.rows, args.spans = s.n;
    args.x_row = g_.rows.stride * g_.row, args.x_span = s.x_step;
    args.y_row = a_.y.width, args.y_span = s.step;
    args.weight = phase.weight, args.start = phase.start, args.center = phase.center;
    PackedPairOutput& output = args.output;
    output.shift = gemm_.shift(), output.center = phase.center;
    output.scale = phase.scale, output.row_scale = &row_scale, output.bias = a_.bias ? phase.bias : nullptr;
    output.relu = a_.relu, output.channels = int(s.outputs);
    output.residual = out.residual ? out.residual + s.y : nullptr, output.residual_stride = out.residual_stride;
    output.y = out.y ? out.y + s.y : nullptr, output.codes = out.codes ? out.codes + s.y : nullptr;
    output.stride = out.stride;
    output.grid = result_.codes();
    vnni::packed_depthwise_spans(args);
  }

  const PackedConv2dArgs& a_;
  const Parallel& parallel_;
  const PackedGemm gemm_;
  PackedStrip strip_;
  const StripGeometry& g_;
  const PackedResult result_;
  const int64_t channels_;
  const bool flows_, parts_;  // the second: whether a part of the phases has channels that it can store
  const int64_t phases_;
  std::vector<int64_t> taps_;
};

}  // namespace

bool packed_depthwise_fits(const PackedConv2dArgs& args) {
  return max_isa() >= Isa::avx512_vnni && !args.exact && args.vertical.kernel * args.horizontal.kernel <= kMostSpanTaps;
}

void packed_depthwise_by_spans(const PackedConv2dArgs& args, const Parallel& parallel) {
  DepthwiseSpans(args, parallel).run();
}

}  // namespace lcs
