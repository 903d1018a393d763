// Vectors of four f32 in plain C++: what the kernels are made of on processors that we have no instructions for. Compilers
// turn them into whatever the processor has.
struct F { float at[4]; };
struct I { std::int32_t at[4]; };
inline constexpr int          lanes = 4, tile_rows = 2, tile_panels = 1, block_rows = 2;
inline constexpr std::int32_t byte_offset = 128;

inline F set1(float a) { return {{a, a, a, a}}; }
inline F load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline F load(const bf16_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline F load(const fp16_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline F load_even(const bf16_t* p) { return {{p[0], p[2], p[4], p[6]}}; }
inline F load_odd(const bf16_t* p) { return {{p[1], p[3], p[5], p[7]}}; }
template <class T> inline F load_n(const T* p, std::size_t n) {
    F a{};
    for (std::size_t i = 0; i < n; ++i) a.at[i] = p[i];
    return a;
}
inline void store(float* p, F a) { std::memcpy(p, a.at, sizeof a.at); }
inline void store_n(float* p, F a, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) p[i] = a.at[i];
}
inline F add(F a, F b) {
    for (int i = 0; i < lanes; ++i) a.at[i] += b.at[i];
    return a;
}
inline F sub(F a, F b) {
    for (int i = 0; i < lanes; ++i) a.at[i] -= b.at[i];
    return a;
}
inline F mul(F a, F b) {
    for (int i = 0; i < lanes; ++i) a.at[i] *= b.at[i];
    return a;
}
inline F div(F a, F b) {
    for (int i = 0; i < lanes; ++i) a.at[i] /= b.at[i];
    return a;
}
inline F fma(F a, F b, F c) {
    for (int i = 0; i < lanes; ++i) c.at[i] = a.at[i] * b.at[i] + c.at[i];
    return c;
}
inline F max(F a, F b) {
    for (int i = 0; i < lanes; ++i) a.at[i] = a.at[i] > b.at[i] ? a.at[i] : b.at[i];
    return a;
}
inline F min(F a, F b) {
    for (int i = 0; i < lanes; ++i) a.at[i] = a.at[i] < b.at[i] ? a.at[i] : b.at[i];
    return a;
}
inline F abs(F a) {
    for (int i = 0; i < lanes; ++i) a.at[i] = std::fabs(a.at[i]);
    return a;
}
inline F round(F a) {
    for (int i = 0; i < lanes; ++i) a.at[i] = std::nearbyint(a.at[i]);
    return a;
}
inline F scale2(F a, F n) {  // a 2^n; NaN is no int
    for (int i = 0; i < lanes; ++i) a.at[i] = n.at[i] == n.at[i] ? std::ldexp(a.at[i], static_cast<int>(n.at[i])) : n.at[i];
    return a;
}
inline F zero_where_less(F a, F x, F limit) {  // a, or 0 where x < limit
    for (int i = 0; i < lanes; ++i) a.at[i] = x.at[i] < limit.at[i] ? 0.0f : a.at[i];
    return a;
}
inline float sum(F a) { return (a.at[0] + a.at[1]) + (a.at[2] + a.at[3]); }
inline float largest(F a) { return std::fmax(std::fmax(a.at[0], a.at[1]), std::fmax(a.at[2], a.at[3])); }
inline void  transpose(F* r) {
    for (int i = 0; i < lanes; ++i)
        for (int j = 0; j < i; ++j) {
            const float a = r[i].at[j];
            r[i].at[j] = r[j].at[i], r[j].at[i] = a;
        }
}

// Products of bytes: four neighbours at a time, four sums.
inline I splat(std::int32_t a) { return {{a, a, a, a}}; }
inline I load_bytes(const std::byte* p) {
    I a;
    std::memcpy(a.at, p, sizeof a.at);
    return a;
}
inline void store_bytes(std::byte* p, I a) { std::memcpy(p, a.at, sizeof a.at); }
inline I splat_four(const std::byte* p) {
    std::int32_t four;
    std::memcpy(&four, p, 4);
    return splat(four);
}
inline I low_nibbles(I a) {
    for (int i = 0; i < lanes; ++i) a.at[i] &= 0x0f0f0f0f;
    return a;
}
inline I high_nibbles(I a) {
    for (int i = 0; i < lanes; ++i) a.at[i] = a.at[i] >> 4 & 0x0f0f0f0f;
    return a;
}
inline I dot(I sums, I w, I x) {  // w 0 ... 255
    std::uint8_t weights[16];
    std::int8_t  values[16];
    std::memcpy(weights, w.at, 16), std::memcpy(values, x.at, 16);
    for (int i = 0; i < 16; ++i) sums.at[i / 4] += weights[i] * values[i];
    return sums;
}
inline I dot_biased(I sums, I w, I x) { return dot(sums, w, x); }
inline F to_float(I a) { return {{static_cast<float>(a.at[0]), static_cast<float>(a.at[1]), static_cast<float>(a.at[2]), static_cast<float>(a.at[3])}}; }
inline void store_int8(std::int8_t* p, F a) {
    for (int i = 0; i < lanes; ++i) p[i] = a.at[i] == a.at[i] ? static_cast<std::int8_t>(std::nearbyint(a.at[i])) : std::int8_t{0};
}
