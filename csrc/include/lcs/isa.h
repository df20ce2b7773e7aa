#pragma once
#include <string_view>

namespace lcs {

// In order: a later one implies the earlier ones. avx512 is F, BW, DQ and VL; avx512_vnni adds VNNI, VBMI and VBMI2.
enum class Isa { scalar, avx2, avx512, avx512_vnni, amx };

Isa machine_isa();                     // what this machine and its operating system allow
Isa max_isa();                         // what the kernels use: machine_isa(), capped by LCS_MAX_ISA or set_max_isa
void set_max_isa(Isa isa);             // never raises above the machine
Isa parse_isa(std::string_view name);  // throws std::invalid_argument
const char* isa_name(Isa isa);

}  // namespace lcs

// Open after the last #include and close before the file ends: code between the two is compiled for the named
// instruction sets, and nothing that a header defines inline is.
#define LCS_STR_(x) #x
#define LCS_STR(x) LCS_STR_(x)
#if defined(__clang__)
#define LCS_TARGET_BEGIN(t) _Pragma(LCS_STR(clang attribute push(__attribute__((target(t))), apply_to = function)))
#define LCS_TARGET_END _Pragma("clang attribute pop")
#else
#define LCS_TARGET_BEGIN(t) _Pragma("GCC push_options") _Pragma(LCS_STR(GCC target(t)))
#define LCS_TARGET_END _Pragma("GCC pop_options")
#endif
#define LCS_TARGET_AVX2 "avx2,fma,f16c,bmi,bmi2,popcnt,lzcnt"
#define LCS_TARGET_AVX512 LCS_TARGET_AVX2 ",avx512f,avx512bw,avx512dq,avx512vl"
