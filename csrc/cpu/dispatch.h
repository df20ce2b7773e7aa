#pragma once
#include "lcs/isa.h"

namespace lcs {

// The kernels of the best instruction set in use, of those an op is written for.
template <class Kernels>
Kernels best(Kernels (*scalar)(), Kernels (*avx2)(), Kernels (*avx512)()) {
  const Isa isa = max_isa();
  return isa >= Isa::avx512 ? avx512() : isa >= Isa::avx2 ? avx2() : scalar();
}

}  // namespace lcs
