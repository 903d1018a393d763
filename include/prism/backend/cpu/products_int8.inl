// Products of weights in blocks with rows in int8, written once over dot(), which differs between instruction sets. Sums
// over a group of 32 are exact; groups are added in order, in f32.

/// Sums over a group as numbers: of q, or of 256 q + r.
template <bool Pair>
inline F group_sums(I q, I r) {
    if constexpr (Pair) return to_float(add_shifted(r, q));
    else return to_float(q);
}
/// The sum of the q (or 256 q + r) themselves.
template <bool Pair>
inline float own_sum(const Activations& x, std::size_t at) {
    return static_cast<float>(Pair ? 256 * x.sums[at] + x.low_sums[at] : x.sums[at]);
}

/// c [R, panel] (+)= R rows of x times the blocks of the panels b. `Spread`: four-bit weights have a byte each.
template <class P, bool Pair, bool Spread, int R>
inline void multiply_blocks(const Activations& x, std::size_t g0, std::size_t n_groups, const PanelPart* b, float* c, bool fresh) {
    constexpr bool         four_bits = P::dtype != Dtype::q8, nibbles = four_bits && !Spread;
    constexpr std::int32_t offset = P::dtype == Dtype::q4 ? 8 : P::dtype == Dtype::q8 ? byte_offset : 0;
    constexpr std::size_t  quads = 8, value_bytes = nibbles ? 256 : 512, scale_bytes = PanelLayout<P>::scale_bytes;
    F                      sums[R][tile_vectors], part[Pair ? 1 : R][tile_vectors];  // part: of the groups that have a scale in common
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) {
            sums[i][j] = fresh ? set1(0) : load(c + i * panel + j * lanes);
            if constexpr (!Pair) part[i][j] = set1(0);
        }
    for (std::size_t g = 0; g < n_groups; ++g) {
        I                      dots[R][tile_vectors], low_dots[Pair ? R : 1][tile_vectors];
        const std::byte* const xs = x.q + (g0 + g) * Activations::group;
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
            const std::size_t at = static_cast<std::size_t>(i) * x.n_groups + g0 + g;
#pragma GCC unroll 4
            for (int j = 0; j < tile_vectors; ++j) {
                dots[i][j] = splat(-offset * x.sums[at]);
                if constexpr (Pair) low_dots[i][j] = splat(-offset * x.low_sums[at]);
            }
        }
        for (std::size_t q = 0; q < (nibbles ? quads / 2 : quads); ++q) {
            I w[tile_vectors];
#pragma GCC unroll 4
            for (int j = 0; j < tile_vectors; ++j)
                w[j] = load_bytes(b[j / panel_vectors].values + g * value_bytes + q * 4 * panel_width + static_cast<std::size_t>(j % panel_vectors * lanes) * 4);
#pragma GCC unroll 2
            for (int half = 0; half < (nibbles ? 2 : 1); ++half) {
                I weights[tile_vectors];
#pragma GCC unroll 4
                for (int j = 0; j < tile_vectors; ++j) weights[j] = !nibbles ? w[j] : half ? high_nibbles(w[j]) : low_nibbles(w[j]);
#pragma GCC unroll 8
                for (int i = 0; i < R; ++i) {
                    const std::byte* const at = xs + static_cast<std::size_t>(i) * x.ldq + (q + static_cast<std::size_t>(half) * quads / 2) * 4;
                    const I                four = splat_four(at), low_four = Pair ? splat_four(at + x.low) : four;
#pragma GCC unroll 4
                    for (int j = 0; j < tile_vectors; ++j) {
                        dots[i][j] = four_bits ? dot(dots[i][j], weights[j], four) : dot_biased(dots[i][j], weights[j], four);
                        if constexpr (Pair) low_dots[i][j] = four_bits ? dot(low_dots[i][j], weights[j], low_four) : dot_biased(low_dots[i][j], weights[j], low_four);
                    }
                }
            }
        }
        F scale[tile_vectors];
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j)
            scale[j] = load(reinterpret_cast<const fp16_t*>(b[j / panel_vectors].scales + g * scale_bytes) + j % panel_vectors * lanes);
        const bool last = (g + 1) % Activations::groups_per_scale == 0 || g + 1 == n_groups;
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
            const std::size_t at = static_cast<std::size_t>(i) * x.n_groups + g0 + g;
            const F           s = set1(x.scales[at]);
            const float       own = own_sum<Pair>(x, at);
#pragma GCC unroll 4
            for (int j = 0; j < tile_vectors; ++j) {
                const F total = group_sums<Pair>(dots[i][j], low_dots[Pair ? i : 0][j]);
                const F least = P::dtype == Dtype::q4m ? load(reinterpret_cast<const fp16_t*>(b[j / panel_vectors].scales + g * scale_bytes) + panel_width + j % panel_vectors * lanes) : set1(0);
                if constexpr (Pair) {
                    sums[i][j] = fma(total, mul(scale[j], s), sums[i][j]);
                    if constexpr (P::dtype == Dtype::q4m) sums[i][j] = fma(least, set1(x.scales[at] * own), sums[i][j]);
                } else {
                    part[i][j] = fma(total, scale[j], part[i][j]);
                    if constexpr (P::dtype == Dtype::q4m) part[i][j] = fma(least, set1(own), part[i][j]);
                    if (last) sums[i][j] = fma(part[i][j], s, sums[i][j]), part[i][j] = set1(0);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < tile_vectors; ++j) store(c + i * panel + j * lanes, sums[i][j]);
}

template <class P, bool Pair, bool Spread, int R = Pair ? block_rows / 2 : block_rows>
inline void multiply_block_rows(std::size_t m, const Activations& x, std::size_t g0, std::size_t n_groups, const PanelPart* b, float* c, bool fresh) {
    std::size_t i = 0;
    for (; i + R <= m; i += R) multiply_blocks<P, Pair, Spread, R>(x.from(i), g0, n_groups, b, c + i * panel, fresh);
    if constexpr (R > 1)
        if (i < m) multiply_block_rows<P, Pair, Spread, R - 1>(m - i, x.from(i), g0, n_groups, b, c + i * panel, fresh);
}

/// Rows in int8 or pairs of int8, weights in blocks: see MultiplyPlain.
template <class P, bool Pair>
struct MultiplyBlocks {
    using format = P;
    static constexpr Form        form = Pair ? Form::int8_pair : Form::int8;
    static constexpr std::size_t depth = 1024, row_step = 8 * block_rows;
    static_assert(depth % (Activations::group * Activations::groups_per_scale) == 0);
    static constexpr std::size_t spread_bytes = P::dtype == Dtype::q8 ? 0 : 1;
    static constexpr bool        takes_few = true;
    static void                  spread(const PanelPart& from, std::size_t steps, std::byte* to) { spread_nibbles(from.values, steps, to); }
    struct State {};
    static void run(State&, const Activations& x, std::size_t p, std::size_t m, std::size_t k, const PanelPart* b, float* c, bool fresh, bool few, Ahead& ahead) {
        ahead.fetch(ahead.due);
        const std::size_t g = p / Activations::group, n = (k + Activations::group - 1) / Activations::group;
        if (few) multiply_block_rows<P, Pair, false>(m, x, g, n, b, c, fresh);
        else multiply_block_rows<P, Pair, true>(m, x, g, n, b, c, fresh);
    }
};

/// Products of bytes at most: those that products in int8 use.
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
