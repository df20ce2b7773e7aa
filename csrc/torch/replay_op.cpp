#include <utility>

#include "replay_chain.h"
#include "replay_code.h"
#include "replay_needs.h"
#include "replay_values.h"

namespace lcs::binding {
namespace {

template <size_t... i>
AnyCall read_call(Code& code, int64_t op, std::index_sequence<i...>) {
  using Read = AnyCall (*)(Code&);
  constexpr Read kReads[] = {[](Code& c) { return AnyCall(std::in_place_index<i>, c); }...};
  STD_TORCH_CHECK(op >= 0 && op < int64_t(sizeof...(i)), kReplay, ": there is no op ", op);
  return kReads[op](code);
}

Tensor first(Tensor made) { return made; }
Tensor first(std::tuple<Tensor, Tensor> made) { return std::get<0>(std::move(made)); }

std::vector<Tensor> replay_cpu(std::vector<Tensor> inputs, std::vector<Tensor> constants, Tensor code,
                               std::vector<int64_t>) {
  const Steps steps(code);
  ReplayValues values(std::move(inputs), constants, steps.all.size());
  const ReplayNeeds needs(steps, values.size());
  const auto tensor = [&](Place place) { return values.tensor(place); };
  size_t chained = 0;  // steps that have run
  for (size_t i = 0; i < steps.all.size(); ++i) {
    if (i >= chained) chained = i + ran_in_chain(steps, i, values, needs);
    if (i < chained || values.has_next())
      values.pass_next();
    else
      std::visit([&](const auto& call) { values.add(first(call.run(tensor))); }, steps.all[i].call);
    for (const int64_t value : steps.all[i].drops) values.drop(value);
  }
  std::vector<Tensor> made;
  for (const Place place : steps.results) made.push_back(values.tensor(place));
  return made;
}

}  // namespace

Steps::Steps(const Tensor& given) {
  Code code(given);
  for (auto left = code.read<int64_t>(); left > 0; --left) {
    const auto op = code.read<int64_t>();
    AnyCall call = read_call(code, op, std::make_index_sequence<std::variant_size_v<AnyCall>>());
    all.push_back({std::move(call), code.read<std::vector<int64_t>>()});
  }
  results = code.read<std::vector<Place>>();
  STD_TORCH_CHECK(code.at_end(), kReplay, ": the code goes on behind its last step");
}

}  // namespace lcs::binding

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("replay", TORCH_BOX(&lcs::binding::replay_cpu)); }
