#include "lcs/interpolate_prune.h"

#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "arrays.h"
#include "lcs_core.h"

namespace lcs::core {
namespace {

using Objects = std::vector<py::object>;
using Arrays = std::vector<py::array>;

// The op as its caller named it, and how it names layer i of an argument.
struct Op {
  const char* name;
  bool list;

  std::string layer(const char* argument, size_t i) const {
    return list ? std::string(argument) + "s[" + std::to_string(i) + "]" : argument;
  }
  [[noreturn]] void refuse(const std::string& why) const {
    throw py::value_error(std::string("lcs_core.") + name + ": " + why);
  }
  void check_count(const char* argument, size_t found, size_t expected) const {
    if (found != expected)
      refuse(std::string(argument) + " has " + std::to_string(found) + " layers, expected " + std::to_string(expected));
  }
  // An array that must be of `dtype`.
  py::array array(const std::string& argument, py::handle object, DType dtype) const {
    py::array found = array_of(name, argument, object);
    const DType actual = dtype_of(name, argument, found);
    if (actual != dtype)
      throw py::type_error(std::string("lcs_core.") + name + ": " + argument + " is " + name_of(actual) +
                           ", expected " + name_of(dtype));
    return found;
  }
  DType dtype(const char* argument, py::handle first) const {
    const std::string layer0 = layer(argument, 0);
    return dtype_of(name, layer0, array_of(name, layer0, first));
  }
};
constexpr Op kOne{"interpolate_prune", false}, kAll{"interpolate_prune_foreach", true};
constexpr Op kOneBackward{"interpolate_prune_backward", false},
    kAllBackward{"interpolate_prune_foreach_backward", true};

bool is_sequence(py::handle keep) {
  if (py::isinstance<py::array>(keep)) return py::reinterpret_borrow<py::array>(keep).ndim() > 0;
  return py::isinstance<py::sequence>(keep);
}

int64_t checked_keep(const Op& op, const std::string& name, py::handle keep, int64_t n) {
  if (!PyIndex_Check(keep.ptr()) || is_sequence(keep))
    throw py::type_error(std::string("lcs_core.") + op.name + ": " + name + " must be an integer, got " +
                         std::string(py::repr(keep)));
  const Py_ssize_t count = PyNumber_AsSsize_t(keep.ptr(), nullptr);  // a huge one is cut, and so refused below
  if (count == -1 && PyErr_Occurred()) throw py::error_already_set();
  if (count < 0 || count > n)
    op.refuse(name + " must lie in [0, " + std::to_string(n) + "], got " + std::string(py::str(keep)));
  return count;
}

// One count per layer, or one over all.
std::vector<int64_t> counts(const Op& op, py::handle keep, const Arrays& w0s) {
  if (!op.list || !is_sequence(keep)) {
    int64_t n = 0;
    for (const auto& w0 : w0s) n += w0.size();
    return {checked_keep(op, "keep", keep, n)};
  }
  const auto list = py::reinterpret_borrow<py::sequence>(keep);
  op.check_count("keep", list.size(), w0s.size());
  std::vector<int64_t> found;
  for (size_t i = 0; i < w0s.size(); ++i)
    found.push_back(checked_keep(op, "keep[" + std::to_string(i) + "]", py::object(list[i]), w0s[i].size()));
  return found;
}

std::tuple<Arrays, Arrays> prune(const Op& op, const Objects& ends0, const std::optional<Objects>& ends1, double alpha,
                                 py::handle keep, py::handle dtype, int threads) {
  const Parallel parallel = threads_of(op.name, threads);
  const float at = alpha_of(op.name, alpha);
  if (ends1) op.check_count("w1s", ends1->size(), ends0.size());
  if (ends0.empty()) return {};
  const DType in = op.dtype("w0", ends0[0]), out = parse_dtype(op.name, dtype, in);
  Arrays w0s, w1s, ws, mask_bits;
  std::vector<InterpolatePruneLayer> layers;
  for (size_t i = 0; i < ends0.size(); ++i) {
    const auto& w0 = w0s.emplace_back(op.array(op.layer("w0", i), ends0[i], in));
    if (ends1) {
      w1s.push_back(op.array(op.layer("w1", i), (*ends1)[i], in));
      check_same_shape(op.name, op.layer("w1", i), w1s[i], w0);
    }
    ws.push_back(empty(shape_of(w0), out));
    mask_bits.push_back(empty_words(w0.size()));
    layers.push_back({w0.data(), ends1 ? w1s[i].data() : nullptr, ws[i].mutable_data(),
                      static_cast<uint32_t*>(mask_bits[i].mutable_data()), w0.size()});
  }
  const std::vector<int64_t> count = counts(op, keep, w0s);
  {
    const py::gil_scoped_release released;
    interpolate_prune({layers, count, at, in, out}, parallel);
  }
  return {ws, mask_bits};
}

struct Gradients {
  Arrays w0s, w1s;
  py::object alpha;
};

Gradients prune_backward(const Op& op, const Objects& grads, const std::optional<Objects>& ends0,
                         const std::optional<Objects>& ends1, double alpha, const Objects& masks, bool line,
                         py::handle dtype, int threads) {
  const Parallel parallel = threads_of(op.name, threads);
  const float at = alpha_of(op.name, alpha);
  if (ends0.has_value() != ends1.has_value() || (ends0 && !line))
    op.refuse("w0 and w1 come together and on a line (for alpha's gradient), or both are None");
  op.check_count("mask_bits", masks.size(), grads.size());
  for (const auto* ends : {&ends0, &ends1})
    if (*ends) op.check_count(ends == &ends0 ? "w0s" : "w1s", (*ends)->size(), grads.size());
  if (grads.empty()) return {{}, {}, py::none()};
  const DType out = op.dtype("grad", grads[0]), in = parse_dtype(op.name, dtype, out);
  Arrays inputs;  // kept alive
  Gradients result{{}, {}, py::none()};
  std::vector<InterpolatePruneBackwardLayer> layers;
  for (size_t i = 0; i < grads.size(); ++i) {
    const py::array grad = inputs.emplace_back(op.array(op.layer("grad", i), grads[i], out));
    const auto end = [&](const char* name, const std::optional<Objects>& ends) -> const void* {
      if (!ends) return nullptr;
      const auto& w = inputs.emplace_back(op.array(op.layer(name, i), (*ends)[i], in));
      check_same_shape(op.name, op.layer(name, i), w, grad);
      return w.data();
    };
    const std::string mask_name = op.list ? "mask_bits[" + std::to_string(i) + "]" : "mask_bits";
    const auto mask_bits = inputs.emplace_back(array_of(op.name, mask_name, masks[i]));
    check_words(op.name, mask_name, mask_bits, grad.size());
    result.w0s.push_back(empty(shape_of(grad), in));
    if (line) result.w1s.push_back(empty(shape_of(grad), in));
    layers.push_back({grad.data(), end("w0", ends0), end("w1", ends1), static_cast<const uint32_t*>(mask_bits.data()),
                      result.w0s[i].mutable_data(), line ? result.w1s[i].mutable_data() : nullptr, grad.size()});
  }
  double alpha_gradient;
  {
    const py::gil_scoped_release released;
    alpha_gradient = interpolate_prune_backward({layers, at, in, out}, parallel);
  }
  if (ends0) result.alpha = py::float_(alpha_gradient);
  return result;
}

std::optional<Objects> list_of(const py::object& object) {
  return object.is_none() ? std::nullopt : std::optional<Objects>({object});
}

constexpr const char* kDoc = R"(The point alpha of the line from w0 to w1, pruned to its `keep` largest magnitudes.

w = (1 - alpha) * w0 + alpha * w1 in float32, rounded to `dtype`, then ranked: ties keep the higher flat index, -0 ranks
as 0, NaN above infinity; what is not kept is 0 (arXiv 2110.04252, section 3).

w0, w1: one shape, float32, float16 or uint16 (bfloat16's bits); w1 None: a point, w = w0. alpha in [0, 1]. keep in
[0, n]. dtype of w: 'float32', 'bfloat16' (as uint16), 'float16' or None (w0's).
Returns w and mask_bits: uint32, bit i % 32 of word i // 32 set where weight i was kept.
Raises ValueError (shape, layout, range) and TypeError (no array, dtype).)";

constexpr const char* kForeachDoc = R"(`interpolate_prune` of a list of layers: w0s, w1s (or None) of one dtype.

keep: a sequence, one count per layer; an integer, the count over all layers ranked together in their order.
Returns the lists of w and of mask_bits.)";

constexpr const char* kBackwardDoc = R"(Gradients of `interpolate_prune` to w0, w1 and alpha.

grad: of w, its shape and dtype. mask_bits: as returned. line: whether there is a w1. dtype: of w0, w1 and their
gradients; None: grad's. w0, w1: both None where alpha's gradient is not wanted.
Returns grad_w0 = (1 - alpha) * grad where kept (grad for a point), grad_w1 = alpha * grad or None for a point, and
alpha's gradient, the sum over kept weights of grad * (w1 - w0), or None.)";

constexpr const char* kForeachBackwardDoc = R"(`interpolate_prune_backward` of a list of layers.

Returns the lists grad_w0s and grad_w1s (empty for points), and alpha's gradient over all layers or None.)";

}  // namespace

void bind_interpolate_prune(py::module_& m) {
  using namespace py::literals;
  m.def(
      "interpolate_prune",
      [](const py::object& w0, const py::object& w1, double alpha, const py::object& keep, const py::object& dtype,
         int threads) {
        const auto [ws, mask_bits] = prune(kOne, {w0}, list_of(w1), alpha, keep, dtype, threads);
        return std::tuple(ws[0], mask_bits[0]);
      },
      "w0"_a, "w1"_a, "alpha"_a, "keep"_a, "dtype"_a = py::none(), "threads"_a = 1, kDoc);
  m.def(
      "interpolate_prune_foreach",
      [](const Objects& w0s, const std::optional<Objects>& w1s, double alpha, const py::object& keep,
         const py::object& dtype, int threads) { return prune(kAll, w0s, w1s, alpha, keep, dtype, threads); },
      "w0s"_a, "w1s"_a, "alpha"_a, "keep"_a, "dtype"_a = py::none(), "threads"_a = 1, kForeachDoc);
  m.def(
      "interpolate_prune_backward",
      [](const py::object& grad, const py::object& w0, const py::object& w1, double alpha, const py::object& mask_bits,
         bool line, const py::object& dtype, int threads) {
        const Gradients g =
            prune_backward(kOneBackward, {grad}, list_of(w0), list_of(w1), alpha, {mask_bits}, line, dtype, threads);
        return std::tuple<py::object, py::object, py::object>(g.w0s[0], line ? py::object(g.w1s[0]) : py::none(),
                                                              g.alpha);
      },
      "grad"_a, "w0"_a, "w1"_a, "alpha"_a, "mask_bits"_a, "line"_a = true, "dtype"_a = py::none(), "threads"_a = 1,
      kBackwardDoc);
  m.def(
      "interpolate_prune_foreach_backward",
      [](const Objects& grads, const std::optional<Objects>& w0s, const std::optional<Objects>& w1s, double alpha,
         const Objects& mask_bits, bool line, const py::object& dtype, int threads) {
        const Gradients g = prune_backward(kAllBackward, grads, w0s, w1s, alpha, mask_bits, line, dtype, threads);
        return std::tuple(g.w0s, g.w1s, g.alpha);
      },
      "grads"_a, "w0s"_a, "w1s"_a, "alpha"_a, "mask_bits"_a, "line"_a = true, "dtype"_a = py::none(), "threads"_a = 1,
      kForeachBackwardDoc);
}

}  // namespace lcs::core
