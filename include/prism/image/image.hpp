// Image: a picture in memory, 8-bit RGB.
//
//     Image image = Image::sized(480, 640);          // height, width; pixels undefined
//     image.pixels(y, x, 0) = 255;                   // xtensor: [height, width, 3]
#pragma once

#include "prism/core/error.hpp"
#include "prism/core/view.hpp"

#include <array>
#include <cstddef>
#include <cstdint>

#include <xtensor/xtensor.hpp>

namespace prism {

/// One colour, red first.
using Rgb = std::array<std::uint8_t, 3>;

/// A picture: pixels [height, width, 3], rows from the top, channels red, green, blue.
struct Image {
    xt::xtensor<std::uint8_t, 3> pixels;

    /// A picture of this size whose pixels are undefined.
    static Image sized(std::size_t height, std::size_t width) {
        return {xt::xtensor<std::uint8_t, 3>::from_shape({height, width, std::size_t{3}})};
    }

    std::size_t height() const { return pixels.shape(0); }
    std::size_t width() const { return pixels.shape(1); }
    std::size_t row_bytes() const { return 3 * width(); }

    const std::uint8_t* row(std::size_t y) const { return pixels.data() + y * row_bytes(); }
    std::uint8_t*       row(std::size_t y) { return pixels.data() + y * row_bytes(); }

    /// The pixels as a view [height, width, 3].
    View<std::uint8_t, host, dyn, dyn, dyn> view() { return {pixels.data(), {height(), width(), 3}}; }
};

/// Throws ShapeError unless `image` has at least one pixel and three channels.
inline void expect_pixels(const char* op, const Image& image) {
    const std::array<std::size_t, 3> shape{image.pixels.shape(0), image.pixels.shape(1), image.pixels.shape(2)};
    if (shape[0] == 0 || shape[1] == 0 || shape[2] != 3)
        throw ShapeError{op, "image", "[height, width, 3] with at least one pixel", to_string(shape)};
}

}  // namespace prism
