// Vectors of sixteen f32: AVX-512 F, BW, DQ, VL.
using F = __m512;
inline constexpr int lanes = 16, tile_rows = 14, strip_rows = 8, tile_panels = 2;

// The masked forms with a full mask compile to the plain instructions; GCC 12 warns about its own headers for the plain.
inline constexpr __mmask16 full = 0xffff;
inline __mmask16 first(std::size_t n) { return static_cast<__mmask16>((1U << n) - 1U); }
inline F widen(__m256i h, const bf16_t*) { return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(full, _mm512_maskz_cvtepu16_epi32(full, h), 16)); }
inline F widen(__m256i h, const fp16_t*) { return _mm512_maskz_cvtph_ps(full, h); }

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load_n(const float* p, std::size_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
template <class T> inline F load(const T* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p); }
template <class T> inline F load_n(const T* p, std::size_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p), p); }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
inline void store_n(float* p, F a, std::size_t n) { _mm512_mask_storeu_ps(p, first(n), a); }
inline F set1(float a) { return _mm512_set1_ps(a); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F sqrt(F a) { return _mm512_maskz_sqrt_ps(full, a); }
inline F max(F a, F b) { return _mm512_maskz_max_ps(full, a, b); }
inline F min(F a, F b) { return _mm512_maskz_min_ps(full, a, b); }
inline F round(F a) { return _mm512_maskz_roundscale_ps(full, a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F scale2(F a, F n) { return _mm512_maskz_scalef_ps(full, a, n); }
inline F zero_where_less(F a, F x, F limit) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a); }
inline float sum(F a) {
    const F       o = add(a, _mm512_maskz_shuffle_f32x4(full, a, a, 0x4e));
    const F       h = add(o, _mm512_maskz_shuffle_f32x4(full, o, o, 0xb1));
    const __m128  q = _mm512_maskz_extractf32x4_ps(0xf, h, 0);
    const __m128  p = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(p, _mm_shuffle_ps(p, p, 1)));
}
inline float largest(F a) {
    const F       o = max(a, _mm512_maskz_shuffle_f32x4(full, a, a, 0x4e));
    const F       h = max(o, _mm512_maskz_shuffle_f32x4(full, o, o, 0xb1));
    const __m128  q = _mm512_maskz_extractf32x4_ps(0xf, h, 0);
    const __m128  p = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(p, _mm_shuffle_ps(p, p, 1)));
}
inline void transpose(F* r) {  // 16 x 16: within quads of four lanes, then the quads
    F a[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) a[i] = _mm512_maskz_unpacklo_ps(full, r[i], r[i + 1]), a[i + 1] = _mm512_maskz_unpackhi_ps(full, r[i], r[i + 1]);
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_maskz_shuffle_ps(full, a[i], a[i + 2], 0x44), r[i + 1] = _mm512_maskz_shuffle_ps(full, a[i], a[i + 2], 0xee);
        r[i + 2] = _mm512_maskz_shuffle_ps(full, a[i + 1], a[i + 3], 0x44), r[i + 3] = _mm512_maskz_shuffle_ps(full, a[i + 1], a[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm512_maskz_shuffle_f32x4(full, r[i], r[i + 4], 0x88), a[i + 4] = _mm512_maskz_shuffle_f32x4(full, r[i], r[i + 4], 0xdd);
        a[i + 8] = _mm512_maskz_shuffle_f32x4(full, r[i + 8], r[i + 12], 0x88), a[i + 12] = _mm512_maskz_shuffle_f32x4(full, r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_maskz_shuffle_f32x4(full, a[i], a[i + 8], 0x88), r[i + 8] = _mm512_maskz_shuffle_f32x4(full, a[i], a[i + 8], 0xdd);
        r[i + 4] = _mm512_maskz_shuffle_f32x4(full, a[i + 4], a[i + 12], 0x88), r[i + 12] = _mm512_maskz_shuffle_f32x4(full, a[i + 4], a[i + 12], 0xdd);
    }
}

// Products of bytes: four neighbours at a time, sixteen sums.
using I = __m512i;
inline constexpr int          block_rows = 7;
inline constexpr std::int32_t byte_offset = 0;  // the 128 of q8 is taken off before products

inline F load_even(const bf16_t* pairs) { return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(full, _mm512_loadu_si512(pairs), 16)); }
inline F load_odd(const bf16_t* pairs) { return _mm512_castsi512_ps(_mm512_maskz_and_epi32(full, _mm512_loadu_si512(pairs), _mm512_set1_epi32(static_cast<int>(0xffff0000U)))); }
inline F abs(F a) { return _mm512_castsi512_ps(_mm512_maskz_and_epi32(full, _mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff))); }
inline I splat(std::int32_t a) { return _mm512_set1_epi32(a); }
inline I splat_four(const std::byte* p) {
    std::int32_t four;
    std::memcpy(&four, p, 4);
    return splat(four);
}
inline I load_bytes(const std::byte* p) { return _mm512_loadu_si512(p); }
inline void store_bytes(std::byte* p, I a) { _mm512_storeu_si512(p, a); }
inline I low_nibbles(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline I high_nibbles(I a) { return low_nibbles(_mm512_maskz_srli_epi16(0xffffffffU, a, 4)); }
/// sums += four neighbouring products; w 0 ... 127: pairs of products fit 16 bits.
inline I dot(I sums, I w, I x) {
    const I pairs = _mm512_maskz_maddubs_epi16(0xffffffffU, w, x);
    return _mm512_maskz_add_epi32(full, sums, _mm512_maskz_madd_epi16(full, pairs, _mm512_set1_epi16(1)));
}
/// The same with w + 128 instead of a signed w: the signs of w move to x.
inline I dot_biased(I sums, I w, I x) {
    const I         q = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
    const __mmask64 negative = _mm512_movepi8_mask(q);
    return dot(sums, _mm512_maskz_abs_epi8(~__mmask64{0}, q), _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x));
}
inline I    add_shifted(I a, I b) { return _mm512_maskz_add_epi32(full, a, _mm512_maskz_slli_epi32(full, b, 8)); }  // a + 256 b
inline F    to_float(I a) { return _mm512_maskz_cvtepi32_ps(full, a); }
inline void store_int8(std::int8_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtsepi32_epi8(full, _mm512_maskz_cvtps_epi32(full, a)));
}
