// After the lanes and masks of its instruction set.
void share_lanes(const LaneShare& s) {
  const auto lanes = load_map(s.lanes);
  for (int64_t c = 0; c < s.channels; ++c)
    for (int64_t v = 0; v < s.vectors; ++v) {
      const int64_t at = c * s.stride + v * kLanes;
      store(s.to + at, moved(load(s.from + at), lanes));
    }
}
