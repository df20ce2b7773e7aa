#pragma once
#include <cstdint>

// How the kernels that blend two ends cut their weights.
namespace lcs {

constexpr int kBlock = 32;              // weights of a word of mask bits
constexpr int64_t kChunk = 1 << 14;     // weights of a chunk at most, so that an offset fits 16 bits
constexpr int64_t kCacheLine = 64;      // bytes of a cache line, at whose border results written past the caches begin
constexpr int64_t kStreamed = 8 << 20;  // bytes of a result that no cache would keep until they are read

}  // namespace lcs
