// How packed_gemm.inl multiplies without VNNI: pairs of products in 16 bits.
template <int kDepth>
inline void add_dot_bytes(Wide& sum, const Wide* w, const Wide* x) {
  Wide words = pairs(w[0], x[0]);
  LCS_UNROLL
  for (int i = 1; i < kDepth; ++i) words = add_words(words, pairs(w[i], x[i]));
  add_to(sum, dot_pairs(words, wide_words(1)));
}
inline void add_dot_words(Wide& sum, Wide w, Wide x) { add_to(sum, dot_pairs(w, x)); }

// Pairs of products of 8-bit codes with x would not fit 16 bits.
Panel panel_of(int bits) { return bits == 8 ? Panel::words : Panel::bytes; }

// Steps, of two pairs each, whose sums fit 16 bits: 2 * steps * 2 * 128 * (2^bits - 1) < 2^15.
constexpr int64_t chain_of(int bits) { return 32767 / (4 * 128 * ((1 << bits) - 1)); }
constexpr int kChainBits = 4;  // up to which a chain pays for a round trip through memory
constexpr int kDeepBits = 6;   // up to which two pairs fit 16 bits
constexpr bool kTiles = true;
