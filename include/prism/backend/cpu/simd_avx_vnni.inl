// What AVX-VNNI adds to AVX2: dot products of bytes.
using namespace avx2;

inline constexpr int          block_rows = 4;
inline constexpr std::int32_t byte_offset = 128;  // bytes of q8 are used as they lie in panels, with 128 added
inline I dot(I sums, I w, I x) { return _mm256_dpbusd_avx_epi32(sums, w, x); }
inline I dot_biased(I sums, I w, I x) { return _mm256_dpbusd_avx_epi32(sums, w, x); }
