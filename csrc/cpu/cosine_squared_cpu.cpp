#include "lcs/cosine_squared.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "cosine_squared_kernels.h"
#include "dispatch.h"

namespace lcs {
namespace {

#include "lanes_scalar.inl"

constexpr int64_t kChunk = 1 << 14;
// Each product is off by at most 2^-126 where float32 takes what is smaller for 0, a chunk's sum so by 2^-112, which is
// half a unit of float32 in this one.
constexpr double kLeastNorm = 0x1p-88;

CosineSquaredKernels kernels() {
  return best(scalar::cosine_squared_kernels, avx2::cosine_squared_kernels, avx512::cosine_squared_kernels);
}

std::vector<CosineSquaredLayer> cut(std::span<const CosineSquaredLayer> layers, DType dtype) {
  std::vector<CosineSquaredLayer> chunks;
  for (const auto& layer : layers)
    for (int64_t begin = 0; begin < layer.n; begin += kChunk)
      chunks.push_back({advance(layer.w0, begin, dtype), advance(layer.w1, begin, dtype),
                        advance(layer.grad_w0, begin, dtype), advance(layer.grad_w1, begin, dtype),
                        std::min(kChunk, layer.n - begin)});
  return chunks;
}

// For weights whose squares are beyond float32. A chunk of zeros comes here, too.
template <class E>
CosineSums sums_in_double(const CosineSquaredLayer& chunk) {
  CosineSums sums{};
  for (int64_t i = 0; i < chunk.n; ++i) {
    const double a = load(static_cast<const E*>(chunk.w0) + i), b = load(static_cast<const E*>(chunk.w1) + i);
    sums.dot += a * b;
    sums.norm0 += a * a;
    sums.norm1 += b * b;
  }
  return sums;
}

CosineSums sums_in_double(const CosineSquaredLayer& chunk, DType dtype) {
  if (dtype == DType::bfloat16) return sums_in_double<BFloat16>(chunk);
  if (dtype == DType::float16) return sums_in_double<Float16>(chunk);
  return sums_in_double<float>(chunk);
}

bool is_precise(const CosineSums& sums) {
  return sums.norm0 >= kLeastNorm && sums.norm1 >= kLeastNorm && std::isfinite(sums.norm0 + sums.norm1);
}

template <class E>
void backward_in_double(const CosineSquaredLayer& chunk, double cross, double own0, double own1) {
  for (int64_t i = 0; i < chunk.n; ++i) {
    const double a = load(static_cast<const E*>(chunk.w0) + i), b = load(static_cast<const E*>(chunk.w1) + i);
    store(static_cast<E*>(chunk.grad_w0) + i, rounded<E>(float(cross * b + own0 * a)));
    store(static_cast<E*>(chunk.grad_w1) + i, rounded<E>(float(cross * a + own1 * b)));
  }
}

void backward_in_double(const CosineSquaredLayer& chunk, double cross, double own0, double own1, DType dtype) {
  if (dtype == DType::bfloat16) return backward_in_double<BFloat16>(chunk, cross, own0, own1);
  if (dtype == DType::float16) return backward_in_double<Float16>(chunk, cross, own0, own1);
  backward_in_double<float>(chunk, cross, own0, own1);
}

bool is_normal_float(double x) {
  using Limits = std::numeric_limits<float>;
  return x == 0 || (std::abs(x) >= Limits::min() && std::abs(x) <= Limits::max());
}

}  // namespace

CosineSums cosine_sums(std::span<const CosineSquaredLayer> layers, DType dtype, const Parallel& parallel) {
  const std::vector<CosineSquaredLayer> chunks = cut(layers, dtype);
  std::vector<CosineSums> parts(chunks.size());
  parallel(int64_t(chunks.size()), 2, [&, run = kernels()](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      parts[i] = run.sums(chunks[i], dtype);
      if (!is_precise(parts[i])) parts[i] = sums_in_double(chunks[i], dtype);
    }
  });
  CosineSums total{};
  for (const CosineSums& part : parts) {
    total.dot += part.dot;
    total.norm0 += part.norm0;
    total.norm1 += part.norm1;
  }
  return total;
}

double cosine_squared(const CosineSums& sums) {
  return sums.norm0 == 0 || sums.norm1 == 0 ? 0.0 : sums.dot / sums.norm0 * (sums.dot / sums.norm1);
}

void cosine_squared_backward(std::span<const CosineSquaredLayer> layers, const CosineSums& sums, double grad,
                             DType dtype, const Parallel& parallel) {
  const bool zero = sums.norm0 == 0 || sums.norm1 == 0;
  const double share0 = zero ? 0 : sums.dot / sums.norm0, share1 = zero ? 0 : sums.dot / sums.norm1;
  const double cross = zero ? 0 : 2 * grad * share0 / sums.norm1;
  const double own0 = zero ? 0 : -2 * grad * share0 * share1 / sums.norm0;
  const double own1 = zero ? 0 : -2 * grad * share0 * share1 / sums.norm1;
  const bool precise = is_normal_float(cross) && is_normal_float(own0) && is_normal_float(own1);
  const std::vector<CosineSquaredLayer> chunks = cut(layers, dtype);
  parallel(int64_t(chunks.size()), 2, [&, run = kernels()](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (precise)
        run.backward(chunks[i], float(cross), float(own0), float(own1), dtype);
      else
        backward_in_double(chunks[i], cross, own0, own1, dtype);
    }
  });
}

}  // namespace lcs
