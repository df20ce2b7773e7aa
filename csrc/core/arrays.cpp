#include "arrays.h"

#include "lcs/fork_join.h"

namespace lcs::core {
namespace {

constexpr int kMaxThreads = 1024;

std::string at(const char* op, const std::string& name) { return std::string("lcs_core.") + op + ": " + name; }

std::string text(py::handle object) { return py::str(object); }

py::dtype numpy_dtype(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return py::dtype::of<float>();
    case DType::bfloat16:
      return py::dtype::of<uint16_t>();
    case DType::float16:
      break;
  }
  return py::dtype("float16");
}

}  // namespace

const char* name_of(DType dtype) {
  return dtype == DType::float32 ? "float32" : dtype == DType::bfloat16 ? "bfloat16" : "float16";
}

py::array array_of(const char* op, const std::string& name, py::handle object) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error(at(op, name) + " must be a NumPy array, got " + text(py::type::of(object).attr("__name__")));
  auto array = py::reinterpret_borrow<py::array>(object);
  if (!(array.flags() & py::array::c_style))
    throw py::value_error(at(op, name) + " is not C-contiguous; pass numpy.ascontiguousarray(" + name + ")");
  if (reinterpret_cast<uintptr_t>(array.data()) % size_t(array.dtype().alignment()))
    throw py::value_error(at(op, name) + " is not aligned to its dtype; pass " + name + ".copy()");
  return array;
}

DType dtype_of(const char* op, const std::string& name, const py::array& array) {
  for (DType dtype : {DType::float32, DType::bfloat16, DType::float16})
    if (array.dtype().equal(numpy_dtype(dtype))) return dtype;
  throw py::type_error(at(op, name) + " must be float32, float16 or uint16 (the bits of bfloat16), got " +
                       text(array.dtype()));
}

DType parse_dtype(const char* op, py::handle dtype, DType otherwise) {
  if (dtype.is_none()) return otherwise;
  if (py::isinstance<py::str>(dtype) && text(dtype) == "bfloat16") return DType::bfloat16;
  try {
    const auto wanted = py::dtype::from_args(py::reinterpret_borrow<py::object>(dtype));
    for (DType known : {DType::float32, DType::float16})
      if (wanted.equal(numpy_dtype(known))) return known;
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // NumPy's word for no dtype at all
  }
  throw py::type_error(at(op, "dtype") + " must be 'float32', 'bfloat16' or 'float16', got " +
                       std::string(py::repr(dtype)));
}

void check_same_shape(const char* op, const std::string& name, const py::array& array, const py::array& like) {
  if (shape_of(array) != shape_of(like))
    throw py::value_error(at(op, name) + " has shape " + text(array.attr("shape")) + ", expected " +
                          text(like.attr("shape")));
}

void check_words(const char* op, const std::string& name, const py::array& mask_bits, int64_t n) {
  const int64_t words = (n + 31) / 32;
  if (!mask_bits.dtype().equal(py::dtype::of<uint32_t>()))
    throw py::type_error(at(op, name) + " must be uint32, got " + text(mask_bits.dtype()));
  if (mask_bits.ndim() != 1 || mask_bits.size() != words)
    throw py::value_error(at(op, name) + " must have shape (" + std::to_string(words) + ",) for " + std::to_string(n) +
                          " weights, got " + text(mask_bits.attr("shape")));
}

float alpha_of(const char* op, double alpha) {
  if (!(alpha >= 0 && alpha <= 1))
    throw py::value_error(at(op, "alpha") + " must lie in [0, 1], got " + text(py::float_(alpha)));
  return float(alpha);
}

Parallel threads_of(const char* op, int threads) {
  if (threads < 1 || threads > kMaxThreads)
    throw py::value_error(at(op, "threads") + " must lie in [1, " + std::to_string(kMaxThreads) + "], got " +
                          std::to_string(threads));
  return threads == 1 ? Parallel(serial) : fork_join(threads);
}

std::vector<py::ssize_t> shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

py::array empty(const std::vector<py::ssize_t>& shape, DType dtype) { return py::array(numpy_dtype(dtype), shape); }

py::array empty_words(int64_t n) {
  return py::array(py::dtype::of<uint32_t>(), std::vector<py::ssize_t>{(n + 31) / 32});
}

}  // namespace lcs::core
