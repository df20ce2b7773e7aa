// After the lanes of its instruction set; rounded as line_norm does.
void normalise_lanes(const LaneNorm& n) {
  for (int64_t c = 0; c < n.channels; ++c) {
    const Float mean = set1(n.mean[c]), scale = set1(n.scale[c]), shift = set1(n.shift[c]), floor = set1(n.floor);
    const float* const x = n.x + c * n.x_stride;
    float* const y = n.y + c * n.y_stride;
    for (int64_t i = 0; i < n.vectors * kLanes; i += kLanes)
      store(y + i, raised_to(add(mul(sub(load(x + i), mean), scale), shift), floor));
  }
}
