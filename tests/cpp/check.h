#pragma once
#include <cstdio>
#include <cstdlib>

// Ends the test with the place and the expression; stays on in release builds, unlike assert.
#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                               \
    }                                                                             \
  } while (false)
