#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace lcs {

// What is done of [begin, end): a non-owning reference to a callable, which must outlive every call of it.
class Range {
 public:
  template <class Body>
    requires(!std::is_same_v<std::remove_cvref_t<Body>, Range>)
  Range(Body&& body)
      : body_(const_cast<void*>(static_cast<const void*>(std::addressof(body)))),
        call_([](void* of, int64_t begin, int64_t end) {
          (*static_cast<std::remove_reference_t<Body>*>(of))(begin, end);
        }) {}

  void operator()(int64_t begin, int64_t end) const { call_(body_, begin, end); }

 private:
  void* body_;
  void (*call_)(void* body, int64_t begin, int64_t end);
};

// Runs `range` over [0, n) split among threads, in pieces of at least `grain` but for the last; returns when all are
// done. A kernel's result never depends on how the range was split.
using Parallel = std::function<void(int64_t n, int64_t grain, const Range& range)>;

inline void serial(int64_t n, int64_t, const Range& range) {
  if (n > 0) range(0, n);
}

inline bool is_serial(const Parallel& parallel) {
  using Function = void (*)(int64_t, int64_t, const Range&);
  const Function* const function = parallel.target<Function>();
  return function && *function == serial;
}

}  // namespace lcs
