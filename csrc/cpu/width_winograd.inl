// Compiled once per instruction set, after its lanes_*.inl, in an unnamed namespace inside its target region.
constexpr int kSide = kWinogradWindow, kPositions = kSide * kSide;

// B^T of four values.
inline void differences(const Float* x, Float* to) {
  to[0] = sub(x[0], x[2]);
  to[1] = add(x[1], x[2]);
  to[2] = sub(x[2], x[1]);
  to[3] = sub(x[1], x[3]);
}

// A^T of four values.
inline void sums(const Float* m, Float* to) {
  to[0] = add(add(m[0], m[1]), m[2]);
  to[1] = sub(sub(m[1], m[2]), m[3]);
}

inline void input_at(const float* const* at, int64_t channel, float* to, int64_t position) {
  Float columns[kSide][kSide];
  LCS_UNROLL
  for (int j = 0; j < kSide; ++j) {
    Float x[kSide];
    LCS_UNROLL
    for (int i = 0; i < kSide; ++i) x[i] = load(at[i * kSide + j] + channel);
    differences(x, columns[j]);
  }
  LCS_UNROLL
  for (int i = 0; i < kSide; ++i) {
    Float row[kSide], result[kSide];
    LCS_UNROLL
    for (int j = 0; j < kSide; ++j) row[j] = columns[j][i];
    differences(row, result);
    LCS_UNROLL
    for (int j = 0; j < kSide; ++j) store(to + (i * kSide + j) * position + channel, result[j]);
  }
}

void input(const WidthWinogradInput& in) {
  int64_t c = 0;
  for (; c + kLanes <= in.channels; c += kLanes) input_at(in.at, c, in.to, in.position);
  if (c == in.channels) return;
  float rest[kPositions][kLanes] = {};
  const float* at[kPositions];
  for (int i = 0; i < kPositions; ++i) {
    std::copy(in.at[i] + c, in.at[i] + in.channels, rest[i]);
    at[i] = rest[i];
  }
  input_at(at, 0, in.to + c, in.position);
}

void output(const WidthWinogradOutput& out) {
  const Float floor = set1(out.relu ? 0.0f : -__builtin_inff());
  for (int channel = 0; channel < out.vectors * kLanes; channel += kLanes) {
    Float columns[kSide][2];
    LCS_UNROLL
    for (int j = 0; j < kSide; ++j) {
      Float m[kSide];
      LCS_UNROLL
      for (int i = 0; i < kSide; ++i) m[i] = load(out.sums + (i * kSide + j) * out.position + channel);
      sums(m, columns[j]);
    }
    const Float scale = load(out.scale + channel), bias = load(out.bias + channel);
    LCS_UNROLL
    for (int i = 0; i < 2; ++i) {
      Float row[kSide], result[2];
      LCS_UNROLL
      for (int j = 0; j < kSide; ++j) row[j] = columns[j][i];
      sums(row, result);
      LCS_UNROLL
      for (int j = 0; j < 2; ++j)
        if (float* const to = out.to[2 * i + j]) store(to + channel, raised_to(fmadd(result[j], scale, bias), floor));
    }
  }
}
