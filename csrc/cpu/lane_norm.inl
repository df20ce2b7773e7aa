// After the lanes of its instruction set; rounded as line_norm does.
template <bool kResidual>
void normalise_channels(const LaneNorm& n) {
  for (int64_t c = 0; c < n.channels; ++c) {
    const Float mean = set1(n.mean[c]), scale = set1(n.scale[c]), shift = set1(n.shift[c]), floor = set1(n.floor);
    const float *const x = n.x + c * n.x_stride, *const residual = n.residual + c * n.residual_stride;
    float* const y = n.y + c * n.y_stride;
    for (int64_t i = 0; i < n.vectors * kLanes; i += kLanes) {
      Float a = add(mul(sub(load(x + i), mean), scale), shift);
      if constexpr (kResidual) a = add(a, load(residual + i));
      store(y + i, raised_to(a, floor));
    }
  }
}

void normalise_lanes(const LaneNorm& n) { n.residual ? normalise_channels<true>(n) : normalise_channels<false>(n); }
