#pragma once

// Open after the last #include and close before the file ends: code between the two is compiled for the named
// instruction sets, and nothing that a header defines inline is.
#define LCS_STR_(x) #x
#define LCS_STR(x) LCS_STR_(x)
#if defined(LCS_TARGET_BEGIN)  // the build emulates the instructions: no target
#define LCS_OPAQUE(x) (void)(x)
#define LCS_ADD(instruction, add, sum, x) sum = add(sum, x)
#else
#define LCS_OPAQUE(x) asm volatile("" : "+v"(x))  // of a vector whose origin the compiler shall not look into
// sum = add(sum, x) where it stands: compilers take sums apart, to add in another order, and run out of registers.
#define LCS_ADD(instruction, add, sum, x) asm(instruction " %1, %0, %0" : "+v"(sum) : "v"(x))
#endif
#if defined(LCS_TARGET_BEGIN)
#elif defined(__clang__)
#define LCS_TARGET_BEGIN(t) _Pragma(LCS_STR(clang attribute push(__attribute__((target(t))), apply_to = function)))
#define LCS_TARGET_END _Pragma("clang attribute pop")
#else
#define LCS_TARGET_BEGIN(t) _Pragma("GCC push_options") _Pragma(LCS_STR(GCC target(t)))
#define LCS_TARGET_END _Pragma("GCC pop_options")
#endif
#define LCS_TARGET_AVX2 "avx2,fma,f16c,bmi,bmi2,popcnt,lzcnt"
// Every machine with AVX-512 has PREFETCHW; where it is missing, it does nothing.
#define LCS_TARGET_AVX512 LCS_TARGET_AVX2 ",avx512f,avx512bw,avx512dq,avx512vl,prfchw"
#define LCS_TARGET_VNNI LCS_TARGET_AVX512 ",avx512vnni,avx512vbmi,avx512vbmi2,gfni"
#define LCS_TARGET_BF16 LCS_TARGET_VNNI ",avx512bf16"

// Before a loop of a fixed, small number of turns: all of them in a row, so that arrays indexed by it stay in
// registers.
#if defined(__clang__)
#define LCS_UNROLL _Pragma("unroll")
#else
#define LCS_UNROLL _Pragma("GCC unroll 32")
#endif
