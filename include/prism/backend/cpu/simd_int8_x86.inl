// Products of int8: 32 at a time, in AVX2, which every x86 set of ours has. Partial sums stay apart in eight lanes.
using G = __m256;
using Bytes = __m256i;

inline G     no_sums() { return _mm256_setzero_ps(); }
inline Bytes bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

/// The 32 values of a block without their scale: signed in q8, 0 ... 15 in the others.
inline Bytes values(const q8::block& w) { return bytes(w.q); }
inline Bytes nibbles(const std::uint8_t* q) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q)), low = _mm_set1_epi8(15);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_and_si128(packed, low)), _mm_and_si128(_mm_srli_epi16(packed, 4), low), 1);
}
inline Bytes values(const q4::block& w) { return nibbles(w.q); }
inline Bytes values(const q4m::block& w) { return nibbles(w.q); }

/// Sums of four neighbouring products, w not negative. Pairs of products fit 16 bits: 2 * 127 * 127 at most.
inline Bytes products(Bytes w, Bytes x) { return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)); }
inline G     add_scaled(G sums, Bytes dots, float scale) { return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_set1_ps(scale), sums); }

/// sums += scale * (q . x), where a block's q stands for: signed values, values from which 8 is taken off, plain ones.
inline G add_products(G sums, const q8::block&, Bytes q, Bytes x, const QuantisedRows::Fours&, float scale) {
    return add_scaled(sums, products(_mm256_sign_epi8(q, q), _mm256_sign_epi8(x, q)), scale);  // the signs of q move to x
}
inline G add_products(G sums, const q4::block&, Bytes q, Bytes x, const QuantisedRows::Fours& fours, float scale) {
    return add_scaled(sums, _mm256_sub_epi32(products(q, x), bytes(fours.at)), scale);
}
inline G add_products(G sums, const q4m::block&, Bytes q, Bytes x, const QuantisedRows::Fours&, float scale) {
    return add_scaled(sums, products(q, x), scale);
}
inline float total(G sums) {
    const __m128 h = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float widen(fp16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h.bits))); }
