#include <bit>
#include <type_traits>

#include "replay_binding.h"

namespace {

using namespace lcs::binding;
constexpr const char* kReplay = "replay";

template <class T>
constexpr bool kIsVector = false;
template <class T>
constexpr bool kIsVector<std::vector<T>> = true;
template <class T>
constexpr bool kIsOptional = false;
template <class T>
constexpr bool kIsOptional<std::optional<T>> = true;

// Reads the code from its beginning to its end. A tensor is 2 * i, the value i, or 2 * i + 1, the constant i; what may
// be absent follows a 1, or is a 0; elements follow their number.
class Reader {
 public:
  Reader(const Tensor& code, std::vector<Tensor> inputs, const std::vector<Tensor>& constants)
      : constants_(constants), values_(inputs.begin(), inputs.end()) {
    STD_TORCH_CHECK(code.is_cpu() && code.is_contiguous() && code.dim() == 1 && code.scalar_type() == ScalarType::Long,
                    kReplay, ": code must be a contiguous vector of int64 on the CPU, got shape ", shape_of(code));
    next_ = static_cast<const int64_t*>(code.const_data_ptr());
    end_ = next_ + code.numel();
  }

  template <class T>
  T read() {
    if constexpr (kIsOptional<T>) {
      if (number() == 0) return std::nullopt;
      return read<typename T::value_type>();
    } else if constexpr (kIsVector<T>) {
      T all;
      for (int64_t left = number(); left > 0; --left) all.push_back(read<typename T::value_type>());
      return all;
    } else if constexpr (std::is_same_v<T, Tensor>) {
      return tensor(number());
    } else if constexpr (std::is_same_v<T, double>) {
      return std::bit_cast<double>(number());
    } else {
      return T(number());
    }
  }

  bool at_end() const { return next_ == end_; }
  void add(Tensor value) { values_.push_back(std::move(value)); }
  void drop(int64_t value) {
    STD_TORCH_CHECK(value >= 0 && value < int64_t(values_.size()), kReplay, ": there is no value ", value);
    values_[size_t(value)].reset();
  }

 private:
  int64_t number() {
    STD_TORCH_CHECK(next_ != end_, kReplay, ": the code ends within a step");
    return *next_++;
  }

  const Tensor& tensor(int64_t place) const {
    const auto i = size_t(place / 2);
    const bool is_constant = place % 2 != 0;
    STD_TORCH_CHECK(place >= 0 && i < (is_constant ? constants_.size() : values_.size()), kReplay, ": there is no ",
                    is_constant ? "constant " : "value ", i);
    if (is_constant) return constants_[i];
    STD_TORCH_CHECK(values_[i], kReplay, ": value ", i, " was dropped");
    return *values_[i];
  }

  const std::vector<Tensor>& constants_;
  std::vector<std::optional<Tensor>> values_;
  const int64_t *next_, *end_;
};

Tensor first(Tensor made) { return made; }
Tensor first(std::tuple<Tensor, Tensor> made) { return std::get<0>(std::move(made)); }

template <class Result, class... Given>
Tensor call(Result (*op)(Given...), Reader& reader) {
  std::tuple<Given...> given{reader.read<Given>()...};  // in this order
  return first(std::apply(op, std::move(given)));
}

template <auto kOp>
Tensor step(Reader& reader) {
  return call(kOp, reader);
}

// In the order of the ops' names in Python.
constexpr Tensor (*kSteps[])(Reader&) = {step<sparse_conv2d_cpu>, step<sparse_conv2d_norm_cpu>, step<width_conv2d_cpu>,
                                         step<width_conv2d_norm_cpu>, step<line_norm_cpu>};

std::vector<Tensor> replay_cpu(std::vector<Tensor> inputs, std::vector<Tensor> constants, Tensor code,
                               std::vector<int64_t>) {
  Reader reader(code, std::move(inputs), constants);
  for (auto left = reader.read<int64_t>(); left > 0; --left) {
    const auto op = reader.read<int64_t>();
    STD_TORCH_CHECK(op >= 0 && op < int64_t(std::size(kSteps)), kReplay, ": there is no op ", op);
    reader.add(kSteps[op](reader));
    for (const int64_t value : reader.read<std::vector<int64_t>>()) reader.drop(value);
  }
  std::vector<Tensor> made = reader.read<std::vector<Tensor>>();
  STD_TORCH_CHECK(reader.at_end(), kReplay, ": the code goes on behind its last step");
  return made;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lcs, CPU, m) { m.impl("replay", TORCH_BOX(&replay_cpu)); }
