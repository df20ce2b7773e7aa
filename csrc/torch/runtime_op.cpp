#include <torch/csrc/stable/library.h>
#include <unistd.h>

#include <string>

#include "binding.h"
#include "kept_memory.h"
#include "lcs/isa.h"

namespace {

const pid_t loader = getpid();

std::string max_isa() { return lcs::isa_name(lcs::max_isa()); }
std::string machine_isa() { return lcs::isa_name(lcs::machine_isa()); }
bool multiplies_pairs() { return lcs::multiplies_pairs(); }
void set_max_isa(std::string name) { lcs::set_max_isa(lcs::parse_isa(name)); }

}  // namespace

bool lcs::binding::forked() { return getpid() != loader; }

STABLE_TORCH_LIBRARY_FRAGMENT(lcs, m) {
  m.def("machine_isa() -> str");
  m.def("max_isa() -> str");
  m.def("multiplies_pairs() -> bool");
  m.def("set_max_isa(str name) -> ()");
  m.def("release_memory() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(lcs, CompositeExplicitAutograd, m) {
  m.impl("machine_isa", TORCH_BOX(&machine_isa));
  m.impl("max_isa", TORCH_BOX(&max_isa));
  m.impl("multiplies_pairs", TORCH_BOX(&multiplies_pairs));
  m.impl("set_max_isa", TORCH_BOX(&set_max_isa));
  m.impl("release_memory", TORCH_BOX(&lcs::binding::release_memory));
}
