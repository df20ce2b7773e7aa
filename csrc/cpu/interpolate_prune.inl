// Compiled once per instruction set, after its lanes_*.inl and blend.inl, in an unnamed namespace inside its target
// region. A block of 32 weights is one word of mask bits.
template <class T>
Float rounded_at(const Blend<T>& blend, int64_t i) {
  return rounded<typename T::out>(blend.at(i));
}

template <class T>
void keys_block(const Blend<T>& blend, int64_t i, int32_t* keys) {
  for (int v = 0; v < kVectors; ++v) store_keys(keys + v * kLanes, magnitude(rounded_at(blend, i + v * kLanes)));
}

template <class T>
void keys_of(const InterpolatePruneLayer& chunk, float alpha, int32_t* keys) {
  const int64_t whole = chunk.n / kBlock * kBlock;
  const Blend<T> blend(chunk.w0, chunk.w1, alpha);
  for (int64_t i = 0; i < whole; i += kBlock) keys_block(blend, i, keys + i);
  if (whole == chunk.n) return;
  const Tail<T> tail(blend, whole, chunk.n);
  int32_t block[kBlock];
  keys_block(tail.blend(alpha), 0, block);
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
      : blend(chunk.w0, chunk.w1, alpha),
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
      const Float x = rounded_at(from, i + v * kLanes);
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
  Tail<T> tail(run.blend, whole, chunk.n);
  const uint32_t valid = (1u << (chunk.n - whole)) - 1;
  run.block(tail.blend(alpha), 0, valid, tail.w, chunk.mask_bits + whole / kBlock, int(whole));
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
  const uint32_t word = chunk.mask_bits ? chunk.mask_bits[i / kBlock] : ~0u;
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
    const InterpolatePruneBackwardLayer block{grad,    chunk.w0 ? w0 : nullptr,
                                              w1,      chunk.mask_bits ? chunk.mask_bits + whole / kBlock : nullptr,
                                              grad_w0, grad_w1,
                                              kBlock};
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
