#include <algorithm>
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

constexpr int64_t kTasks = 16;           // enough to keep the threads even
constexpr int64_t kLeastPositions = 64;  // of a task that is not a part of what there is of channels
constexpr int64_t kMostPhases = 16;      // of channels that follow those of the position before

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
        flows_(g_.columns.stride == 1 && g_.column == channels_ && spans_until_repeated(channels_) <= kMostPhases),
        phases_(flows_ ? spans_until_repeated(channels_) : ceil_div(channels_, kSpan)) {
    for (int64_t i = 0; i < g_.rows.kernel; ++i)
      for (int64_t j = 0; j < g_.columns.kernel; ++j)
        taps_.push_back(i * g_.rows.dilation * g_.row + j * g_.columns.dilation * g_.column);
    taps_.resize(size_t(ceil_div(used(), 4) * 4));  // the last ones of weight 0
  }

  void run() {
    static thread_local Scratch<uint8_t> scratch;
    uint8_t* const codes = scratch.reserve(phases_ * codes_bytes());
    const std::vector<Phase> phases = expand(codes);
    for (int64_t first = 0; first < a_.x.n; first += g_.images) {
      const int64_t images = std::min(g_.images, a_.x.n - first);
      strip_.fill(first, images, false);
      const int64_t pixels = result_.pixels(),
                    bands = std::clamp<int64_t>(ceil_div(kTasks, images), 1,
                                                std::min(a_.y.height, ceil_div(pixels, kLeastPositions))),
                    shares = std::clamp<int64_t>(ceil_div(kTasks, images * bands), 1, phases_);
      struct None {};
      share_tasks<None>(parallel_, images * bands * shares, [&](int64_t i, None&) {
        const int64_t share = i % shares, band = i / shares % bands, image = i / (shares * bands);
        const int64_t row = a_.y.height * band / bands, rows = a_.y.height * (band + 1) / bands - row;
        for (int64_t p = phases_ * share / shares; p < phases_ * (share + 1) / shares; ++p)
          multiply(p, phases[size_t(p)], {first, image, row, rows});
      });
    }
  }

 private:
  // By places.
  struct Phase {
    const uint8_t* codes;
    int32_t start[kSpan], center[kSpan];
    float scale[kSpan], bias[kSpan];
  };

  // Rows of an image; `first` is that of the strip.
  struct Band {
    int64_t first, image, row, rows;
  };

  int64_t used() const { return g_.rows.kernel * g_.columns.kernel; }
  int64_t codes_bytes() const { return int64_t(taps_.size()) * kSpan; }

  std::vector<Phase> expand(uint8_t* codes) const {
    std::vector<Phase> phases(static_cast<size_t>(phases_));
    parallel_(phases_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        phases[size_t(p)].codes = codes + p * codes_bytes();
        expand(p * kSpan, codes + p * codes_bytes(), phases[size_t(p)]);
      }
    });
    return phases;
  }

  // Of a span's outputs from `first` on, with zeros for those that there are not.
  void expand(int64_t first, uint8_t* codes, Phase& to) const {
    std::fill_n(codes, codes_bytes(), uint8_t{0});
    const int64_t n = flows_ ? kSpan : std::min<int64_t>(kSpan, channels_ - first);
    for (int64_t i = 0, run; i < n; i += run) {
      const int64_t channel = (first + i) % channels_, row = channel % kBlockRows;
      run = std::min({n - i, kBlockRows - row, channels_ - channel});
      for (int64_t tap = 0; tap < used(); ++tap) {
        uint8_t column[kBlockRows];
        packed_column_codes(gemm_.planes(channel / kBlockRows) + tap / kStepColumns * kBlockRows,
                            a_.weight.layout.plane_bytes(), a_.bits, int(tap % kStepColumns), column);
        for (int64_t k = 0; k < run; ++k)
          codes[(tap / 4 * kSpan + span_place(int(i + k))) * 4 + tap % 4] = column[row + k];
      }
    }
    for (int i = 0; i < kSpan; ++i) {
      const bool exists = i < n;
      finish(exists ? (first + i) % channels_ : 0, span_place(i), exists, codes, to);
    }
  }

  // What becomes of an output's sums.
  void finish(int64_t channel, int place, bool exists, const uint8_t* codes, Phase& to) const {
    const NestedPrepack& w = a_.weight;
    const int64_t at = w.per_row ? channel : 0;
    const int32_t center = exists ? w.center(w.zero_points[at], a_.bits) : 0;
    int32_t sum = 0;
    for (int64_t tap = 0; tap < used(); ++tap) sum += codes[(tap / 4 * kSpan + place) * 4 + tap % 4];
    to.start[place] = -strip_.zero() * ((sum << gemm_.shift()) + center * int32_t(used()));
    to.center[place] = center & 0xffff;
    to.scale[place] = exists ? w.scales[at] : 0.0f;
    to.bias[place] = exists && a_.bias ? a_.bias[channel] : 0.0f;
  }

  void multiply(int64_t p, const Phase& phase, const Band& band) const {
    const int64_t stride = g_.columns.stride, first = p * kSpan;
    const int64_t period = flows_ ? phases_ * kSpan : channels_, outputs = a_.y.width * channels_;
    int64_t whole = a_.y.width, rest = 0;  // spans of a row, and outputs of one behind them
    if (flows_) {
      whole = std::max<int64_t>((outputs - first - kSpan + period) / period, 0);
      rest = std::clamp<int64_t>(outputs - first - whole * period, 0, kSpan);
    }
    Spans spans{first, whole, flows_ ? period : stride * g_.column, period,
                flows_ ? kSpan : std::min<int64_t>(kSpan, channels_ - first)};
    if (whole) multiply(spans, phase, band);
    if (rest) multiply({first + whole * period, 1, 0, 0, rest}, phase, band);
  }

  // Of each row: where they begin, in bytes of x and elements of y, and from one to the next.
  struct Spans {
    int64_t first, n, x_step, y_step, outputs;
  };

  void multiply(const Spans& s, const Phase& phase, const Band& band) const {
    const int64_t start = (band.first + band.image) * result_.pixels() + band.row * a_.y.width;
    const PackedResult::Output out = result_.place(start, s.first);
    const float row_scale = strip_.scale(band.image);
    PackedDepthwiseSpans args{};
    args.x = strip_.data() + band.image * g_.image + band.row * g_.rows.stride * g_.row + s.first;
    args.taps = taps_.data(), args.count = int64_t(taps_.size()), args.used = used();
    args.rows = band.rows, args.spans = s.n;
    args.x_row = g_.rows.stride * g_.row, args.x_span = s.x_step;
    args.y_row = a_.y.width * channels_, args.y_span = s.y_step;
    args.weight = phase.codes, args.start = phase.start, args.center = phase.center;
    PackedPairOutput& output = args.output;
    output.shift = gemm_.shift(), output.center = phase.center;
    output.scale = phase.scale, output.row_scale = &row_scale, output.bias = a_.bias ? phase.bias : nullptr;
    output.residual = out.residual, output.residual_stride = 1;
    output.relu = a_.relu, output.channels = int(s.outputs);
    output.y = out.y, output.codes = out.codes, output.stride = 1;
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
  const bool flows_;
  const int64_t phases_;
  std::vector<int64_t> taps_;
};

}  // namespace

bool packed_depthwise_fits(const PackedConv2dArgs& args) {
  return max_isa() >= Isa::avx512_vnni && !args.exact &&
         args.vertical.kernel * args.horizontal.kernel <= kMostSpanTaps && PackedResult(args, true).direct();
}

void packed_depthwise_by_spans(const PackedConv2dArgs& args, const Parallel& parallel) {
  DepthwiseSpans(args, parallel).run();
}

}  // namespace lcs
