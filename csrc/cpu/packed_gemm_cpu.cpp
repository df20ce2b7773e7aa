#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "lcs/isa.h"
#include "packed_gemm.h"
#include "scratch.h"

namespace lcs {
namespace {

constexpr int64_t kPanelBytes = 16 << 10;  // half of the first-level cache

PackedGemmKernels best_kernels() {
  const Isa isa = max_isa();
  return isa >= Isa::amx           ? amx::packed_gemm_kernels()
         : isa >= Isa::avx512_vnni ? vnni::packed_gemm_kernels()
         : isa >= Isa::avx512      ? avx512::packed_gemm_kernels()
         : isa >= Isa::avx2        ? avx2::packed_gemm_kernels()
                                   : scalar::packed_gemm_kernels();
}

}  // namespace

Quantization::Quantization(float largest) {
  const float most = std::max(largest, 0x1p-100f);  // so that the inverse is finite
  const bool finite = std::isfinite(largest);
  inverse = finite ? 127.0f / most : 0.0f;
  half_scale = finite ? most / 127.0f * 0.5f : std::numeric_limits<float>::quiet_NaN();
}

PackedGemm::PackedGemm(const NestedPrepack& weight, int bits, const float* bias, bool relu, bool exact)
    : w_(weight),
      bits_(bits),
      bias_(bias),
      relu_(relu),
      exact_(exact),
      run_(best_kernels()),
      panel_(exact ? Panel::floats : run_.panel(bits)) {}

int64_t PackedGemm::first_row(int64_t block) const {
  const NestedLayout& l = w_.layout;
  return block / l.part_blocks() * l.part_rows() + block % l.part_blocks() * kBlockRows;
}

int64_t PackedGemm::rows(int64_t block) const {
  const NestedLayout& l = w_.layout;
  return std::min<int64_t>(kBlockRows, l.part_rows() - block % l.part_blocks() * kBlockRows);
}

// What a doubled code counts from, and for: value = scale / 2 * (code * 2^shift + center).
PackedGemm::Factors PackedGemm::factors(int64_t block, int64_t group) const {
  Factors f{};
  const int64_t first = first_row(block), n = rows(block), groups = w_.layout.groups();
  for (int i = 0; i < kBlockRows; ++i)
    if (const int row = panel_row(i); row < n) {
      const int64_t at = (w_.per_row ? first + row : 0) * groups + group;
      f.scale[i] = w_.scales[at];
      f.center[i] = w_.center(w_.zero_points[at], bits_);
    }
  return f;
}

void PackedGemm::expand(int64_t block, int64_t step, int64_t steps, const Factors& factors, void* panel) const {
  run_.expand({planes(block, step), w_.layout.plane_bytes(), steps, bits_, shift(), panel, factors.center}, panel_);
}

PackedGemm::PairFactors PackedGemm::pair_factors(int64_t block, int64_t blocks) const {
  PairFactors f{};
  for (int64_t b = 0; b < blocks; ++b) {
    const Factors of = factors(block + b, 0);
    for (int i = 0; i < kBlockRows; ++i) {
      f.scale[b * kBlockRows + panel_row(i)] = of.scale[i];
      f.center[b * kBlockRows + panel_row(i)] = of.center[i];
    }
  }
  return f;
}

void PackedGemm::expand_pair(int64_t block, int64_t blocks, int64_t step, int64_t steps, void* panel,
                             int32_t* sums) const {
  const NestedLayout& l = w_.layout;
  const int64_t block_bytes = (blocks - 1) * l.steps() * kBlockRows;  // of one, it stands for the other, too
  run_.expand_pair({planes(block, step), l.plane_bytes(), block_bytes, steps, bits_, panel, sums});
}

void PackedGemm::multiply(int64_t block, const PackedRows& x, float* tile) const {
  static thread_local Scratch<char> scratch;
  constexpr int64_t kRowSums = 2 * kBlockRows;
  char* const acc = scratch.reserve(kMaxPackedRows * kRowSums * 4 + kPanelBytes);
  char* const panel = acc + kMaxPackedRows * kRowSums * 4;
  const bool from_planes = !exact_ && run_.multiply_planes;
  const NestedLayout& l = w_.layout;
  const int64_t groups = l.groups(), steps = l.steps() / groups;
  const int64_t at_once = from_planes && x.n <= kFewRows ? steps : kPanelBytes / panel_bytes(panel_);
  for (int64_t group = 0; group < groups; ++group) {
    const Factors f = factors(block, group);
    std::memset(acc, 0, size_t(x.n * (from_planes ? kRowSums : kBlockRows) * 4));
    for (int64_t step = group * steps; step < (group + 1) * steps; step += at_once) {
      const int64_t n = std::min(at_once, (group + 1) * steps - step);
      const PackedExpand expand{planes(block, step), l.plane_bytes(), n, bits_, shift(), panel, f.center};
      const PackedMultiply multiply{panel, n,   bits_,       x.x, x.row, x.row_bytes ? nullptr : x.step + step,
                                    x.n,   acc, x.row_bytes, step};
      if (from_planes) {
        run_.multiply_planes(expand, multiply);
      } else {
        run_.expand(expand, panel_);
        run_.multiply(multiply, panel_);
      }
    }
    if (from_planes) run_.settle(reinterpret_cast<int32_t*>(acc), x.n, bits_);
    run_.scale({acc, exact_ ? nullptr : x.sums + group, groups, x.n, shift(), f.center, f.scale, group == 0, tile});
  }
  finish(block, x.n, x.scale, tile);
}

void PackedGemm::look_up(int64_t block, int64_t blocks, const uint8_t* tables, const int64_t* corrections,
                         const int32_t* sums, float scale, float* tile) const {
  const NestedLayout& l = w_.layout;
  const int64_t groups = l.groups(), steps = l.steps() / groups;
  for (int64_t group = 0; group < groups; ++group) {
    int32_t acc[kMaxLookupBlocks * kBlockRows] = {};
    for (int64_t step = group * steps; step < (group + 1) * steps; step += kMaxLookupSteps) {
      const int64_t n = std::min(kMaxLookupSteps, (group + 1) * steps - step);
      const int64_t correction = step == group * steps ? corrections[group] : 0;
      run_.lookup({planes(block, step), l.plane_bytes(), l.steps() * kBlockRows, blocks, n, bits_,
                   tables + step * kTableBytes, correction, acc});
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const Factors f = factors(block + b, group);
      run_.scale({acc + b * kBlockRows, sums + group, groups, 1, shift(), f.center, f.scale, group == 0,
                  tile + b * kBlockRows});
    }
  }
  for (int64_t b = 0; b < blocks; ++b) finish(block + b, 1, &scale, tile + b * kBlockRows);
}

void PackedGemm::finish(int64_t block, int64_t rows, const float* scale, float* tile) const {
  float bias[kBlockRows] = {};
  if (bias_) std::copy_n(bias_ + first_row(block), this->rows(block), bias);
  run_.finish({tile, rows, scale, bias_ ? bias : nullptr, relu_});
}

}  // namespace lcs
