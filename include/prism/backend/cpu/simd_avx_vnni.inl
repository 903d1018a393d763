// What AVX-VNNI adds to AVX2: dot products of bytes.
using namespace avx2;

inline constexpr int          block_rows = 4;
inline constexpr std::int32_t byte_offset = 128;  // bytes of q8 are used as they lie in panels, with 128 added
inline I dot(I sums, I w, I x) { return _mm256_dpbusd_avx_epi32(sums, w, x); }
inline I dot_biased(I sums, I w, I x) { return _mm256_dpbusd_avx_epi32(sums, w, x); }

inline float burst_int8(std::size_t n) {
    I       sums[chains];
    const I a = splat(0x01010101), b = splat(0x01010101);
    for (I& s : sums) s = splat(0);
    for (std::size_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < chains; ++j) sums[j] = dot(sums[j], a, b);
    }
    F all = to_float(sums[0]);
    for (int j = 1; j < chains; ++j) all = add(all, to_float(sums[j]));
    return sum(all);
}
