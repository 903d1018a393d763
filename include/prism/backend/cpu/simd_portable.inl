// Vectors of four f32 in what GCC and Clang offer on every processor: what the kernels are made of where we have no
// instructions of our own.
using F = float __attribute__((vector_size(16)));
using I = std::int32_t __attribute__((vector_size(16)));
inline constexpr int          lanes = 4, tile_rows = 2, strip_rows = 2, tile_panels = 1, block_rows = 2;
inline constexpr std::int32_t byte_offset = 128;

inline F set1(float a) { return F{a, a, a, a}; }
inline F load(const float* p) {
    F a;
    std::memcpy(&a, p, sizeof a);
    return a;
}
inline F load(const bf16_t* p) { return F{p[0], p[1], p[2], p[3]}; }
inline F load(const fp16_t* p) { return F{p[0], p[1], p[2], p[3]}; }
inline F load_even(const bf16_t* p) { return F{p[0], p[2], p[4], p[6]}; }
inline F load_odd(const bf16_t* p) { return F{p[1], p[3], p[5], p[7]}; }
template <class T> inline F load_n(const T* p, std::size_t n) {
    F a{};
    for (std::size_t i = 0; i < n; ++i) a[i] = p[i];
    return a;
}
inline void store(float* p, F a) { std::memcpy(p, &a, sizeof a); }
inline void store_n(float* p, F a, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) p[i] = a[i];
}
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F sqrt(F a) {
    for (int i = 0; i < lanes; ++i) a[i] = std::sqrt(a[i]);
    return a;
}
inline F max(F a, F b) {
    for (int i = 0; i < lanes; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
inline F min(F a, F b) {
    for (int i = 0; i < lanes; ++i) a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}
inline F abs(F a) {
    for (int i = 0; i < lanes; ++i) a[i] = std::fabs(a[i]);
    return a;
}
inline F round(F a) {
    for (int i = 0; i < lanes; ++i) a[i] = std::nearbyint(a[i]);
    return a;
}
inline F scale2(F a, F n) {  // a 2^n; NaN is no int
    for (int i = 0; i < lanes; ++i) a[i] = n[i] == n[i] ? std::ldexp(a[i], static_cast<int>(n[i])) : n[i];
    return a;
}
inline F zero_where_less(F a, F x, F limit) {  // a, or 0 where x < limit
    for (int i = 0; i < lanes; ++i) a[i] = x[i] < limit[i] ? 0.0f : a[i];
    return a;
}
inline float sum(F a) { return (a[0] + a[1]) + (a[2] + a[3]); }
inline float largest(F a) { return std::fmax(std::fmax(a[0], a[1]), std::fmax(a[2], a[3])); }
inline void  transpose(F* r) {
    for (int i = 0; i < lanes; ++i)
        for (int j = 0; j < i; ++j) {
            const float a = r[i][j];
            r[i][j] = r[j][i], r[j][i] = a;
        }
}

// Products of bytes: four neighbours at a time, four sums.
inline I splat(std::int32_t a) { return I{a, a, a, a}; }
inline I load_bytes(const std::byte* p) {
    I a;
    std::memcpy(&a, p, sizeof a);
    return a;
}
inline void store_bytes(std::byte* p, I a) { std::memcpy(p, &a, sizeof a); }
inline I splat_four(const std::byte* p) {
    std::int32_t four;
    std::memcpy(&four, p, 4);
    return splat(four);
}
inline I low_nibbles(I a) { return a & splat(0x0f0f0f0f); }
inline I high_nibbles(I a) { return low_nibbles(a >> 4); }
inline I dot(I sums, I w, I x) {  // w 0 ... 255
    std::uint8_t weights[16];
    std::int8_t  values[16];
    std::memcpy(weights, &w, 16), std::memcpy(values, &x, 16);
    for (int i = 0; i < 16; ++i) sums[i / 4] += weights[i] * values[i];
    return sums;
}
inline I dot_biased(I sums, I w, I x) { return dot(sums, w, x); }
inline I add_shifted(I a, I b) { return a + b * splat(256); }  // a + 256 b
inline F to_float(I a) { return F{static_cast<float>(a[0]), static_cast<float>(a[1]), static_cast<float>(a[2]), static_cast<float>(a[3])}; }
inline void store_int8(std::int8_t* p, F a) {
    for (int i = 0; i < lanes; ++i) p[i] = a[i] == a[i] ? static_cast<std::int8_t>(std::nearbyint(a[i] > 127 ? 127 : a[i])) : std::int8_t{0};
}
