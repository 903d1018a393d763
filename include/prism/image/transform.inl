// What transform.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/core/error.hpp"
#include "prism/image/resize.hpp"
#include "prism/image/transform.hpp"

#include <algorithm>
#include <string>

namespace prism {

template <class>
Image ImageTransform::square(const Image& image) const {
    check(image);
    if (centre_crop_area)
        return square_whole(crop_and_resize(image, Box::central(*centre_crop_area), {size, size}));
    return square_whole(image);
}

template <class>
void ImageTransform::check(const Image& image) const {
    expect_pixels("ImageTransform", image);
    if (size == 0) throw ConfigError{"size", "0", "at least 1"};
    if (resize_to == std::size_t{0}) throw ConfigError{"resize_to", "0", "at least 1"};
    if (centre_crop_area && !(*centre_crop_area > 0 && *centre_crop_area <= 1))
        throw ConfigError{"centre_crop_area", std::to_string(*centre_crop_area), "over 0, at most 1"};
}

template <class>
Image ImageTransform::square_whole(const Image& image) const {
    const Placement place = placement(image);
    Image           out = blank(place);
    start(place, out).advance(image.height());
    return out;
}

template <class>
Image ImageTransform::blank(const Placement& place) const {
    Image out = Image::sized(size, size);
    if (place.part.height < size || place.part.width < size) out.pixels.fill(0);
    return out;
}

template <class>
BicubicStream ImageTransform::start(const Placement& place, Image& square) {
    return {place.canvas,
            place.to,
            place.part,
            {square.row(place.top) + 3 * place.left,
             {place.part.height, place.part.width, 3},
             {square.row_bytes(), 3, 1}}};
}

template <class>
ImageTransform::Placement ImageTransform::placement(const Image& image) const {
    const std::size_t h = image.height(), w = image.width(), side = std::max(h, w);
    const std::size_t top = (side - h) / 2, left = (side - w) / 2;
    switch (strategy) {
        case Resize::naive: return centre({image, {h, w}}, {size, size});
        case Resize::crop: return shorter_side({image, {h, w}});
        case Resize::letterbox: return shorter_side({image, {h + 2 * top, w + 2 * left}, top, left, ground()});
        case Resize::pad: return shorter_side({image, {side, side}, top, left, ground()});
    }
    throw ConfigError{"strategy", std::to_string(static_cast<int>(strategy)), "a Resize"};
}

template <class>
Rgb ImageTransform::ground() const {
    if (fill) return *fill;
    Rgb colour;
    for (std::size_t c = 0; c < 3; ++c)
        colour[c] = static_cast<std::uint8_t>(std::clamp(255.0 * static_cast<double>(stats.mean[c]), 0.0, 255.0));
    return colour;
}

template <class>
ImageTransform::Placement ImageTransform::shorter_side(const Canvas& canvas) const {
    const std::size_t target = resize_to.value_or(size), shorter = std::min(canvas.size.height, canvas.size.width);
    const auto        scaled = [&](std::size_t side) {
        if (side == shorter) return target;
        return static_cast<std::size_t>(static_cast<double>(target * side) / static_cast<double>(shorter));
    };
    return centre(canvas, {scaled(canvas.size.height), scaled(canvas.size.width)});
}

template <class>
ImageTransform::Placement ImageTransform::centre(const Canvas& canvas, Size to) const {
    struct Span {
        std::size_t from, to, count;  // first pixel in the resized picture, in the square, and how many
    };
    const auto middle = [&](std::size_t n) -> Span {
        if (n < size) return {0, (size - n) / 2, n};
        const std::size_t half = (n - size) / 2;
        const bool        up = margin == Margin::half_even && (n - size) % 2 == 1 && half % 2 == 1;
        return {up ? half + 1 : half, 0, size};
    };
    const Span rows = middle(to.height), columns = middle(to.width);
    return {canvas, to, {rows.from, columns.from, rows.count, columns.count}, rows.to, columns.to};
}

template <class>
TransformStream::TransformStream(const ImageTransform& transform, const Image& image, View<float, host, dyn, dyn, dyn> out) : transform_(transform), image_(image), out_(out) {
    expect("ImageTransform", "out", {3, transform.size, transform.size}, out);
    transform.check(image);
    for (std::size_t c = 0; c < 3; ++c)
        for (std::size_t v = 0; v < 256; ++v)
            value_[c][v] = (static_cast<float>(v) / 255.0f - transform.stats.mean[c]) / transform.stats.std[c];
    if (transform.centre_crop_area) return;  // needs the whole picture
    const auto place = transform.placement(image);
    square_ = transform.blank(place);
    resizing_.emplace(ImageTransform::start(place, square_));
    first_ = place.top;
    n_resized_ = place.part.height;
}

template <class>
void TransformStream::advance(std::size_t n_rows) {
    if (resizing_) {
        const std::size_t done = resizing_->advance(n_rows);
        normalise(done == n_resized_ ? transform_.size : first_ + done);
    } else if (n_rows == image_.height()) {
        square_ = transform_.square(image_);
        normalise(transform_.size);
    }
}

template <class>
void TransformStream::normalise(std::size_t end) {
    for (; n_normalised_ < end; ++n_normalised_) {
        const std::uint8_t* pixel = square_.row(n_normalised_);
        float*              red = out_.data() + n_normalised_ * out_.stride(1);
        float*              green = red + out_.stride(0);
        float*              blue = green + out_.stride(0);
        for (std::size_t x = 0; x < transform_.size; ++x, pixel += 3) {
            red[x] = value_[0][pixel[0]];
            green[x] = value_[1][pixel[1]];
            blue[x] = value_[2][pixel[2]];
        }
    }
}

template <class>
void ImageTransform::apply(const Image& image, View<float, host, dyn, dyn, dyn> out) const {
    TransformStream{*this, image, out}.advance(image.height());
}

}  // namespace prism
