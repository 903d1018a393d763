// Vectors of one lane: what the kernels are made of on processors that we have no instructions for.
using F = float;
inline constexpr int lanes = 1, tile_rows = 4, tile_vectors = 4;

inline F load(const float* p) { return *p; }
inline F load(const bf16_t* p) { return *p; }
inline F load(const fp16_t* p) { return *p; }
template <class T> inline F load_n(const T* p, std::size_t n) { return n ? load(p) : 0.0f; }
inline void store(float* p, F a) { *p = a; }
inline void store_n(float* p, F a, std::size_t n) { if (n) *p = a; }
inline F set1(float a) { return a; }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F max(F a, F b) { return a > b ? a : b; }
inline F min(F a, F b) { return a < b ? a : b; }
inline F round(F a) { return std::nearbyint(a); }
inline F scale2(F a, F n) { return n == n ? std::ldexp(a, static_cast<int>(n)) : n; }  // a 2^n; NaN is no int
inline F zero_where_less(F a, F x, F limit) { return x < limit ? 0.0f : a; }       // a, or 0 where x < limit
inline float sum(F a) { return a; }
inline float largest(F a) { return a; }
inline void transpose(F*) {}

// Products of int8, one after another.
using G = float;
struct Bytes { std::int8_t at[32]; };

inline G     no_sums() { return 0; }
inline Bytes bytes(const void* p) {
    Bytes b;
    std::memcpy(b.at, p, sizeof b.at);
    return b;
}
inline Bytes values(const q8::block& w) { return bytes(w.q); }
inline Bytes nibbles(const std::uint8_t* q) {
    Bytes b;
    for (int j = 0; j < 16; ++j) b.at[j] = static_cast<std::int8_t>(q[j] & 15), b.at[j + 16] = static_cast<std::int8_t>(q[j] >> 4);
    return b;
}
inline Bytes values(const q4::block& w) { return nibbles(w.q); }
inline Bytes values(const q4m::block& w) { return nibbles(w.q); }
template <class W>
inline G add_products(G sums, const W&, const Bytes& q, const Bytes& x, const QuantisedRows::Fours&, float scale) {
    const int offset = std::is_same_v<W, q4::block> ? 8 : 0;
    int       dot = 0;
    for (int j = 0; j < 32; ++j) dot += (q.at[j] - offset) * x.at[j];
    return sums + scale * static_cast<float>(dot);
}
inline float total(G sums) { return sums; }
inline float widen(fp16_t h) { return h; }
