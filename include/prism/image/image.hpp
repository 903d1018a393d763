// Image: a picture in memory, 8-bit RGB.
//
//     Image image = Image::sized(480, 640);          // height, width; pixels undefined
//     image.pixels(y, x, 0) = 255;                   // [height, width, 3]
//
// interop/xtensor.hpp and interop/eigen.hpp show image.view() to those libraries.
#pragma once

#include "prism/core/error.hpp"
#include "prism/core/view.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace prism {

/// One colour, red first.
using Rgb = std::array<std::uint8_t, 3>;

/// Bytes [height, width, 3] that it owns, row-major and dense. A value; copies copy the bytes.
class PixelArray {
public:
    using value_type = std::uint8_t;
    using Shape = std::array<std::size_t, 3>;

    PixelArray() = default;
    /// Bytes that are undefined.
    explicit PixelArray(Shape shape) : shape_(shape), bytes_(std::make_unique_for_overwrite<std::uint8_t[]>(size())) {}
    PixelArray(const PixelArray& other) : PixelArray(other.shape_) { std::copy_n(other.data(), size(), data()); }
    PixelArray(PixelArray&& other) noexcept { swap(other); }
    PixelArray& operator=(PixelArray other) noexcept {
        swap(other);
        return *this;
    }

    const Shape& shape() const { return shape_; }
    std::size_t  shape(std::size_t i) const { return shape_[i]; }
    std::size_t  size() const { return shape_[0] * shape_[1] * shape_[2]; }

    std::uint8_t&       operator()(std::size_t y, std::size_t x, std::size_t c) { return bytes_[offset(y, x, c)]; }
    const std::uint8_t& operator()(std::size_t y, std::size_t x, std::size_t c) const { return bytes_[offset(y, x, c)]; }

    std::uint8_t*       data() { return bytes_.get(); }
    const std::uint8_t* data() const { return bytes_.get(); }
    std::uint8_t*       begin() { return data(); }
    std::uint8_t*       end() { return data() + size(); }
    const std::uint8_t* begin() const { return data(); }
    const std::uint8_t* end() const { return data() + size(); }

    void fill(std::uint8_t value) { std::fill(begin(), end(), value); }

    friend bool operator==(const PixelArray& a, const PixelArray& b) { return a.shape_ == b.shape_ && std::equal(a.begin(), a.end(), b.begin()); }

private:
    void swap(PixelArray& other) noexcept { std::swap(shape_, other.shape_), std::swap(bytes_, other.bytes_); }
    std::size_t offset(std::size_t y, std::size_t x, std::size_t c) const {
        assert(y < shape_[0] && x < shape_[1] && c < shape_[2]);
        return (y * shape_[1] + x) * shape_[2] + c;
    }

    Shape                           shape_{};
    std::unique_ptr<std::uint8_t[]> bytes_;
};

/// A picture: pixels [height, width, 3], rows from the top, channels red, green, blue.
struct Image {
    PixelArray pixels;

    /// A picture of this size whose pixels are undefined.
    static Image sized(std::size_t height, std::size_t width) {
        return {PixelArray{{height, width, 3}}};
    }

    std::size_t height() const { return pixels.shape(0); }
    std::size_t width() const { return pixels.shape(1); }
    std::size_t row_bytes() const { return 3 * width(); }

    const std::uint8_t* row(std::size_t y) const { return pixels.data() + y * row_bytes(); }
    std::uint8_t*       row(std::size_t y) { return pixels.data() + y * row_bytes(); }

    /// The pixels as a view [height, width, 3].
    View<std::uint8_t, host, dyn, dyn, dyn>       view() { return {pixels.data(), {height(), width(), 3}}; }
    View<const std::uint8_t, host, dyn, dyn, dyn> view() const { return {pixels.data(), {height(), width(), 3}}; }
};

/// Throws ShapeError unless `image` has at least one pixel and three channels.
inline void expect_pixels(const char* op, const Image& image) {
    const auto& shape = image.pixels.shape();
    if (shape[0] == 0 || shape[1] == 0 || shape[2] != 3)
        throw ShapeError{op, "image", "[height, width, 3] with at least one pixel", to_string(shape)};
}

}  // namespace prism
