// Compiled once per instruction set, after its lanes_*.inl, in an unnamed namespace inside its target region: the point
// alpha of a line in registers. Weights go by blocks of 32; a tail runs as a block copied to and from the stack.
constexpr int kVectors = kBlock / kLanes;
constexpr int kAhead = 512;  // weights fetched ahead: too much is computed on each for the processor to look so far

template <class In, class Out, bool kLine>
struct Types {
  using in = In;
  using out = Out;
  static constexpr bool line = kLine;
};

template <class In, class Out, class Body>
auto with_line(bool line, Body body) {
  return line ? body(Types<In, Out, true>{}) : body(Types<In, Out, false>{});
}

template <class In, class Body>
auto with_out(DType out, bool line, Body body) {
  if (out == DType::bfloat16) return with_line<In, BFloat16>(line, body);
  if (out == DType::float16) return with_line<In, Float16>(line, body);
  return with_line<In, float>(line, body);
}

// Calls body with the Types of a chunk.
template <class Body>
auto with_types(DType in, DType out, bool line, Body body) {
  if (in == DType::bfloat16) return with_out<BFloat16>(out, line, body);
  if (in == DType::float16) return with_out<Float16>(out, line, body);
  return with_out<float>(out, line, body);
}

// The lines of a block that may lie past the end of an array.
template <bool kWrite, class E>
void fetch_block(const E* array, int64_t i) {
  const uintptr_t block = reinterpret_cast<uintptr_t>(array) + uintptr_t(i) * sizeof(E);
  for (uintptr_t line = 0; line < kBlock * sizeof(E); line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(block + line), kWrite);
}

// w in float32, not yet rounded to Out.
template <class T>
struct Blend {
  const typename T::in *w0, *w1;
  Float c0, c1;

  Blend(const void* end0, const void* end1, float alpha)
      : w0(static_cast<const typename T::in*>(end0)),
        w1(static_cast<const typename T::in*>(end1)),
        c0(set1(1.0f - alpha)),
        c1(set1(alpha)) {}

  void fetch(int64_t i) const {
    fetch_block<false>(w0, i);
    if constexpr (T::line) fetch_block<false>(w1, i);
  }

  Float at(int64_t i) const {
    if constexpr (T::line)
      return add(mul(c0, load(w0 + i)), mul(c1, load(w1 + i)));
    else
      return load(w0 + i);
  }
};

template <class E>
void copy(E* to, const E* from, int64_t n) {
  __builtin_memcpy(to, from, size_t(n) * sizeof(E));
}

// The last n - begin < 32 weights of a chunk of n as a whole block, zeros behind them.
template <class T>
struct Tail {
  typename T::in w0[kBlock] = {}, w1[kBlock] = {};
  typename T::out w[kBlock];

  Tail(const Blend<T>& chunk, int64_t begin, int64_t n) {
    copy(w0, chunk.w0 + begin, n - begin);
    if constexpr (T::line) copy(w1, chunk.w1 + begin, n - begin);
  }

  Blend<T> blend(float alpha) const { return {w0, T::line ? w1 : nullptr, alpha}; }
};
