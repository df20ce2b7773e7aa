// How packed_gemm.inl multiplies without VNNI: pairs of products in 16 bits.
inline Wide dot_bytes(Wide sum, Wide w, Wide x) { return add_words_of(sum, pairs(w, x)); }

// Pairs of products of 8-bit codes with x would not fit 16 bits.
Panel panel_of(int bits) { return bits == 8 ? Panel::words : Panel::bytes; }

// Steps, of two pairs each, whose sums fit 16 bits: 2 * steps * 2 * 127 * (2^bits - 1) < 2^15. 0: too few of them to
// pay for a round trip through memory.
constexpr int64_t chain_of(int bits) { return bits >= 6 ? 0 : 32767 / (4 * 127 * ((1 << bits) - 1)); }
