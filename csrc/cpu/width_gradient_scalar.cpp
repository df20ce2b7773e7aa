#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "keys.h"
#include "lcs/dtype.h"
#include "target.h"
#include "width_gradient_kernels.h"

namespace lcs::scalar {
namespace {
#include "lanes_scalar.inl"
constexpr int kOutputs = 4;
// After the lanes they are written in.
#include "width_gradient.inl"
}  // namespace

WidthGradientKernels width_gradient_kernels() { return table(); }

}  // namespace lcs::scalar
