#include "lcs/isa.h"

#include <stdexcept>

#include "check.h"

using lcs::Isa;

bool is_intel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

int main() {
  for (Isa isa : lcs::kIsas) {
    CHECK(lcs::parse_isa(lcs::isa_name(isa)) == isa);
    lcs::set_max_isa(isa);
    CHECK(lcs::max_isa() == (isa < lcs::machine_isa() ? isa : lcs::machine_isa()));
    CHECK(lcs::max_isa() >= Isa::avx512_bf16 || !lcs::multiplies_pairs());
    CHECK(lcs::max_isa() != Isa::amx || lcs::multiplies_pairs());
    CHECK(lcs::max_isa() != Isa::avx512_bf16 || lcs::multiplies_pairs() == !is_intel());
  }
  bool thrown = false;
  try {
    lcs::parse_isa("sse9");
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  CHECK(thrown);
}
