// Stands in for csrc/cpu/isa.cpp where the instructions are emulated: this machine has them all.
#include "lcs/isa.h"

#include <cstdio>
#include <cstdlib>

#include "width_conv2d_kernels.h"
#include "width_winograd6_kernels.h"

namespace lcs {
namespace {

Isa current = Isa::amx;

}  // namespace

Isa machine_isa() { return Isa::amx; }
Isa max_isa() { return current; }
bool starts_two_products() { return true; }
void set_max_isa(Isa isa) { current = isa < Isa::amx ? isa : Isa::amx; }

namespace bf16 {
WidthConv2dKernels width_conv2d_kernels() {
  std::fputs("emulate: products of pairs of bfloat16 are assembly, which is not emulated\n", stderr);
  std::abort();
}
WidthWinograd6Kernels width_winograd6_kernels() {
  std::fputs("emulate: what goes with products of pairs of bfloat16 is not emulated\n", stderr);
  std::abort();
}
}  // namespace bf16

}  // namespace lcs
