// Vectors of eight f32: AVX2, FMA, F16C.
using F = __m256;
inline constexpr int lanes = 8, tile_rows = 6, strip_rows = 6, tile_panels = 1;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load(const bf16_t* p) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline F load(const fp16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
template <class T> inline F load_n(const T* p, std::size_t n) {
    T copy[lanes]{};
    for (std::size_t i = 0; i < n; ++i) copy[i] = p[i];
    return load(copy);
}
inline void store(float* p, F a) { _mm256_storeu_ps(p, a); }
inline void store_n(float* p, F a, std::size_t n) {
    float copy[lanes];
    store(copy, a);
    for (std::size_t i = 0; i < n; ++i) p[i] = copy[i];
}
inline F set1(float a) { return _mm256_set1_ps(a); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F sqrt(F a) { return _mm256_sqrt_ps(a); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F scale2(F a, F n) {  // a 2^n for n in [-126, 127]
    return mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
inline F zero_where_less(F a, F x, F limit) { return _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), a); }
inline float sum(F a) {
    const __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float largest(F a) {
    const __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 q = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline void transpose(F* r) {  // 8 x 8
    const F a0 = _mm256_unpacklo_ps(r[0], r[1]), a1 = _mm256_unpackhi_ps(r[0], r[1]);
    const F a2 = _mm256_unpacklo_ps(r[2], r[3]), a3 = _mm256_unpackhi_ps(r[2], r[3]);
    const F a4 = _mm256_unpacklo_ps(r[4], r[5]), a5 = _mm256_unpackhi_ps(r[4], r[5]);
    const F a6 = _mm256_unpacklo_ps(r[6], r[7]), a7 = _mm256_unpackhi_ps(r[6], r[7]);
    const F b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xee);
    const F b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xee);
    const F b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xee);
    const F b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xee);
    r[0] = _mm256_permute2f128_ps(b0, b4, 0x20), r[4] = _mm256_permute2f128_ps(b0, b4, 0x31);
    r[1] = _mm256_permute2f128_ps(b1, b5, 0x20), r[5] = _mm256_permute2f128_ps(b1, b5, 0x31);
    r[2] = _mm256_permute2f128_ps(b2, b6, 0x20), r[6] = _mm256_permute2f128_ps(b2, b6, 0x31);
    r[3] = _mm256_permute2f128_ps(b3, b7, 0x20), r[7] = _mm256_permute2f128_ps(b3, b7, 0x31);
}

// Products of bytes: four neighbours at a time, eight sums.
using I = __m256i;
inline constexpr int          block_rows = 3;
inline constexpr std::int32_t byte_offset = 0;  // the 128 of q8 is taken off before products

inline F load_even(const bf16_t* pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)), 16)); }
inline F load_odd(const bf16_t* pairs) {  // a mask would take the register that products lack
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)), 16), 16));
}
inline F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline I splat(std::int32_t a) { return _mm256_set1_epi32(a); }
inline I splat_four(const std::byte* p) {
    std::int32_t four;
    std::memcpy(&four, p, 4);
    return splat(four);
}
inline I load_bytes(const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_bytes(std::byte* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
inline I low_nibbles(I a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
inline I high_nibbles(I a) { return low_nibbles(_mm256_srli_epi16(a, 4)); }
/// sums += four neighbouring products; w 0 ... 127: pairs of products fit 16 bits.
inline I dot(I sums, I w, I x) { return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))); }
/// The same with w + 128 instead of a signed w: the signs of w move to x.
inline I dot_biased(I sums, I w, I x) {
    const I q = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    return dot(sums, _mm256_sign_epi8(q, q), _mm256_sign_epi8(x, q));
}
inline I    add_shifted(I a, I b) { return _mm256_add_epi32(a, _mm256_slli_epi32(b, 8)); }  // a + 256 b
inline F    to_float(I a) { return _mm256_cvtepi32_ps(a); }
inline void store_int8(std::int8_t* p, F a) {
    const __m256i all = _mm256_cvtps_epi32(a);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
}
