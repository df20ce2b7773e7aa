#include "lcs/cosine_squared.h"

#include <algorithm>
#include <vector>

#include "cosine_squared_kernels.h"
#include "dispatch.h"

namespace lcs {
namespace {

constexpr int64_t kChunk = 1 << 14;

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

}  // namespace

CosineSums cosine_sums(std::span<const CosineSquaredLayer> layers, DType dtype, const Parallel& parallel) {
  const std::vector<CosineSquaredLayer> chunks = cut(layers, dtype);
  std::vector<CosineSums> parts(chunks.size());
  parallel(int64_t(chunks.size()), 2, [&, run = kernels()](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) parts[i] = run.sums(chunks[i], dtype);
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
  const float cross = float(zero ? 0 : 2 * grad * share0 / sums.norm1);
  const float own0 = float(zero ? 0 : -2 * grad * share0 * share1 / sums.norm0);
  const float own1 = float(zero ? 0 : -2 * grad * share0 * share1 / sums.norm1);
  const std::vector<CosineSquaredLayer> chunks = cut(layers, dtype);
  parallel(int64_t(chunks.size()), 2, [&, run = kernels()](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run.backward(chunks[i], cross, own0, own1, dtype);
  });
}

}  // namespace lcs
