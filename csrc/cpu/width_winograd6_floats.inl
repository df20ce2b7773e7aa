// What width_winograd6.inl loads and stores where the packed weight is of floats; in its place, after the lanes.
inline void each_tap(const void* from, int64_t tap, int64_t channel, int first, Float* to) {
  const float* const at = static_cast<const float*>(from) + channel * 16 + first;
  for (int i = 0; i < 9; ++i) to[i] = load(at + i * tap);
}
template <class T>
inline void put(T* to, Float x) {
  store(to, rounded<T>(x));
}
