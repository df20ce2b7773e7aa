// Compiled once per instruction set, after its lanes_*.inl, in an unnamed namespace inside its target region.
// Weights go by blocks of 32, one word of mask bits; a tail runs as a block copied to and from the stack.
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

// w in registers, rounded to Out.
template <class T>
struct Blend {
  const typename T::in *w0, *w1;
  Float c0, c1;

  Blend(const InterpolatePruneLayer& chunk, float alpha)
      : w0(static_cast<const typename T::in*>(chunk.w0)),
        w1(static_cast<const typename T::in*>(chunk.w1)),
        c0(set1(1.0f - alpha)),
        c1(set1(alpha)) {}

  void fetch(int64_t i) const {
    fetch_block<false>(w0, i);
    if constexpr (T::line) fetch_block<false>(w1, i);
  }

  Float at(int64_t i) const {
    if constexpr (T::line)
      return rounded<typename T::out>(add(mul(c0, load(w0 + i)), mul(c1, load(w1 + i))));
    else
      return rounded<typename T::out>(load(w0 + i));
  }
};

template <class E>
void copy(E* to, const E* from, int64_t n) {
  __builtin_memcpy(to, from, size_t(n) * sizeof(E));
}

// The last n < 32 weights of a chunk as a whole block, zeros behind them.
template <class T>
struct Tail {
  typename T::in w0[kBlock] = {}, w1[kBlock] = {};
  typename T::out w[kBlock];
  uint32_t mask_bits;

  Tail(const InterpolatePruneLayer& chunk, int64_t begin) {
    copy(w0, static_cast<const typename T::in*>(chunk.w0) + begin, chunk.n - begin);
    if constexpr (T::line) copy(w1, static_cast<const typename T::in*>(chunk.w1) + begin, chunk.n - begin);
  }

  InterpolatePruneLayer chunk() { return {w0, T::line ? w1 : nullptr, w, &mask_bits, kBlock}; }
};

template <class T>
void keys_block(const Blend<T>& blend, int64_t i, int32_t* keys) {
  for (int v = 0; v < kVectors; ++v) store_keys(keys + v * kLanes, magnitude(blend.at(i + v * kLanes)));
}

template <class T>
void keys_of(const InterpolatePruneLayer& chunk, float alpha, int32_t* keys) {
  const int64_t whole = chunk.n / kBlock * kBlock;
  const Blend<T> blend(chunk, alpha);
  for (int64_t i = 0; i < whole; i += kBlock) keys_block(blend, i, keys + i);
  if (whole == chunk.n) return;
  Tail<T> tail(chunk, whole);
  int32_t block[kBlock];
  keys_block(Blend<T>(tail.chunk(), alpha), 0, block);
  copy(keys + whole, block, chunk.n - whole);
}

template <class T>
struct Classifier {
  Blend<T> blend;
  Key low, width, middle;
  UndecidedList list;
  bool streams;
  Census census;

  Classifier(const InterpolatePruneLayer& chunk, float alpha, KeyRange bracket, int32_t from, UndecidedList undecided,
             bool stream)
      : blend(chunk, alpha),
        low(set1_key(bracket.low)),
        width(set1_key(bracket.high - bracket.low)),
        middle(set1_key(from)),
        list(undecided),
        streams(stream) {}

  void block(const Blend<T>& from, int64_t i, uint32_t valid, typename T::out* w, uint32_t* word, int base) {
    Mask stays[kVectors], undecided[kVectors];
    Float pruned[kVectors];
    from.fetch(i + kAhead);
    if (!streams) fetch_block<true>(w, kAhead);
    for (int v = 0; v < kVectors; ++v) {
      const Float x = from.at(i + v * kLanes);
      const Key key = magnitude(x);
      stays[v] = at_least(key, middle);
      undecided[v] = within(key, low, width);
      pruned[v] = where(stays[v], x);
    }
    if (streams)
      for (int v = 0; v < kVectors; ++v) stream(w + v * kLanes, pruned[v]);
    else
      for (int v = 0; v < kVectors; ++v) store(w + v * kLanes, pruned[v]);
    *word = word_of(stays) & valid;
    const uint32_t inside = word_of(undecided) & valid;
    census.written += __builtin_popcount(*word);
    // No branch on what memory has yet to deliver: past its room a list is written over, in its slack.
    const int64_t at = census.undecided < list.room ? census.undecided : list.room;
    census.listed &= (inside == 0) | (census.undecided <= list.room - kBlock);
    census.undecided += append(list.offsets + at, inside, base);
  }
};

template <class T>
Census classify_chunk(const InterpolatePruneLayer& chunk, float alpha, KeyRange bracket, int32_t middle,
                      UndecidedList undecided, bool stream) {
  const int64_t whole = chunk.n / kBlock * kBlock;
  auto* w = static_cast<typename T::out*>(chunk.w);
  Classifier<T> run(chunk, alpha, bracket, middle, undecided, stream);
  for (int64_t i = 0; i < whole; i += kBlock) run.block(run.blend, i, ~0u, w + i, chunk.mask_bits + i / kBlock, int(i));
  if (stream) stream_end();
  run.streams = false;
  if (whole == chunk.n) return run.census;
  Tail<T> tail(chunk, whole);
  const uint32_t valid = (1u << (chunk.n - whole)) - 1;
  run.block(Blend<T>(tail.chunk(), alpha), 0, valid, tail.w, chunk.mask_bits + whole / kBlock, int(whole));
  copy(w + whole, tail.w, chunk.n - whole);
  return run.census;
}

// The gradient of a block. Alpha's share goes to 16 sums on every instruction set, so that all round alike.
constexpr int kSums = 16 / kLanes;

template <class T>
void backward_block(const InterpolatePruneBackwardLayer& chunk, int64_t i, Float c0, Float c1, Float* sums) {
  const auto* grad = static_cast<const typename T::out*>(chunk.grad) + i;
  const auto *w0 = static_cast<const typename T::in*>(chunk.w0), *w1 = static_cast<const typename T::in*>(chunk.w1);
  auto *grad_w0 = static_cast<typename T::in*>(chunk.grad_w0) + i,
       *grad_w1 = static_cast<typename T::in*>(chunk.grad_w1);
  const uint32_t word = chunk.mask_bits[i / kBlock];
  for (int v = 0, j = 0; v < kVectors; ++v, j += kLanes) {
    const Float g = where(from_bits(word >> j), load(grad + j));
    if constexpr (!T::line) {
      store(grad_w0 + j, rounded<typename T::in>(g));
      continue;
    }
    store(grad_w0 + j, rounded<typename T::in>(mul(c0, g)));
    store(grad_w1 + i + j, rounded<typename T::in>(mul(c1, g)));
    if (w0) sums[v % kSums] = add(sums[v % kSums], mul(g, sub(load(w1 + i + j), load(w0 + i + j))));
  }
}

template <class T>
double backward_chunk(const InterpolatePruneBackwardLayer& chunk, float alpha) {
  const Float c0 = set1(1.0f - alpha), c1 = set1(alpha);
  Float sums[kSums];
  for (Float& sum : sums) sum = set1(0.0f);
  const int64_t whole = chunk.n / kBlock * kBlock, rest = chunk.n - whole;
  for (int64_t i = 0; i < whole; i += kBlock) backward_block<T>(chunk, i, c0, c1, sums);
  if (rest) {
    typename T::in w0[kBlock] = {}, w1[kBlock] = {}, grad_w0[kBlock], grad_w1[kBlock];
    typename T::out grad[kBlock] = {};
    copy(grad, static_cast<const typename T::out*>(chunk.grad) + whole, rest);
    if (chunk.w0) {
      copy(w0, static_cast<const typename T::in*>(chunk.w0) + whole, rest);
      copy(w1, static_cast<const typename T::in*>(chunk.w1) + whole, rest);
    }
    const InterpolatePruneBackwardLayer block{
        grad, chunk.w0 ? w0 : nullptr, w1, chunk.mask_bits + whole / kBlock, grad_w0, grad_w1, kBlock};
    backward_block<T>(block, 0, c0, c1, sums);
    copy(static_cast<typename T::in*>(chunk.grad_w0) + whole, grad_w0, rest);
    if constexpr (T::line) copy(static_cast<typename T::in*>(chunk.grad_w1) + whole, grad_w1, rest);
  }
  float lanes[16];
  for (int s = 0; s < kSums; ++s) store(lanes + s * kLanes, sums[s]);
  double total = 0;
  for (float lane : lanes) total += lane;
  return total;
}

void keys(const InterpolatePruneLayer& chunk, float alpha, DType in, DType out, int32_t* to) {
  with_types(in, out, chunk.w1, [&](auto types) { keys_of<decltype(types)>(chunk, alpha, to); });
}

Census classify(const InterpolatePruneLayer& chunk, float alpha, DType in, DType out, KeyRange bracket, int32_t middle,
                UndecidedList list, bool stream) {
  return with_types(in, out, chunk.w1, [&](auto types) {
    return classify_chunk<decltype(types)>(chunk, alpha, bracket, middle, list, stream);
  });
}

void inside(const int32_t* keys, int64_t n, KeyRange range, uint32_t* bits) {
  const Key low = set1_key(range.low), width = set1_key(range.high - range.low);
  for (int64_t i = 0; i < n; i += kBlock) {
    Mask found[kVectors];
    for (int v = 0; v < kVectors; ++v) found[v] = within(load_keys(keys + i + v * kLanes), low, width);
    bits[i / kBlock] = word_of(found);
  }
}

double backward(const InterpolatePruneBackwardLayer& chunk, float alpha, DType in, DType out) {
  return with_types(in, out, chunk.grad_w1, [&](auto types) { return backward_chunk<decltype(types)>(chunk, alpha); });
}
