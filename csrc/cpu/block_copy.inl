// Compiled once per instruction set, like the kernels that use it: after its lanes_*.inl, those of one lane in a
// namespace `single`, and its transpose_*.inl.

template <class From, class To>
void copy_lanes(const From* from, To* to) {
  store(to, rounded<To>(load(from)));
}

// The last vector overlaps the one before it, rather than to be copied in pieces.
template <class From, class To>
void copy_row(const From* from, int64_t step, To* to, int64_t n) {
  int64_t i = 0;
  if (step == 1 && n >= kLanes) {
    for (; i + kLanes <= n; i += kLanes) copy_lanes(from + i, to + i);
    if (i < n) copy_lanes(from + n - kLanes, to + n - kLanes);
  } else if (step == 1 && n >= kSquare) {
    copy_first(from, 1, to, kSquare);
    copy_first(from + n - kSquare, 1, to + n - kSquare, kSquare);
  } else {
    for (; i < n; i += kSquare) copy_first(from + i * step, step, to + i, std::min<int64_t>(kSquare, n - i));
  }
}

template <class From, class To>
void copy_block(const BlockCopy& c) {
  const From* from = static_cast<const From*>(c.from);
  To* to = static_cast<To*>(c.to);
  if (c.stream) {
    for (int64_t r = 0; r < c.rows; ++r, from += c.from_stride, to += c.to_stride)
      for (int64_t i = 0; i < c.columns; i += kSquare) stream_square(from + i, to + i);
    return;
  }
  if (!c.transposed) {
    int64_t r = 0;
    // Of rows that come right after each other the next one overwrites what a whole vector puts behind the one before.
    if (c.from_step == 1 && c.to_stride == c.columns && c.columns < kLanes && c.from_stride >= kLanes)
      for (; (c.rows - r) * c.columns >= kLanes; ++r) copy_lanes(from + r * c.from_stride, to + r * c.to_stride);
    for (; r < c.rows; ++r) copy_row(from + r * c.from_stride, c.from_step, to + r * c.to_stride, c.columns);
    return;
  }
  for (int64_t r = 0; r < c.rows; r += kSquare)
    for (int64_t i = 0; i < c.columns; i += kSquare)
      transpose(from + r * c.from_stride + i * c.from_step, c.from_stride, c.from_step, to + i * c.to_stride + r,
                c.to_stride, std::min<int64_t>(kSquare, c.rows - r), std::min<int64_t>(kSquare, c.columns - i));
}

void load_block(const BlockCopy& copy) {
  copy.dtype == DType::bfloat16 ? copy_block<BFloat16, float>(copy) : copy_block<float, float>(copy);
}

void store_block(const BlockCopy& copy) {
  copy.dtype == DType::bfloat16 ? copy_block<float, BFloat16>(copy) : copy_block<float, float>(copy);
}
