#include "lcs/interpolate_quantize.h"

#include <algorithm>
#include <vector>

#include "interpolate_quantize_kernels.h"
#include "lcs/ceil_div.h"

namespace lcs {
namespace {

constexpr int64_t kLongRow = 1 << 10;  // weights from which on the wait for streamed results is a small part

class Quantizer {
 public:
  Quantizer(const InterpolateQuantizeArgs& args, const Parallel& parallel)
      : args_(args),
        parallel_(parallel),
        run_(interpolate_quantize_kernels()),
        codes_(quantize_codes(args.bits, args.nested)),
        group_(std::min(args.group, args.columns)),
        columns_(args.columns % group_ ? args.columns : args.rows * args.columns),  // rows of whole groups are one row
        in_row_(ceil_div(columns_, group_)),
        groups_(args.rows * args.columns / columns_ * in_row_),
        stream_(args.rows * args.columns * size_of(args.out) >= kStreamed && columns_ >= kLongRow) {}

  void run() { group_ <= kChunk ? short_groups() : long_groups(); }

 private:
  // Whose weights are still cached when they are read again.
  void short_groups() {
    parallel_(groups_, std::max<int64_t>(1, 2 * kChunk / group_), [this](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t row = begin / in_row_, next = std::min(end, (row + 1) * in_row_);
        run_.groups(weights(row, (begin - row * in_row_) * group_, (next - row * in_row_) * group_), group_, codes_,
                    stream_);
        begin = next;
      }
    });
  }

  void long_groups() {
    const int64_t each = ceil_div(group_, kChunk), chunks = groups_ * each;
    std::vector<ValueRange> ranges(chunks);
    parallel_(chunks, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ranges[i] = run_.range(piece(i / each, i % each * kChunk, kChunk));
    });
    std::vector<QuantizeGrid> grids;
    for (int64_t g = 0; g < groups_; ++g) {
      ValueRange all = ranges[g * each];
      for (int64_t i = g * each + 1; i < (g + 1) * each; ++i) {
        const float error = ranges[i].low - ranges[i].low;  // NaN stays, on whichever side it comes
        all = {std::min(all.low, ranges[i].low) + error, std::max(all.high, ranges[i].high) + error};
      }
      grids.push_back(grid(all));
    }
    // The last ones first: they have just been read, and may still be cached.
    parallel_(chunks, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = end; i-- > begin;) write(piece(i / each, i % each * kChunk, kChunk), grids[i / each]);
    });
  }

  // Up to `n` weights of a group from `begin` on; none past its end.
  QuantizeChunk piece(int64_t group, int64_t begin, int64_t n) const {
    const int64_t from = group % in_row_ * group_;
    return weights(group / in_row_, from + begin, from + std::min(begin + n, group_));
  }

  // Of a row; none past its end.
  QuantizeChunk weights(int64_t row, int64_t begin, int64_t end) const {
    const int64_t at = row * columns_ + begin;
    return {advance(args_.w0, at, args_.in),
            advance(args_.w1, at, args_.in),
            advance(args_.w, at, args_.out),
            std::max<int64_t>(std::min(end, columns_) - begin, 0),
            args_.alpha,
            args_.in,
            args_.out};
  }

  QuantizeGrid grid(ValueRange range) const { return quantize_grid(range, codes_); }

  void write(const QuantizeChunk& chunk, const QuantizeGrid& grid) const {
    run_.write(chunk, grid, stream_ && reinterpret_cast<uintptr_t>(chunk.w) % kCacheLine == 0);
  }

  const InterpolateQuantizeArgs& args_;
  const Parallel& parallel_;
  InterpolateQuantizeKernels run_;
  QuantizeCodes codes_;
  int64_t group_, columns_, in_row_, groups_;
  bool stream_;
};

}  // namespace

void interpolate_quantize(const InterpolateQuantizeArgs& args, const Parallel& parallel) {
  if (args.rows > 0 && args.columns > 0) Quantizer(args, parallel).run();
}

}  // namespace lcs
