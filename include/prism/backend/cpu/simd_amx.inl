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

/// Sums of up to 32 rows of x, in bf16 or as pairs of bf16, times two panels: steps of 32 columns that tiles are shaped for.
template <bool Pair, bool Two>
inline void multiply_tiles(const std::byte* x, std::size_t ldq, std::size_t low, const std::byte* b0, const std::byte* b1, std::size_t n_steps, float* c, bool fresh) {
    constexpr std::size_t line = panel * sizeof(float);
    if (fresh) {
        zero_tile<0>(), zero_tile<1>();
        if constexpr (Two) zero_tile<2>(), zero_tile<3>();
    } else {
        load_tile<0>(c, line), load_tile<1>(c + panel_width, line);
        if constexpr (Two) load_tile<2>(c + 16 * panel, line), load_tile<3>(c + 16 * panel + panel_width, line);
    }
    for (std::size_t s = 0; s < n_steps; ++s, x += 64, b0 += 1024, b1 += 1024) {
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
    if constexpr (Two) store_tile<2>(c + 16 * panel, line), store_tile<3>(c + 16 * panel + panel_width, line);
}

/// Rows in bf16 or pairs of bf16, weights in bf16: see MultiplyPlain.
template <bool Pair>
struct MultiplyBf16Tiles {
    using format = bf16;
    static constexpr Form        form = Pair ? Form::bf16_pair : Form::bf16;
    static constexpr std::size_t depth = 512, row_step = 128;
    static constexpr bool        widens = false;
    using State = TileState;
    static void run(State& tiles, const Activations& x, std::size_t p, std::size_t m, std::size_t k, const PanelPart* b, float* c, bool fresh, bool) {
        const std::size_t n_steps = k / 32, rest = (k % 32 + 1) / 2 * 2;  // an odd k ends in a pair whose second weight is 0
        if (n_steps || !rest) blocks(tiles, x, 2 * p, m, b[0].values, b[1].values, 64, n_steps, c, fresh);
        if (rest) blocks(tiles, x, 2 * p + n_steps * 64, m, b[0].values + n_steps * 1024, b[1].values + n_steps * 1024, 2 * rest, 1, c, fresh && !n_steps);
    }

private:
    static void blocks(State& tiles, const Activations& x, std::size_t at, std::size_t m, const std::byte* b0, const std::byte* b1, std::size_t depth_bytes, std::size_t n_steps,
                       float* c, bool fresh) {
        const std::byte* q = x.q + at;
        if (m >= 32) tiles.shape(16, 16, depth_bytes);
        for (; m >= 32; m -= 32, q += 32 * x.ldq, c += 32 * panel) multiply_tiles<Pair, true>(q, x.ldq, x.low, b0, b1, n_steps, c, fresh);
        if (m > 16) {
            tiles.shape(16, m - 16, depth_bytes);
            multiply_tiles<Pair, true>(q, x.ldq, x.low, b0, b1, n_steps, c, fresh);
        } else if (m > 0) {
            tiles.shape(m, 0, depth_bytes);
            multiply_tiles<Pair, false>(q, x.ldq, x.low, b0, b1, n_steps, c, fresh);
        }
    }
};

/// Sums of one block of R rows (the first `m` of them are wanted) times one panel of signed bytes, group by group: the same
/// sums as multiply_blocks, bit for bit.
template <class P>
inline void multiply_block_tile(const Activations& x, std::size_t g0, std::size_t n_groups, const std::byte* values, const std::byte* scales, std::size_t m, float* c, bool fresh) {
    constexpr std::size_t scale_bytes = PanelLayout<P>::scale_bytes;
    alignas(64) std::int32_t dots[2][16][16];
    F                        sums[16];
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
        }
        if (g == 0) continue;
        const std::size_t done = g - 1;
        const F           scale = load(reinterpret_cast<const fp16_t*>(scales + done * scale_bytes));
#pragma GCC unroll 16
        for (std::size_t i = 0; i < 16; ++i) {
            const std::size_t at = i * x.n_groups + g0 + done;
            sums[i] = fma(to_float(load_bytes(reinterpret_cast<const std::byte*>(dots[done % 2][i]))), mul(scale, set1(x.scales[at])), sums[i]);
            if constexpr (P::dtype == Dtype::q4m)
                sums[i] = fma(load(reinterpret_cast<const fp16_t*>(scales + done * scale_bytes) + panel_width), set1(x.scales[at] * static_cast<float>(x.sums[at])), sums[i]);
        }
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < 16; ++i)
        if (i < m) store(c + i * panel, sums[i]);
}

/// As MultiplyBlocks, in tiles where there are enough rows.
template <class P>
struct MultiplyBlockTiles {
    using format = P;
    static constexpr Form        form = Form::int8;
    static constexpr std::size_t depth = 1024, row_step = 64;
    static constexpr bool        widens = true;
    /// Signed bytes, so that tiles need no correction.
    static void spread(const std::byte* values, std::size_t steps, std::byte* to) {
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
    static void run(State& tiles, const Activations& x, std::size_t p, std::size_t m, std::size_t k, const PanelPart* b, float* c, bool fresh, bool few) {
        const std::size_t g = p / Activations::group, n = (k + Activations::group - 1) / Activations::group;
        if (few) return avx512_bf16::multiply_block_rows<P, false>(m, x, g, n, b, c, fresh);
        for (std::size_t i = 0; i < m; i += 16) {
            const std::size_t rows = m - i < 16 ? m - i : 16;
            if (i == 0 || rows < 16) tiles.shape(rows, 0, Activations::group);
            for (std::size_t v = 0; v < 2; ++v) multiply_block_tile<P>(x.from(i), g, n, b[v].values, b[v].scales, rows, c + i * panel + v * panel_width, fresh);
        }
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
