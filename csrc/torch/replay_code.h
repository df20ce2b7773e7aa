#pragma once
#include <bit>
#include <tuple>
#include <type_traits>
#include <variant>

#include "replay_binding.h"

// The code of `replay` as the steps that it stands for.
namespace lcs::binding {

constexpr const char* kReplay = "replay";

// Where a tensor is: 2 * i, the value i, or 2 * i + 1, the constant i.
struct Place {
  int64_t at;

  static Place of_value(size_t i) { return {2 * int64_t(i)}; }
  bool is_constant() const { return at % 2 != 0; }
  size_t index() const { return size_t(at / 2); }
};

template <class T>
constexpr bool kIsVector = false;
template <class T>
constexpr bool kIsVector<std::vector<T>> = true;
template <class T>
constexpr bool kIsOptional = false;
template <class T>
constexpr bool kIsOptional<std::optional<T>> = true;

// A T, in which places stand for tensors.
template <class T>
struct PlacedAs {
  using Type = T;
};
template <>
struct PlacedAs<Tensor> {
  using Type = Place;
};
template <>
struct PlacedAs<std::optional<Tensor>> {
  using Type = std::optional<Place>;
};
template <>
struct PlacedAs<std::vector<Tensor>> {
  using Type = std::vector<Place>;
};
template <class T>
using Placed = typename PlacedAs<T>::Type;

// Reads numbers from the beginning of the code to its end. What may be absent follows a 1, or is a 0; elements follow
// their number.
class Code {
 public:
  explicit Code(const Tensor& code) {
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
    } else if constexpr (std::is_same_v<T, Place>) {
      return {number()};
    } else if constexpr (std::is_same_v<T, double>) {
      return std::bit_cast<double>(number());
    } else {
      return T(number());
    }
  }

  bool at_end() const { return next_ == end_; }

 private:
  int64_t number() {
    STD_TORCH_CHECK(next_ != end_, kReplay, ": the code ends within a step");
    return *next_++;
  }

  const int64_t *next_, *end_;
};

// An op with its arguments.
template <auto kOp>
struct Call;
template <class Result, class... Given, Result (*kOp)(Given...)>
struct Call<kOp> {
  std::tuple<Placed<Given>...> given;

  explicit Call(Code& code) : given{code.read<Placed<Given>>()...} {}  // in this order

  template <size_t i>
  const auto& get() const {
    return std::get<i>(given);
  }

  // What the op makes of the tensors that tensor(place) gives.
  template <class F>
  Result run(const F& tensor) const {
    return std::apply([&](const auto&... arguments) { return kOp(filled<Given>(arguments, tensor)...); }, given);
  }

  // Argument i, with the tensors that tensor(place) gives.
  template <size_t i, class F>
  auto argument(const F& tensor) const {
    return filled<std::tuple_element_t<i, std::tuple<Given...>>>(std::get<i>(given), tensor);
  }

 private:
  template <class T, class F>
  static T filled(const Placed<T>& argument, const F& tensor) {
    if constexpr (std::is_same_v<T, Tensor>) {
      return tensor(argument);
    } else if constexpr (std::is_same_v<T, std::optional<Tensor>>) {
      return argument ? T(tensor(*argument)) : std::nullopt;
    } else if constexpr (std::is_same_v<T, std::vector<Tensor>>) {
      T all;
      for (const Place& element : argument) all.push_back(tensor(element));
      return all;
    } else {
      return argument;
    }
  }
};

using SparseConv2dStep = Call<sparse_conv2d_cpu>;
using SparseConv2dNormStep = Call<sparse_conv2d_norm_cpu>;
using LineNormStep = Call<line_norm_cpu>;
// In the order of the ops' names in Python.
using AnyCall =
    std::variant<SparseConv2dStep, SparseConv2dNormStep, Call<width_conv2d_cpu>, Call<width_conv2d_norm_cpu>,
                 LineNormStep, Call<torch_mean>, Call<torch_as_strided_>, Call<torch_view>>;

struct Step {
  AnyCall call;
  std::vector<int64_t> drops;  // values that nothing reads later
};

struct Steps {
  std::vector<Step> all;
  std::vector<Place> results;

  explicit Steps(const Tensor& code);
};

}  // namespace lcs::binding
