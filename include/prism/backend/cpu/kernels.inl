// The kernels of the CPU backend, written once over the vectors of simd_*.inl and compiled once per instruction set.
// No lambdas and no std algorithms over vectors here: neither would be compiled for the instruction set at hand.

inline constexpr int panel_vectors = static_cast<int>(panel_width) / lanes;
inline constexpr int tile_vectors = tile_panels * panel_vectors;
inline constexpr int panel = lanes * tile_vectors;  // columns of a product that are computed together

// ------------------------------------------------------------------------------------------------- elementary functions

inline F exp(F x) {  // within 2 ulp; 0 below the smallest normal result; NaN of NaN
    const F lowest = set1(-87.33654f);
    const F t = min(set1(88.72283f), max(lowest, x));  // x last: min and max give their second operand where one is NaN
    const F n = round(mul(t, set1(1.44269504f)));
    const F r = fma(n, set1(-1.42860677e-6f), fma(n, set1(-0.693145752f), t));  // ln 2 in two parts
    F       p = set1(1.0f / 5040);
    p = fma(p, r, set1(1.0f / 720));
    p = fma(p, r, set1(1.0f / 120));
    p = fma(p, r, set1(1.0f / 24));
    p = fma(p, r, set1(1.0f / 6));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1));
    p = fma(p, r, set1(1));
    // 2^n in two steps: n = 128 has no f32 of its own
    const F half = round(mul(n, set1(0.5f)));
    return zero_where_less(scale2(scale2(p, half), sub(n, half)), x, lowest);
}

inline F sigmoid(F x) { return div(set1(1), add(set1(1), exp(sub(set1(0), x)))); }

inline F erf(F x) {  // x P(x^2) / Q(x^2), fitted to 2e-8 relative on |x| < 3.95; beyond that f32 cannot tell it from 1
    const F z = max(min(x, set1(3.95f)), set1(-3.95f));
    const F u = mul(z, z);
    F       p = set1(2.0259073e-06f), q = set1(3.783183e-05f);
    p = fma(p, u, set1(2.8468842e-04f)), q = fma(q, u, set1(1.17073129e-03f));
    p = fma(p, u, set1(3.80818263e-03f)), q = fma(q, u, set1(1.50551315e-02f));
    p = fma(p, u, set1(5.28755116e-02f)), q = fma(q, u, set1(1.14559818e-01f));
    p = fma(p, u, set1(1.91550773e-01f)), q = fma(q, u, set1(5.03090128e-01f));
    p = fma(p, u, set1(1.12837914f)), q = fma(q, u, set1(1));
    return mul(z, div(p, q));
}

template <Activation A> inline F activate(F z) {
    if constexpr (A == Activation::gelu_erf) return mul(mul(set1(0.5f), z), add(set1(1), erf(mul(z, set1(0.707106781f)))));
    // 0.5 (1 + tanh u) is sigmoid(2 u)
    if constexpr (A == Activation::gelu_tanh) return mul(z, sigmoid(mul(set1(1.59576912f), fma(mul(mul(z, z), z), set1(0.044715f), z))));
    if constexpr (A == Activation::quick_gelu) return mul(z, sigmoid(mul(set1(1.702f), z)));
    if constexpr (A == Activation::silu) return mul(z, sigmoid(z));
    if constexpr (A == Activation::none) return z;
}

inline F activate(Activation a, F z) {
    switch (a) {
        case Activation::gelu_erf: return activate<Activation::gelu_erf>(z);
        case Activation::gelu_tanh: return activate<Activation::gelu_tanh>(z);
        case Activation::quick_gelu: return activate<Activation::quick_gelu>(z);
        case Activation::silu: return activate<Activation::silu>(z);
        case Activation::none: break;
    }
    return z;
}

inline void activate_row(Activation a, float* x, std::size_t n) {
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes) store(x + i, activate(a, load(x + i)));
    if (i < n) store_n(x + i, activate(a, load_n(x + i, n - i)), n - i);
}

// ------------------------------------------------------------------------------------------------------------- products

/// Weights that serve a few rows come from memory, and the little arithmetic does not hide that: they are fetched ahead.
/// Intel's processors want them 4 KiB ahead in the first-level cache. AMD's take few requests at once there and fetch plain
/// streams on their own: the second level, and only so many bytes ahead as serve a format.
struct FarAhead {
    static constexpr std::size_t usual = 4096, close = 1024;
    const std::byte* end;   // of the values of the first panel, less the distance
    std::ptrdiff_t   skip;  // behind it lies the second one, which is here already: the next pair's is two panels on
    std::size_t      distance;
    bool             second_level;

    FarAhead(const PanelPart* b, std::size_t value_bytes, std::size_t in_second_level = close)
        : skip(tile_panels > 1 ? 2 * (b[1].values - b[0].values) : 0), second_level(fetches_to_second_level()) {
        distance = second_level ? in_second_level : usual;
        end = b[0].values + value_bytes - distance;
    }
    // Always inline: compilers drop calls of functions that seem to do nothing.
    template <std::size_t Bytes>
    [[gnu::always_inline]] void fetch(const void* first, const void* second) const {
        const auto* const at = static_cast<const std::byte*>(first) + distance, * const other = static_cast<const std::byte*>(second) + distance;
        const auto* const from = static_cast<const std::byte*>(first) < end ? at : at + skip;
        if (second_level) lines<Bytes, 2>(from, other);
        else lines<Bytes, 3>(from, other);
    }

private:
    template <std::size_t Bytes, int Locality>
    [[gnu::always_inline]] static void lines(const std::byte* first, const std::byte* second) {
#pragma GCC unroll 8
        for (std::size_t i = 0; i < Bytes; i += 64) {
            __builtin_prefetch(first + i, 0, Locality);
            if (tile_panels > 1) __builtin_prefetch(second + i, 0, Locality);
        }
    }
};

/// sums += column p of R rows times one column of the panels.
template <int R>
inline void add_column(F (&sums)[R][tile_vectors], const float* a, std::size_t lda, const F (&column)[tile_vectors]) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
        const F x = set1(a[static_cast<std::size_t>(i) * lda]);
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) sums[i][j] = fma(x, column[j], sums[i][j]);
    }
}

/// c [R, panel] (+)= a [R, k] times k columns of the panels b. The sum over k runs in order, so it does not depend on R.
template <int R, class T>
inline void multiply(const float* a, std::size_t lda, const PanelPart* b, std::size_t k, float* c, std::size_t ldc, bool fresh) {
    F              sums[R][tile_vectors], column[tile_vectors];
    const T*       at[tile_panels];
    const FarAhead far{b, k * panel_width * sizeof(T)};
#pragma GCC unroll 2
    for (int j = 0; j < tile_panels; ++j) at[j] = reinterpret_cast<const T*>(b[j].values);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) sums[i][j] = fresh ? set1(0) : load(c + static_cast<std::size_t>(i) * ldc + j * lanes);
    std::size_t p = 0;
    for (; p + 2 <= k; p += 2, a += 2) {  // two at a time: less bookkeeping
        if constexpr (R <= 2) far.fetch<2 * panel_width * sizeof(T)>(at[0], at[tile_panels - 1]);
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) column[j] = load(at[j / panel_vectors] + j % panel_vectors * lanes);
        add_column<R>(sums, a, lda, column);
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) column[j] = load(at[j / panel_vectors] + panel_width + j % panel_vectors * lanes);
        add_column<R>(sums, a + 1, lda, column);
#pragma GCC unroll 2
        for (int j = 0; j < tile_panels; ++j) at[j] += 2 * panel_width;
    }
    if (p < k) {
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) column[j] = load(at[j / panel_vectors] + j % panel_vectors * lanes);
        add_column<R>(sums, a, lda, column);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) store(c + static_cast<std::size_t>(i) * ldc + j * lanes, sums[i][j]);
}

/// The same for panels of bf16, which hold two columns a step. The values become f32 in registers.
template <int R>
inline void multiply_pairs(const float* a, std::size_t lda, const PanelPart* b, std::size_t k, float* c, std::size_t ldc, bool fresh) {
    F              sums[R][tile_vectors], column[tile_vectors];
    const bf16_t*  at[tile_panels];
    const FarAhead far{b, k * panel_width * sizeof(bf16_t)};
#pragma GCC unroll 2
    for (int j = 0; j < tile_panels; ++j) at[j] = reinterpret_cast<const bf16_t*>(b[j].values);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) sums[i][j] = fresh ? set1(0) : load(c + static_cast<std::size_t>(i) * ldc + j * lanes);
    std::size_t p = 0;
    for (; p + 2 <= k; p += 2, a += 2) {
        if constexpr (R <= 2) far.fetch<2 * panel_width * sizeof(bf16_t)>(at[0], at[tile_panels - 1]);
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) column[j] = load_even(at[j / panel_vectors] + j % panel_vectors * lanes * 2);
        add_column<R>(sums, a, lda, column);
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) column[j] = load_odd(at[j / panel_vectors] + j % panel_vectors * lanes * 2);
        add_column<R>(sums, a + 1, lda, column);
#pragma GCC unroll 2
        for (int j = 0; j < tile_panels; ++j) at[j] += 2 * panel_width;
    }
    if (p < k) {
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) column[j] = load_even(at[j / panel_vectors] + j % panel_vectors * lanes * 2);
        add_column<R>(sums, a, lda, column);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) store(c + static_cast<std::size_t>(i) * ldc + j * lanes, sums[i][j]);
}

/// The same for any number of rows.
template <class T, int R = strip_rows>
inline void multiply_rows(std::size_t m, const float* a, std::size_t lda, const PanelPart* b, std::size_t k, float* c, std::size_t ldc, bool fresh) {
    for (; m >= R; m -= R, a += R * lda, c += R * ldc) {
        if constexpr (std::is_same_v<T, bf16_t>) multiply_pairs<R>(a, lda, b, k, c, ldc, fresh);
        else multiply<R, T>(a, lda, b, k, c, ldc, fresh);
    }
    if constexpr (R > 1)
        if (m) multiply_rows<T, R - 1>(m, a, lda, b, k, c, ldc, fresh);
}

/// Weights that are needed next: cache lines of each of the next panels, fetched while others are used.
struct Ahead {
    const std::byte* at = nullptr;
    std::size_t      apart = 0, lines = 0, due = 0;  // bytes between the panels; lines of each that are left; those of them that are due

    /// The part of the lines that belongs to the first of so many rows.
    void share(std::size_t rows, std::size_t of) { due = (lines * rows + of - 1) / of; }
    /// The part of what is due that belongs to each strip of these rows: memory takes only so many requests at once.
    std::size_t of_strip(std::size_t rows, std::size_t strip = strip_rows) const {
        const std::size_t n = (rows + strip - 1) / strip;
        return (due + n - 1) / n;
    }
    void fetch(std::size_t n) {
        for (n = n < due ? n : due, due -= n, lines -= n; n; --n, at += 64)
            for (std::size_t v = 0; v < tile_panels; ++v) __builtin_prefetch(at + v * apart, 0, 2);
    }
};

/// What product() needs to know of one way to multiply: rows in f32, weights in a plain format.
template <class P>
struct MultiplyPlain {
    using format = P;
    static constexpr Form        form = Form::f32;
    static constexpr std::size_t depth = 192;                // of the stretches in which sums are taken: 192 x 32 f32 stay in the first-level cache
    static constexpr std::size_t row_step = 4 * strip_rows;  // rows between two looks at what to fetch next
    static constexpr std::size_t spread_bytes = std::is_same_v<P, f32> ? 0 : sizeof(float);  // of a weight that is made ready by spread(); 0: used as it is
    static constexpr bool        takes_few = true;           // a few rows take the whole sum at once, and weights as they are
    /// Widened once for all rows.
    static void spread(const PanelPart& from, std::size_t steps, std::byte* to) {
        auto*       wide = reinterpret_cast<float*>(to);
        const auto* values = reinterpret_cast<const typename P::block*>(from.values);
        for (std::size_t s = 0; s < steps; ++s, values += PanelLayout<P>::columns * panel_width, wide += PanelLayout<P>::columns * panel_width)
            for (int j = 0; j < static_cast<int>(panel_width); j += lanes)
                if constexpr (std::is_same_v<P, bf16>) store(wide + j, load_even(values + 2 * j)), store(wide + panel_width + j, load_odd(values + 2 * j));
                else store(wide + j, load(values + j));
    }
    struct State {};                                         // kept from call to call of one tile
    static void run(State&, const Activations& x, std::size_t p, std::size_t m, std::size_t k, const PanelPart* b, float* c, bool fresh, bool few, Ahead& ahead) {
        const std::size_t lines = ahead.of_strip(m);
        for (std::size_t i = 0; i < m; i += strip_rows) {
            const std::size_t  n = m - i < strip_rows ? m - i : strip_rows;
            const float* const rows = x.x + i * x.ldx + p;
            ahead.fetch(lines);
            if (few) multiply_rows<typename P::block>(n, rows, x.ldx, b, k, c + i * panel, panel, fresh);
            else multiply_rows<float>(n, rows, x.ldx, b, k, c + i * panel, panel, fresh);
        }
    }
};

/// Each weight of four bits becomes a byte: [8][16][4] for 32 columns.
inline void spread_nibbles(const std::byte* values, std::size_t steps, std::byte* to) {
    for (std::size_t s = 0; s < steps; ++s, values += 256, to += 512)
        for (std::size_t i = 0; i < 256; i += 4 * lanes) {
            const I both = load_bytes(values + i);
            store_bytes(to + i, low_nibbles(both));
            store_bytes(to + 256 + i, high_nibbles(both));
        }
}

/// b [k, Vectors lanes] in panels of f32 = the first n rows of w [n, k], transposed and widened; columns from n on are zero.
template <class T, int Vectors = tile_vectors>
inline void transpose_panels(const T* w, std::size_t ldw, std::size_t n, std::size_t k, float* b) {
    for (int g = 0; g < Vectors; ++g) {
        const std::size_t begin = static_cast<std::size_t>(g) * lanes;
        const std::size_t used = n > begin ? (n - begin < lanes ? n - begin : lanes) : 0;
        const T*          source = w + begin * ldw;
        float* const      to = b + static_cast<std::size_t>(g / panel_vectors) * k * panel_width + static_cast<std::size_t>(g % panel_vectors) * lanes;
        for (std::size_t p = 0; p < k; p += lanes) {
            F                 rows[lanes];
            const std::size_t width = k - p < lanes ? k - p : lanes;
            if (used == lanes && width == lanes) {
#pragma GCC unroll 16
                for (int i = 0; i < lanes; ++i) rows[i] = load(source + static_cast<std::size_t>(i) * ldw + p);
            } else {
                for (std::size_t i = 0; i < lanes; ++i) rows[i] = i < used ? load_n(source + i * ldw + p, width) : set1(0);
            }
            transpose(rows);
            if (width == lanes) {
#pragma GCC unroll 16
                for (int i = 0; i < lanes; ++i) store(to + (p + static_cast<std::size_t>(i)) * panel_width, rows[i]);
            } else {
                for (std::size_t i = 0; i < width; ++i) store(to + (p + i) * panel_width, rows[i]);
            }
        }
    }
}

/// The panels that hold columns j, j + 16, ... of w, from column p of the sum on. Rows are brought into panels in `memory`.
template <class P>
inline void parts_of(const WeightRows& w, std::size_t total, std::size_t j, std::size_t p, std::size_t k_all, std::size_t k, std::byte* memory, PanelPart* to) {
    using L = PanelLayout<P>;
    for (std::size_t i = 0; i < tile_panels; ++i) {
        const std::size_t row = j + i * panel_width;
        if (row >= total) {  // beyond the matrix: computed, but not kept
            to[i] = to[0];
        } else if (w.panels) {
            const std::byte* const at = w.panels + row / panel_width * L::bytes(k_all);
            to[i] = {at + L::values_at(k_all) + p / L::columns * L::value_bytes, at + p / L::columns * L::scale_bytes};
        } else {
            std::byte* const scales = memory + i * L::bytes(k);
            std::byte* const values = scales + L::values_at(k);
            const auto* const rows = static_cast<const typename P::block*>(w.rows) + row * w.stride + p / P::values_per_block;
            const std::size_t n = total - row < panel_width ? total - row : panel_width;
            if constexpr (std::is_same_v<P, f32>) transpose_panels<float, panel_vectors>(rows, w.stride, n, k, reinterpret_cast<float*>(values));
            else interleave_part<P>(rows, w.stride, n, k, scales, values);
            to[i] = {values, scales};
        }
    }
}

/// One vector of results of one tile, with what follows the product.
struct Finish {
    F           bias, gamma;
    std::size_t skip, n;  // lanes that are no columns of this tile, and those that are

    Finish(const ProductTile& t, std::size_t column, std::size_t lo, std::size_t hi) : bias(set1(0)), gamma(set1(1)), skip(column < lo ? lo - column : 0), n(0) {
        const std::size_t end = column + lanes < hi ? column + lanes : hi;
        if (column + skip >= end) return;
        n = end - column - skip;
        const std::size_t first = column + skip - t.w.first;
        if (t.bias) bias = some(t.bias + first);
        if (t.gamma) gamma = some(t.gamma + first);
    }
    F some(const float* p) const {
        if (n == lanes) return load(p);
        float all[lanes]{};
        for (std::size_t i = 0; i < n; ++i) all[skip + i] = p[i];
        return load(all);
    }
    void keep(float* p, F x) const {
        if (n == lanes) return store(p, x);
        float all[lanes];
        store(all, x);
        for (std::size_t i = 0; i < n; ++i) p[i] = all[skip + i];
    }
};

/// From sums to results: m rows from row i on, the columns of the panels from j on.
template <Activation A>
inline void finish(const ProductTile& t, std::size_t j, std::size_t i, std::size_t m, const float* sums, const float* up_sums) {
    const std::size_t lo = t.w.first + t.begin, hi = t.w.first + t.end;
    for (int v = 0; v < tile_vectors; ++v, sums += lanes, up_sums += up_sums ? lanes : 0) {
        const std::size_t column = j + static_cast<std::size_t>(v) * lanes;
        const Finish      after{t, column, lo, hi};
        if (after.n == 0) continue;
        float* y = t.y + i * t.ldy + (column + after.skip - t.w.first);
        for (std::size_t r = 0; r < m; ++r, y += t.ldy) {
            const F x = activate<A>(add(load(sums + r * panel), after.bias));
            if (up_sums) after.keep(y, mul(x, load(up_sums + r * panel)));
            else after.keep(y, t.add ? add(after.some(y), t.gamma ? mul(after.gamma, x) : x) : x);
        }
    }
}
inline void finish(Activation a, const ProductTile& t, std::size_t j, std::size_t i, std::size_t m, const float* sums, const float* up_sums) {
    switch (a) {
        case Activation::none: return finish<Activation::none>(t, j, i, m, sums, up_sums);
        case Activation::gelu_erf: return finish<Activation::gelu_erf>(t, j, i, m, sums, up_sums);
        case Activation::gelu_tanh: return finish<Activation::gelu_tanh>(t, j, i, m, sums, up_sums);
        case Activation::quick_gelu: return finish<Activation::quick_gelu>(t, j, i, m, sums, up_sums);
        case Activation::silu: return finish<Activation::silu>(t, j, i, m, sums, up_sums);
    }
}

/// One tile of a product. For each stretch of the sum, each pair of panels serves all rows of x; sums wait in scratch.
template <class M>
inline void product(const ProductTile& t) {
    using P = typename M::format;
    using L = PanelLayout<P>;
    constexpr std::size_t most = ProductTile::max_rows, width = ProductTile::max_cols + 2 * panel, apart = M::depth + 16;
    constexpr std::size_t wide_bytes = M::depth * panel_width * M::spread_bytes;                               // of one panel, spread
    constexpr std::size_t extra = M::form == Form::f32 ? most * apart : 0, wide = tile_panels * wide_bytes / sizeof(float);  // copied rows; spread weights
    static_assert(2 * most * width + extra + wide + tile_panels * L::bytes(M::depth) / sizeof(float) <= scratch_floats);
    const bool        few = M::takes_few && t.m <= 8 && t.w.panels;  // one row block: nothing is gained by taking the sum in stretches
    const std::size_t depth = few ? (t.k ? t.k : 1) : M::depth;
    const std::size_t lo = t.w.first + t.begin, hi = t.w.first + t.end, total = t.w.first + t.n;
    const std::size_t j_begin = lo / panel_width * panel_width;
    const bool        gated = t.up.rows || t.up.panels;
    float* const      sums = scratch();
    float* const      up_sums = sums + most * width;
    float* const      copy = sums + 2 * most * width;
    std::byte* const  memory = reinterpret_cast<std::byte*>(copy + extra + wide);  // panels of rows
    Activations       x = t.x;
    typename M::State state;
    // Rows of x whose distance is a multiple of 2 KiB compete for the same lines of the cache (a Workspace does not hand
    // out such strides).
    const bool copied = M::form == Form::f32 && t.x.ldx % 512 == 0 && !few;
    for (std::size_t p = 0; p == 0 || p < t.k; p += depth) {  // once where there is nothing to sum: the sums are 0 then
        const std::size_t k = t.k - p < depth ? t.k - p : depth;
        if (copied) {
            for (std::size_t i = 0; i < t.m; ++i) std::memcpy(copy + i * apart, t.x.x + i * t.x.ldx + p, k * sizeof(float));
            x.x = copy - p, x.ldx = apart;
        }
        for (std::size_t j = j_begin; j < hi; j += panel)
            for (int second = 0; second < (gated ? 2 : 1); ++second) {
                const WeightRows& w = second ? t.up : t.w;
                PanelPart         b[tile_panels]{};
                parts_of<P>(w, total, j, p, t.k, k, memory, b);
                Ahead ahead;
                if (w.panels && !few) {
                    const bool last = j + panel >= hi;  // then the same panels come next, further down
                    if (!last) ahead = {b[0].values + tile_panels * L::bytes(t.k), L::bytes(t.k), L::steps(k) * L::value_bytes / 64};
                    else if (p + k < t.k) {
                        const std::byte* const first = w.panels + j_begin / panel_width * L::bytes(t.k) + L::values_at(t.k);
                        ahead = {first + (p + k) / L::columns * L::value_bytes, L::bytes(t.k), L::steps(k) * L::value_bytes / 64};
                    }
                }
                if constexpr (M::spread_bytes > 0)
                    if (!few)
                        for (std::size_t i = 0; i < tile_panels; ++i) {
                            std::byte* const to = reinterpret_cast<std::byte*>(copy + extra) + i * wide_bytes;
                            M::spread(b[i], L::steps(k), to);
                            b[i].values = to;
                        }
                float* const c = (second ? up_sums : sums) + (j - j_begin) * t.m;
                for (std::size_t i = 0; i < t.m; i += M::row_step) {
                    const std::size_t m = t.m - i < M::row_step ? t.m - i : M::row_step;
                    ahead.share(m, t.m - i);
                    M::run(state, x.from(i), p, m, k, b, c + i * panel, p == 0, few, ahead);
                    // What is finished here is still in the first-level cache.
                    if (p + k == t.k && second == gated)
                        finish(gated ? Activation::silu : t.act, t, j, i, m, sums + (j - j_begin) * t.m + i * panel, gated ? c + i * panel : nullptr);
                }
            }
    }
}

/// `lanes` groups of a row of x, each by its own scale, or four neighbours by one: what is sought among the values of a group is
/// found for all groups at once. A group with values that are no finite numbers gets a scale that is none either.
template <bool Rest>
struct QuantisedGroups {
    static constexpr int vectors = static_cast<int>(Activations::group) / lanes;
    F                    whole[lanes][vectors], rest[Rest ? lanes : 1][vectors];  // x = scale (256 whole + rest), a scale for each group; else scale whole
    float                scales[lanes], sums[lanes], rest_sums[lanes]{};          // sums of whole and of rest

    /// The first `n` values of x; the others are 0.
    QuantisedGroups(const float* x, std::size_t n) {
        constexpr int shared = static_cast<int>(Activations::groups_per_scale);
        static_assert(lanes % shared == 0);
        F             most[lanes], nothing[lanes];
        for (int g = 0; g < lanes; ++g) {
            most[g] = nothing[g] = set1(0);
            for (int i = 0; i < vectors; ++i) {
                const std::size_t at = static_cast<std::size_t>(g * vectors + i) * lanes;
                const F           values = at + lanes <= n ? load(x + at) : at < n ? load_n(x + at, n - at) : set1(0);
                whole[g][i] = values;
                most[g] = max(most[g], abs(values));
                nothing[g] = fma(values, set1(0), nothing[g]);  // 0, or NaN
            }
        }
        if constexpr (!Rest)
            for (int g = 0; g < lanes; g += shared) {
                for (int i = 1; i < shared; ++i) most[g] = max(most[g], most[g + i]), nothing[g] = add(nothing[g], nothing[g + i]);
                for (int i = 1; i < shared; ++i) most[g + i] = most[g], nothing[g + i] = nothing[g];
            }
        transpose(most), transpose(nothing);
        F top = most[0], poison = nothing[0];
        for (int i = 1; i < lanes; ++i) top = max(top, most[i]), poison = add(poison, nothing[i]);
        float inverses[lanes];
        store(inverses, zero_where_less(div(set1(127), top), top, set1(std::numeric_limits<float>::denorm_min())));
        const F step = div(top, set1(127));
        store(scales, add(Rest ? mul(step, set1(1.0f / 256)) : step, poison));
        for (int g = 0; g < lanes; ++g) {
            const F inverse = set1(inverses[g]);
            F       sum_of_whole = set1(0), sum_of_rest = set1(0);
            for (int i = 0; i < vectors; ++i) {
                const F scaled = mul(whole[g][i], inverse), q = max(min(round(scaled), set1(127)), set1(-127));  // -128 has no opposite
                whole[g][i] = q, sum_of_whole = add(sum_of_whole, q);
                if constexpr (Rest) {
                    const F r = round(max(min(mul(sub(scaled, q), set1(256)), set1(127)), set1(-127)));
                    rest[g][i] = r, sum_of_rest = add(sum_of_rest, r);
                }
            }
            most[g] = sum_of_whole, nothing[g] = sum_of_rest;
        }
        store_sums(most, sums);
        if constexpr (Rest) store_sums(nothing, rest_sums);
    }

private:
    static void store_sums(F* of, float* to) {
        transpose(of);
        for (int i = 1; i < lanes; ++i) of[0] = add(of[0], of[i]);
        store(to, of[0]);
    }
};

/// A row of x in int8 or as pairs, group by group.
template <bool Pair>
inline void quantise(std::size_t n, const Activations& to, std::size_t row) {
    constexpr std::size_t group = Activations::group;
    std::int8_t*          q = reinterpret_cast<std::int8_t*>(to.q + row * to.ldq);
    for (std::size_t g = 0; g < to.n_groups; g += lanes) {
        const QuantisedGroups<Pair> a{to.x + row * to.ldx + g * group, n - g * group};
        for (std::size_t i = 0; i < lanes && g + i < to.n_groups; ++i, q += group) {
            for (int v = 0; v < a.vectors; ++v) {
                store_int8(q + v * lanes, a.whole[i][v]);
                if constexpr (Pair) store_int8(q + to.low + v * lanes, a.rest[i][v]);
            }
            const std::size_t at = row * to.n_groups + g + i;
            to.scales[at] = a.scales[i], to.sums[at] = static_cast<std::int32_t>(a.sums[i]), to.low_sums[at] = static_cast<std::int32_t>(a.rest_sums[i]);
        }
    }
}

inline void convert(Form form, std::size_t n, const Activations& to, std::size_t row) {
    if (form == Form::int8) quantise<false>(n, to, row);
    if (form == Form::int8_pair) quantise<true>(n, to, row);
}

// ------------------------------------------------------------------------------------------------------- rows of numbers

inline void layer_norm_row(const float* x, const float* weight, const float* bias, float eps, float* y, std::size_t d) {
    F           total = set1(0);
    std::size_t i = 0;
    for (; i + lanes <= d; i += lanes) total = add(total, load(x + i));
    if (i < d) total = add(total, load_n(x + i, d - i));
    const float mean = sum(total) / static_cast<float>(d);
    F           squares = set1(0);
    for (i = 0; i + lanes <= d; i += lanes) {
        const F c = sub(load(x + i), set1(mean));
        squares = fma(c, c, squares);
    }
    float variance = sum(squares);
    for (; i < d; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / std::sqrt(variance / static_cast<float>(d) + eps);
    for (i = 0; i + lanes <= d; i += lanes)
        store(y + i, fma(mul(sub(load(x + i), set1(mean)), set1(scale)), load(weight + i), load(bias + i)));
    for (; i < d; ++i) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

inline void rms_norm_row(const float* x, const float* weight, float eps, float* y, std::size_t d) {
    F           squares = set1(0);
    std::size_t i = 0;
    for (; i + lanes <= d; i += lanes) squares = fma(load(x + i), load(x + i), squares);
    float total = sum(squares);
    for (; i < d; ++i) total += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(total / static_cast<float>(d) + eps);
    for (i = 0; i + lanes <= d; i += lanes) store(y + i, mul(mul(load(x + i), set1(scale)), load(weight + i)));
    for (; i < d; ++i) y[i] = x[i] * scale * weight[i];
}

inline void silu_mul_row(const float* gate, const float* up, float* y, std::size_t n) {
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes) store(y + i, mul(activate<Activation::silu>(load(gate + i)), load(up + i)));
    if (i < n) store_n(y + i, mul(activate<Activation::silu>(load_n(gate + i, n - i)), load_n(up + i, n - i)), n - i);
}

/// x += gamma h; a null gamma is one.
inline void add_scaled_row(const float* h, const float* gamma, float* x, std::size_t n) {
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        const F s = gamma ? mul(load(gamma + i), load(h + i)) : load(h + i);
        store(x + i, add(load(x + i), s));
    }
    for (; i < n; ++i) x[i] += gamma ? gamma[i] * h[i] : h[i];
}

// ------------------------------------------------------------------------------------------------------------ attention

inline constexpr std::size_t key_block = 64;  // keys whose scores are held at once
static_assert(key_block % panel == 0);

/// The scores of one row in one block become weights: keys outside [lo, hi) get none. Returns by how much sums of
/// earlier blocks shrink; updates the row's running maximum and sum.
inline float soften(float* s, std::size_t width, std::size_t lo, std::size_t hi, float scale, float& top, float& total) {
    const float none = -std::numeric_limits<float>::infinity();
    for (std::size_t j = 0; j < lo; ++j) s[j] = none;
    for (std::size_t j = hi; j < width; ++j) s[j] = none;
    F most = set1(none);
    for (std::size_t j = 0; j < width; j += lanes) most = max(most, load(s + j));
    const float now = std::fmax(top, largest(most) * scale);
    F           sums = set1(0);
    for (std::size_t j = 0; j < width; j += lanes) {
        const F p = exp(fma(load(s + j), set1(scale), set1(-now)));
        store(s + j, p);
        sums = add(sums, p);
    }
    const float shrink = top == now ? 1.0f : sum(exp(set1(top - now))) * (1.0f / lanes);  // lanes are equal, and a power of two
    total = total * shrink + sum(sums);
    top = now;
    return shrink;
}

/// What a block of query rows needs while it reads the keys, in scratch; and which of its rows see which keys.
template <class T>
struct Attending {
    static constexpr std::size_t rows = AttendTile<T>::max_rows, widest = AttendTile<T>::max_head_dim;
    float *                      scores, *sums, *top, *total, *rest;  // [rows, key_block], [rows, d_pad], [rows], [rows]
    std::size_t                  d_pad, begin, end;                   // keys that any row sees

    static_assert(rows * (key_block + widest + 2) + 2 * widest * key_block <= scratch_floats);

    Attending(const AttendTile<T>& t, std::size_t padded)
        : scores(scratch()), sums(scores + rows * key_block), top(sums + rows * padded), total(top + rows), rest(total + rows), d_pad(padded),
          begin(t.window && t.pos + 1 > t.window ? (t.pos + 1 - t.window) / key_block * key_block : 0), end(t.causal && t.pos + t.n_q < t.n_kv ? t.pos + t.n_q : t.n_kv) {
        for (std::size_t i = 0; i < t.n_q; ++i) top[i] = -std::numeric_limits<float>::infinity(), total[i] = 0;
        for (std::size_t i = 0; i < t.n_q * d_pad; ++i) sums[i] = 0;
    }

    /// The rows [first, last) that see keys of the block [j0, j0 + n).
    static std::size_t first_row(const AttendTile<T>& t, std::size_t j0) { return t.causal && j0 > t.pos ? (j0 - t.pos) : 0; }
    static std::size_t last_row(const AttendTile<T>& t, std::size_t j0, std::size_t n) {
        if (!t.window) return t.n_q;
        const std::size_t beyond = j0 + n - 1 + t.window;  // position of the first row that sees none of them any more
        return beyond <= t.pos ? 0 : beyond - t.pos < t.n_q ? beyond - t.pos : t.n_q;
    }

    /// Scores of row i against n keys from j0 on become weights; earlier sums shrink.
    void weigh(const AttendTile<T>& t, std::size_t i, std::size_t j0, std::size_t n, std::size_t width) {
        const std::size_t at = t.pos + i;  // position of this query among the keys
        const std::size_t hi = t.causal && at - j0 < n ? at - j0 + 1 : n;
        const std::size_t lo = t.window && at + 1 > t.window + j0 ? at + 1 - t.window - j0 : 0;
        const float       shrink = soften(scores + i * key_block, width, lo, hi, t.scale, top[i], total[i]);
        if (shrink == 1) return;
        for (std::size_t d = 0; d < d_pad; d += lanes) store(sums + i * d_pad + d, mul(load(sums + i * d_pad + d), set1(shrink)));
    }

    void finish(const AttendTile<T>& t) const {
        for (std::size_t i = 0; i < t.n_q; ++i) {
            const F     inverse = set1(1.0f / total[i]);
            float*      y = t.y + i * t.ldy;
            std::size_t d = 0;
            for (; d + lanes <= t.head_dim; d += lanes) store(y + d, mul(load(sums + i * d_pad + d), inverse));
            if (d < t.head_dim) store_n(y + d, mul(load(sums + i * d_pad + d), inverse), t.head_dim - d);
        }
    }
};

inline PanelPart plain_part(const float* p) { return {reinterpret_cast<const std::byte*>(p), nullptr}; }

/// One head, a block of query rows: softmax(scale q k^T) v in tiles of keys, never more scores than one tile.
template <class T>
inline void attend(const AttendTile<T>& t) {
    const std::size_t n_panels = (t.head_dim + panel - 1) / panel;
    Attending<T>      a{t, n_panels * panel};
    float* const      panels = a.rest;
    for (std::size_t j0 = a.begin; j0 < a.end; j0 += key_block) {
        const std::size_t n = a.end - j0 < key_block ? a.end - j0 : key_block, width = (n + panel - 1) / panel * panel;
        const std::size_t first = a.first_row(t, j0), last = a.last_row(t, j0, n);
        if (first >= last) continue;
        for (std::size_t j = 0; j < n; j += panel) {
            const PanelPart keys[2]{plain_part(panels), plain_part(panels + t.head_dim * panel_width)};
            transpose_panels(t.k + (j0 + j) * t.ldk, t.ldk, n - j, t.head_dim, panels);
            multiply_rows<float>(last - first, t.q + first * t.ldq, t.ldq, keys, t.head_dim, a.scores + first * key_block + j, key_block, true);
        }
        for (std::size_t i = first; i < last; ++i) a.weigh(t, i, j0, n, width);
        for (std::size_t g = 0; g < n_panels; ++g) {
            for (std::size_t j = 0; j < n; ++j)
                for (int c = 0; c < tile_vectors; ++c) {
                    const std::size_t d = g * panel + static_cast<std::size_t>(c) * lanes;
                    const std::size_t left = t.head_dim > d ? t.head_dim - d : 0;
                    const T*          row = t.v + (j0 + j) * t.ldv;
                    store(panels + (static_cast<std::size_t>(c / panel_vectors) * n + j) * panel_width + c % panel_vectors * lanes,
                          left >= lanes ? load(row + d) : left ? load_n(row + d, left) : set1(0));
                }
            const PanelPart values[2]{plain_part(panels), plain_part(panels + n * panel_width)};
            multiply_rows<float>(last - first, a.scores + first * key_block, key_block, values, n, a.sums + first * a.d_pad + g * panel, a.d_pad, false);
        }
    }
    a.finish(t);
}

/// The products of x [k] with R rows of w, which lie ldw apart: lane by lane, to be added up by add_across.
template <int R, class T>
inline void multiply_lanes(const float* x, const T* w, std::size_t ldw, std::size_t k, F* out) {
    F sums[2][R];  // two chains per sum: a single one would wait for its own additions
    for (auto& chain : sums)
        for (F& s : chain) s = set1(0);
    std::size_t p = 0;
    for (; p + 2 * lanes <= k; p += 2 * lanes) {
#pragma GCC unroll 2
        for (std::size_t u = 0; u < 2; ++u) {
            const F values = load(x + p + u * lanes);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sums[u][r] = fma(values, load(w + static_cast<std::size_t>(r) * ldw + p + u * lanes), sums[u][r]);
        }
    }
    for (; p < k; p += lanes) {
        const std::size_t n = k - p < lanes ? k - p : lanes;
        for (int r = 0; r < R; ++r) sums[0][r] = fma(load_n(x + p, n), load_n(w + static_cast<std::size_t>(r) * ldw + p, n), sums[0][r]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) out[r] = add(sums[0][r], sums[1][r]);
}

/// Lane i of the result is the sum of the lanes of rows[i].
inline F add_across(F (&rows)[lanes]) {
    transpose(rows);
#pragma GCC unroll 4
    for (int half = lanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) rows[i] = add(rows[i], rows[i + half]);
    return rows[0];
}

/// out [n] = x [k] against n rows of w. Up to a vector's multiple, out gets zeros.
template <class T>
inline void dots(const float* x, const T* w, std::size_t ldw, std::size_t k, std::size_t n, float* out) {
    for (std::size_t j = 0; j < n; j += lanes) {
        const std::size_t left = n - j < lanes ? n - j : lanes;
        F                 rows[lanes];
        std::size_t       r = 0;
        for (; r + 4 <= left; r += 4) multiply_lanes<4>(x, w + (j + r) * ldw, ldw, k, rows + r);
        for (; r < left; ++r) multiply_lanes<1>(x, w + (j + r) * ldw, ldw, k, rows + r);
        for (; r < lanes; ++r) rows[r] = set1(0);
        store(out + j, add_across(rows));
    }
}

/// o [V lanes] = shrink o + weights [n] times n rows of v, in order.
template <int V, class T>
inline void add_weighted(const float* weights, std::size_t n, const T* v, std::size_t ldv, F shrink, float* o) {
    F sums[V];
#pragma GCC unroll 8
    for (int c = 0; c < V; ++c) sums[c] = mul(load(o + c * lanes), shrink);
    for (std::size_t j = 0; j < n; ++j, v += ldv) {
        const F weight = set1(weights[j]);
#pragma GCC unroll 8
        for (int c = 0; c < V; ++c) sums[c] = fma(weight, load(v + c * lanes), sums[c]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < V; ++c) store(o + c * lanes, sums[c]);
}

/// One head, few query rows against a long cache: keys and values are read once each, in place.
template <class T>
inline void attend_row(const AttendTile<T>& t) {
    alignas(64) float     s[key_block], o[AttendTile<T>::max_head_dim + lanes];
    const std::size_t     d_pad = (t.head_dim + lanes - 1) / lanes * lanes;
    for (std::size_t i = 0; i < t.n_q; ++i) {
        const float*      q = t.q + i * t.ldq;
        float             top = -std::numeric_limits<float>::infinity(), total = 0;
        const std::size_t at = t.pos + i;
        std::size_t       end = t.causal && at + 1 < t.n_kv ? at + 1 : t.n_kv;
        std::size_t       begin = t.window && at + 1 > t.window ? at + 1 - t.window : 0;
        if (end > t.last) end = t.last;
        if (begin < t.first) begin = t.first;
        for (std::size_t d = 0; d < d_pad; ++d) o[d] = 0;
        for (std::size_t j0 = begin; j0 < end; j0 += key_block) {
            const std::size_t n = end - j0 < key_block ? end - j0 : key_block, width = (n + lanes - 1) / lanes * lanes;
            dots(q, t.k + j0 * t.ldk, t.ldk, t.head_dim, n, s);
            const F     shrink = set1(soften(s, width, 0, n, t.scale, top, total));
            const T*    v = t.v + j0 * t.ldv;
            std::size_t d = 0;
            for (; d + 4 * lanes <= t.head_dim; d += 4 * lanes) add_weighted<4>(s, n, v + d, t.ldv, shrink, o + d);
            for (; d + lanes <= t.head_dim; d += lanes) add_weighted<1>(s, n, v + d, t.ldv, shrink, o + d);
            if (d < t.head_dim) {
                F sums = mul(load(o + d), shrink);
                for (std::size_t j = 0; j < n; ++j) sums = fma(set1(s[j]), load_n(v + j * t.ldv + d, t.head_dim - d), sums);
                store(o + d, sums);
            }
        }
        if (t.parts) {
            float* const part = t.parts + i * AttendTile<T>::part_floats;
            part[0] = top, part[1] = total;
            for (std::size_t d = 0; d < t.head_dim; ++d) part[2 + d] = o[d];
        } else {
            for (std::size_t d = 0; d < t.head_dim; ++d) t.y[i * t.ldy + d] = o[d] / total;
        }
    }
}

/// y [head_dim] from the parts of one row, which lie `stride` apart.
inline void merge(const float* parts, std::size_t n_parts, std::size_t stride, std::size_t head_dim, float* y) {
    float top = parts[0], total = 0;
    for (std::size_t p = 1; p < n_parts; ++p) top = std::fmax(top, parts[p * stride]);
    for (std::size_t d = 0; d < head_dim; ++d) y[d] = 0;
    for (std::size_t p = 0; p < n_parts; ++p) {
        const float* part = parts + p * stride;
        const float  weight = std::exp(part[0] - top);  // 0 where a part has no keys that the row sees
        total += weight * part[1];
        for (std::size_t d = 0; d < head_dim; ++d) y[d] += weight * part[2 + d];
    }
    for (std::size_t d = 0; d < head_dim; ++d) y[d] /= total;
}

/// y = x, rounded to nearest, ties to even.
inline void round_row(const float* x, bf16_t* y, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) y[i] = bf16_t(x[i]);
}

/// x [n_heads, head_dim] of one position: each head's first 2 n_angles values, rotated in halves.
inline void rope_row(float* x, std::size_t n_heads, std::size_t head_dim, const float* cos, const float* sin, std::size_t n_angles) {
    for (std::size_t h = 0; h < n_heads; ++h, x += head_dim) {
        std::size_t i = 0;
        for (; i + lanes <= n_angles; i += lanes) {
            const F a = load(x + i), b = load(x + n_angles + i), c = load(cos + i), s = load(sin + i);
            store(x + i, sub(mul(a, c), mul(b, s)));
            store(x + n_angles + i, add(mul(b, c), mul(a, s)));
        }
        for (; i < n_angles; ++i) {
            const float a = x[i], b = x[n_angles + i];
            x[i] = a * cos[i] - b * sin[i];
            x[n_angles + i] = b * cos[i] + a * sin[i];
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- limits

inline constexpr int chains = 12;  // enough independent sums to hide the latency of an addition

/// n rounds of multiplications and additions that wait for nothing: what the processor can do at most.
inline float burst(std::size_t n) {
    F sums[chains];
    for (F& s : sums) s = set1(0);
    const F a = set1(1.0001f), b = set1(0.5f);
    for (std::size_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < chains; ++j) sums[j] = fma(sums[j], a, b);
    }
    F all = sums[0];
    for (int j = 1; j < chains; ++j) all = add(all, sums[j]);
    return sum(all);
}

/// The sum of n values: as fast as memory gives them.
inline float read_all(const float* x, std::size_t n) {
    F sums[chains];
    for (F& s : sums) s = set1(0);
    for (std::size_t i = 0; i + chains * lanes <= n; i += chains * lanes) {
#pragma GCC unroll 12
        for (int j = 0; j < chains; ++j) {
            const float* const at = x + i + static_cast<std::size_t>(j) * lanes;
            __builtin_prefetch(at + FarAhead::usual / sizeof(float));
            sums[j] = add(sums[j], load(at));
        }
    }
    F all = sums[0];
    for (int j = 1; j < chains; ++j) all = add(all, sums[j]);
    return sum(all);
}

#include "prism/backend/cpu/products_int8.inl"

/// Enters the products of weights in blocks: exact ones and rounded ones.
template <int, template <class, bool> class Multiply>
constexpr void use_blocks(Kernels& k) {
    k.products[q8_index] = {Multiply<q8, true>::form, product<Multiply<q8, true>>}, k.rounded_products[q8_index] = {Multiply<q8, false>::form, product<Multiply<q8, false>>};
    k.products[q4_index] = {Multiply<q4, true>::form, product<Multiply<q4, true>>}, k.rounded_products[q4_index] = {Multiply<q4, false>::form, product<Multiply<q4, false>>};
    k.products[q4m_index] = {Multiply<q4m, true>::form, product<Multiply<q4m, true>>}, k.rounded_products[q4m_index] = {Multiply<q4m, false>::form, product<Multiply<q4m, false>>};
}

template <int I>  // a template, so that nothing is compiled before somebody asks
constexpr Kernels kernels() {
    const Burst   plain{burst, 2.0 * chains * lanes};
    const Product in_f32{Form::f32, product<MultiplyPlain<f32>>}, in_bf16{Form::f32, product<MultiplyPlain<bf16>>}, in_f16{Form::f32, product<MultiplyPlain<f16>>};
    Kernels       k{panel, {in_f32, in_bf16, in_f16, {}, {}, {}}, {in_f32, in_bf16, in_f16, {}, {}, {}}, {},
              convert, layer_norm_row, rms_norm_row, activate_row, silu_mul_row, add_scaled_row, rope_row, {attend<float>, attend_row<float>}, {attend<float>, attend_row<float>},
              {attend<bf16_t>, attend_row<bf16_t>}, {attend<bf16_t>, attend_row<bf16_t>}, merge, round_row, plain, plain, {burst_int8, 8.0 * chains * lanes}, read_all};
    use_blocks<I, MultiplyBlocks>(k);
    return k;
}
