// Splicing: where the picture goes in a prompt, and towers side by side.
#pragma once

#include "prism/core/workspace.hpp"
#include "prism/ops/patchify.hpp"
#include "prism/ops/rows.hpp"

#include <cstddef>
#include <span>

namespace prism {

/// x [n_text + n_soft, d] = the first text token, the soft tokens, the other text tokens. Prismatic's order: the first
/// token is the start token. text [n_text, d], soft [n_soft, d]. Throws ShapeError, also for an empty text.
template <Backend B>
void splice_after_first(B& be, In<B> text, In<B> soft, Mat<B> x) {
    if (text.rows() == 0) throw ShapeError{"splice_after_first", "text", "at least one row", "none"};
    expect("splice_after_first", "soft", {any, text.cols()}, soft);
    expect("splice_after_first", "x", {text.rows() + soft.rows(), text.cols()}, x);
    const std::size_t rest = text.rows() - 1;
    ops::copy<B>(be, text.rows(0, 1), x.rows(0, 1));
    ops::copy<B>(be, soft, x.rows(1, soft.rows()));
    ops::copy<B>(be, text.rows(1, rest), x.rows(1 + soft.rows(), rest));
}

/// features [n n_patches, sum of widths] = the towers' features side by side. Each tower writes its own columns: the
/// concatenation costs nothing. pixels[i] is what towers[i] sees. Throws ShapeError when the grids differ.
template <Backend B, class Towers>
void fuse_towers(B& be, Workspace<B>& ws, const Towers& towers, std::span<const PixelView<B>> pixels, Mat<B> features) {
    if (pixels.size() != towers.size())
        throw ShapeError{"fuse_towers", "pixels", std::to_string(towers.size()) + " towers' pictures", std::to_string(pixels.size())};
    std::size_t column = 0;
    for (std::size_t i = 0; i < towers.size(); ++i) {
        towers[i].forward(be, ws, pixels[i], features.cols(column, towers[i].d_model()));
        column += towers[i].d_model();
    }
    expect("fuse_towers", "features", {any, column}, features);
}

}  // namespace prism
