// The kernels of the CPU backend, written once over the vectors of simd_*.inl and compiled once per instruction set.
// No lambdas and no std algorithms over vectors here: neither would be compiled for the instruction set at hand.

inline constexpr int panel = lanes * tile_vectors;  // columns of a product that are computed together

// ------------------------------------------------------------------------------------------------- elementary functions

inline F exp(F x) {  // within 2 ulp; 0 below the smallest normal result; NaN of NaN
    const F lowest = set1(-87.33654f);
    const F t = min(set1(88.72283f), max(lowest, x));  // x last: min and max give their second operand where one is NaN
    const F n = round(mul(t, set1(1.44269504f)));
    const F r = fma(n, set1(1.42860677e-6f), fma(n, set1(-0.693148136f), t));  // ln 2 in two parts
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

/// c [R, panel] (+)= a [R, k] b [k, panel]. The sum over k runs in order, so it does not depend on R.
template <int R>
inline void multiply(const float* a, std::size_t lda, const float* b, std::size_t k, float* c, std::size_t ldc, bool fresh) {
    F sums[R][tile_vectors];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) sums[i][j] = fresh ? set1(0) : load(c + static_cast<std::size_t>(i) * ldc + j * lanes);
    for (std::size_t p = 0; p < k; ++p, b += panel) {
        F row[tile_vectors];
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) row[j] = load(b + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const F x = set1(a[static_cast<std::size_t>(i) * lda + p]);
#pragma GCC unroll 4
            for (int j = 0; j < tile_vectors; ++j) sums[i][j] = fma(x, row[j], sums[i][j]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) store(c + static_cast<std::size_t>(i) * ldc + j * lanes, sums[i][j]);
}

/// The same for any number of rows.
template <int R = tile_rows>
inline void multiply_rows(std::size_t m, const float* a, std::size_t lda, const float* b, std::size_t k, float* c,
                          std::size_t ldc, bool fresh) {
    for (; m >= R; m -= R, a += R * lda, c += R * ldc) multiply<R>(a, lda, b, k, c, ldc, fresh);
    if constexpr (R > 1)
        if (m) multiply_rows<R - 1>(m, a, lda, b, k, c, ldc, fresh);
}

/// Values that a block stands for, as value = scale q + offset.
inline float offset_of(const q8::block&) { return 0; }
inline float offset_of(const q4::block& w) { return -8 * widen(w.scale); }
inline float offset_of(const q4m::block& w) { return widen(w.minimum); }

/// y = w, widened to f32.
template <class W>
inline void widen_row(const W* w, float* y, std::size_t n) {
    if constexpr (values_of<W> == 1) {
        std::size_t i = 0;
        for (; i + lanes <= n; i += lanes) store(y + i, load(w + i));
        if (i < n) store_n(y + i, load_n(w + i, n - i), n - i);
    } else {
        constexpr std::size_t size = values_of<W>;
        for (std::size_t i = 0; i < n; i += size, ++w) {
            alignas(32) std::int8_t q[size];
            const Bytes             all = values(*w);
            const float             scale = widen(w->scale), offset = offset_of(*w);
            std::memcpy(q, &all, sizeof q);
            const std::size_t some = n - i < size ? n - i : size;
            for (std::size_t j = 0; j < some; ++j) y[i + j] = scale * static_cast<float>(q[j]) + offset;
        }
    }
}

/// b [k, panel] = the first n rows of w [n, k], transposed and widened to f32; columns from n on are zero.
template <class W>
inline void pack(const W* w, std::size_t ldw, std::size_t n, std::size_t k, float* b) {
    if constexpr (values_of<W> > 1) {  // block by block: widened first, then as if it were f32
        constexpr std::size_t   size = values_of<W>;
        alignas(64) float       wide[panel * size];
        const std::size_t       used = n < panel ? n : panel;
        for (std::size_t p = 0; p < k; p += size) {
            const std::size_t some = k - p < size ? k - p : size;
            for (std::size_t i = 0; i < used; ++i) widen_row(advance(w + i * ldw, p), wide + i * size, some);
            pack(static_cast<const float*>(wide), size, used, some, b + p * panel);
        }
        return;
    } else {
    for (int g = 0; g < tile_vectors; ++g, b += lanes) {
        const std::size_t begin = static_cast<std::size_t>(g) * lanes;
        const std::size_t used = n > begin ? (n - begin < lanes ? n - begin : lanes) : 0;
        const W*          source = w + begin * ldw;
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
                for (int i = 0; i < lanes; ++i) store(b + (p + static_cast<std::size_t>(i)) * panel, rows[i]);
            } else {
                for (std::size_t i = 0; i < width; ++i) store(b + (p + i) * panel, rows[i]);
            }
        }
    }
    }
}

inline constexpr std::size_t depth = 256;  // of a packed panel: 256 x 32 f32 stay in the first-level cache

/// One tile of y = act(x w^T + bias): at most `GemmTile::max_rows` rows and `max_cols` columns. For each stretch of the
/// sum, each panel of w is transposed once for all rows of x. Rows of x whose distance is a multiple of 2 KiB compete for
/// the same lines of the cache; only those are copied apart first (a Workspace does not hand out such strides).
template <class W>
inline void gemm(const GemmTile<W>& t) {
    constexpr std::size_t rows = GemmTile<W>::max_rows, apart = depth + 16;
    const bool            copied = t.ldx % 512 == 0;
    const std::size_t     ldx = copied ? apart : t.ldx;
    float* const          b = scratch();
    float* const          sums = b + depth * panel;
    float* const          copy = sums + rows * GemmTile<W>::max_cols;
    static_assert(depth * panel + rows * GemmTile<W>::max_cols + rows * apart <= scratch_floats);
    for (std::size_t p = 0; p == 0 || p < t.k; p += depth) {  // once where there is nothing to sum: the sums are 0 then
        const std::size_t k = t.k - p < depth ? t.k - p : depth;
        const float*      x = copied ? copy : t.x + p;
        if (copied)
            for (std::size_t i = 0; i < t.m; ++i) widen_row(t.x + i * t.ldx + p, copy + i * apart, k);
        for (std::size_t j = 0; j < t.n; j += panel) {
            pack(advance(t.w + j * t.ldw, p), t.ldw, t.n - j, k, b);
            // The next panel is fetched while this one is used: its rows are too far apart for the processor to guess.
            const bool        along = j + panel < t.n;
            const W*          next = along ? advance(t.w + (j + panel) * t.ldw, p) : p + depth < t.k ? advance(t.w, p + depth) : nullptr;
            const std::size_t n_next = next ? (along && t.n - j - panel < panel ? t.n - j - panel : t.n < panel ? t.n : panel) : 0;
            std::size_t       fetched = 0;
            for (std::size_t i = 0; i < t.m; i += tile_rows) {
                const std::size_t due = n_next * (i + tile_rows) / t.m;
                for (; fetched < due && fetched < n_next; ++fetched)
                    for (std::size_t q = 0; q < k / values_of<W> * sizeof(W); q += 64)
                        __builtin_prefetch(reinterpret_cast<const char*>(next + fetched * t.ldw) + q, 0, 2);
                const std::size_t m = t.m - i < tile_rows ? t.m - i : tile_rows;
                multiply_rows(m, x + i * ldx, ldx, b, k, sums + j * t.m + i * panel, panel, p == 0);
            }
        }
    }
    for (std::size_t j = 0; j < t.n; j += lanes) {
        const std::size_t n = t.n - j < lanes ? t.n - j : lanes;
        const F           bias = t.bias ? load_n(t.bias + j, n) : set1(0);
        const float*      c = sums + j / panel * panel * t.m + j % panel;
        for (std::size_t i = 0; i < t.m; ++i) {
            const F y = activate(t.act, add(load(c + i * panel), bias));
            if (n == lanes) store(t.y + i * t.ldy + j, y);
            else store_n(t.y + i * t.ldy + j, y, n);
        }
    }
}

/// out [M][R] = x [M, k] against R rows of w: each weight is read once, for all M rows of x.
template <int M, int R, class W>
inline void dots(const float* x, std::size_t ldx, const W* w, std::size_t ldw, std::size_t k, float (*out)[4]) {
    F sums[2][M][R];  // two chains per sum: a single one would wait for its own additions
    for (auto& chain : sums)
        for (auto& row : chain)
            for (F& s : row) s = set1(0);
    std::size_t p = 0;
    for (; p + 2 * lanes <= k; p += 2 * lanes) {
#pragma GCC unroll 2
        for (int u = 0; u < 2; ++u) {
            const std::size_t at = p + static_cast<std::size_t>(u) * lanes;
            F                 values[M];
#pragma GCC unroll 4
            for (int i = 0; i < M; ++i) values[i] = load(x + static_cast<std::size_t>(i) * ldx + at);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const F weights = load(w + static_cast<std::size_t>(r) * ldw + at);
#pragma GCC unroll 4
                for (int i = 0; i < M; ++i) sums[u][i][r] = fma(values[i], weights, sums[u][i][r]);
            }
        }
    }
    for (; p < k; p += lanes) {
        const std::size_t n = k - p < lanes ? k - p : lanes;
        for (int r = 0; r < R; ++r) {
            const F weights = load_n(w + static_cast<std::size_t>(r) * ldw + p, n);
            for (int i = 0; i < M; ++i) sums[0][i][r] = fma(load_n(x + static_cast<std::size_t>(i) * ldx + p, n), weights, sums[0][i][r]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) out[i][r] = sum(add(sums[0][i][r], sums[1][i][r]));
}

/// x in int8, group by group.
inline void quantise(const float* x, std::size_t n, const QuantisedRows& to, std::size_t row) {
    constexpr std::size_t group = QuantisedRows::group;
    for (std::size_t g = 0; g < to.n_groups; ++g, x += group, n -= n < group ? n : group) {
        const std::size_t some = n < group ? n : group;
        float             most = 0;
        for (std::size_t i = 0; i < some; ++i) most = std::fmax(most, std::fabs(x[i]));
        const float  scale = most / 127, inverse = most > 0 ? 127 / most : 0;
        const std::size_t at = row * to.n_groups + g;
        std::int8_t*      q = to.q + at * group;
        int               sum = 0;
        for (std::size_t i = 0; i < group; i += 4) {
            int four = 0;
            for (std::size_t j = i; j < i + 4; ++j) {
                q[j] = j < some ? static_cast<std::int8_t>(std::nearbyint(x[j] * inverse)) : std::int8_t{0};
                four += q[j];
            }
            to.fours[at].at[i / 4] = 8 * four;
            sum += four;
        }
        to.scales[at] = scale;
        to.sums[at] = scale * static_cast<float>(sum);
    }
}

/// out [M][R] as above, for weights in blocks and x in int8.
template <int M, int R, class W>
inline void dots(const QuantisedRows& x, const W* w, std::size_t ldw, float (*out)[4]) {
    constexpr std::size_t group = QuantisedRows::group;
    G                     sums[M][R];
    float                 offsets[M][R];
    for (int i = 0; i < M; ++i)
        for (int r = 0; r < R; ++r) sums[i][r] = no_sums(), offsets[i][r] = 0;
    for (std::size_t g = 0; g < x.n_groups; ++g) {
        Bytes rows[M];
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) rows[i] = bytes(x.q + (static_cast<std::size_t>(i) * x.n_groups + g) * group);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const W&    block = w[static_cast<std::size_t>(r) * ldw + g];
            const Bytes q = values(block);
            const float scale = widen(block.scale);
#pragma GCC unroll 4
            for (int i = 0; i < M; ++i) {
                const std::size_t at = static_cast<std::size_t>(i) * x.n_groups + g;
                sums[i][r] = add_products(sums[i][r], block, q, rows[i], x.fours[at], scale * x.scales[at]);
                if constexpr (std::is_same_v<W, q4m::block>) offsets[i][r] += widen(block.minimum) * x.sums[at];
            }
        }
    }
    for (int i = 0; i < M; ++i)
        for (int r = 0; r < R; ++r) out[i][r] = total(sums[i][r]) + offsets[i][r];
}

/// The same tile for few rows of x, straight from the weights as they are stored.
template <int M, class W>
inline void gemv(const GemmTile<W>& t) {
    for (std::size_t j = 0; j < t.n; j += 4) {
        float             out[M][4];
        const std::size_t n = t.n - j < 4 ? t.n - j : 4;
        if (n == 4) {
            if constexpr (values_of<W> > 1) dots<M, 4>(*t.quantised, t.w + j * t.ldw, t.ldw, out);
            else dots<M, 4>(t.x, t.ldx, t.w + j * t.ldw, t.ldw, t.k, out);
        } else {
            for (std::size_t r = 0; r < n; ++r) {
                float one[M][4];
                if constexpr (values_of<W> > 1) dots<M, 1>(*t.quantised, t.w + (j + r) * t.ldw, t.ldw, one);
                else dots<M, 1>(t.x, t.ldx, t.w + (j + r) * t.ldw, t.ldw, t.k, one);
                for (int i = 0; i < M; ++i) out[i][r] = one[i][0];
            }
        }
        for (int i = 0; i < M; ++i) {
            F y = load_n(out[i], 0);
            for (std::size_t r = 0; r < n; ++r) out[i][r] += t.bias ? t.bias[j + r] : 0.0f;
            for (std::size_t r = 0; r < n; r += lanes) {
                const std::size_t some = n - r < lanes ? n - r : lanes;
                y = activate(t.act, load_n(out[i] + r, some));
                store_n(t.y + static_cast<std::size_t>(i) * t.ldy + j + r, y, some);
            }
        }
    }
}

template <class W>
inline void gemv_any(const GemmTile<W>& t) {
    switch (t.m) {
        case 1: return gemv<1>(t);
        case 2: return gemv<2>(t);
        case 3: return gemv<3>(t);
        default: return gemv<4>(t);
    }
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
    const float shrink = std::exp(top - now);
    total = total * shrink + sum(sums);
    top = now;
    return shrink;
}

/// One head, a block of query rows: softmax(scale q k^T) v in tiles of keys, never more scores than one tile.
inline void attend(const AttendTile& t) {
    constexpr std::size_t rows = AttendTile::max_rows, widest = AttendTile::max_head_dim;
    alignas(64) float     k_panels[widest * key_block], v_panels[widest * key_block];
    alignas(64) float     s[rows * key_block], o[rows * widest];
    float                 top[rows], total[rows];
    const std::size_t     n_panels = (t.head_dim + panel - 1) / panel, d_pad = n_panels * panel;
    for (std::size_t i = 0; i < t.n_q; ++i) {
        top[i] = -std::numeric_limits<float>::infinity(), total[i] = 0;
        for (std::size_t d = 0; d < d_pad; ++d) o[i * d_pad + d] = 0;
    }
    const std::size_t end = t.causal && t.pos + t.n_q < t.n_kv ? t.pos + t.n_q : t.n_kv;
    const std::size_t begin = t.window && t.pos + 1 > t.window ? (t.pos + 1 - t.window) / key_block * key_block : 0;
    for (std::size_t j0 = begin; j0 < end; j0 += key_block) {
        const std::size_t n = end - j0 < key_block ? end - j0 : key_block, width = (n + panel - 1) / panel * panel;
        for (std::size_t j = 0; j < n; j += panel) {
            pack(t.k + (j0 + j) * t.ldk, t.ldk, n - j, t.head_dim, k_panels);
            multiply_rows(t.n_q, t.q, t.ldq, k_panels, t.head_dim, s + j, key_block, true);
        }
        for (std::size_t i = 0; i < t.n_q; ++i) {
            const std::size_t at = t.pos + i;  // position of this query among the keys
            const std::size_t hi = t.causal ? (at < j0 ? 0 : at - j0 < n ? at - j0 + 1 : n) : n;
            const std::size_t lo = t.window && at + 1 > t.window + j0 ? at + 1 - t.window - j0 : 0;
            if (lo >= hi) {
                for (std::size_t j = 0; j < width; ++j) s[i * key_block + j] = 0;
                continue;
            }
            const F shrink = set1(soften(s + i * key_block, width, lo, hi, t.scale, top[i], total[i]));
            for (std::size_t d = 0; d < d_pad; d += lanes) store(o + i * d_pad + d, mul(load(o + i * d_pad + d), shrink));
        }
        for (std::size_t g = 0; g < n_panels; ++g) {
            for (std::size_t j = 0; j < n; ++j)
                for (int c = 0; c < tile_vectors; ++c) {
                    const std::size_t d = g * panel + static_cast<std::size_t>(c) * lanes;
                    const std::size_t left = t.head_dim > d ? t.head_dim - d : 0;
                    const float*      row = t.v + (j0 + j) * t.ldv;
                    store(v_panels + j * panel + c * lanes, left >= lanes ? load(row + d) : left ? load_n(row + d, left) : set1(0));
                }
            multiply_rows(t.n_q, s, key_block, v_panels, n, o + g * panel, d_pad, false);
        }
    }
    for (std::size_t i = 0; i < t.n_q; ++i) {
        const float inverse = 1.0f / total[i];
        for (std::size_t d = 0; d < t.head_dim; ++d) t.y[i * t.ldy + d] = o[i * d_pad + d] * inverse;
    }
}

/// One head, few query rows against a long cache: keys and values are read once each, in place.
inline void attend_row(const AttendTile& t) {
    alignas(64) float     s[key_block], o[AttendTile::max_head_dim + lanes];
    const std::size_t     d_pad = (t.head_dim + lanes - 1) / lanes * lanes;
    for (std::size_t i = 0; i < t.n_q; ++i) {
        const float*      q = t.q + i * t.ldq;
        float             top = -std::numeric_limits<float>::infinity(), total = 0;
        const std::size_t at = t.pos + i;
        const std::size_t end = t.causal && at + 1 < t.n_kv ? at + 1 : t.n_kv;
        const std::size_t begin = t.window && at + 1 > t.window ? at + 1 - t.window : 0;
        for (std::size_t d = 0; d < d_pad; ++d) o[d] = 0;
        for (std::size_t j0 = begin; j0 < end; j0 += key_block) {
            const std::size_t n = end - j0 < key_block ? end - j0 : key_block, width = (n + lanes - 1) / lanes * lanes;
            std::size_t       j = 0;
            float             out[1][4];
            for (; j + 4 <= n; j += 4) {
                dots<1, 4>(q, 0, t.k + (j0 + j) * t.ldk, t.ldk, t.head_dim, out);
                for (std::size_t r = 0; r < 4; ++r) s[j + r] = out[0][r];
            }
            for (; j < n; ++j) {
                dots<1, 1>(q, 0, t.k + (j0 + j) * t.ldk, t.ldk, t.head_dim, out);
                s[j] = out[0][0];
            }
            const F shrink = set1(soften(s, width, 0, n, t.scale, top, total));
            for (std::size_t d = 0; d < t.head_dim; d += lanes) {
                const std::size_t left = t.head_dim - d;
                const float*      v = t.v + j0 * t.ldv + d;
                F                 sums = mul(load(o + d), shrink);
                if (left >= lanes)
                    for (j = 0; j < n; ++j) sums = fma(set1(s[j]), load(v + j * t.ldv), sums);
                else
                    for (j = 0; j < n; ++j) sums = fma(set1(s[j]), load_n(v + j * t.ldv, left), sums);
                store(o + d, sums);
            }
        }
        for (std::size_t d = 0; d < t.head_dim; ++d) t.y[i * t.ldy + d] = o[d] / total;
    }
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
        for (int j = 0; j < chains; ++j) sums[j] = add(sums[j], load(x + i + static_cast<std::size_t>(j) * lanes));
    }
    F all = sums[0];
    for (int j = 1; j < chains; ++j) all = add(all, sums[j]);
    return sum(all);
}

template <int = 0>  // a template, so that nothing is compiled before somebody asks
constexpr Kernels kernels() {
    return {panel,
                                   {gemm<float>, gemm<bf16_t>, gemm<fp16_t>, gemm<q8::block>, gemm<q4::block>, gemm<q4m::block>},
                                   {gemv_any<float>, gemv_any<bf16_t>, gemv_any<fp16_t>, gemv_any<q8::block>, gemv_any<q4::block>, gemv_any<q4m::block>},
                                   {widen_row<float>, widen_row<bf16_t>, widen_row<fp16_t>, widen_row<q8::block>, widen_row<q4::block>, widen_row<q4m::block>},
                                   layer_norm_row, rms_norm_row, activate_row, silu_mul_row, add_scaled_row,
                                   rope_row, attend, attend_row, quantise, burst, read_all, 2.0 * chains * lanes};
}
