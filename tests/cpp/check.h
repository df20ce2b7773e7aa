#pragma once
#include <cstdio>
#include <cstdlib>

#if defined(LCS_ONLY_THREADS)
inline constexpr bool kOnlyThreads = true;  // to be left out: runs on one thread, but for what others are compared with
#else
inline constexpr bool kOnlyThreads = false;
#endif

// Ends the test with the place and the expression; stays on in release builds, unlike assert.
#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                               \
    }                                                                             \
  } while (false)
