// Products of gradients in tiles: rows and weights rounded to bf16, sums in f32. For who asks for Compute::fast.

/// to, bf16 [m, k] in rows `line` bytes apart, up to 32 columns more: columns of a, whose rows are `step` apart. Pairs of rows
/// become one of 32 bits each, so that half as much is transposed.
inline void transpose_rounded(const float* a, std::size_t step, std::size_t m, std::size_t k, std::byte* to, std::size_t line) {
    for (std::size_t p = 0; p < k; p += 32)
        for (std::size_t i = 0; i < m; i += 16) {
            F block[16];
#pragma GCC unroll 16
            for (std::size_t q = 0; q < 16; ++q) {
                const std::size_t  row = p + 2 * q;
                const float* const from = a + row * step + i;
                block[q] = _mm512_castsi512_ps(alternating(row < k ? avx512::load_some(from, m - i) : set1(0), row + 1 < k ? avx512::load_some(from + step, m - i) : set1(0)));
            }
            transpose(block);
            for (std::size_t r = 0; r < 16 && i + r < m; ++r) store(reinterpret_cast<float*>(to + (i + r) * line + 2 * p), block[r]);
        }
}

/// As avx512::gradient_product of f32.
inline void gradient_product(const GradientTile& t) {
    constexpr std::size_t most = GradientTile::max_rows, width = GradientTile::max_cols, depth = 256;
    constexpr std::size_t line = 2 * depth + 64, panel_bytes = depth / 2 * 64;  // of a row in bf16, of pairs of rows of sixteen columns
    constexpr std::size_t apart = depth * panel_width + 16;  // f32 panels, as w lies in them or is brought there
    static_assert(most * width + (most * line + width / panel_width * panel_bytes) / sizeof(float) + width / panel_width * apart <= scratch_floats);
    float* const      sums = scratch();
    std::byte* const  rows = reinterpret_cast<std::byte*>(sums + most * width);
    std::byte* const  panels = rows + most * line;
    float* const      wide = reinterpret_cast<float*>(panels + width / panel_width * panel_bytes);
    const std::size_t n = t.end - t.begin;
    Activations       x{.q = rows, .ldq = line};
    TileState         tiles;
    Ahead             nothing;
    for (std::size_t p = 0; p == 0 || p < t.k; p += depth) {
        const std::size_t k = t.k - p < depth ? t.k - p : depth;
        avx512::panels_of_columns<f32>(t.w, t.n, p, k, t.begin, n, wide, apart);
        for (std::size_t c = 0; c < n; c += panel_width)
            MultiplyRoundedTiles::spread({reinterpret_cast<const std::byte*>(wide + c / panel_width * apart), nullptr}, k, panels + c / panel_width * panel_bytes);
        if (t.across) transpose_rounded(t.a + p * t.lda, t.lda, t.m, k, rows, line);
        else
            for (std::size_t i = 0; i < t.m; ++i)
                for (std::size_t c = 0; c < k; c += 32) store_bytes(rows + i * line + 2 * c, pairs_of(t.a + i * t.lda + p + c, k - c));
        for (std::size_t j = 0; j < n; j += panel) {
            PanelPart b[2]{{panels + j / panel_width * panel_bytes, nullptr}, {}};
            b[1] = j + panel_width < n ? PanelPart{panels + (j / panel_width + 1) * panel_bytes, nullptr} : b[0];
            MultiplyBf16Tiles<false>::run(tiles, x, 0, t.m, k, b, sums + j * t.m, p == 0, false, nothing);
        }
    }
    avx512::finish_gradient(t, sums);
}

template <int = 0>
constexpr TrainingKernels training_kernels() {
    TrainingKernels k = avx512::training_kernels();
    k.products[f32_index] = gradient_product;
    return k;
}
