// Compiled once per instruction set, after its lanes and `largest_of`, in an unnamed namespace inside its target
// region.
constexpr int kAtOnce = 4;  // vectors

// Times 0 only what is not finite is NaN, which then may still be infinite.
bool nan(const float* x, int64_t n) {
  Float sum[kAtOnce];
  LCS_UNROLL
  for (int k = 0; k < kAtOnce; ++k) sum[k] = set1(0.0f);
  int64_t i = 0;
  for (; i + kAtOnce * kLanes <= n; i += kAtOnce * kLanes) LCS_UNROLL
  for (int k = 0; k < kAtOnce; ++k) sum[k] = fmadd(load(x + i + k * kLanes), set1(0.0f), sum[k]);
  float each[kAtOnce * kLanes];
  LCS_UNROLL
  for (int k = 0; k < kAtOnce; ++k) store(each + k * kLanes, sum[k]);
  const auto is_nan = [](float y) { return y != y; };
  if (std::none_of(each, each + kAtOnce * kLanes, is_nan)) return std::any_of(x + i, x + n, is_nan);
  return std::any_of(x, x + n, is_nan);
}

inline float larger(float x, float y) { return x > y || x != x ? x : y; }

inline float float_of(float x) { return x; }
inline float float_of(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
// Exact: a largest value is one of `T`'s.
inline void put(float x, float* y) { *y = x; }
inline void put(float x, BFloat16* y) { y->bits = uint16_t(std::bit_cast<uint32_t>(x) >> 16); }

// The larger one, y where they are equal. `kNumbers`: neither is NaN, or both are.
template <bool kNumbers>
inline Float most_of(Float x, Float y) {
  return kNumbers ? raised_to(y, x) : largest_of(x, y);
}

// The largest of `n` values, `apart` apart, of each of so many vectors' lanes.
template <int kVectors, bool kNumbers, class T>
inline void largest(const T* x, int64_t apart, int64_t n, Float* most) {
  LCS_UNROLL
  for (int k = 0; k < kVectors; ++k) most[k] = load(x + k * kLanes);
  for (int64_t i = 1; i < n; ++i) LCS_UNROLL
  for (int k = 0; k < kVectors; ++k) most[k] = most_of<kNumbers>(load(x + i * apart + k * kLanes), most[k]);
}

// Of each of `size` values next to each other.
template <bool kNumbers, class T, class Y>
inline void largest_each(const T* x, int64_t apart, int64_t n, int64_t size, Y* y) {
  Float most[kAtOnce];
  int64_t i = 0;
  for (; i + kAtOnce * kLanes <= size; i += kAtOnce * kLanes) {
    largest<kAtOnce, kNumbers>(x + i, apart, n, most);
    LCS_UNROLL
    for (int k = 0; k < kAtOnce; ++k) store(y + i + k * kLanes, most[k]);
  }
  for (; i + kLanes <= size; i += kLanes) {
    largest<1, kNumbers>(x + i, apart, n, most);
    store(y + i, most[0]);
  }
  for (; i < size; ++i) {
    float one = float_of(x[i]);
    for (int64_t k = 1; k < n; ++k) one = larger(float_of(x[k * apart + i]), one);
    put(one, y + i);
  }
}

template <class T>
void rows_of(const LargestRow& l) {
  const T* const x = static_cast<const T*>(l.x);
  l.numbers ? largest_each<true>(x, l.stride, l.rows, l.n, l.y) : largest_each<false>(x, l.stride, l.rows, l.n, l.y);
}

void rows(const LargestRow& l) { l.dtype == DType::bfloat16 ? rows_of<BFloat16>(l) : rows_of<float>(l); }

template <bool kNumbers, class T>
void columns_of(const LargestColumns& l) {
  for (int64_t o = 0; o < l.outputs; ++o) {
    const int64_t first = o * l.stride - l.padding, begin = first < 0 ? 0 : first,
                  end = std::min(first + l.kernel, l.columns);
    largest_each<kNumbers>(l.x + begin * l.channels, l.channels, end - begin, l.channels,
                           static_cast<T*>(l.y) + o * l.channels);
  }
}

template <class T>
void columns_of(const LargestColumns& l) {
  l.numbers ? columns_of<true, T>(l) : columns_of<false, T>(l);
}

void columns(const LargestColumns& l) { l.dtype == DType::bfloat16 ? columns_of<BFloat16>(l) : columns_of<float>(l); }
