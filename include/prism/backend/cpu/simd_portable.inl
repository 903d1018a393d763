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
