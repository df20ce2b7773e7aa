#include "lcs_core.h"

#include <stdexcept>
#include <string>

#include "lcs/isa.h"

namespace {

void set_isa(const std::string& name) {
  lcs::Isa isa;
  try {
    isa = lcs::parse_isa(name);
  } catch (const std::invalid_argument&) {
    throw pybind11::value_error("lcs_core.set_isa: no instruction set is named '" + name +
                                "'; the names are scalar, avx2, avx512, avx512_vnni, avx512_bf16, amx");
  }
  lcs::set_max_isa(isa);
}

}  // namespace

PYBIND11_MODULE(lcs_core, m) {
  m.doc() =
      "The kernels of lcs-kernels on NumPy arrays, without torch. Arrays are C-contiguous float32, float16 or, as "
      "NumPy has no bfloat16, uint16 with its bits. Each call runs on `threads` threads and the result does not depend "
      "on how many, nor on the instruction set.";
  m.def(
      "isa", [] { return lcs::isa_name(lcs::max_isa()); },
      "The best instruction set in use: scalar, avx2, avx512, avx512_vnni, avx512_bf16 or amx.");
  m.def("set_isa", &set_isa, pybind11::arg("name"),
        "Caps the kernels at instruction set `name`; more than the machine has means all it has. Not per thread.");
  lcs::core::bind_interpolate_prune(m);
}
