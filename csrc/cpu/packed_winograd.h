#pragma once
#include <cstdint>

#include "lcs/packed_conv2d.h"
#include "packed_gemm.h"
#include "packed_result.h"
#include "packed_strip.h"
#include "scratch.h"

namespace lcs {

// The products of a packed convolution by Winograd's F(2 x 2, 3 x 3) or F(4 x 4, 3 x 3) (see packed_gemm_kernels.h):
// the same integers, so the same results.
class PackedWinograd {
 public:
  // `side`: of a tile of outputs.
  PackedWinograd(const PackedConv2dArgs& args, int side, const PackedGemm& gemm, const PackedStrip& strip,
                 const PackedResult& result, const Parallel& parallel);

  // Of the images that the strip holds, of which the first is this one. Does nothing, and says so, where codes that x
  // was given in are not of its bits, as these would not fit.
  bool multiply(int64_t first, int64_t images) const;

 private:
  struct Tiles;
  struct Panel;
  struct Panels;

  bool multiply_bands(int64_t first, const Tiles& all) const;
  bool multiply_units(int64_t first, Tiles& tiles) const;
  bool transform(const Tiles& tiles, int64_t begin, int64_t end) const;
  bool transform(const Tiles& tiles, int64_t row) const;
  void find_outputs(const Tiles& tiles, int64_t row) const;
  int64_t position(int64_t row) const;
  int64_t parts() const;
  void hold(int64_t block, const Tiles& tiles, Scratch<char>& scratch, Panel& to) const;
  void expand(int64_t part, WinogradPieces pieces, Panel& to) const;
  void multiply(int64_t first, const Tiles& tiles, int64_t unit, int64_t begin, int64_t end, Panels& panels) const;
  void multiply(int64_t first, const Tiles& tiles, int64_t begin, int64_t end, Panel& panel) const;

  const PackedConv2dArgs& a_;
  const WinogradKernels& run_;
  const PackedGemm& gemm_;
  const PackedStrip& strip_;
  const PackedResult& result_;
  const Parallel& parallel_;
  const int64_t image_rows_;  // of tiles
};

}  // namespace lcs
