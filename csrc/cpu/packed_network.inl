// Compiled once per instruction set, after its lanes and `largest_of`, in an unnamed namespace inside its target
// region.
bool nan(const float* x, int64_t n) {
  bool found = false;
  for (int64_t i = 0; i < n; ++i) found |= x[i] != x[i];
  return found;
}

void larger(const float* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, largest_of(load(x + i), load(y + i)));
  for (; i < n; ++i) y[i] = x[i] > y[i] || x[i] != x[i] ? x[i] : y[i];
}

void columns(const LargestColumns& l) {
  for (int64_t o = 0; o < l.outputs; ++o) {
    const int64_t first = o * l.stride - l.padding, begin = first < 0 ? 0 : first;
    const int64_t end = first + l.kernel < l.columns ? first + l.kernel : l.columns;
    const float* const x = l.x + begin * l.channels;
    float* const y = l.y + o * l.channels;
    int64_t c = 0;
    for (; c + kLanes <= l.channels; c += kLanes) {
      Float most = load(x + c);
      for (int64_t i = 1; i < end - begin; ++i) most = largest_of(load(x + i * l.channels + c), most);
      store(y + c, most);
    }
    for (; c < l.channels; ++c) {
      y[c] = x[c];
      for (int64_t i = 1; i < end - begin; ++i) {
        const float next = x[i * l.channels + c];
        if (next > y[c] || next != next) y[c] = next;
      }
    }
  }
}
