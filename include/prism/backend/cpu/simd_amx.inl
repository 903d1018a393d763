// What AMX adds: products of tiles of 16 rows and 64 bytes. Weights lie in panels as tiles want them.
using namespace avx512_bf16;

struct alignas(64) TileShapes {
    std::uint8_t  palette = 1, start = 0, reserved[14]{};
    std::uint16_t row_bytes[16]{};
    std::uint8_t  rows[16]{};
};

// The intrinsics differ between compilers in what they say about memory; a "memory" here keeps loads behind the stores
// that they read.
template <int T> inline void zero_tile() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> inline void load_tile(const void* p, std::size_t stride) { asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory"); }
template <int T> inline void store_tile(void* p, std::size_t stride) { asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory"); }
template <int C, int A, int B> inline void dot_bf16_tiles() { asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }
template <int C, int A, int B> inline void dot_int8_tiles() { asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }

/// The shapes of the tiles: sums in tiles 0 ... 3 (two blocks of rows by two panels), rows of x in 4 and 5, weights in 6
/// and 7. Set anew only when they change, and given back at the end.
class TileState {
public:
    TileState() = default;
    TileState(const TileState&) = delete;
    TileState& operator=(const TileState&) = delete;
    ~TileState() { asm volatile("tilerelease"); }

    /// `depth_bytes`: of a row of x, and four times the rows of the weights.
    void shape(std::size_t rows0, std::size_t rows1, std::size_t depth_bytes) {
        const std::size_t asked = rows0 << 16 | rows1 << 8 | depth_bytes;
        if (asked == now_) return;
        now_ = asked;
        TileShapes s;
        for (int i = 0; i < 8; ++i) {
            const std::size_t rows = i == 6 || i == 7 ? depth_bytes / 4 : i == 0 || i == 1 || i == 4 ? rows0 : rows1;
            s.rows[i] = static_cast<std::uint8_t>(rows);
            s.row_bytes[i] = static_cast<std::uint16_t>(rows == 0 ? 0 : i == 4 || i == 5 ? depth_bytes : 64);
        }
        asm volatile("ldtilecfg %0" ::"m"(s));
    }

private:
    std::size_t now_ = 0;
};

/// c [up to 32 rows, 32], rows ldc apart, (+)= rows of x, in bf16 or as pairs of bf16, times two panels: steps of 32 columns
/// that tiles are shaped for. What is fetched ahead is spread over the steps: memory takes only so many requests at once.
template <bool Pair, bool Two>
inline void multiply_tiles(const std::byte* x, std::size_t ldq, std::size_t low, const std::byte* b0, const std::byte* b1, std::size_t n_steps, float* c,
                           std::size_t ldc, bool fresh, Ahead& ahead, std::size_t lines) {
    const std::size_t line = ldc * sizeof(float);
    if (fresh) {
        zero_tile<0>(), zero_tile<1>();
        if constexpr (Two) zero_tile<2>(), zero_tile<3>();
    } else {
        load_tile<0>(c, line), load_tile<1>(c + panel_width, line);
        if constexpr (Two) load_tile<2>(c + 16 * ldc, line), load_tile<3>(c + 16 * ldc + panel_width, line);
    }
    for (std::size_t s = 0; s < n_steps; ++s, x += 64, b0 += 1024, b1 += 1024) {
        ahead.fetch(lines);
        load_tile<6>(b0, 64);
        load_tile<4>(x, ldq);
        dot_bf16_tiles<0, 4, 6>();
        load_tile<7>(b1, 64);
        dot_bf16_tiles<1, 4, 7>();
        if constexpr (Two) {
            load_tile<5>(x + 16 * ldq, ldq);
            dot_bf16_tiles<2, 5, 6>();
            dot_bf16_tiles<3, 5, 7>();
        }
        if constexpr (Pair) {
            load_tile<4>(x + low, ldq);
            dot_bf16_tiles<0, 4, 6>();
            dot_bf16_tiles<1, 4, 7>();
            if constexpr (Two) {
                load_tile<5>(x + low + 16 * ldq, ldq);
                dot_bf16_tiles<2, 5, 6>();
                dot_bf16_tiles<3, 5, 7>();
            }
        }
    }
    store_tile<0>(c, line), store_tile<1>(c + panel_width, line);
    if constexpr (Two) store_tile<2>(c + 16 * ldc, line), store_tile<3>(c + 16 * ldc + panel_width, line);
}

/// The same for any number of rows.
template <bool Pair>
inline void multiply_tile_rows(TileState& tiles, const std::byte* x, std::size_t ldq, std::size_t low, std::size_t m, const std::byte* b0, const std::byte* b1,
                               std::size_t depth_bytes, std::size_t n_steps, float* c, std::size_t ldc, bool fresh, Ahead& ahead) {
    const std::size_t n_calls = n_steps * ((m + 31) / 32), lines = n_calls ? (ahead.due + n_calls - 1) / n_calls : 0;
    if (m >= 32) tiles.shape(16, 16, depth_bytes);
    for (; m >= 32; m -= 32, x += 32 * ldq, c += 32 * ldc) multiply_tiles<Pair, true>(x, ldq, low, b0, b1, n_steps, c, ldc, fresh, ahead, lines);
    if (m > 16) {
        tiles.shape(16, m - 16, depth_bytes);
        multiply_tiles<Pair, true>(x, ldq, low, b0, b1, n_steps, c, ldc, fresh, ahead, lines);
    } else if (m > 0) {
        tiles.shape(m, 0, depth_bytes);
        multiply_tiles<Pair, false>(x, ldq, low, b0, b1, n_steps, c, ldc, fresh, ahead, lines);
    }
}

/// Rows in bf16 or pairs of bf16, weights in bf16: see MultiplyPlain.
template <bool Pair>
struct MultiplyBf16Tiles {
    using format = bf16;
    static constexpr Form        form = Pair ? Form::bf16_pair : Form::bf16;
    static constexpr std::size_t depth = 256, row_step = 128;  // rows of x and both panels share the first-level cache
    static constexpr std::size_t spread_bytes = 0;
    static constexpr bool        takes_few = true;
    using State = TileState;
    static void run(State& tiles, const Activations& x, std::size_t p, std::size_t m, std::size_t k, const PanelPart* b, float* c, bool fresh, bool, Ahead& ahead) {
        const std::size_t n_steps = k / 32, rest = (k % 32 + 1) / 2 * 2;  // an odd k ends in a pair whose second weight is 0
        const auto* const b0 = b[0].values, * const b1 = b[1].values;
        if (n_steps || !rest) multiply_tile_rows<Pair>(tiles, x.q + 2 * p, x.ldq, x.low, m, b0, b1, 64, n_steps, c, panel, fresh, ahead);
        if (rest) multiply_tile_rows<Pair>(tiles, x.q + 2 * p + n_steps * 64, x.ldq, x.low, m, b0 + n_steps * 1024, b1 + n_steps * 1024, 2 * rest, 1, c, panel, fresh && !n_steps, ahead);
    }
};

/// The products of attend_rounded().
struct TileProducts {
    TileState tiles;
    Ahead     nothing;
    void run(const std::byte* x, std::size_t ldq, std::size_t m, const std::byte* b0, const std::byte* b1, std::size_t k, float* c, std::size_t ldc, bool fresh) {
        multiply_tile_rows<false>(tiles, x, ldq, 0, m, b0, b1, 64, (k + 31) / 32, c, ldc, fresh, nothing);
    }
};

/// Sums of one block of sixteen rows (the first `m` of them are wanted) times one panel of signed bytes, group by group: the
/// same sums as multiply_blocks, bit for bit.
template <class P>
inline void multiply_block_tile(const Activations& x, std::size_t g0, std::size_t n_groups, const std::byte* values, const std::byte* scales, std::size_t m, float* c, bool fresh) {
    constexpr std::size_t scale_bytes = PanelLayout<P>::scale_bytes;
    alignas(64) std::byte dots[2][16][64], low_dots[2][16][64];
    F                     sums[16];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < 16; ++i) sums[i] = fresh ? set1(0) : load(c + i * panel);  // rows from m on are neither used nor kept
    // The sums of one group are read while the next one is at work: what a tile stores takes a while to arrive.
    for (std::size_t g = 0; g <= n_groups; ++g) {
        if (g < n_groups) {
            zero_tile<0>();
            load_tile<4>(x.q + (g0 + g) * Activations::group, x.ldq);
            load_tile<6>(values + g * 512, 64);
            dot_int8_tiles<0, 4, 6>();
            store_tile<0>(dots[g % 2], 64);
            zero_tile<1>();
            load_tile<4>(x.q + x.low + (g0 + g) * Activations::group, x.ldq);
            dot_int8_tiles<1, 4, 6>();
            store_tile<1>(low_dots[g % 2], 64);
        }
        if (g == 0) continue;
        const std::size_t done = g - 1;
        const F           scale = load(reinterpret_cast<const fp16_t*>(scales + done * scale_bytes));
#pragma GCC unroll 16
        for (std::size_t i = 0; i < 16; ++i) {
            const std::size_t at = i * x.n_groups + g0 + done;
            sums[i] = fma(avx512_vnni::group_sums<true>(load_bytes(dots[done % 2][i]), load_bytes(low_dots[done % 2][i])), mul(scale, set1(x.scales[at])), sums[i]);
            if constexpr (P::dtype == Dtype::q4m)
                sums[i] = fma(load(reinterpret_cast<const fp16_t*>(scales + done * scale_bytes) + panel_width), set1(x.scales[at] * avx512_vnni::own_sum<true>(x, at)), sums[i]);
        }
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < 16; ++i)
        if (i < m) store(c + i * panel, sums[i]);
}

/// As MultiplyBlocks with pairs, in tiles where there are enough rows.
template <class P>
struct MultiplyBlockTiles {
    using format = P;
    static constexpr Form        form = Form::int8_pair;
    static constexpr std::size_t depth = 1024, row_step = 64;
    static constexpr std::size_t spread_bytes = 1;
    static constexpr bool        takes_few = true;
    /// Signed bytes, so that tiles need no correction.
    static void spread(const PanelPart& from, std::size_t steps, std::byte* to) {
        const std::byte* const values = from.values;
        for (std::size_t s = 0; s < steps; ++s, to += 512)
            if constexpr (P::dtype == Dtype::q8) {
                for (std::size_t i = 0; i < 512; i += 64) store_bytes(to + i, _mm512_xor_si512(load_bytes(values + s * 512 + i), _mm512_set1_epi8(-128)));
            } else {
                const I offset = _mm512_set1_epi8(P::dtype == Dtype::q4 ? 8 : 0);
                for (std::size_t i = 0; i < 256; i += 64) {
                    const I both = load_bytes(values + s * 256 + i);
                    store_bytes(to + i, _mm512_sub_epi8(low_nibbles(both), offset));
                    store_bytes(to + 256 + i, _mm512_sub_epi8(high_nibbles(both), offset));
                }
            }
    }
    using State = TileState;
    static void run(State& tiles, const Activations& x, std::size_t p, std::size_t m, std::size_t k, const PanelPart* b, float* c, bool fresh, bool few, Ahead& ahead) {
        ahead.fetch(ahead.due);
        const std::size_t g = p / Activations::group, n = (k + Activations::group - 1) / Activations::group;
        if (few) return avx512_vnni::multiply_block_rows<P, true, false>(m, x, g, n, b, c, fresh);
        for (std::size_t i = 0; i < m; i += 16) {
            const std::size_t rows = m - i < 16 ? m - i : 16;
            if (i == 0 || rows < 16) tiles.shape(rows, 0, Activations::group);
            for (std::size_t v = 0; v < 2; ++v) multiply_block_tile<P>(x.from(i), g, n, b[v].values, b[v].scales, rows, c + i * panel + v * panel_width, fresh);
        }
    }
};

/// Both in bf16, by turns.
inline I alternating(F even, F odd) {
    const I order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512bh both = _mm512_cvtne2ps_pbh(odd, even);
    I              bits;
    std::memcpy(&bits, &both, sizeof bits);
    return _mm512_maskz_permutexvar_epi16(0xffffffffU, order, bits);
}

/// Rows and weights in f32, rounded to bf16 on the way.
struct MultiplyRoundedTiles : MultiplyBf16Tiles<false> {
    using format = f32;
    static constexpr std::size_t spread_bytes = 2;
    static constexpr bool        takes_few = false;
    /// Sixteen outputs, as pairs of columns.
    static void spread(const PanelPart& from, std::size_t columns, std::byte* to) {
        const float* const values = reinterpret_cast<const float*>(from.values);
        for (std::size_t c = 0; c < columns; c += 2, to += 64)
            store_bytes(to, alternating(load(values + c * panel_width), c + 1 < columns ? load(values + (c + 1) * panel_width) : set1(0)));
    }
};

/// Rows rounded to bf16, weights in blocks that become bf16 on the way: for many rows, which outweigh that. The scales of
/// groups would cost more than the tiles' sums.
template <class P>
struct MultiplySpreadTiles : MultiplyBf16Tiles<false> {
    using format = P;
    static constexpr std::size_t spread_bytes = 2;
    static constexpr bool        takes_few = false;
    /// 32 columns of sixteen outputs, as pairs of columns.
    static void spread(const PanelPart& from, std::size_t steps, std::byte* to) {
        const std::byte* values = from.values;
        for (std::size_t s = 0; s < steps; ++s) {
            const fp16_t* const at = reinterpret_cast<const fp16_t*>(from.scales + s * PanelLayout<P>::scale_bytes);
            const F             scale = load(at), least = P::dtype == Dtype::q4m ? load(at + panel_width) : set1(0);
            if constexpr (P::dtype == Dtype::q8) {
                for (std::size_t i = 0; i < 8; ++i, values += 64, to += 128) spread_four(_mm512_xor_si512(load_bytes(values), _mm512_set1_epi8(-128)), scale, least, to);
            } else {
                const I offset = _mm512_set1_epi8(P::dtype == Dtype::q4 ? 8 : 0);
                for (std::size_t i = 0; i < 4; ++i, values += 64, to += 128) {
                    const I both = load_bytes(values);
                    spread_four(_mm512_sub_epi8(low_nibbles(both), offset), scale, least, to);
                    spread_four(_mm512_sub_epi8(high_nibbles(both), offset), scale, least, to + 512);
                }
                to += 512;
            }
        }
    }

private:
    /// Four signed bytes of each of sixteen outputs.
    static void spread_four(I bytes, F scale, F least, std::byte* to) {
        const F a = value(_mm512_maskz_slli_epi32(full, bytes, 24), scale, least), b = value(_mm512_maskz_slli_epi32(full, bytes, 16), scale, least);
        const F c = value(_mm512_maskz_slli_epi32(full, bytes, 8), scale, least), d = value(bytes, scale, least);
        store_bytes(to, alternating(a, b));
        store_bytes(to + 64, alternating(c, d));
    }
    /// Of the signed byte on top of each lane.
    static F value(I lanes_of_bytes, F scale, F least) {
        const F q = to_float(_mm512_maskz_srai_epi32(full, lanes_of_bytes, 24));
        return P::dtype == Dtype::q4m ? fma(q, scale, least) : mul(q, scale);
    }
};

/// Products of tiles, four sums at a time.
template <bool Int8>
inline float burst_tiles(std::size_t n) {
    alignas(64) const std::byte zeros[1024]{};
    TileState                   tiles;
    tiles.shape(16, 16, 64);
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    load_tile<4>(zeros, 64), load_tile<5>(zeros, 64), load_tile<6>(zeros, 64), load_tile<7>(zeros, 64);
    for (std::size_t i = 0; i < n; ++i) {
        if constexpr (Int8) {
            dot_int8_tiles<0, 4, 6>(), dot_int8_tiles<1, 4, 7>(), dot_int8_tiles<2, 5, 6>(), dot_int8_tiles<3, 5, 7>();
        } else {
            dot_bf16_tiles<0, 4, 6>(), dot_bf16_tiles<1, 4, 7>(), dot_bf16_tiles<2, 5, 6>(), dot_bf16_tiles<3, 5, 7>();
        }
    }
    alignas(64) float sums[256];
    store_tile<0>(sums, 64);
    return sums[0];
}
