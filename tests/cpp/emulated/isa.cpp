// Stands in for csrc/cpu/isa.cpp where the instructions are emulated: this machine has them all.
#include "lcs/isa.h"

namespace lcs {
namespace {

Isa current = Isa::amx;

}  // namespace

Isa machine_isa() { return Isa::amx; }
Isa max_isa() { return current; }
void set_max_isa(Isa isa) { current = isa < Isa::amx ? isa : Isa::amx; }

}  // namespace lcs
