// Patch features as a picture: patches that a tower takes for alike get alike colours.
//
//     const Image colours = prism::feature_colours(features, grid);      // one pixel a patch
//     prism::write_png("features.png", prism::lay_over(colours, picture));
#pragma once

#include "prism/core/view.hpp"
#include "prism/image/image.hpp"

#include <cstddef>

namespace prism {

/// The first three principal components of features [grid grid, d] as red, green and blue, one pixel a patch. Each is
/// stretched over its range but for the outermost 2 % of patches on either side. Throws ShapeError.
template <class = void>
Image feature_colours(View<const float, host, dyn, dyn> features, std::size_t grid);

/// Colours, brought to the size of `picture`, over its brightness: `opacity` 1 hides it, 0 shows nothing else.
template <class = void>
Image lay_over(const Image& colours, const Image& picture, double opacity = 0.7);

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/model/feature_picture.inl"
#endif
