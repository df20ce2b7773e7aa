#include "lcs/nested_pack.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "lcs/large_pages.h"

namespace lcs {
namespace {

constexpr int64_t kGrain = 1 << 9;  // words of 32 codes

// The transpose of an 8 x 8 matrix of bits: bit j of byte i becomes bit i of byte j.
uint64_t transposed(uint64_t x) {
  uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aaull;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000cccc0000ccccull;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0ull;
  return x ^ t ^ (t << 28);
}

// Eight codes, the first in the lowest byte, whatever the machine's order of bytes.
uint64_t eight(const uint8_t* codes, int64_t stride, int64_t n) {
  uint64_t x = 0;
  if (stride == 1 && n == 8 && std::endian::native == std::endian::little) {
    std::memcpy(&x, codes, 8);
    return x;
  }
  for (int64_t i = 0; i < n; ++i) x |= uint64_t{codes[i * stride]} << (8 * i);
  return x;
}

uint8_t byte_of(uint64_t x, int i) { return uint8_t(x >> (8 * i)); }

}  // namespace

void nested_pack(const uint8_t* codes, int64_t n, int depth, uint32_t* planes, const Parallel& parallel) {
  const int64_t words = plane_words(n);
  parallel(words, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t word = begin; word < end; ++word) {
      uint32_t found[kPlanes] = {};
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t at = word * 32 + i * 8;
        const uint64_t bits = transposed(eight(codes + at, 1, std::clamp<int64_t>(n - at, 0, 8)));
        for (int p = 0; p < depth; ++p) found[p] |= uint32_t{byte_of(bits, depth - 1 - p)} << (8 * i);
      }
      for (int p = 0; p < depth; ++p) planes[p * words + word] = found[p];
    }
  });
}

void nested_codes(const uint32_t* planes, int64_t n, int bits, uint8_t* codes, const Parallel& parallel) {
  const int64_t words = plane_words(n);
  parallel(words, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t word = begin; word < end; ++word)
      for (int64_t i = 0; i < 4; ++i) {
        uint64_t x = 0;
        for (int p = 0; p < bits; ++p)
          x |= uint64_t{planes[p * words + word] >> (8 * i) & 0xff} << (8 * (bits - 1 - p));
        x = transposed(x);
        const int64_t at = word * 32 + i * 8;
        for (int64_t j = 0; j < std::min<int64_t>(n - at, 8); ++j) codes[at + j] = byte_of(x, int(j));
      }
  });
}

void nested_values(const NestedPrepack& weight, const uint8_t* codes, int bits, float* w, const Parallel& parallel) {
  const NestedLayout& l = weight.layout;
  parallel(l.rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t group = 0; group < l.groups(); ++group) {
        const int64_t first = row * l.columns + group * l.segment(),
                      at = (weight.per_row ? row : 0) * l.groups() + group;
        const int64_t n = std::min(l.segment(), l.columns - group * l.segment());
        const int center = weight.center(weight.zero_points[at], bits), shift = weight.shift(bits);
        const float scale = weight.scales[at];
        for (int64_t i = first; i < first + n; ++i) w[i] = scale * (float((codes[i] << shift) + center) * 0.5f);
      }
  });
}

void nested_prepack(const NestedLayout& l, const uint8_t* codes, int depth, uint8_t* prepack,
                    const Parallel& parallel) {
  const int64_t steps = l.steps(), plane = l.plane_bytes();
  prefer_large_pages(prepack, depth * plane);
  parallel(l.blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block % l.part_blocks() * NestedLayout::kBlock;
      const int64_t row0 = block / l.part_blocks() * l.part_rows() + first;
      const int64_t rows = std::min(NestedLayout::kBlock, l.part_rows() - first);
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t segment = step / l.segment_steps(), offset = step % l.segment_steps() * NestedLayout::kStep;
        const int64_t end_of = l.taps > 1 ? l.segment() : std::min(l.segment(), l.columns - segment * l.segment());
        const int64_t n = std::clamp<int64_t>(end_of - offset, 0, NestedLayout::kStep);
        const auto step_of = [&](const uint8_t* row) {
          if (l.taps == 1) return eight(row + segment * l.segment() + offset, 1, n);
          if (l.joined == 1) return eight(row + segment + offset * l.taps, l.taps, n);
          uint8_t joined[NestedLayout::kStep];
          const int64_t channels = l.columns / l.taps;
          for (int64_t i = 0; i < n; ++i)
            joined[i] = row[(offset + i) % channels * l.taps + segment * l.joined + (offset + i) / channels];
          return eight(joined, 1, n);
        };
        uint8_t* const to = prepack + (block * steps + step) * NestedLayout::kBlock;
        for (int p = 0; p < depth; ++p) std::memset(to + p * plane, 0, NestedLayout::kBlock);
        for (int64_t row = 0; row < rows; ++row) {
          const uint64_t bits = transposed(step_of(codes + (row0 + row) * l.columns));
          for (int p = 0; p < depth; ++p) to[p * plane + row] = byte_of(bits, depth - 1 - p);
        }
      }
    }
  });
}

}  // namespace lcs
