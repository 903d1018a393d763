// ImageTransform: from a picture to the tensor that a vision tower reads.
//
//     ImageTransform transform{.stats = statistics::half, .strategy = Resize::letterbox, .size = 384};
//     std::vector<float> pixels(3 * 384 * 384);
//     transform.apply(read_image("cat.jpg"), {pixels.data(), {3, 384, 384}});
//
// One struct covers the families; what a published one needs:
//     Prismatic, native   .stats, .strategy and .size of each tower; CLIP B/16 at 224 also has .resize_to = 248
//     OpenVLA (HF)        .stats from tvf_normalize_params; a letterbox is made once, with the last tower's .fill
//     OpenVLA fine-tuned  the same and .centre_crop_area = 0.9f
//     LLaVA-1.5 (HF)      Resize::crop, statistics::clip, .margin = Margin::floor
//     LLaVA-1.5 (liuhaotian), image_aspect_ratio "pad"    Resize::pad and the same
#pragma once

#include "prism/core/error.hpp"
#include "prism/core/view.hpp"
#include "prism/image/image.hpp"
#include "prism/image/resize.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace prism {

/// What a tower's inputs were centred and scaled with, per channel of values in [0, 1].
struct Statistics {
    std::array<float, 3> mean, std;
};

namespace statistics {

inline constexpr Statistics imagenet{{0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f}};  // DINOv2
inline constexpr Statistics clip{{0.48145466f, 0.4578275f, 0.40821073f}, {0.26862954f, 0.26130258f, 0.27577711f}};
inline constexpr Statistics half{{0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f}};  // SigLIP, and timm's ViTs of ImageNet-21k

}  // namespace statistics

/// "imagenet", "clip" or "half". Throws ConfigError.
inline Statistics statistics_from_name(std::string_view name) {
    if (name == "imagenet") return statistics::imagenet;
    if (name == "clip") return statistics::clip;
    if (name == "half") return statistics::half;
    throw ConfigError{"statistics", std::string(name), "imagenet, clip, half"};
}

/// How a picture becomes a square.
enum class Resize : std::uint8_t {
    naive,      // both sides are set; the aspect ratio is lost
    letterbox,  // bars on both sides, equally wide: one pixel short of square where the difference is odd
    crop,       // the shorter side is set, and the middle taken
    pad,        // LLaVA: bars that make an exact square
};

constexpr std::string_view to_string(Resize strategy) {
    constexpr std::array<std::string_view, 4> names{"resize-naive", "letterbox", "resize-crop", "pad"};
    return names[static_cast<std::size_t>(strategy)];
}

/// The strategy of that name. Throws ConfigError.
inline Resize resize_from_name(std::string_view name) {
    for (Resize strategy : {Resize::naive, Resize::letterbox, Resize::crop, Resize::pad})
        if (name == to_string(strategy)) return strategy;
    throw ConfigError{"image_resize_strategy", std::string(name), "resize-naive, letterbox, resize-crop, pad"};
}

/// Where a crop begins when the margin around it is odd.
enum class Margin : std::uint8_t {
    half_even,  // half of it, rounded to the even neighbour: torchvision
    floor,      // half of it, rounded down: transformers' CLIP image processor
};

/// A picture to pixel values [3, size, size]. Geometry is done on 8-bit pixels, with Pillow's bicubic.
/// Sources: prismatic-vlms, models/backbones/vision; timm, data/transforms_factory.py; torchvision, transforms;
/// openvla, extern/hf/processing_prismatic.py and experiments/robot/openvla_utils.py; LLaVA, llava/mm_utils.py.
struct ImageTransform {
    Statistics                 stats = statistics::imagenet;
    Resize                     strategy = Resize::naive;
    std::size_t                size = 224;
    std::optional<std::size_t> resize_to = {};  // what the shorter side becomes before the crop; `size` unless given
    std::optional<Rgb>         fill = {};       // of letterbox and pad; 255 times the mean, cut off, unless given
    Margin                     margin = Margin::half_even;
    std::optional<float>       centre_crop_area = {};  // first a bilinear crop of this fraction of the area, to `size`

    /// Writes out [3, size, size]. Throws ConfigError on options that cannot be used, ShapeError on an empty picture or
    /// an `out` of another shape.
    void apply(const Image& image, View<float, host, dyn, dyn, dyn> out) const;

    /// The 8-bit picture [size, size, 3] that is then normalised.
    Image square(const Image& image) const {
        check(image);
        if (centre_crop_area)
            return square_whole(crop_and_resize(image, Box::central(*centre_crop_area), {size, size}));
        return square_whole(image);
    }

private:
    friend class TransformStream;

    /// What becomes of a picture: the canvas resized to `to`, and of that `part` put into the square at (top, left).
    struct Placement {
        Canvas      canvas;
        Size        to;
        Window      part;
        std::size_t top, left;
    };

    void check(const Image& image) const {
        expect_pixels("ImageTransform", image);
        if (size == 0) throw ConfigError{"size", "0", "at least 1"};
        if (resize_to == std::size_t{0}) throw ConfigError{"resize_to", "0", "at least 1"};
        if (centre_crop_area && !(*centre_crop_area > 0 && *centre_crop_area <= 1))
            throw ConfigError{"centre_crop_area", std::to_string(*centre_crop_area), "over 0, at most 1"};
    }

    Image square_whole(const Image& image) const {
        const Placement place = placement(image);
        Image           out = blank(place);
        start(place, out).advance(image.height());
        return out;
    }

    /// The square, black where no picture will be.
    Image blank(const Placement& place) const {
        Image out = Image::sized(size, size);
        if (place.part.height < size || place.part.width < size) out.pixels.fill(0);
        return out;
    }

    static BicubicStream start(const Placement& place, Image& square) {
        return {place.canvas,
                place.to,
                place.part,
                {square.row(place.top) + 3 * place.left,
                 {place.part.height, place.part.width, 3},
                 {square.row_bytes(), 3, 1}}};
    }

    Placement placement(const Image& image) const {
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

    Rgb ground() const {
        if (fill) return *fill;
        Rgb colour;
        for (std::size_t c = 0; c < 3; ++c)
            colour[c] = static_cast<std::uint8_t>(std::clamp(255.0 * static_cast<double>(stats.mean[c]), 0.0, 255.0));
        return colour;
    }

    Placement shorter_side(const Canvas& canvas) const {
        const std::size_t target = resize_to.value_or(size), shorter = std::min(canvas.size.height, canvas.size.width);
        const auto        scaled = [&](std::size_t side) {
            if (side == shorter) return target;
            return static_cast<std::size_t>(static_cast<double>(target * side) / static_cast<double>(shorter));
        };
        return centre(canvas, {scaled(canvas.size.height), scaled(canvas.size.width)});
    }

    /// The middle of the canvas resized to `to`.
    Placement centre(const Canvas& canvas, Size to) const {
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
};

/// An ImageTransform of a picture whose rows arrive from the top: what can be made of those is made at once.
///
///     TransformStream stream{transform, image, out};
///     stream.advance(n_rows);           // any number of times
///     stream.advance(image.height());   // now `out` is complete
class TransformStream {
public:
    /// Throws as ImageTransform::apply. Keeps a reference to `image`, none to `transform`; reads no pixel yet.
    TransformStream(const ImageTransform& transform, const Image& image, View<float, host, dyn, dyn, dyn> out)
        : transform_(transform), image_(image), out_(out) {
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
    TransformStream(const TransformStream&) = delete;
    TransformStream& operator=(const TransformStream&) = delete;

    /// The first `n_rows` rows of the picture are there and stay as they are.
    void advance(std::size_t n_rows) {
        if (resizing_) {
            const std::size_t done = resizing_->advance(n_rows);
            normalise(done == n_resized_ ? transform_.size : first_ + done);
        } else if (n_rows == image_.height()) {
            square_ = transform_.square(image_);
            normalise(transform_.size);
        }
    }

private:
    /// (v / 255 - mean) / std, each step rounded to f32, for the rows of the square up to `end`.
    void normalise(std::size_t end) {
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

    ImageTransform                        transform_;
    const Image&                          image_;
    View<float, host, dyn, dyn, dyn>      out_;
    std::array<std::array<float, 256>, 3> value_;
    Image                                 square_;
    std::optional<BicubicStream>          resizing_;
    std::size_t                           first_ = 0, n_resized_ = 0;  // rows of the square that come of the picture
    std::size_t                           n_normalised_ = 0;
};

inline void ImageTransform::apply(const Image& image, View<float, host, dyn, dyn, dyn> out) const {
    TransformStream{*this, image, out}.advance(image.height());
}

}  // namespace prism
