// Products of weights in blocks with VNNI: rows in int8 (vpdpbusd) or in int16 (vpdpwssd, which multiplies half as much and
// needs no second sum). Six rows and two panels keep all their sums in registers: those of the group in i32, those of groups in
// f32. Sums over a group are exact and groups are added in order: the same bits as products_int8.inl.

/// Rows of x, `ld` bytes apart. Their addresses are made of few registers, through which the compiler cannot see: it would
/// keep a pointer for each row, and most of those in memory.
struct Lines {
    const std::byte* at[2];
    std::size_t      ld, ld3;

    Lines(const std::byte* x, std::size_t ldq) : at{x, x + 5 * ldq}, ld(ldq), ld3(3 * ldq) {}
    template <int I> const std::byte* row() const { return at[I / 5] + (I % 5 == 3 ? ld3 : I % 5 * ld); }
    void step(std::size_t bytes) {
        at[0] += bytes, at[1] += bytes;
        asm("" : "+r"(at[0]), "+r"(at[1]));
    }
};

/// The sums of one row and two panels: of a group, and of groups. Rows in int8 sum the groups that have a scale in common, and
/// add them to the product's sums in memory; rows in int16 keep those of the product.
struct RowSums {
    I dots[2];
    F sums[2];
};

/// What rows need at the ends of a group: what their sums begin with (dot_begin) and their scales, `apart` elements
/// apart; the scales and least values of the panels.
struct GroupEnds {
    const std::int32_t* begin;
    const float*        scales;
    std::size_t         apart;
    F                   scale[2], least[2];

    template <int R>
    I begin_of() const { return splat_four(reinterpret_cast<const std::byte*>(begin + R * apart)); }
};

// In assembly: compilers copy the sums of the intrinsics from register to register.
template <bool Wide>
[[gnu::always_inline]] inline void add_dots(I& sums, I w, I x) {
    if constexpr (Wide) asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(w), "v"(x));
    else asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(w), "v"(x));
}

/// One step of row R: products of neighbours in x, `At` bytes on, with those of both panels. The first step begins the sums of
/// a group and the last one ends them, row by row, so that the multipliers have other rows' work meanwhile.
template <class P, bool Wide, bool First, bool Last, int R, std::size_t At>
[[gnu::always_inline]] inline void multiply_step(RowSums& row, const I (&w)[2], const Lines& x, const GroupEnds& ends) {
    constexpr bool minima = P::dtype == Dtype::q4m;
    if constexpr (First) row.dots[0] = row.dots[1] = minima ? splat(0) : ends.begin_of<R>();
    const I values = splat_four(x.row<R>() + At);
    add_dots<Wide>(row.dots[0], w[0], values), add_dots<Wide>(row.dots[1], w[1], values);
    if constexpr (Last) {
        F scale[2]{ends.scale[0], ends.scale[1]}, all = minima ? to_float(ends.begin_of<R>()) : set1(0);
        if constexpr (Wide) {  // a scale for each group; else several are scaled together
            const F s = set1(ends.scales[R * ends.apart]);
            scale[0] = mul(scale[0], s), scale[1] = mul(scale[1], s);
            if constexpr (minima) all = mul(all, s);
        }
        row.sums[0] = fma(to_float(row.dots[0]), scale[0], row.sums[0]), row.sums[1] = fma(to_float(row.dots[1]), scale[1], row.sums[1]);
        if constexpr (minima) row.sums[0] = fma(ends.least[0], all, row.sums[0]), row.sums[1] = fma(ends.least[1], all, row.sums[1]);
    }
}
template <class P, bool Wide, bool First, bool Last, std::size_t At, int... R>
[[gnu::always_inline]] inline void multiply_rows_step(std::integer_sequence<int, R...>, RowSums* rows, I w0, I w1, const Lines& x, const GroupEnds& ends) {
    const I w[2]{w0, w1};
    (multiply_step<P, Wide, First, Last, R, At>(rows[R], w, x, ends), ...);
}

/// Sixteen-bit neighbours (the first and the third of four bytes), or nibbles, sixteen times: `Right` bits on.
template <int Right, std::uint32_t Mask>
inline I part_of(I bytes) {
    I a = bytes;
    if constexpr (Right > 0) a = _mm512_maskz_srli_epi16(0xffffffffU, a, Right);
    if constexpr (Right < 0) a = _mm512_maskz_slli_epi16(0xffffffffU, a, -Right);
    if constexpr (Mask > 0) a = _mm512_and_si512(a, splat(static_cast<std::int32_t>(Mask)));
    return a;
}

/// The step of 64 bytes of both panels.
template <class P, bool Wide, bool First, bool Last, int R>
[[gnu::always_inline]] inline void multiply_line(RowSums* rows, const std::byte* w0, const std::byte* w1, Lines& x, const GroupEnds& ends) {
    constexpr std::make_integer_sequence<int, R> all{};
    const I u = load_bytes(w0), v = load_bytes(w1);
    if constexpr (P::dtype == Dtype::q8 && Wide) {
        multiply_rows_step<P, Wide, First, false, 0>(all, rows, part_of<0, 0x00ff00ff>(u), part_of<0, 0x00ff00ff>(v), x, ends);
        multiply_rows_step<P, Wide, false, Last, 4>(all, rows, part_of<8, 0>(u), part_of<8, 0>(v), x, ends);
    } else if constexpr (P::dtype == Dtype::q8) {
        multiply_rows_step<P, Wide, First, Last, 0>(all, rows, u, v, x, ends);
    } else if constexpr (Wide) {  // high nibbles are sixteen columns on
        multiply_rows_step<P, Wide, First, false, 0>(all, rows, part_of<-4, 0x00f000f0>(u), part_of<-4, 0x00f000f0>(v), x, ends);
        multiply_rows_step<P, Wide, false, false, 4>(all, rows, part_of<4, 0x00f000f0>(u), part_of<4, 0x00f000f0>(v), x, ends);
        multiply_rows_step<P, Wide, false, false, 32>(all, rows, part_of<0, 0x00f000f0>(u), part_of<0, 0x00f000f0>(v), x, ends);
        multiply_rows_step<P, Wide, false, Last, 36>(all, rows, part_of<8, 0x00f000f0>(u), part_of<8, 0x00f000f0>(v), x, ends);
    } else {
        multiply_rows_step<P, Wide, First, false, 0>(all, rows, part_of<-4, 0xf0f0f0f0>(u), part_of<-4, 0xf0f0f0f0>(v), x, ends);
        multiply_rows_step<P, Wide, false, Last, 16>(all, rows, part_of<0, 0xf0f0f0f0>(u), part_of<0, 0xf0f0f0f0>(v), x, ends);
    }
    x.step((Wide ? 8 : 4) + (Last && P::dtype != Dtype::q8 ? (Wide ? 32 : 16) : 0));
}

/// Group `g` of R rows and two panels.
template <class P, bool Wide, int R>
[[gnu::always_inline]] inline void multiply_group(RowSums* rows, const PanelPart* b, std::size_t g, const std::byte*& w0, const std::byte*& w1, Lines& x, GroupEnds& ends) {
    using L = PanelLayout<P>;
    multiply_line<P, Wide, true, false, R>(rows, w0, w1, x, ends);
    w0 += 64, w1 += 64;
#pragma GCC unroll 1
    for (std::size_t i = 2; i < L::value_bytes / 64; ++i, w0 += 64, w1 += 64) multiply_line<P, Wide, false, false, R>(rows, w0, w1, x, ends);
    const auto* const s0 = reinterpret_cast<const fp16_t*>(b[0].scales + g * L::scale_bytes), * const s1 = reinterpret_cast<const fp16_t*>(b[1].scales + g * L::scale_bytes);
    ends.scale[0] = load(s0), ends.scale[1] = load(s1);
    if constexpr (P::dtype != Dtype::q8) ends.scale[0] = mul(ends.scale[0], set1(1.0f / 16)), ends.scale[1] = mul(ends.scale[1], set1(1.0f / 16));
    if constexpr (P::dtype == Dtype::q4m)
        ends.least[0] = mul(load(s0 + panel_width), set1(1.0f / dot_begin)), ends.least[1] = mul(load(s1 + panel_width), set1(1.0f / dot_begin));
    multiply_line<P, Wide, false, true, R>(rows, w0, w1, x, ends);
    w0 += 64, w1 += 64, ++ends.begin;
}

/// The sums of groups begin with those of c [R, panel], or with 0.
template <int R>
[[gnu::always_inline]] inline void start(RowSums* rows, const float* c) {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) rows[i].sums[0] = c ? load(c + i * panel) : set1(0), rows[i].sums[1] = c ? load(c + i * panel + lanes) : set1(0);
}

/// c [R, panel] (+)= R rows of x times the blocks of two panels. `few`: weights come from memory, and are fetched ahead; four bits,
/// which take longer to multiply than to bring, further ahead than bytes.
template <class P, bool Wide, int R>
inline void multiply_groups(const Activations& x, std::size_t g0, std::size_t n_groups, const PanelPart* b, float* c, bool fresh, bool few) {
    constexpr std::size_t shared = Wide ? 1 : Activations::groups_per_scale;
    Lines                 lines{x.q + g0 * Activations::group * (Wide ? 2 : 1), x.ldq};
    GroupEnds             ends{x.sums + g0, x.scales + g0, x.n_groups, {}, {}};
    const std::byte *     w0 = b[0].values, *w1 = b[1].values;
    const FarAhead        far{b, n_groups * PanelLayout<P>::value_bytes, P::dtype == Dtype::q8 ? FarAhead::close : FarAhead::usual};
    RowSums               rows[R];
    start<R>(rows, Wide && !fresh ? c : nullptr);
    for (std::size_t g = 0; g < n_groups; ends.scales += shared) {
        const std::size_t end = g + shared < n_groups ? g + shared : n_groups;
#pragma GCC unroll 1
        for (; g < end; ++g) {
            asm("" : "+r"(ends.begin), "+r"(ends.scales));  // as in Lines
            if (few) far.fetch<PanelLayout<P>::value_bytes>(w0, w1);
            multiply_group<P, Wide, R>(rows, b, g, w0, w1, lines, ends);
        }
        if constexpr (!Wide) {
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i) {
                const F      s = set1(ends.scales[static_cast<std::size_t>(i) * ends.apart]);
                float* const at = c + i * panel;
                store(at, fma(rows[i].sums[0], s, fresh ? set1(0) : load(at))), store(at + lanes, fma(rows[i].sums[1], s, fresh ? set1(0) : load(at + lanes)));
            }
            fresh = false;
            start<R>(rows, nullptr);
        }
    }
    if (Wide || n_groups == 0)  // nothing to sum: 0
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) store(c + i * panel, rows[i].sums[0]), store(c + i * panel + lanes, rows[i].sums[1]);
}

/// The same for any number of rows; before each block of them some lines are fetched ahead.
template <class P, bool Wide, int R>
inline void multiply_group_rows(std::size_t m, const Activations& x, std::size_t g0, std::size_t n_groups, const PanelPart* b, float* c, bool fresh, bool few, Ahead& ahead,
                                std::size_t lines) {
    std::size_t i = 0;
    for (; i + R <= m; i += R) {
        ahead.fetch(lines);
        multiply_groups<P, Wide, R>(x.from(i), g0, n_groups, b, c + i * panel, fresh, few);
    }
    if constexpr (R > 1)
        if (i < m) multiply_group_rows<P, Wide, R - 1>(m - i, x.from(i), g0, n_groups, b, c + i * panel, fresh, few, ahead, lines);
}

/// Rows in int16 (`Wide`) or int8, weights in blocks: see MultiplyPlain.
template <class P, bool Wide>
struct MultiplyGroups {
    using format = P;
    static constexpr Form        form = Wide ? Form::int16 : Form::int8;
    static constexpr int         rows = 6;
    static constexpr std::size_t depth = Wide ? 1024 : 1536, row_step = 16 * rows;  // both panels and a block of rows share the first-level cache
    static_assert(depth % (Activations::group * Activations::groups_per_scale) == 0);
    static constexpr std::size_t spread_bytes = 0;
    static constexpr bool        takes_few = true;
    struct State {};
    static void run(State&, const Activations& x, std::size_t p, std::size_t m, std::size_t k, const PanelPart* b, float* c, bool fresh, bool few, Ahead& ahead) {
        multiply_group_rows<P, Wide, rows>(m, x, p / Activations::group, (k + Activations::group - 1) / Activations::group, b, c, fresh, few, ahead, ahead.of_strip(m, rows));
    }
};
