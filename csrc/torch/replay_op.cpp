#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "lcs/isa.h"
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

// A recording; and how its chains run, once it has been given inputs, for inputs of the same kinds.
class Replay {
 public:
  Replay(std::vector<Tensor> constants, const Tensor& code) : constants_(std::move(constants)), steps_(code) {}

  std::vector<Tensor> run(std::vector<Tensor> inputs) {
    Kinds kinds(inputs, constants_);
    std::shared_ptr<const Chains> known = kept();
    if (known && known->kinds == kinds) return run(std::move(inputs), *known);
    const auto found = std::make_shared<Chains>(std::move(kinds), ReplayNeeds(steps_, inputs.size()));
    std::vector<Tensor> made = run(std::move(inputs), *found);
    if (keeps() && found->kinds.isa == max_isa()) {
      const std::lock_guard lock(mutex_);
      chains_ = found;
    }
    return made;
  }

 private:
  // What chains depend on.
  struct Kinds {
    std::vector<int64_t> numbers;
    std::vector<const void*> memory;  // of constants
    Isa isa = max_isa();

    Kinds(const std::vector<Tensor>& inputs, const std::vector<Tensor>& constants) {
      numbers.reserve(10 * (inputs.size() + constants.size()));
      memory.reserve(constants.size());
      for (const Tensor& input : inputs) add(input);
      for (const Tensor& constant : constants) add(constant), memory.push_back(constant.const_data_ptr());
    }
    void add(const Tensor& t) {
      const auto sizes = t.sizes(), strides = t.strides();
      numbers.insert(numbers.end(), {int64_t(sizes.size()), int64_t(t.scalar_type())});
      numbers.insert(numbers.end(), sizes.begin(), sizes.end());
      numbers.insert(numbers.end(), strides.begin(), strides.end());
    }
    bool operator==(const Kinds&) const = default;
  };

  struct Chains {
    Kinds kinds;
    ReplayNeeds needs;
    std::map<size_t, std::optional<ReplayChain>> from = {};  // by the step that each would begin with

    Chains(Kinds of, ReplayNeeds need) : kinds(std::move(of)), needs(std::move(need)) {}
  };

  std::shared_ptr<const Chains> kept() {
    const std::lock_guard lock(mutex_);
    return chains_;
  }

  // Chains read constants where they lie, so that what is written to them counts: but for copies, of vectors that are
  // not contiguous and of weights that were not made ready.
  bool keeps() const {
    const auto is_read = [](const Tensor& t) { return t.dim() > 1 || t.is_contiguous(); };
    const auto is_ready = [](const Step& step) {
      const auto* const conv = std::get_if<SparseConv2dStep>(&step.call);
      const auto* const normed = std::get_if<SparseConv2dNormStep>(&step.call);
      return !(conv && conv->get<11>().empty()) && !(normed && normed->get<10>().empty());
    };
    return std::all_of(constants_.begin(), constants_.end(), is_read) &&
           std::all_of(steps_.all.begin(), steps_.all.end(), is_ready);
  }

  const std::optional<ReplayChain>& chain(const Chains& known, size_t i, const ReplayValues&) const {
    return known.from.at(i);
  }
  const std::optional<ReplayChain>& chain(Chains& found, size_t i, const ReplayValues& values) const {
    return found.from.emplace(i, chain_from(i, steps_, values, found.needs)).first->second;
  }

  template <class Known>
  std::vector<Tensor> run(std::vector<Tensor> inputs, Known& known) const {
    ReplayValues values(std::move(inputs), constants_, steps_.all.size());
    for (size_t i = 0, end; i < steps_.all.size(); i = end) {
      end = i + 1;
      while (end < steps_.all.size() && runs_in_torch(steps_.all[end]) == runs_in_torch(steps_.all[i])) ++end;
      const auto some = [&] { run_steps(i, end, values, known); };
      runs_in_torch(steps_.all[i]) || end == i + 1 ? some() : in_region(some);
    }
    std::vector<Tensor> made;
    for (const Place place : steps_.results) made.push_back(values.tensor(place));
    return made;
  }

  // Torch has a single thread in a region.
  static bool runs_in_torch(const Step& step) {
    return std::holds_alternative<Call<torch_mean>>(step.call) ||
           std::holds_alternative<Call<torch_as_strided_>>(step.call) ||
           std::holds_alternative<Call<torch_view>>(step.call);
  }

  template <class Known>
  void run_steps(size_t i, size_t end, ReplayValues& values, Known& known) const {
    const auto tensor = [&](Place place) { return values.tensor(place); };
    size_t chained = 0;  // steps that have run
    for (; i < end; ++i) {
      if (i >= chained)
        if (const std::optional<ReplayChain>& found = chain(known, i, values)) {
          found->run(values);
          chained = i + found->size;
        }
      if (i < chained || values.has_next())
        values.pass_next();
      else
        std::visit([&](const auto& call) { values.add(first(call.run(tensor))); }, steps_.all[i].call);
      for (const int64_t value : steps_.all[i].drops) values.drop(value);
    }
  }

  const std::vector<Tensor> constants_;
  const Steps steps_;
  std::mutex mutex_;
  std::shared_ptr<const Chains> chains_;
};

std::vector<Tensor> replay_cpu(std::vector<Tensor> inputs, std::vector<Tensor> constants, Tensor code,
                               std::vector<int64_t>) {
  return Replay(std::move(constants), code).run(std::move(inputs));
}

// Recordings by their numbers, which are never given again.
class KeptReplays {
 public:
  int64_t keep(std::shared_ptr<Replay> replay) {
    const std::lock_guard lock(mutex_);
    kept_.emplace(++last_, std::move(replay));
    return last_;
  }
  std::shared_ptr<Replay> at(int64_t number) {
    const std::lock_guard lock(mutex_);
    const auto found = kept_.find(number);
    STD_TORCH_CHECK(found != kept_.end(), kReplay, ": no recording ", number, " is kept");
    return found->second;
  }
  void forget(int64_t number) {
    std::shared_ptr<Replay> last;  // which goes when others can go on
    const std::lock_guard lock(mutex_);
    if (const auto found = kept_.find(number); found != kept_.end())
      last = std::move(found->second), kept_.erase(found);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<Replay>> kept_;
  int64_t last_ = 0;
};

// Never destroyed, as tensors must not be when the process ends.
KeptReplays& kept_replays() {
  static auto* const kept = new KeptReplays;
  return *kept;
}

int64_t replay_keep(std::vector<Tensor> constants, Tensor code) {
  return kept_replays().keep(std::make_shared<Replay>(std::move(constants), code));
}

std::vector<Tensor> replay_kept(std::vector<Tensor> inputs, int64_t number) {
  return kept_replays().at(number)->run(std::move(inputs));
}

void replay_forget(int64_t number) { kept_replays().forget(number); }

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

STABLE_TORCH_LIBRARY_FRAGMENT(lcs, m) {
  m.def("replay_keep(Tensor[] constants, Tensor code) -> int");
  m.def("replay_kept(Tensor[] inputs, int number) -> Tensor[]");
  m.def("replay_forget(int number) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) {
  m.impl("replay", TORCH_BOX(&lcs::binding::replay_cpu));
  m.impl("replay_keep", TORCH_BOX(&lcs::binding::replay_keep));
  m.impl("replay_kept", TORCH_BOX(&lcs::binding::replay_kept));
}

STABLE_TORCH_LIBRARY_IMPL(lcs, CompositeExplicitAutograd, m) {
  m.impl("replay_forget", TORCH_BOX(&lcs::binding::replay_forget));
}
