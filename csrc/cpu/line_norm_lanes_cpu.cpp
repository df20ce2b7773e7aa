#include "lcs/line_norm_lanes.h"

#include "line_norm_rows.h"
#include "tasks.h"

namespace lcs {

void line_norm_lanes(const LineNormLanesArgs& args, const Parallel& parallel) {
  struct None {};
  const LineNormRows rows(args);
  const int64_t height = args.y.grid.height;
  share_tasks<None>(parallel, args.y.groups * height,
                    [&](int64_t i, None&) { rows(i / height, i % height, 0, args.y.channels); });
}

}  // namespace lcs
