// Compiled once per instruction set, after its lanes_*.inl, in an unnamed namespace inside its target region.
// Sums run in 16 lanes on every instruction set, so that all round alike.
constexpr int kStep = 16, kVectors = kStep / kLanes;

struct Sums {
  Float dot[kVectors], norm0[kVectors], norm1[kVectors];

  Sums() {
    for (int v = 0; v < kVectors; ++v) dot[v] = norm0[v] = norm1[v] = set1(0.0f);
  }

  template <class E>
  void step(const E* w0, const E* w1) {
    for (int v = 0; v < kVectors; ++v) {
      const Float a = load(w0 + v * kLanes), b = load(w1 + v * kLanes);
      dot[v] = add(dot[v], mul(a, b));
      norm0[v] = add(norm0[v], mul(a, a));
      norm1[v] = add(norm1[v], mul(b, b));
    }
  }

  static double total(const Float* lanes) {
    float lane[kStep];
    for (int v = 0; v < kVectors; ++v) store(lane + v * kLanes, lanes[v]);
    double sum = 0;
    for (float x : lane) sum += x;
    return sum;
  }
};

// The last n < 16 elements from p, zeros behind them.
template <class E>
struct Tail {
  E values[kStep] = {};

  Tail(const E* p, int64_t n) {
    for (int64_t i = 0; i < n; ++i) values[i] = p[i];
  }
};

template <class E>
CosineSums sums_of(const CosineSquaredLayer& chunk) {
  const auto *w0 = static_cast<const E*>(chunk.w0), *w1 = static_cast<const E*>(chunk.w1);
  const int64_t whole = chunk.n / kStep * kStep;
  Sums sums;
  for (int64_t i = 0; i < whole; i += kStep) sums.step(w0 + i, w1 + i);
  if (const int64_t rest = chunk.n - whole)
    sums.step(Tail<E>(w0 + whole, rest).values, Tail<E>(w1 + whole, rest).values);
  return {Sums::total(sums.dot), Sums::total(sums.norm0), Sums::total(sums.norm1)};
}

template <class E>
void backward_step(const E* w0, const E* w1, E* grad_w0, E* grad_w1, Float cross, Float own0, Float own1) {
  for (int v = 0; v < kStep; v += kLanes) {
    const Float a = load(w0 + v), b = load(w1 + v);
    store(grad_w0 + v, rounded<E>(add(mul(cross, b), mul(own0, a))));
    store(grad_w1 + v, rounded<E>(add(mul(cross, a), mul(own1, b))));
  }
}

template <class E>
void backward_of(const CosineSquaredLayer& chunk, float cross, float own0, float own1) {
  const auto *w0 = static_cast<const E*>(chunk.w0), *w1 = static_cast<const E*>(chunk.w1);
  auto *grad_w0 = static_cast<E*>(chunk.grad_w0), *grad_w1 = static_cast<E*>(chunk.grad_w1);
  const Float c = set1(cross), o0 = set1(own0), o1 = set1(own1);
  const int64_t whole = chunk.n / kStep * kStep;
  for (int64_t i = 0; i < whole; i += kStep) backward_step(w0 + i, w1 + i, grad_w0 + i, grad_w1 + i, c, o0, o1);
  if (const int64_t rest = chunk.n - whole) {
    E grads[2][kStep];
    backward_step(Tail<E>(w0 + whole, rest).values, Tail<E>(w1 + whole, rest).values, grads[0], grads[1], c, o0, o1);
    for (int64_t i = 0; i < rest; ++i) grad_w0[whole + i] = grads[0][i], grad_w1[whole + i] = grads[1][i];
  }
}

CosineSums sums(const CosineSquaredLayer& chunk, DType dtype) {
  if (dtype == DType::bfloat16) return sums_of<BFloat16>(chunk);
  if (dtype == DType::float16) return sums_of<Float16>(chunk);
  return sums_of<float>(chunk);
}

void backward(const CosineSquaredLayer& chunk, float cross, float own0, float own1, DType dtype) {
  if (dtype == DType::bfloat16) return backward_of<BFloat16>(chunk, cross, own0, own1);
  if (dtype == DType::float16) return backward_of<Float16>(chunk, cross, own0, own1);
  backward_of<float>(chunk, cross, own0, own1);
}
