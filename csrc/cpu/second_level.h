#pragma once
#include <unistd.h>

#include <cstdint>

namespace lcs {

// Bytes of a core's second-level cache.
inline int64_t second_level() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t kFound = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (kFound > 0) return kFound;
#endif
  return 1 << 20;
}

}  // namespace lcs
