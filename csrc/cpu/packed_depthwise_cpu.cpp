#include "packed_depthwise.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "packed_depthwise_kernels.h"
#include "packed_gemm.h"
#include "packed_result.h"
#include "packed_strip.h"
#include "scratch.h"
#include "tasks.h"

namespace lcs {
namespace {

static_assert(kDepthwiseChannels == kBlockRows);
constexpr int64_t kTasks = 16;  // enough to keep the threads even

// Of a step's 32 rows: the codes of a column, eight at once.
void column_codes(const uint8_t* planes, int64_t plane_bytes, int bits, int column, uint8_t* codes) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  for (int64_t row = 0; row < kBlockRows; row += 8) {
    uint64_t eight = 0;
    for (int p = 0; p < bits; ++p) {
      uint64_t plane;
      std::memcpy(&plane, planes + p * plane_bytes + row, 8);
      eight = 2 * eight + (plane >> column & kOnes);
    }
    std::memcpy(codes + row, &eight, 8);
  }
}

// The input becomes a strip, all channels next to each other. Of these 32 at once meet the taps of a row of outputs.
class Depthwise {
 public:
  Depthwise(const PackedConv2dArgs& args, const Parallel& parallel)
      : a_(args),
        parallel_(parallel),
        gemm_(args.weight, args.bits, nullptr, false, args.exact),
        run_(best(scalar::packed_depthwise_kernels, avx2::packed_depthwise_kernels, avx2::packed_depthwise_kernels)),
        strip_(args, gemm_, args.exact ? Panel::floats : Panel::bytes, parallel),
        g_(strip_.geometry()),
        result_(args, false) {
    for (int64_t i = 0; i < g_.rows.kernel; ++i)
      for (int64_t j = 0; j < g_.columns.kernel; ++j)
        taps_.push_back(g_.element * (i * g_.rows.dilation * g_.row + j * g_.columns.dilation * g_.column));
    if (taps_.size() % 2) taps_.push_back(0);  // of weight 0
  }

  void run() {
    const int64_t blocks = a_.weight.layout.blocks(), height = a_.y.height;
    for (int64_t first = 0; first < a_.x.n; first += g_.images) {
      const int64_t images = std::min(g_.images, a_.x.n - first);
      strip_.fill(first, images, false);
      const int64_t bands = std::clamp<int64_t>(ceil_div(kTasks, blocks * images), 1, height),
                    of_image = blocks * bands;
      share_tasks<Weight>(parallel_, images * of_image, [&](int64_t i, Weight& weight) {
        const int64_t image = i / of_image, band = i % bands;
        if (const int64_t block = i % of_image / bands; block != weight.block) expand(block, weight);
        for (int64_t row = height * band / bands; row < height * (band + 1) / bands; ++row)
          multiply(weight, first, image, row);
      });
    }
  }

 private:
  // 32 channels of it.
  struct Weight {
    int64_t block = -1;
    std::vector<int16_t> pairs;
    std::vector<float> floats;
    int32_t start[kBlockRows];  // minus the zero point of x times the sum of the weight
    float scale[kBlockRows];
  };

  void expand(int64_t block, Weight& to) const {
    const NestedPrepack& w = a_.weight;
    const int64_t rows = gemm_.rows(block), first = gemm_.first_row(block), padded = int64_t(taps_.size()) * kBlockRows;
    to.block = block;
    a_.exact ? to.floats.assign(size_t(padded), 0.0f) : to.pairs.assign(size_t(padded), 0);
    std::fill_n(to.start, kBlockRows, 0);
    std::fill_n(to.scale, kBlockRows, 0.0f);
    int32_t center[kBlockRows] = {}, value[kBlockRows];
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = w.per_row ? first + row : 0;
      to.scale[row] = w.scales[at];
      center[row] = w.center(w.zero_points[at], a_.bits);
    }
    for (int64_t tap = 0; tap < w.layout.columns; ++tap) {
      uint8_t codes[kBlockRows];
      column_codes(gemm_.planes(block) + tap / kStepColumns * kBlockRows, w.layout.plane_bytes(), a_.bits,
                   int(tap % kStepColumns), codes);
      for (int64_t row = 0; row < kBlockRows; ++row) value[row] = (codes[row] << gemm_.shift()) + center[row];
      put(to, tap, value);
    }
  }

  void put(Weight& to, int64_t tap, const int32_t* value) const {
    if (a_.exact) {
      std::copy_n(value, kBlockRows, to.floats.data() + tap * kBlockRows);
      return;
    }
    int16_t* const pairs = to.pairs.data() + tap / 2 * kBlockRows * 2 + tap % 2;
    for (int64_t row = 0; row < kBlockRows; ++row) {
      pairs[2 * row] = int16_t(value[row]);
      to.start[row] -= strip_.zero() * value[row];
    }
  }

  void multiply(const Weight& w, int64_t first, int64_t image, int64_t row) const {
    static thread_local Scratch<float> scratch;
    float* const tile = scratch.reserve(2 * kTile * kBlockRows);
    const PackedResult::Channels channels{gemm_.first_row(w.block), gemm_.rows(w.block), kBlockRows, true, true};
    float bias[kBlockRows];
    for (int64_t column = 0; column < a_.y.width; column += kTile) {
      const int64_t n = std::min(kTile, a_.y.width - column);
      const int64_t start = (first + image) * result_.pixels() + row * a_.y.width + column;
      const PackedResult::Output out = result_.output(channels, start, n, tile, tile + kTile * kBlockRows, bias);
      const int64_t at = image * g_.image + row * g_.rows.stride * g_.row + column * g_.columns.stride * g_.column;
      run_.multiply({strip_.data() + (at + channels.first) * g_.element, taps_.data(), int64_t(taps_.size()),
                     g_.columns.stride * g_.column * g_.element, n, channels.n, a_.exact ? nullptr : w.pairs.data(),
                     w.floats.data(), w.start, w.scale, strip_.scale(image), out.bias, out.residual,
                     out.residual_stride, a_.relu, out.y, out.codes, out.stride, result_.codes()});
      if (out.y == tile) result_.store(channels, start, n, tile);
    }
  }

  const PackedConv2dArgs& a_;
  const Parallel& parallel_;
  const PackedGemm gemm_;
  const PackedDepthwiseKernels run_;
  PackedStrip strip_;
  const StripGeometry& g_;
  const PackedResult result_;
  std::vector<int64_t> taps_;
};

}  // namespace

void packed_depthwise(const PackedConv2dArgs& args, const Parallel& parallel) {
  packed_depthwise_fits(args) ? packed_depthwise_by_spans(args, parallel) : Depthwise(args, parallel).run();
}

}  // namespace lcs
