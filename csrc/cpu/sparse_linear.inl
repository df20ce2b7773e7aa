// Compiled once per instruction set, after its lanes_*.inl, in an unnamed namespace inside its target region.
void dots(const SparseDots& d) {
  constexpr int kSums = 4, kStep = kSums * kLanes;
  const uint16_t* index = d.index;
  const float* value = d.values;
  for (int64_t row = 0; row < d.rows; ++row) {
    const int32_t n = d.count[row];
    Float sum[kSums] = {set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
    int32_t i = 0;
    for (; i + kStep <= n; i += kStep)
      for (int s = 0; s < kSums; ++s)
        sum[s] = fmadd(load(value + i + s * kLanes), gather(d.x, index + i + s * kLanes), sum[s]);
    for (; i + kLanes <= n; i += kLanes) sum[0] = fmadd(load(value + i), gather(d.x, index + i), sum[0]);
    float total = reduce(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
    for (; i < n; ++i) total += value[i] * d.x[index[i]];
    total += d.first ? (d.bias ? d.bias[row] : 0.0f) : d.y[row];
    d.y[row] = d.relu && total < 0.0f ? 0.0f : total;
    index += n;
    value += n;
  }
}
