// Panels: a matrix of weights in the order in which processors read it. Sixteen rows of the matrix (sixteen outputs of a
// product) lie side by side, a step of the sum after the other; all instruction sets read the same bytes.
//
//     std::vector<std::byte> bytes(panels_bytes<q8>(d_out, d_in));
//     interleave<q8>({blocks, d_out, d_in, blocks_per_row<q8>(d_in)}, bytes.data());
#pragma once

#include "prism/quant/format.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace prism {

/// Rows of a matrix that one panel holds; the last panel is filled up with zeros.
inline constexpr std::size_t panel_width = 16;

/// How a panel of format F lies in memory: first the scales of all steps, then the values of all steps, each part padded
/// to 64 bytes. Values of a step:
///     f32, f16    one column of the matrix:    [16 rows]
///     bf16        two columns:                 [16 rows][2]
///     q8          32 columns:                  [8][16 rows][4] bytes q + 128; scales [16] f16
///     q4, q4m     32 columns:                  [4][16 rows][4] bytes, low halves columns 0 ... 15, high halves 16 ... 31;
///                                              scales [16] f16, and [16] f16 minima in q4m
template <Format F>
struct PanelLayout {
    static constexpr std::size_t columns = F::values_per_block > 1 ? F::values_per_block : F::dtype == Dtype::bf16 ? 2 : 1;  // of a step
    static constexpr std::size_t scale_bytes = F::values_per_block == 1 ? 0 : F::dtype == Dtype::q4m ? 64 : 32;             // of a step
    static constexpr std::size_t value_bytes = F::dtype == Dtype::q8 ? 512 : F::values_per_block > 1 ? 256 : panel_width * columns * sizeof(typename F::block);

    static constexpr std::size_t steps(std::size_t cols) { return (cols + columns - 1) / columns; }
    /// Bytes before the values.
    static constexpr std::size_t values_at(std::size_t cols) { return (steps(cols) * scale_bytes + 63) / 64 * 64; }
    static constexpr std::size_t bytes(std::size_t cols) { return values_at(cols) + (steps(cols) * value_bytes + 63) / 64 * 64; }
};

/// Bytes of a whole matrix in panels.
template <Format F>
constexpr std::size_t panels_bytes(std::size_t rows, std::size_t cols) {
    return (rows + panel_width - 1) / panel_width * PanelLayout<F>::bytes(cols);
}

/// Bytes of one panel in the format of this type.
inline std::size_t panel_bytes(Dtype dtype, std::size_t cols) {
    std::size_t bytes = 0;
    with_format(dtype, all_formats{}, [&]<Format F>(F) { bytes = PanelLayout<F>::bytes(cols); });
    return bytes;
}

namespace detail {

/// Where column j of row c lies among the values of a panel of a plain format.
template <Format F>
constexpr std::size_t plain_at(std::size_t c, std::size_t j) {
    constexpr std::size_t columns = PanelLayout<F>::columns;
    return j / columns * columns * panel_width + c * columns + j % columns;
}

}  // namespace detail

/// A part of one panel from rows of blocks: columns [0, cols) of `n` rows, which start at `rows` and lie `stride` blocks
/// apart. Scales and values go to where the caller says; rows from n on are zero.
template <Format F>
void interleave_part(const typename F::block* rows, std::size_t stride, std::size_t n, std::size_t cols, std::byte* scales, std::byte* values) {
    using L = PanelLayout<F>;
    if constexpr (F::values_per_block == 1) {
        using T = typename F::block;
        T* const to = reinterpret_cast<T*>(values);
        if (n < panel_width || cols % L::columns != 0) std::memset(values, 0, L::steps(cols) * L::value_bytes);
        for (std::size_t j0 = 0; j0 < cols; j0 += 64)  // in stretches that stay in the first-level cache
            for (std::size_t c = 0; c < n; ++c)
                for (std::size_t j = j0; j < cols && j < j0 + 64; ++j) to[detail::plain_at<F>(c, j)] = rows[c * stride + j];
    } else {
        std::memset(values, F::dtype == Dtype::q8 ? 128 : 0, L::steps(cols) * L::value_bytes);
        std::memset(scales, 0, L::steps(cols) * L::scale_bytes);
        for (std::size_t s = 0; s < L::steps(cols); ++s)
            for (std::size_t c = 0; c < n; ++c) {
                const auto&      block = rows[c * stride + s];
                std::byte* const q = values + s * L::value_bytes;
                std::memcpy(scales + s * L::scale_bytes + c * sizeof(fp16_t), &block.scale, sizeof(fp16_t));
                if constexpr (F::dtype == Dtype::q4m) std::memcpy(scales + s * L::scale_bytes + (panel_width + c) * sizeof(fp16_t), &block.minimum, sizeof(fp16_t));
                // q4 blocks hold columns j and j + 16 in one byte, and so do panels
                for (std::size_t j = 0; j < sizeof block.q; ++j)
                    q[j / 4 * 4 * panel_width + c * 4 + j % 4] = static_cast<std::byte>(static_cast<std::uint8_t>(block.q[j]) ^ (F::dtype == Dtype::q8 ? 0x80U : 0U));
            }
    }
}

/// Panels [first, last) of w into `panels`, which is where panel 0 begins.
template <Format F, class Space>
void interleave(const Packed<F, Space>& w, std::byte* panels, std::size_t first, std::size_t last) {
    using L = PanelLayout<F>;
    for (std::size_t p = first; p < last; ++p) {
        std::byte* const  panel = panels + p * L::bytes(w.cols);
        const std::size_t row = p * panel_width, n = w.rows - row < panel_width ? w.rows - row : panel_width;
        interleave_part<F>(w.data + row * w.stride, w.stride, n, w.cols, panel, panel + L::values_at(w.cols));
        const std::size_t used = L::steps(w.cols) * L::value_bytes, scales = L::steps(w.cols) * L::scale_bytes;
        std::memset(panel + scales, 0, L::values_at(w.cols) - scales);  // no byte is left to chance: files of panels compare equal
        std::memset(panel + L::values_at(w.cols) + used, 0, L::bytes(w.cols) - L::values_at(w.cols) - used);
    }
}

/// Row `row` of a matrix in panels, as the blocks it was made of.
template <Format F>
void extract_row(const std::byte* panels, std::size_t row, std::size_t cols, typename F::block* to) {
    using L = PanelLayout<F>;
    const std::byte* const scales = panels + row / panel_width * L::bytes(cols);
    const std::byte* const values = scales + L::values_at(cols);
    const std::size_t      c = row % panel_width;
    if constexpr (F::values_per_block == 1) {
        for (std::size_t j = 0; j < cols; ++j) std::memcpy(to + j, values + detail::plain_at<F>(c, j) * sizeof(*to), sizeof(*to));
    } else {
        for (std::size_t s = 0; s < L::steps(cols); ++s) {
            const std::byte* const q = values + s * L::value_bytes;
            std::memcpy(&to[s].scale, scales + s * L::scale_bytes + c * sizeof(fp16_t), sizeof(fp16_t));
            if constexpr (F::dtype == Dtype::q4m) std::memcpy(&to[s].minimum, scales + s * L::scale_bytes + (panel_width + c) * sizeof(fp16_t), sizeof(fp16_t));
            for (std::size_t j = 0; j < sizeof to[s].q; ++j) {
                const auto byte = static_cast<std::uint8_t>(q[j / 4 * 4 * panel_width + c * 4 + j % 4]);
                to[s].q[j] = static_cast<std::remove_reference_t<decltype(to[s].q[j])>>(F::dtype == Dtype::q8 ? byte ^ 0x80U : byte);
            }
        }
    }
}

/// Row `row` of w, in blocks, however w lies in memory.
template <Format F, class Space>
void copy_row(const Packed<F, Space>& w, std::size_t row, typename F::block* to) {
    if (w.panels) extract_row<F>(w.panels, w.first + row, w.cols, to);
    else std::memcpy(to, w.data + row * w.stride, blocks_per_row<F>(w.cols) * sizeof(*to));
}

}  // namespace prism
