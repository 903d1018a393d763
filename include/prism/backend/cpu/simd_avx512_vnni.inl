// What AVX-512 with VNNI adds to AVX-512: dot products of bytes and of 16-bit numbers.
using namespace avx512;

inline constexpr std::int32_t byte_offset = 128;  // bytes of q8 are used as they lie in panels, with 128 added
inline I dot(I sums, I w, I x) { return _mm512_dpbusd_epi32(sums, w, x); }
inline I dot_biased(I sums, I w, I x) { return _mm512_dpbusd_epi32(sums, w, x); }

/// What a sum of weights that lie there with 128 added begins with, for each 1 in the sum of a group of x. Weights of four bits
/// have 8 added, and are taken sixteen times.
inline constexpr std::int32_t dot_begin = -128;

/// A row of x in int16, group by group: 256 q + r of the pairs of int8.
inline void quantise_wide(std::size_t n, const Activations& to, std::size_t row) {
    constexpr std::size_t group = Activations::group;
    std::byte*            q = to.q + row * to.ldq;
    for (std::size_t g = 0; g < to.n_groups; g += lanes) {
        const QuantisedGroups<true> a{to.x + row * to.ldx + g * group, n - g * group};
        for (std::size_t i = 0; i < lanes && g + i < to.n_groups; ++i, q += 2 * group) {
            for (int v = 0; v < a.vectors; ++v) {
                const I values = _mm512_maskz_shuffle_epi32(full, _mm512_maskz_cvtps_epi32(full, fma(a.whole[i][v], set1(256), a.rest[i][v])), _MM_PERM_DBCA);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + v * 2 * lanes), _mm512_maskz_cvtepi32_epi16(full, values));
            }
            const std::size_t at = row * to.n_groups + g + i;
            to.scales[at] = a.scales[i], to.sums[at] = static_cast<std::int32_t>(256 * a.sums[i] + a.rest_sums[i]);
        }
    }
}

inline void convert(Form form, std::size_t n, const Activations& to, std::size_t row) {
    if (form == Form::int16) quantise_wide(n, to, row);
    else avx512::convert(form, n, to, row);
    if (form == Form::int16 || form == Form::int8)
        for (std::size_t g = 0; g < to.n_groups; ++g) to.sums[row * to.n_groups + g] *= dot_begin;
}
