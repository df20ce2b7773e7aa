#pragma once
#include <pybind11/pybind11.h>

// Each op's bindings, from its own <op>_core.cpp.
namespace lcs::core {

void bind_interpolate_prune(pybind11::module_& m);

}  // namespace lcs::core
