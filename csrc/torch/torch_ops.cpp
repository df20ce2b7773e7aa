#include <array>

#include "replay_binding.h"

namespace lcs::binding {
namespace {

// By torch's dispatcher.
template <class... Given>
Tensor call(const char* name, const char* overload, const Given&... given) {
  std::array<StableIValue, sizeof...(Given)> stack{torch::stable::detail::from(given)...};
  const AOTITorchError error = torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION);
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "replay: ", name, " does not take what it is given");
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace

Tensor torch_mean(Tensor x, std::optional<std::vector<int64_t>> dim, bool keepdim, std::optional<ScalarType> dtype) {
  return call("aten::mean", "dim", x, dim, keepdim, dtype);
}

Tensor torch_as_strided_(Tensor x, std::vector<int64_t> size, std::vector<int64_t> stride,
                         std::optional<int64_t> offset) {
  return call("aten::as_strided_", "", x, size, stride, offset);
}

Tensor torch_view(Tensor x, std::vector<int64_t> size) { return call("aten::view", "", x, size); }

}  // namespace lcs::binding
