#pragma once
#include <string_view>

namespace lcs {

// In order: a later one implies the earlier ones. avx512 is F, BW, DQ and VL; avx512_vnni adds VNNI, VBMI, VBMI2
// and GFNI, amx the tiles of int8 and bfloat16.
enum class Isa { scalar, avx2, avx512, avx512_vnni, avx512_bf16, amx };
constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx};

Isa machine_isa();                     // what this machine and its operating system allow
Isa max_isa();                         // what the kernels use: machine_isa(), capped by LCS_MAX_ISA or set_max_isa
void set_max_isa(Isa isa);             // never raises above the machine
Isa parse_isa(std::string_view name);  // throws std::invalid_argument
const char* isa_name(Isa isa);
bool multiplies_pairs();     // of bfloat16, by the set in use, which is taken to be faster than of floats
bool starts_two_products();  // of 512 bits with VNNI in a cycle, as servers do; all but Zen 4 are taken for such

}  // namespace lcs
