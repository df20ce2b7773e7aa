// Compiled once per instruction set, after its lanes and `largest_of`, in an unnamed namespace inside its target
// region.
constexpr int kAtOnce = 4;  // vectors, so that none waits for its own comparison

// NaN is the largest of all.
bool nan(const float* x, int64_t n) {
  Float most[kAtOnce];
  LCS_UNROLL
  for (int k = 0; k < kAtOnce; ++k) most[k] = set1(0.0f);
  int64_t i = 0;
  for (; i + kAtOnce * kLanes <= n; i += kAtOnce * kLanes) LCS_UNROLL
  for (int k = 0; k < kAtOnce; ++k) most[k] = largest_of(load(x + i + k * kLanes), most[k]);
  float each[kAtOnce * kLanes];
  LCS_UNROLL
  for (int k = 0; k < kAtOnce; ++k) store(each + k * kLanes, most[k]);
  bool found = false;
  for (const float y : each) found |= y != y;
  for (; i < n; ++i) found |= x[i] != x[i];
  return found;
}

inline float larger(float x, float y) { return x > y || x != x ? x : y; }

inline float float_of(float x) { return x; }
inline float float_of(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
// Exact: a largest value is one of `T`'s.
inline void put(float x, float* y) { *y = x; }
inline void put(float x, BFloat16* y) { y->bits = uint16_t(std::bit_cast<uint32_t>(x) >> 16); }

template <class T>
void rows_of(const LargestRow& l) {
  const T* const x = static_cast<const T*>(l.x);
  int64_t i = 0;
  for (; i + kLanes <= l.n; i += kLanes) {
    Float most = load(x + i);
    for (int64_t r = 1; r < l.rows; ++r) most = largest_of(load(x + r * l.stride + i), most);
    store(l.y + i, most);
  }
  for (; i < l.n; ++i) {
    l.y[i] = float_of(x[i]);
    for (int64_t r = 1; r < l.rows; ++r) l.y[i] = larger(float_of(x[r * l.stride + i]), l.y[i]);
  }
}

void rows(const LargestRow& l) { l.dtype == DType::bfloat16 ? rows_of<BFloat16>(l) : rows_of<float>(l); }

// The largest of a window's columns [begin, end), in each channel.
template <class T>
void window(const LargestColumns& l, int64_t begin, int64_t end, T* y) {
  const float* const x = l.x + begin * l.channels;
  int64_t c = 0;
  for (; c + kLanes <= l.channels; c += kLanes) {
    Float most = load(x + c);
    for (int64_t i = 1; i < end - begin; ++i) most = largest_of(load(x + i * l.channels + c), most);
    store(y + c, most);
  }
  for (; c < l.channels; ++c) {
    float most = x[c];
    for (int64_t i = 1; i < end - begin; ++i) most = larger(x[i * l.channels + c], most);
    put(most, y + c);
  }
}

template <class T>
void columns_of(const LargestColumns& l) {
  for (int64_t o = 0; o < l.outputs; ++o) {
    const int64_t begin = o * l.stride - l.padding, end = begin + l.kernel;
    window(l, begin < 0 ? 0 : begin, end < l.columns ? end : l.columns, static_cast<T*>(l.y) + o * l.channels);
  }
}

void columns(const LargestColumns& l) { l.dtype == DType::bfloat16 ? columns_of<BFloat16>(l) : columns_of<float>(l); }
