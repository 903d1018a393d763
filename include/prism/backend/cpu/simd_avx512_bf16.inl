// What AVX-512 with VNNI and BF16 adds to VNNI: dot products of bf16.
using namespace avx512_vnni;

/// Sixteen values rounded to bf16, to nearest, ties to even.
inline __m256i to_bf16(F x) {
    const __m256bh h = _mm512_cvtneps_pbh(x);
    __m256i        bits;
    std::memcpy(&bits, &h, sizeof bits);
    return bits;
}

/// A row of x in bf16, or as the sum of two.
inline void round_to_bf16(bool pair, std::size_t n, const Activations& to, std::size_t row) {
    const float* const x = to.x + row * to.ldx;
    std::byte* const   q = to.q + row * to.ldq;
    const std::size_t  padded = to.n_groups * Activations::group;
    for (std::size_t i = 0; i < padded; i += lanes) {
        const F       values = i + lanes <= n ? load(x + i) : i < n ? load_n(x + i, n - i) : set1(0);
        const __m256i high = to_bf16(values);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 2 * i), high);
        if (pair) _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + to.low + 2 * i), to_bf16(sub(values, widen(high, static_cast<const bf16_t*>(nullptr)))));
    }
}

inline void convert(Form form, std::size_t n, const Activations& to, std::size_t row) {
    if (form == Form::bf16 || form == Form::bf16_pair) round_to_bf16(form == Form::bf16_pair, n, to, row);
    else avx512_vnni::convert(form, n, to, row);
}

/// sums += two columns of R rows of x in bf16 times those of two panels.
template <int R>
inline void add_pairs(F (&sums)[R][tile_vectors], const std::byte* x, std::size_t ldq, const std::byte* w0, const std::byte* w1) {
    const I u = load_bytes(w0), v = load_bytes(w1);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
        const I pair = splat_four(x + static_cast<std::size_t>(i) * ldq);
        // in assembly for the same reason as add_dots()
        asm("vdpbf16ps %2, %1, %0" : "+v"(sums[i][0]) : "v"(u), "v"(pair));
        asm("vdpbf16ps %2, %1, %0" : "+v"(sums[i][1]) : "v"(v), "v"(pair));
    }
}

/// c [R, panel], rows ldc apart, (+)= R rows of x in bf16 times panels of bf16.
template <int R>
inline void multiply_bf16(const std::byte* x, std::size_t ldq, const PanelPart* b, std::size_t k, float* c, std::size_t ldc, bool fresh) {
    static_assert(tile_vectors == 2);
    F                sums[R][tile_vectors];
    const std::byte *w0 = b[0].values, *w1 = b[1].values;
    const FarAhead   far{b, k * 2 * panel_width};
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < tile_vectors; ++j) sums[i][j] = fresh ? set1(0) : load(c + static_cast<std::size_t>(i) * ldc + j * lanes);
    std::size_t p = 0;
    for (; p + 4 <= k; p += 4, x += 8, w0 += 128, w1 += 128) {
        if constexpr (R <= 2) far.fetch<128>(w0, w1);
        add_pairs<R>(sums, x, ldq, w0, w1);
        add_pairs<R>(sums, x + 4, ldq, w0 + 64, w1 + 64);
    }
    for (; p < k; p += 2, x += 4, w0 += 64, w1 += 64) add_pairs<R>(sums, x, ldq, w0, w1);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < tile_vectors; ++j) store(c + static_cast<std::size_t>(i) * ldc + j * lanes, sums[i][j]);
}

template <int R = strip_rows>
inline void multiply_bf16_rows(std::size_t m, const std::byte* x, std::size_t ldq, const PanelPart* b, std::size_t k, float* c, std::size_t ldc, bool fresh) {
    for (; m >= R; m -= R, x += R * ldq, c += R * ldc) multiply_bf16<R>(x, ldq, b, k, c, ldc, fresh);
    if constexpr (R > 1)
        if (m) multiply_bf16_rows<R - 1>(m, x, ldq, b, k, c, ldc, fresh);
}

/// Rows rounded to bf16, weights in bf16: see MultiplyPlain.
struct MultiplyBf16 {
    using format = bf16;
    static constexpr Form        form = Form::bf16;
    static constexpr std::size_t depth = 512, row_step = 4 * strip_rows;
    static constexpr std::size_t spread_bytes = 0;
    static constexpr bool        takes_few = true;
    struct State {};
    static void run(State&, const Activations& x, std::size_t p, std::size_t m, std::size_t k, const PanelPart* b, float* c, bool fresh, bool, Ahead& ahead) {
        const std::size_t lines = ahead.of_strip(m);
        for (std::size_t i = 0; i < m; i += strip_rows) {
            ahead.fetch(lines);
            multiply_bf16_rows(m - i < strip_rows ? m - i : strip_rows, x.q + i * x.ldq + 2 * p, x.ldq, b, k, c + i * panel, panel, fresh);
        }
    }
};

/// The first `n` of 32 values in bf16; the others are 0.
inline I pairs_of(const float* p, std::size_t n) {
    const __m256i low = to_bf16(n >= 16 ? load(p) : load_n(p, n)), high = n > 16 ? to_bf16(n >= 32 ? load(p + 16) : load_n(p + 16, n - 16)) : __m256i{};
    return _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(low), high, 1);
}
inline I pairs_of(const bf16_t* p, std::size_t n) { return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(n >= 32 ? ~0U : (1U << n) - 1U), p); }
/// The first `n` of sixteen values in bf16, in the lower halves of sixteen lanes.
inline I halves_of(const float* p, std::size_t n) { return _mm512_maskz_cvtepu16_epi32(full, to_bf16(n >= 16 ? load(p) : load_n(p, n))); }
inline I halves_of(const bf16_t* p, std::size_t n) { return _mm512_maskz_cvtepu16_epi32(full, _mm256_maskz_loadu_epi16(n >= 16 ? full : first(n), p)); }

/// The products of attend_rounded(): c [m, 32] (+)= rows of x times two panels; of the columns, which are zeros up to a multiple
/// of 32, the first `k` count.
struct PairProducts {
    void run(const std::byte* x, std::size_t ldq, std::size_t m, const std::byte* b0, const std::byte* b1, std::size_t k, float* c, std::size_t ldc, bool fresh) {
        const PanelPart b[2]{{b0, nullptr}, {b1, nullptr}};
        multiply_bf16_rows(m, x, ldq, b, k, c, ldc, fresh);
    }
};

/// attend() with scores, weights and values in bf16, and sums in f32: for rows that may be rounded.
template <class T, class Products>
inline void attend_rounded(const AttendTile<T>& t) {
    constexpr std::size_t rows = AttendTile<T>::max_rows, widest = AttendTile<T>::max_head_dim, tile = 1024, line = 2 * widest + 64;
    alignas(64) std::byte panels[widest / 32 * (key_block / 16) * tile];  // of keys, and then of values
    Attending<T>          a{t, (t.head_dim + 31) / 32 * 32};
    std::byte* const      q = reinterpret_cast<std::byte*>(a.rest), * const p = q + rows * line;
    const std::size_t     n_steps = a.d_pad / 32, q_line = 2 * a.d_pad + 64, p_line = 2 * key_block + 64;
    static_assert(rows * (key_block + widest + 2) + rows * (line + 2 * key_block + 64) / sizeof(float) <= scratch_floats);
    static_assert(widest / 16 * (key_block / 32) * tile <= sizeof panels);
    Products products;
    for (std::size_t i = 0; i < t.n_q; ++i)
        for (std::size_t d = 0; d < a.d_pad; d += 32) store_bytes(q + i * q_line + 2 * d, pairs_of(t.q + i * t.ldq + d, t.head_dim - d));
    for (std::size_t j0 = a.begin; j0 < a.end; j0 += key_block) {
        const std::size_t n = a.end - j0 < key_block ? a.end - j0 : key_block, width = (n + 31) / 32 * 32;
        const std::size_t first = a.first_row(t, j0), last = a.last_row(t, j0, n);
        if (first >= last) continue;
        for (std::size_t v = 0; v < width / 16; ++v)  // pairs of columns of sixteen keys
            for (std::size_t step = 0; step < n_steps; ++step) {
                F pairs[16];
#pragma GCC unroll 16
                for (std::size_t i = 0; i < 16; ++i) {
                    const std::size_t key = v * 16 + i;
                    pairs[i] = _mm512_castsi512_ps(key < n ? pairs_of(t.k + (j0 + key) * t.ldk + step * 32, t.head_dim - step * 32) : splat(0));
                }
                transpose(pairs);
#pragma GCC unroll 16
                for (std::size_t i = 0; i < 16; ++i) store(reinterpret_cast<float*>(panels + (v * n_steps + step) * tile + i * 64), pairs[i]);
            }
        for (std::size_t j = 0; j < width; j += 32)
            products.run(q + first * q_line, q_line, last - first, panels + j / 16 * n_steps * tile, panels + (j / 16 + 1) * n_steps * tile, t.head_dim,
                         a.scores + first * key_block + j, key_block, true);
        for (std::size_t i = first; i < last; ++i) {
            a.weigh(t, i, j0, n, width);
            for (std::size_t j = 0; j < width; j += 32) store_bytes(p + i * p_line + 2 * j, pairs_of(a.scores + i * key_block + j, 32));
        }
        for (std::size_t g = 0; g < a.d_pad / 16; ++g)  // pairs of keys, sixteen columns
            for (std::size_t key = 0; key < width; key += 2) {
                const std::size_t left = t.head_dim > g * 16 ? t.head_dim - g * 16 : 0;
                const T*          row = t.v + (j0 + key) * t.ldv + g * 16;
                const I           even = key < n && left ? halves_of(row, left) : splat(0), odd = key + 1 < n && left ? halves_of(row + t.ldv, left) : splat(0);
                store_bytes(panels + (g * (key_block / 32) + key / 32) * tile + key % 32 / 2 * 64, _mm512_or_si512(even, _mm512_maskz_slli_epi32(full, odd, 16)));
            }
        for (std::size_t g = 0; g < a.d_pad / 16; g += 2)
            products.run(p + first * p_line, p_line, last - first, panels + g * (key_block / 32) * tile, panels + (g + 1) * (key_block / 32) * tile, n,
                         a.sums + first * a.d_pad + g * 16, a.d_pad, false);
    }
    a.finish(t);
}

inline float burst_bf16(std::size_t n) {
    F        sums[2 * chains];  // these additions take longer
    __m512bh a, b;
    const I  ones = splat(0x3f803f80), halves = splat(0x3f003f00);
    std::memcpy(&a, &ones, sizeof a), std::memcpy(&b, &halves, sizeof b);
    for (F& s : sums) s = set1(0);
    for (std::size_t i = 0; i < n; ++i) {
#pragma GCC unroll 24
        for (int j = 0; j < 2 * chains; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], a, b);
    }
    F all = sums[0];
    for (int j = 1; j < 2 * chains; ++j) all = add(all, sums[j]);
    return sum(all);
}
