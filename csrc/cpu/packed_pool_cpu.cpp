#include "packed_pool.h"

#include <algorithm>
#include <limits>

#include "packed_result.h"
#include "packed_strip.h"
#include "walk.h"

namespace lcs {
namespace {

constexpr float kLeastScale = 0x1p-50f, kLeastRangeScale = 0x1p-30f;  // whose products are no denormal numbers

PackedGemm gemm_of(const PackedConv2dArgs& a) { return {a.weight, a.bits, nullptr, false, a.exact}; }

bool fits(const Axis& pool) { return pool.kernel == 3 && pool.stride == 2 && pool.padding == 1; }

}  // namespace

bool packed_pool_fits(const PackedConv2dArgs& a, const MaxPoolArgs& pool) {
  const PackedGemm gemm = gemm_of(a);
  const bool can = gemm.pairs() && gemm.kernels().multiply_pair_largest && !a.depthwise && a.weight.layout.parts == 1 &&
                   a.dtype == DType::float32 && !a.y_range && !a.residual;
  if (!can || !pool.numbers || !fits(pool.vertical) || !fits(pool.horizontal)) return false;
  const float* const scales = a.weight.scales;
  return a.range && scale_of(*a.range) >= kLeastRangeScale &&
         std::all_of(scales, scales + (a.weight.per_row ? a.y.channels : 1), [](float s) { return s >= kLeastScale; });
}

int64_t packed_pool_row_size(const PackedConv2dArgs& a) {
  return ceil_div(a.weight.layout.blocks(), 2) * ceil_div(a.y.width, 2) * kPairRows;
}

PackedPool::PackedPool(const PackedConv2dArgs& conv, bool spoilt)
    : a_(conv),
      gemm_(gemm_of(conv)),
      scale_(spoilt ? std::numeric_limits<float>::quiet_NaN() : scale_of(*conv.range) * 0.5f) {
  const int64_t blocks = conv.weight.layout.blocks();
  for (int64_t block = 0; block < blocks; block += 2)
    factors_.push_back(gemm_.pair_factors(block, std::min<int64_t>(2, blocks - block)));
}

void PackedPool::finish(const PackedPoolRow& row) const {
  const int64_t blocks = a_.weight.layout.blocks(), width = ceil_div(a_.y.width, 2);
  const int32_t no_sums[kTile] = {};
  float scale[kTile], bias[kPairRows];
  std::fill_n(scale, kTile, scale_);
  for (int64_t block = 0; block < blocks; block += 2) {
    const int64_t pair = std::min<int64_t>(2, blocks - block), channel = gemm_.first_row(block),
                  channels = gemm_.rows(block, pair);
    const PackedGemm::PairFactors& factors = factors_[size_t(block / 2)];
    if (a_.bias) std::fill(std::copy_n(a_.bias + channel, channels, bias), bias + kPairRows, 0.0f);
    for (int64_t c = 0; c < width; c += kTile) {
      const int64_t at = (block / 2 * width + c) * kPairRows, to = c * a_.y.channels + channel;
      PackedPairLargest largest{{}, row.count, std::min(kTile, width - c), {}};
      for (int i = 0; i < row.count; ++i) largest.rows[i] = row.rows[i] + at;
      largest.output = {nullptr,
                        no_sums,
                        0,
                        0,
                        factors.center,
                        factors.scale,
                        scale,
                        a_.bias ? bias : nullptr,
                        nullptr,
                        0,
                        a_.relu,
                        int(channels),
                        row.y ? row.y + to : nullptr,
                        row.codes ? row.codes + to : nullptr,
                        a_.y.channels,
                        row.grid};
      gemm_.kernels().finish_pair_largest(largest);
    }
  }
}

}  // namespace lcs
