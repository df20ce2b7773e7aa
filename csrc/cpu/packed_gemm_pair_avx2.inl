// What packed_gemm_winograd_4x4.inl needs to know of two blocks of the weight, after packed_gemm.inl. Vectors 4b to
// 4b + 3 hold the places of block b, in their order; two of them make a piece.
constexpr int kPairVectors = 8, kAtOnce = 2, kPairTile = 6;
constexpr int kAhead = 512;  // bytes of a plane, loaded before they are needed

// codes[half][v]: four columns of eight rows.
template <int kBits>
inline void pair_codes(const uint8_t* planes, int64_t plane_bytes, int64_t block_bytes,
                       __m256i (*codes)[kPairVectors]) {
  for (int block = 0; block < 2; ++block) {
    __m256i columns[kStepColumns];
    unpack_step<kBits>(planes + block * block_bytes, plane_bytes, columns);
    LCS_UNROLL
    for (int half = 0; half < 2; ++half) interleave(columns + 4 * half, codes[half] + 4 * block);
  }
}

// Eight or more channels, of which a vector of words holds 16.
class WordMask {
 public:
  explicit WordMask(int64_t channels) : all_(channels >= 16) {}
  __m256i load(const int8_t* p) const {
    const __m128i* const from = reinterpret_cast<const __m128i*>(p);
    return _mm256_cvtepi8_epi16(all_ ? _mm_loadu_si128(from) : _mm_loadl_epi64(from));
  }
  void store(char* p, __m256i x) const {
    if (all_)
      wide_store(p, x);
    else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(x));
  }

 private:
  bool all_;
};

// What becomes of sums: see PackedPairOutput.
class PairFinish {
 public:
  explicit PairFinish(const PackedPairOutput& output)
      : o_(output), floor_(_mm256_set1_ps(o_.relu ? 0.0f : -__builtin_inff())), codes_(o_.grid) {}

  // Of a piece of outputs of tiles, those that have a place.
  template <int kRows>
  void outputs(int64_t first, int piece, const __m256i (*sum)[kAtOnce]) const {
    for (int m = 0; m < kRows; ++m)
      if (o_.place[first + m] >= 0) row(first + m, piece, sum[m]);
  }

 private:
  // Eight rows of the weight, and those 16 behind them.
  void row(int64_t m, int piece, const __m256i* sum) const {
    const __m256 row_scale = _mm256_set1_ps(o_.row_scale[m]);
    const __m256i sums = _mm256_set1_epi32(o_.sums[m]);
    const __m128i shift = _mm_cvtsi32_si128(o_.shift);
    const __m256i rows[2] = {_mm256_permute2x128_si256(sum[0], sum[1], 0x20),
                             _mm256_permute2x128_si256(sum[0], sum[1], 0x31)};
    const int64_t place = o_.place[m];
    LCS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = kBlockRows * (piece / 2) + piece % 2 * 8 + 16 * half, channels = std::min(o_.channels - row, 8);
      if (channels <= 0) break;
      const __m256i moved = _mm256_mullo_epi32(load_bytes(o_.center + row), sums);
      const __m256 whole = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_sll_epi32(rows[half], shift), moved));
      __m256 y = _mm256_mul_ps(_mm256_mul_ps(whole, _mm256_loadu_ps(o_.scale + row)), row_scale);
      if (o_.bias) y = _mm256_add_ps(y, _mm256_loadu_ps(o_.bias + row));
      if (o_.residual) {
        const float* const residual = o_.residual + place * o_.residual_stride + row;
        y = _mm256_add_ps(y, channels == 8 ? _mm256_loadu_ps(residual) : load_first(residual, channels));
      }
      y = _mm256_max_ps(floor_, y);  // a NaN stays
      if (o_.codes) codes_.put(y, o_.codes + place * o_.stride + row, channels);
      if (o_.y && channels == 8)
        _mm256_storeu_ps(o_.y + place * o_.stride + row, y);
      else if (o_.y)
        store_first(o_.y + place * o_.stride + row, y, channels);
    }
  }

  const PackedPairOutput o_;
  const __m256 floor_;
  const EightCodes codes_;
};
