// Stands in for csrc/cpu/isa.cpp where the instructions are emulated: this machine has them all up to VNNI.
#include "lcs/isa.h"

namespace lcs {
namespace {

Isa current = Isa::avx512_vnni;

}  // namespace

Isa machine_isa() { return Isa::avx512_vnni; }
Isa max_isa() { return current; }
void set_max_isa(Isa isa) { current = isa < Isa::avx512_vnni ? isa : Isa::avx512_vnni; }

}  // namespace lcs
