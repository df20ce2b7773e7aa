// Equal to a loop over dense integers, whose float32 sums are exact, on every instruction set and for every way to
// split the work; a page that faults lies next to each array.
#include "lcs/sparse_linear.h"

#include "sparse_case.h"

namespace {

using namespace lcs;
using namespace lcs::test;

struct Case {
  int64_t rows, in, out, block;
  int percent;
  DType dtype;
  bool bias, relu;
};

void check(const Case& c, Guard guard) {
  const Weight weight(c.out, c.in, c.block, c.percent, c.dtype, guard, uint32_t(c.in * 7 + c.out));
  const Guarded x(c.rows * c.in * size_of(c.dtype), guard), y(c.rows * c.out * size_of(c.dtype), guard),
      bias(c.out * 4, guard);
  fill(x, c.rows * c.in, c.dtype, uint32_t(c.rows));
  fill(bias, c.out, DType::float32, 3);
  std::vector<float> wanted;
  for (int64_t i = 0; i < c.rows; ++i)
    for (int64_t o = 0; o < c.out; ++o) {
      float sum = c.bias ? bias.as<float>()[o] : 0.0f;
      for (int64_t k = 0; k < c.in; ++k) sum += weight.dense[o * c.in + k] * get(x.as(), i * c.in + k, c.dtype);
      wanted.push_back(c.relu && sum < 0.0f ? 0.0f : sum);
    }
  const bool tiled = c.dtype == DType::bfloat16;
  for (const Isa isa : isas({Isa::amx}))
    for (const Parallel& parallel : ways(isa)) {
      set_max_isa(isa);
      std::memset(y.as(), 0xff, size_t(c.rows * c.out * size_of(c.dtype)));
      const float* const start = c.bias ? bias.as<float>() : nullptr;
      if (isa == Isa::amx && tiled)
        CHECK(sparse_linear_tiles({x.as<BFloat16>(), y.as<BFloat16>(), c.rows, weight.tiles, start, c.relu}, parallel));
      else
        sparse_linear({x.as(), y.as(), c.dtype, c.rows, weight.prepack, start, c.relu}, parallel);
      for (size_t i = 0; i < wanted.size(); ++i) CHECK(get(y.as(), int64_t(i), c.dtype) == wanted[i]);
    }
}

// What is not finite would reach weights that are not stored; and other instruction sets have no tiles.
void refuse() {
  const Weight weight(5, 40, 40, 50, DType::bfloat16, Guard::behind, 1);
  for (const Isa isa : isas({Isa::amx}))
    for (const uint16_t value : {0x7f80, 0xff80, 0x7fc0, 0x0080}) {
      set_max_isa(isa);
      std::vector<uint16_t> x(17 * 40), y(17 * 5);
      x[16 * 40 + 39] = value;
      const SparseLinearTilesArgs args{reinterpret_cast<const BFloat16*>(x.data()),
                                       reinterpret_cast<BFloat16*>(y.data()),
                                       17,
                                       weight.tiles,
                                       nullptr,
                                       false};
      CHECK(sparse_linear_tiles(args, backwards) == (isa == Isa::amx && value == 0x0080));
    }
}

}  // namespace

// Sums stay below 256, so that bfloat16 holds them.
int main() {
  isas({Isa::amx});
  for (const int64_t rows : {1, 2, 3, 17, 113})
    for (const auto& [in, out] : {std::pair{1, 1}, {59, 9}, {33, 70}, {0, 5}, {5, 0}})
      for (const int64_t block : {7, 65'536})
        for (const int percent : {20, 100})
          for (const DType dtype : kDTypes)
            for (const Guard guard : kGuards)
              check({rows, in, out, block, percent, dtype, percent != 20, guard == Guard::behind}, guard);
  for (const int64_t rows : {0, 1, 3}) check({rows, 33, 9, 7, 0, DType::float32, true, false}, Guard::before);
  for (const int64_t rows : {16, 530})  // more than are multiplied at once
    check({rows, 600, 33, 600, 5, DType::bfloat16, true, false}, Guard::behind);
  refuse();
  check({1, 70'001, 3, 65'536, 5, DType::float32, true, false}, Guard::behind);
}
