// One lane: the vector vocabulary of lanes_avx2.inl and lanes_avx512.inl in plain C++.
constexpr int kLanes = 1;
using Float = float;
using Key = int32_t;
using Mask = bool;

inline Float load(const float* p) { return *p; }
inline Float load(const BFloat16* p) { return std::bit_cast<float>(uint32_t{p->bits} << 16); }
inline Float load(const Float16* p) {
  const uint32_t sign = uint32_t{p->bits & 0x8000u} << 16;
  uint32_t x = uint32_t{p->bits & 0x7fffu} << 13;
  const uint32_t exponent = x & 0x0f800000u;
  x += 112u << 23;
  if (exponent == 0x0f800000u) x += 112u << 23;  // infinity, NaN
  if (exponent == 0) x = std::bit_cast<uint32_t>(std::bit_cast<float>(x + (1u << 23)) - 0x1p-14f);
  return std::bit_cast<float>(x | sign);
}

// store() takes a value that its type can hold, as rounded<T>() makes it.
inline void store(float* p, Float x) { *p = x; }
inline void store(BFloat16* p, Float x) { p->bits = uint16_t(std::bit_cast<uint32_t>(x) >> 16); }
inline void store(Float16* p, Float value) {
  uint32_t x = std::bit_cast<uint32_t>(value);
  const uint16_t sign = x >> 16 & 0x8000u;
  x &= 0x7fffffffu;
  if (x > 0x7f800000u)
    x = 0x7e00;
  else if (x >= 0x47800000u)
    x = 0x7c00;
  else if (x < 0x38800000u)  // below 2^-14: adding 1/2 rounds to a multiple of 2^-24, the half denormal's unit
    x = std::bit_cast<uint32_t>(std::bit_cast<float>(x) + 0.5f) - 0x3f000000u;
  else
    x = (x + 0xc8000fffu + (x >> 13 & 1)) >> 13;
  p->bits = uint16_t(sign | x);
}

template <class T>
inline void stream(T* p, Float x) {
  store(p, x);
}
inline void stream_end() {}

template <class T>
inline Float rounded(Float x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return std::bit_cast<float>(0x7fc00000u);
    return std::bit_cast<float>((bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u);
  } else if constexpr (std::is_same_v<T, Float16>) {
    Float16 half;
    store(&half, x);
    return load(&half);
  } else {
    return x;
  }
}

inline Float set1(float x) { return x; }
inline Float add(Float a, Float b) { return a + b; }
inline Float sub(Float a, Float b) { return a - b; }
inline Float mul(Float a, Float b) { return a * b; }
inline Float fmadd(Float a, Float b, Float c) { return a * b + c; }
inline Float gather(const float* base, const uint16_t* index) { return base[*index]; }
inline float reduce(Float x) { return x; }
inline float reduce_least(Float x) { return x; }
inline float reduce_greatest(Float x) { return x; }
// Of kLanes vectors, each into a lane.
inline Float reduce_each(const Float* x) { return *x; }
inline Float reduce_least_each(const Float* x) { return *x; }
inline Float reduce_greatest_each(const Float* x) { return *x; }
inline Float raised_to(Float x, Float floor) { return x < floor ? floor : x; }         // a NaN stays
inline Float lowered_to(Float x, Float ceiling) { return x > ceiling ? ceiling : x; }  // likewise
inline Float nearest(Float x) { return __builtin_nearbyintf(x); }                      // half to even
inline Float floored(Float x) { return __builtin_floorf(x); }
inline Key magnitude(Float x) { return std::min(std::bit_cast<int32_t>(x) & 0x7fffffff, kNanKey); }
inline Key set1_key(int32_t x) { return x; }
inline Key load_keys(const int32_t* p) { return *p; }
inline void store_keys(int32_t* p, Key x) { *p = x; }
inline Mask at_least(Key a, Key b) { return a >= b; }
inline Mask within(Key a, Key low, Key width) { return uint32_t(a) - uint32_t(low) <= uint32_t(width); }
inline uint32_t word_of(const Mask* m) {
  uint32_t word = 0;
  for (int i = 0; i < 32; ++i) word |= uint32_t(m[i]) << i;
  return word;
}
inline Mask from_bits(uint32_t bits) { return bits & 1; }
inline Float where(Mask m, Float x) { return m ? x : 0.0f; }
inline Float choose(Mask m, Float x, Float y) { return m ? x : y; }
inline Mask positive(Float x) { return !(x <= 0.0f); }  // or NaN

// Appends base + i for every bit i of `inside` to `list`, which has room for 32 more; returns how many.
inline int append(uint16_t* list, uint32_t inside, int base) {
  int count = 0;
  for (; inside; inside &= inside - 1) list[count++] = uint16_t(base + std::countr_zero(inside));
  return count;
}
