#pragma once
#include <pybind11/numpy.h>

#include <string>
#include <vector>

#include "lcs/dtype.h"
#include "lcs/parallel.h"

// What every binding of lcs_core shares: NumPy arrays checked and allocated, with errors that name op, argument and
// value. NumPy has no bfloat16: its bits come and go as uint16.
namespace lcs::core {

namespace py = pybind11;

py::array array_of(const char* op, const std::string& name, py::handle object);  // contiguous and aligned
DType dtype_of(const char* op, const std::string& name, const py::array& array);
DType parse_dtype(const char* op, py::handle dtype, DType otherwise);  // None: `otherwise`
const char* name_of(DType dtype);
void check_same_shape(const char* op, const std::string& name, const py::array& array, const py::array& like);
void check_words(const char* op, const std::string& name, const py::array& mask_bits, int64_t n);
float alpha_of(const char* op, double alpha);
Parallel threads_of(const char* op, int threads);
std::vector<py::ssize_t> shape_of(const py::array& array);
py::array empty(const std::vector<py::ssize_t>& shape, DType dtype);
py::array empty_words(int64_t n);  // the mask bits of n weights

}  // namespace lcs::core
