// Resizing: Pillow's bicubic, to the bit, and TensorFlow's bilinear crop_and_resize.
//
//     Image small = resize_bicubic(image, {.height = 224, .width = 224});
//
// The numbers are those of Pillow 10 (libImaging/Resample.c): a horizontal pass, then a vertical one, 8 bits between
// them, weights of 22 fractional bits. Two things are arranged otherwise, with the same numbers: only the wanted window
// of the result is computed, and the padding around a picture is never made. So a letterbox or a crop costs no more
// than what is seen of it, whatever the shape of the picture.
#pragma once

#include "prism/core/view.hpp"
#include "prism/image/image.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace prism {

struct Size {
    std::size_t height, width;
};

/// A rectangle of pixels.
struct Window {
    std::size_t top, left, height, width;
};

/// A picture on a larger ground of one colour, its upper left corner at (top, left). Holds a reference to the picture.
struct Canvas {
    const Image& image;
    Size         size;
    std::size_t  top = 0, left = 0;
    Rgb          fill{};
};

namespace image_detail {

/// A resize under way, whatever computes it.
class Resizing {
public:
    virtual ~Resizing() = default;
    virtual std::size_t advance(std::size_t n_rows) = 0;
};

}  // namespace image_detail

/// resize_bicubic of a picture whose rows arrive from the top: each row of the result is made as soon as it can be.
class BicubicStream {
public:
    /// Throws as resize_bicubic. Reads no pixel yet.
    template <class = void>
    BicubicStream(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out);

    /// The first `n_rows` rows of the picture are there and stay as they are. Returns how many rows of `out` are done.
    std::size_t advance(std::size_t n_rows) { return resizing_ ? resizing_->advance(n_rows) : height_; }

private:
    std::size_t                             height_;
    std::unique_ptr<image_detail::Resizing> resizing_;
};

/// Resizes `canvas` to `to` and writes the window `part` of the result to out [part.height, part.width, 3], whose
/// pixels are dense. Bit-equal to Pillow 10's resize(BICUBIC) of the padded picture, cropped. Throws ShapeError on an
/// empty picture, a window that leaves the result, a picture that leaves its canvas, or an `out` of another shape.
/// Source: Pillow, src/libImaging/Resample.c.
template <class = void>
void resize_bicubic(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out);

/// The whole picture at another size.
template <class = void>
Image resize_bicubic(const Image& image, Size to);

/// A rectangle in fractions of a picture's sides, 0 at the first pixel's centre and 1 at the last one's.
struct Box {
    float top, left, bottom, right;

    /// The one around the centre that covers this fraction of the area.
    static Box central(float area) {
        const float side = std::sqrt(area), offset = (1.0f - side) / 2.0f;
        return {offset, offset, offset + side, offset + side};
    }
};

/// The pixels within `box`, bilinearly sampled at `to` points, as TensorFlow computes it on values in [0, 1]; then back
/// to 8 bits by cutting off 255.5 times the value. Samples outside the picture are black. Throws ShapeError on an empty
/// picture.
/// Source: TensorFlow, core/kernels/image/crop_and_resize_op.cc; convert_image_dtype for both conversions.
template <class = void>
Image crop_and_resize(const Image& image, Box box, Size to);

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/image/resize.inl"
#endif
