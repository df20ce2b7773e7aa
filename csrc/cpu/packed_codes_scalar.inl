// What a value rounds to, after lanes_scalar.inl.
inline int8_t code_of(float x, const PackedCodes& code) {
  const float lowest = float(code.lowest - code.zero), highest = float(code.highest - code.zero);
  const float value = x * code.inverse;
  return int8_t(int(nearest(value > lowest ? std::min(value, highest) : lowest)) + code.zero);  // a NaN is lowest
}
