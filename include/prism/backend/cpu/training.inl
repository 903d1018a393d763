// The kernels of gradients, written once over the vectors of simd_*.inl and the products of kernels.inl, and compiled once
// per instruction set. No lambdas and no std algorithms over vectors here, as there.

/// Loads what is left of a row, zeros behind it.
template <class T> inline F load_some(const T* p, std::size_t left) { return left >= lanes ? load(p) : load_n(p, left); }
inline void store_some(float* p, F a, std::size_t left) {
    if (left >= lanes) store(p, a);
    else store_n(p, a, left);
}

// ------------------------------------------------------------------------------------------------------------- products

/// c [R, panel] (+)= a^T times k rows of the panels b: row i of c takes column i of a, whose rows are `step` apart.
template <int R>
inline void multiply_across(const float* a, std::size_t step, const PanelPart* b, std::size_t k, float* c, std::size_t ldc, bool fresh) {
    F            sums[R][tile_vectors];
    const float* at[tile_panels];
#pragma GCC unroll 2
    for (int j = 0; j < tile_panels; ++j) at[j] = reinterpret_cast<const float*>(b[j].values);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) sums[i][j] = fresh ? set1(0) : load(c + static_cast<std::size_t>(i) * ldc + j * lanes);
    for (std::size_t p = 0; p < k; ++p, a += step) {
        F row[tile_vectors];
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) row[j] = load(at[j / panel_vectors] + j % panel_vectors * lanes);
#pragma GCC unroll 2
        for (int j = 0; j < tile_panels; ++j) at[j] += panel_width;
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const F x = set1(a[i]);
#pragma GCC unroll 4
            for (int j = 0; j < tile_vectors; ++j) sums[i][j] = fma(x, row[j], sums[i][j]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) store(c + static_cast<std::size_t>(i) * ldc + j * lanes, sums[i][j]);
}

/// The same for any number of columns of a, which are taken tile_rows at a time; `next` elements lie between those.
template <int R = tile_rows>
inline void multiply_columns(std::size_t m, const float* a, std::size_t step, std::size_t next, const PanelPart* b, std::size_t k, float* c, std::size_t ldc, bool fresh) {
    for (; m >= R; m -= R, a += next, c += R * ldc) multiply_across<R>(a, step, b, k, c, ldc, fresh);
    if constexpr (R > 1)
        if (m) multiply_columns<R - 1>(m, a, step, next, b, k, c, ldc, fresh);
}

/// The first m columns of k rows of a as [m / tile_rows][k][tile_rows], and up to a vector more.
inline void pack_columns(const float* a, std::size_t lda, std::size_t m, std::size_t k, float* to) {
    constexpr std::size_t rows = 16;  // at a time: so many pages of a
    for (std::size_t p0 = 0; p0 < k; p0 += rows)
        for (std::size_t g = 0; g < m; g += tile_rows) {
            const std::size_t last = p0 + rows < k ? p0 + rows : k;
            float*            out = to + g * k + p0 * tile_rows;
            for (std::size_t p = p0; p < last; ++p, out += tile_rows) {
                const float* const from = a + p * lda + g;
                if (p + 1 < k || g + tile_rows >= m) store(out, load_some(from, m - g));
                else store_n(out, load_some(from, m - g), tile_rows);  // the next group is there already
            }
        }
}

/// The weights of outputs [o, o + lanes) of a panel in one column of the matrix.
template <class P>
inline F load_column(const PanelPart& part, std::size_t column, std::size_t o) {
    using L = PanelLayout<P>;
    const std::byte* const values = part.values + column / L::columns * L::value_bytes;
    const std::size_t      c = column % L::columns;
    if constexpr (P::values_per_block == 1) {
        const auto* const at = reinterpret_cast<const typename P::block*>(values) + o * L::columns;
        if constexpr (L::columns == 2) return c ? load_odd(at) : load_even(at);
        else return load(at);
    } else {
        constexpr bool      bytes = P::dtype == Dtype::q8;
        const I             four = load_bytes(values + c % (bytes ? 32 : 16) / 4 * 4 * panel_width + o * 4);
        const I             mine = splat(1 << c % 4 * 8);  // the product with it is the byte of this column
        const F             q = to_float(dot(splat(0), bytes ? four : c < 16 ? low_nibbles(four) : high_nibbles(four), mine));
        const fp16_t* const scales = reinterpret_cast<const fp16_t*>(part.scales + column / L::columns * L::scale_bytes) + o;
        if constexpr (P::dtype == Dtype::q4m) return fma(load(scales), q, load(scales + panel_width));
        else return mul(load(scales), sub(q, set1(bytes ? 128 : 8)));
    }
}

/// Rows [row, row + k) and `width` columns from j on of a matrix with `cols` columns, in f32, as panels of 16 columns that
/// are `apart` elements apart; zeros behind the last column.
template <class P>
inline void panels_of_columns(const WeightRows& w, std::size_t cols, std::size_t row, std::size_t k, std::size_t j, std::size_t width, float* to, std::size_t apart) {
    using L = PanelLayout<P>;
    const std::size_t whole = (width + panel_width - 1) / panel_width * panel_width;
    if constexpr (P::values_per_block == 1)
        if (!w.panels) {
            const auto* from = static_cast<const typename P::block*>(w.rows) + row * w.stride + j;
            for (std::size_t p = 0; p < k; ++p, from += w.stride, to += panel_width)
                for (std::size_t c = 0; c < whole; c += lanes) store(to + c / panel_width * apart + c % panel_width, c < width ? load_some(from + c, width - c) : set1(0));
            return;
        }
    alignas(64) std::byte memory[L::bytes(GradientTile::max_cols)];
    const std::size_t     begin = w.panels ? w.first + row : row, end = begin + k, from = w.panels ? j : 0;  // panels of rows begin at column j
    for (std::size_t q = begin / panel_width * panel_width; q < end; q += panel_width) {
        PanelPart part{memory + L::values_at(width), memory};
        if (w.panels) {
            const std::byte* const at = w.panels + q / panel_width * L::bytes(cols);
            part = {at + L::values_at(cols), at};
        } else {
            const auto* const blocks = static_cast<const typename P::block*>(w.rows) + q * w.stride + j / P::values_per_block;
            interleave_part<P>(blocks, w.stride, end - q < panel_width ? end - q : panel_width, width, memory, memory + L::values_at(width));
        }
        for (std::size_t c = 0; c < whole; c += lanes)
            for (std::size_t o = 0; o < panel_width; o += lanes) {
                F block[lanes];
                for (std::size_t i = 0; i < lanes; ++i) block[i] = c + i < width ? load_column<P>(part, from + c + i, o) : set1(0);
                transpose(block);
                for (std::size_t i = 0; i < lanes; ++i) {
                    const std::size_t p = q + o + i;
                    if (p >= begin && p < end) store(to + c / panel_width * apart + (p - begin) * panel_width + c % panel_width, block[i]);
                }
            }
    }
}

/// The sums of a tile, [columns / panel][m][panel], go to their matrix.
inline void finish_gradient(const GradientTile& t, const float* sums) {
    const std::size_t n = t.end - t.begin;
    for (std::size_t i = 0; i < t.m; ++i)
        for (std::size_t j = 0; j < n; j += lanes) {
            const F      sum = load(sums + j / panel * panel * t.m + i * panel + j % panel);
            float* const y = t.y + i * t.ldy + t.begin + j;
            store_some(y, t.add ? add(load_some(y, n - j), sum) : sum, n - j);
        }
}

/// One tile of a product over the rows of w. Sums are taken in stretches that stay in the caches, as in product().
template <class P>
inline void gradient_product(const GradientTile& t) {
    constexpr std::size_t depth = 192, most = GradientTile::max_rows, width = GradientTile::max_cols, apart_a = depth + 16, apart_b = depth * panel_width + 16;
    static_assert(most * (width + apart_a) + width / panel_width * apart_b <= scratch_floats);
    static_assert(most % tile_rows == 0);
    float* const      sums = scratch();
    float* const      copy = sums + most * width;
    float* const      panels = copy + most * apart_a;
    const std::size_t n = t.end - t.begin;
    const bool        copied = !t.across && t.k > 0 && t.lda % 512 == 0;  // such rows compete for the same lines of the cache
    for (std::size_t p = 0; p == 0 || p < t.k; p += depth) {              // once where there is nothing to sum: the sums are 0 then
        const std::size_t k = t.k - p < depth ? t.k - p : depth;
        panels_of_columns<P>(t.w, t.n, p, k, t.begin, n, panels, apart_b);
        if (t.across) pack_columns(t.a + p * t.lda, t.lda, t.m, k, copy);
        else if (copied)
            for (std::size_t i = 0; i < t.m; ++i) std::memcpy(copy + i * apart_a, t.a + i * t.lda + p, k * sizeof(float));
        for (std::size_t j = 0; j < n; j += panel) {
            PanelPart    b[2]{plain_part(panels + j / panel_width * apart_b), {}};
            float* const c = sums + j * t.m;
            b[1] = j + panel_width < n ? plain_part(panels + (j / panel_width + 1) * apart_b) : b[0];
            if (t.across) multiply_columns(t.m, copy, tile_rows, k * tile_rows, b, k, c, panel, p == 0);
            else multiply_rows<float>(t.m, copied ? copy : t.a + p, copied ? apart_a : t.lda, b, k, c, panel, p == 0);
        }
    }
    finish_gradient(t, sums);
}

// ------------------------------------------------------------------------------------------------------------ attention

/// to [k, d_pad] = rows of x [k, d], zeros behind each; and as panels of 16 columns [d_pad / 16][k][16] unless null.
inline void copy_rows(const float* x, std::size_t ldx, std::size_t k, std::size_t d, std::size_t d_pad, float* to, std::size_t ld, float* panels) {
    for (std::size_t i = 0; i < k; ++i)
        for (std::size_t c = 0; c < d_pad; c += lanes) {
            const F values = c < d ? load_some(x + i * ldx + c, d - c) : set1(0);
            if (to) store(to + i * ld + c, values);
            if (panels) store(panels + c / panel_width * k * panel_width + i * panel_width + c % panel_width, values);
        }
}

/// The scores of one row against keys [begin, begin + width) become probabilities, and the slopes of probabilities those of
/// scores. Keys outside [lo, hi) are not seen.
inline void soften_gradient(float* s, float* ds, std::size_t width, std::size_t lo, std::size_t hi, float scale, float own) {
    const float none = -std::numeric_limits<float>::infinity();
    for (std::size_t j = 0; j < lo; ++j) s[j] = none, ds[j] = 0;
    for (std::size_t j = hi; j < width; ++j) s[j] = none, ds[j] = 0;
    F most = set1(none), total = set1(0);
    for (std::size_t j = 0; j < width; j += lanes) most = max(most, load(s + j));
    const F top = set1(-largest(most) * scale), factor = set1(scale);
    for (std::size_t j = 0; j < width; j += lanes) {
        const F p = exp(fma(load(s + j), factor, top));
        store(s + j, p);
        total = add(total, p);
    }
    const F inverse = set1(1 / sum(total)), mine = set1(own);
    for (std::size_t j = 0; j < width; j += lanes) {
        const F p = mul(load(s + j), inverse);
        store(s + j, p);
        store(ds + j, mul(mul(p, factor), sub(load(ds + j), mine)));
    }
}

/// One key head: tiles of query rows against all the keys they see. Keys and values become panels once; what is summed over
/// the queries waits in memory.
inline void attend_gradient(const AttendGradient& t, float* memory) {
    const std::size_t d = t.head_dim, d_pad = (d + panel - 1) / panel * panel, keys_pad = AttendGradient::padded(t.n_kv), ld = AttendGradient::ld_scores(t.n_kv);
    const std::size_t most = AttendGradient::rows(t.n_q, t.n_kv), ld_rows = d_pad + 16;
    float* const      keys = memory;                              // [keys / panel][d][panel]: columns are keys
    float* const      values = keys + keys_pad * d_pad;           // the same
    float* const      key_rows = values + keys_pad * d_pad;       // [d_pad / 16][n_kv][16]
    float* const      dk = key_rows + keys_pad * d_pad;           // [n_kv, d_pad]
    float* const      dv = dk + keys_pad * d_pad;
    float* const      p = dv + keys_pad * d_pad;                  // [most, ld]
    float* const      dp = p + most * ld;
    float* const      q = dp + most * ld;                         // [most, ld_rows]
    float* const      dy = q + most * ld_rows;
    float* const      q_panels = dy + most * ld_rows;             // [d_pad / 16][most][16]
    float* const      dy_panels = q_panels + most * d_pad;
    for (std::size_t j = 0; j < t.n_kv; j += panel) {
        transpose_panels(t.k + j * t.ldk, t.ldk, t.n_kv - j, d, keys + j * d);
        transpose_panels(t.v + j * t.ldv, t.ldv, t.n_kv - j, d, values + j * d);
    }
    copy_rows(t.k, t.ldk, t.n_kv, d, d_pad, nullptr, 0, key_rows);
    for (std::size_t i = 0; i < 2 * keys_pad * d_pad; i += lanes) store(dk + i, set1(0));  // dv too
    for (std::size_t head = 0; head < t.n_heads; ++head)
        for (std::size_t first = 0; first < t.n_q; first += most) {
            const std::size_t n = t.n_q - first < most ? t.n_q - first : most, at = head * d, pos = t.pos + first;
            copy_rows(t.q + first * t.ldq + at, t.ldq, n, d, d_pad, q, ld_rows, q_panels);
            copy_rows(t.dy + first * t.lddy + at, t.lddy, n, d, d_pad, dy, ld_rows, dy_panels);
            const std::size_t end = t.causal && pos + n < t.n_kv ? pos + n : t.n_kv;
            const std::size_t begin = t.causal && t.window && pos + 1 > t.window ? (pos + 1 - t.window) / panel * panel : 0;
            for (std::size_t j = begin; j < end; j += panel) {
                const PanelPart of_keys[2]{plain_part(keys + j * d), plain_part(keys + j * d + d * panel_width)};
                const PanelPart of_values[2]{plain_part(values + j * d), plain_part(values + j * d + d * panel_width)};
                multiply_rows<float>(n, q, ld_rows, of_keys, d, p + j, ld, true);
                multiply_rows<float>(n, dy, ld_rows, of_values, d, dp + j, ld, true);
            }
            for (std::size_t i = 0; i < n; ++i) {
                const float* const y = t.y + (first + i) * t.ldy + at;
                F                  own = set1(0);
                for (std::size_t c = 0; c < d; c += lanes) own = fma(load(dy + i * ld_rows + c), load_some(y + c, d - c), own);
                const std::size_t hi = t.causal && pos + i + 1 < t.n_kv ? pos + i + 1 : t.n_kv, lo = t.causal && t.window && pos + i + 1 > t.window ? pos + i + 1 - t.window : 0;
                soften_gradient(p + i * ld + begin, dp + i * ld + begin, (end - begin + panel - 1) / panel * panel, lo - (lo < begin ? lo : begin), hi - begin, t.scale, sum(own));
            }
            // q and dy are in panels; their rows make room for the sums of dq
            for (std::size_t g = 0; g < d_pad; g += panel)
                for (std::size_t j = begin; j < end; j += 256) {
                    const std::size_t k = end - j < 256 ? end - j : 256;
                    float* const      of = key_rows + g * t.n_kv + j * panel_width;
                    const PanelPart   b[2]{plain_part(of), plain_part(of + t.n_kv * panel_width)};
                    multiply_rows<float>(n, dp + j, ld, b, k, q + g, ld_rows, j == begin);
                }
            for (std::size_t i = 0; i < n; ++i)
                for (std::size_t c = 0; c < d; c += lanes) store_some(t.dq + (first + i) * t.lddq + at + c, load(q + i * ld_rows + c), d - c);
            constexpr std::size_t some = 4 * tile_rows;  // keys whose scores stay in the first-level cache
            for (std::size_t j = begin; j < end; j += some)
                for (std::size_t g = 0; g < d_pad; g += panel) {
                    const std::size_t m = end - j < some ? end - j : some;
                    const PanelPart   of_q[2]{plain_part(q_panels + g * n), plain_part(q_panels + (g + panel_width) * n)};
                    const PanelPart   of_dy[2]{plain_part(dy_panels + g * n), plain_part(dy_panels + (g + panel_width) * n)};
                    multiply_columns(m, dp + j, ld, tile_rows, of_q, n, dk + j * d_pad + g, d_pad, false);
                    multiply_columns(m, p + j, ld, tile_rows, of_dy, n, dv + j * d_pad + g, d_pad, false);
                }
        }
    for (std::size_t j = 0; j < t.n_kv; ++j)
        for (std::size_t c = 0; c < d; c += lanes) {
            store_some(t.dk + j * t.lddk + c, load(dk + j * d_pad + c), d - c);
            store_some(t.dv + j * t.lddv + c, load(dv + j * d_pad + c), d - c);
        }
}

// ------------------------------------------------------------------------------------------------------- rows of numbers

inline void add_to(float* sums, F value, std::size_t left) { store_some(sums, add(load_some(sums, left), value), left); }

inline void layer_norm_gradient(const float* x, const float* weight, float eps, const float* dy, float* dx, float* w_sums, float* b_sums, std::size_t d) {
    const float n = static_cast<float>(d);
    F           total = set1(0), squares = set1(0), h_sum = set1(0), hx_sum = set1(0);
    for (std::size_t i = 0; i < d; i += lanes) total = add(total, load_some(x + i, d - i));
    const F     mean = set1(sum(total) / n);
    std::size_t i = 0;
    for (; i + lanes <= d; i += lanes) {
        const F c = sub(load(x + i), mean);
        squares = fma(c, c, squares);
    }
    float variance = sum(squares);
    for (; i < d; ++i) variance += (x[i] - sum(total) / n) * (x[i] - sum(total) / n);  // zeros behind the row are no values
    const F r = set1(1.0f / std::sqrt(variance / n + eps));
    for (i = 0; i < d; i += lanes) {
        const F g = load_some(dy + i, d - i), normal = mul(sub(load_some(x + i, d - i), mean), r), h = mul(g, load_some(weight + i, d - i));
        h_sum = add(h_sum, h), hx_sum = fma(h, normal, hx_sum);
        if (w_sums) add_to(w_sums + i, mul(g, normal), d - i);
        if (b_sums) add_to(b_sums + i, g, d - i);
    }
    const F h_mean = set1(sum(h_sum) / n), hx_mean = set1(sum(hx_sum) / n);
    for (i = 0; i < d; i += lanes) {
        const F normal = mul(sub(load_some(x + i, d - i), mean), r), h = mul(load_some(dy + i, d - i), load_some(weight + i, d - i));
        add_to(dx + i, mul(r, sub(sub(h, h_mean), mul(normal, hx_mean))), d - i);
    }
}

inline void rms_norm_gradient(const float* x, const float* weight, float eps, const float* dy, float* dx, float* w_sums, std::size_t d) {
    const float n = static_cast<float>(d);
    F           squares = set1(0), hx_sum = set1(0);
    for (std::size_t i = 0; i < d; i += lanes) {
        const F values = load_some(x + i, d - i);
        squares = fma(values, values, squares);
    }
    const F r = set1(1.0f / std::sqrt(sum(squares) / n + eps));
    for (std::size_t i = 0; i < d; i += lanes) {
        const F g = load_some(dy + i, d - i), normal = mul(load_some(x + i, d - i), r);
        hx_sum = fma(mul(g, load_some(weight + i, d - i)), normal, hx_sum);
        if (w_sums) add_to(w_sums + i, mul(g, normal), d - i);
    }
    const F hx_mean = set1(sum(hx_sum) / n);
    for (std::size_t i = 0; i < d; i += lanes) {
        const F normal = mul(load_some(x + i, d - i), r), h = mul(load_some(dy + i, d - i), load_some(weight + i, d - i));
        add_to(dx + i, mul(r, sub(h, mul(normal, hx_mean))), d - i);
    }
}

/// The derivative of z sigmoid(a), where a has the slope `inner` at z.
inline F gated_slope(F z, F a, F inner) {
    const F s = sigmoid(a);
    return mul(s, fma(mul(z, inner), sub(set1(1), s), set1(1)));
}

inline F slope(Activation a, F z) {
    const F near = max(set1(-1e4f), min(set1(1e4f), z));  // far from zero nothing changes any more, and no square overflows
    switch (a) {
        case Activation::gelu_erf: {
            const F density = mul(set1(0.398942280f), exp(mul(set1(-0.5f), mul(near, near))));
            return fma(near, density, fma(set1(0.5f), erf(mul(near, set1(0.707106781f))), set1(0.5f)));
        }
        case Activation::gelu_tanh: {
            const F square = mul(near, near);
            return gated_slope(near, mul(set1(1.59576912f), mul(near, fma(square, set1(0.044715f), set1(1)))), mul(set1(1.59576912f), fma(square, set1(0.134145f), set1(1))));
        }
        case Activation::quick_gelu: return gated_slope(near, mul(set1(1.702f), near), set1(1.702f));
        case Activation::silu: return gated_slope(near, near, set1(1));
        case Activation::none: break;
    }
    return set1(1);
}

inline void activate_gradient(Activation a, const float* z, float* dy, std::size_t n) {
    for (std::size_t i = 0; i < n; i += lanes) store_some(dy + i, mul(load_some(dy + i, n - i), slope(a, load_some(z + i, n - i))), n - i);
}

inline void silu_mul_gradient(const float* gate, const float* up, const float* dy, float* dgate, float* dup, std::size_t n) {
    for (std::size_t i = 0; i < n; i += lanes) {
        const F z = load_some(gate + i, n - i), g = load_some(dy + i, n - i), v = load_some(up + i, n - i);
        store_some(dgate + i, mul(mul(g, v), slope(Activation::silu, z)), n - i);
        store_some(dup + i, mul(g, activate<Activation::silu>(z)), n - i);
    }
}

inline void scaled_gradient(const float* branch, const float* gamma, const float* dy, float* dbranch, float* sums, std::size_t n) {
    for (std::size_t i = 0; i < n; i += lanes) {
        const F g = load_some(dy + i, n - i);
        if (sums) add_to(sums + i, mul(g, load_some(branch + i, n - i)), n - i);
        store_some(dbranch + i, mul(g, load_some(gamma + i, n - i)), n - i);
    }
}

/// -log softmax(z)[label]; z becomes scale (softmax(z) - onehot(label)).
inline double cross_entropy_row(float* z, std::size_t n, std::size_t label, float scale) {
    F           most = set1(-std::numeric_limits<float>::infinity());
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes) most = max(most, load(z + i));
    float top = largest(most);
    for (; i < n; ++i) top = z[i] > top ? z[i] : top;
    const double own = static_cast<double>(z[label]) - static_cast<double>(top);
    double       total = 0;
    for (i = 0; i < n;) {  // f32 in stretches: a sum over a whole vocabulary would lose digits
        F sums = set1(0);
        for (const std::size_t stop = n - i < 1024 ? n : i + 1024; i < stop; i += lanes) {
            const F e = exp(sub(load_some(z + i, n - i), set1(top)));
            store_some(z + i, e, n - i);
            sums = add(sums, n - i >= lanes ? e : load_n(z + i, n - i));
        }
        total += static_cast<double>(sum(sums));
    }
    const F share = set1(static_cast<float>(static_cast<double>(scale) / total));
    for (i = 0; i < n; i += lanes) store_some(z + i, mul(load_some(z + i, n - i), share), n - i);
    z[label] -= scale;
    return std::log(total) - own;
}

inline double sum_of_squares(const float* x, std::size_t n) {
    double total = 0;
    for (std::size_t i = 0; i < n;) {
        F sums = set1(0);
        for (const std::size_t stop = n - i < 1024 ? n : i + 1024; i < stop; i += lanes) {
            const F values = load_some(x + i, n - i);
            sums = fma(values, values, sums);
        }
        total += static_cast<double>(sum(sums));
    }
    return total;
}

inline void adamw_step(float* theta, const float* grad, float* m, float* v, std::size_t n, const AdamWFactors& f) {
    const F keep = set1(f.keep), to_m = set1(f.to_m), beta2 = set1(f.beta2), to_v = set1(f.to_v), rate = set1(f.rate), root = set1(f.root), eps = set1(f.eps), clip = set1(f.clip);
    for (std::size_t i = 0; i < n; i += lanes) {
        const std::size_t left = n - i;
        const F           g = mul(load_some(grad + i, left), clip), old_m = load_some(m + i, left);
        const F           new_m = add(old_m, mul(sub(g, old_m), to_m)), new_v = add(mul(beta2, load_some(v + i, left)), mul(mul(to_v, g), g));
        const F           moved = div(mul(rate, new_m), add(div(sqrt(new_v), root), eps));
        store_some(m + i, new_m, left), store_some(v + i, new_v, left);
        store_some(theta + i, sub(mul(load_some(theta + i, left), keep), moved), left);
    }
}

template <int = 0>  // a template, so that nothing is compiled before somebody asks
constexpr TrainingKernels training_kernels() {
    return {tile_rows,
            {gradient_product<f32>, gradient_product<bf16>, gradient_product<f16>, gradient_product<q8>, gradient_product<q4>, gradient_product<q4m>},
            attend_gradient, layer_norm_gradient, rms_norm_gradient, activate_gradient, silu_mul_gradient, scaled_gradient, cross_entropy_row, sum_of_squares, adamw_step};
}
