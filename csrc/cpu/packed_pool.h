#pragma once
#include <cstdint>
#include <vector>

#include "lcs/max_pool.h"
#include "lcs/packed_conv2d.h"
#include "packed_conv2d_kernels.h"
#include "packed_gemm.h"

// A packed convolution whose sums are pooled before they are finished, of windows of 3 x 3 at stride 2: as no step from
// a sum to its result falls, the largest sum becomes the largest result, bit for bit.
namespace lcs {

// Whether it can be: of results that are NaN nowhere in an image, or everywhere. It then multiplies directly.
bool packed_pool_fits(const PackedConv2dArgs& conv, const MaxPoolArgs& pool);

// Of what becomes of a row of the convolution, in `largest`: how many integers. The largest of each window's columns.
int64_t packed_pool_row_size(const PackedConv2dArgs& conv);

struct PackedPoolRow {
  const int32_t* rows[3];  // of the convolution
  int count;               // of these
  float* y;                // channels last; null: not written
  int8_t* codes;           // what y rounds to; null: not written
  PackedCodes grid;
};

class PackedPool {
 public:
  // Of rows of an image; `spoilt`: whether it counts as one that holds NaN.
  PackedPool(const PackedConv2dArgs& conv, bool spoilt);

  void finish(const PackedPoolRow& row) const;

 private:
  const PackedConv2dArgs& a_;
  const PackedGemm gemm_;
  const float scale_;
  std::vector<PackedGemm::PairFactors> factors_;
};

}  // namespace lcs
