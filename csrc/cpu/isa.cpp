#include "lcs/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lcs {
namespace {

#if defined(__x86_64__)
// Tile registers need the kernel's leave, asked once per process.
bool amx_granted() {
#if defined(LCS_EMULATED_TILES)
  return true;
#else
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  if ((d & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
}

bool has_f16c() {  // which __builtin_cpu_supports of older clangs does not know
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

Isa detect() {
  __builtin_cpu_init();
#define LCS_HAS(feature) __builtin_cpu_supports(feature)
  if (!(LCS_HAS("avx2") && LCS_HAS("fma") && has_f16c() && LCS_HAS("bmi") && LCS_HAS("bmi2") && LCS_HAS("popcnt")))
    return Isa::scalar;
  if (!(LCS_HAS("avx512f") && LCS_HAS("avx512bw") && LCS_HAS("avx512dq") && LCS_HAS("avx512vl"))) return Isa::avx2;
  if (!(LCS_HAS("avx512vnni") && LCS_HAS("avx512vbmi") && LCS_HAS("avx512vbmi2") && LCS_HAS("gfni")))
    return Isa::avx512;
  if (!LCS_HAS("avx512bf16")) return Isa::avx512_vnni;
#undef LCS_HAS
  return amx_granted() ? Isa::amx : Isa::avx512_bf16;
}

bool is_intel() {
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
}

bool is_zen_4() {
  unsigned a, b, c, d;
  __builtin_cpu_init();
  if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &a, &b, &c, &d)) return false;
  constexpr unsigned kFamily = 0x19;  // and that of Zen 3, which has no 512 bits
  return (a >> 8 & 0xf) + (a >> 20 & 0xff) == kFamily;
}
#else
Isa detect() { return Isa::scalar; }
bool is_intel() { return false; }
bool is_zen_4() { return false; }
#endif

Isa capped(Isa isa) { return isa < machine_isa() ? isa : machine_isa(); }

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa = [] {
    const char* name = std::getenv("LCS_MAX_ISA");
    return name && *name ? capped(parse_isa(name)) : machine_isa();
  }();
  return isa;
}

}  // namespace

Isa machine_isa() {
  static const Isa isa = detect();
  return isa;
}

bool starts_two_products() {
  static const bool two = !is_zen_4();
  return two;
}

bool multiplies_pairs() {
  // Intel's AVX512_BF16 takes longer than floats for direct products: lcs bench --op width_conv2d
  static const bool pays = !is_intel();
  return max_isa() == Isa::amx || (max_isa() == Isa::avx512_bf16 && pays);
}

Isa max_isa() { return current().load(std::memory_order_relaxed); }
void set_max_isa(Isa isa) { current().store(capped(isa), std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_vnni:
      return "avx512_vnni";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::amx:
      return "amx";
  }
  return "?";
}

Isa parse_isa(std::string_view name) {
  std::string names;
  for (Isa isa : kIsas) {
    if (name == isa_name(isa)) return isa;
    names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("lcs: LCS_MAX_ISA names no instruction set: '" + std::string(name) + "' (" + names + ")");
}

}  // namespace lcs
