// From pixels to rows: each patch of a picture becomes one row.
#pragma once

#include "prism/backend/concept.hpp"

namespace prism {

/// Pictures as towers read them: [n, 3, height, width], normalised.
template <class B, class T = const float> using PixelView = View<T, typename B::space, dyn, dyn, dyn, dyn>;

namespace ops {

/// patches [n G_y G_x, channels P P] of pixels [n, channels, H, W]: a row holds its patch channel by channel, then row by
/// row. G = floor(H / P); pixels beyond the last whole patch are not read. Throws ShapeError.
template <Backend B>
void patchify(B& be, PixelView<B> pixels, std::size_t patch_size, Mat<B> patches) {
    if (patch_size == 0) throw ShapeError{"patchify", "patch_size", "at least 1", "0"};
    const std::size_t grid = (pixels.extent(2) / patch_size) * (pixels.extent(3) / patch_size);
    expect("patchify", "patches", {pixels.extent(0) * grid, pixels.extent(1) * patch_size * patch_size}, patches);
    be.patchify(pixels, patch_size, patches);
}

}  // namespace ops
}  // namespace prism
