#pragma once
#include <cstdint>

namespace lcs::binding {

// Memory of results on the CPU that are not small, which is kept for the next ones. The C library would give it back to
// the system, so that each call's came fresh, and the system clears that page by page, which takes longer than many a
// kernel. What no tensor holds is at most kMostKept: the blocks that were freed last.
constexpr int64_t kLeastKept = int64_t{128} << 10, kMostKept = int64_t{128} << 20;

// At least `bytes`, of large pages where it is some of them and the system has them; null: there is none.
void* take_memory(int64_t bytes);

// What take_memory(bytes) gave.
void give_memory(void* data, int64_t bytes);

// Gives what no tensor holds back to the system: so many bytes.
int64_t release_memory();

}  // namespace lcs::binding
