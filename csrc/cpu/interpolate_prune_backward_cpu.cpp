#include <algorithm>
#include <vector>

#include "interpolate_prune_kernels.h"
#include "lcs/interpolate_prune.h"

namespace lcs {

double interpolate_prune_backward(const InterpolatePruneBackwardArgs& args, const Parallel& parallel) {
  std::vector<InterpolatePruneBackwardLayer> chunks;
  for (const auto& layer : args.layers)
    for (int64_t begin = 0; begin < layer.n; begin += kChunk)
      chunks.push_back({advance(layer.grad, begin, args.out), advance(layer.w0, begin, args.in),
                        advance(layer.w1, begin, args.in), layer.mask_bits ? layer.mask_bits + begin / 32 : nullptr,
                        advance(layer.grad_w0, begin, args.in), advance(layer.grad_w1, begin, args.in),
                        std::min(kChunk, layer.n - begin)});
  std::vector<double> share(chunks.size());
  const InterpolatePruneKernels run = interpolate_prune_kernels();
  parallel(int64_t(chunks.size()), 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) share[i] = run.backward(chunks[i], args.alpha, args.in, args.out);
  });
  double total = 0;
  for (double part : share) total += part;
  return total;
}

}  // namespace lcs
