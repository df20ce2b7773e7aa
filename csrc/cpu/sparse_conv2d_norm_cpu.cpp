#include "lcs/sparse_conv2d_norm.h"

#include "scratch.h"

namespace lcs {

void sparse_conv2d_norm(const SparseConv2dNormArgs& args, const Parallel& parallel) {
  sparse_conv2d(args.conv, parallel, [&](int64_t begin, int64_t end, const Parallel& threads) {
    static thread_local Scratch<float> statistics;
    LineNormArgs norm = samples_of(args.norm, begin, end);
    norm.means = statistics.reserve(2 * norm.n * norm.groups);
    norm.rstds = norm.means + norm.n * norm.groups;
    line_norm(norm, threads);
  });
}

}  // namespace lcs
