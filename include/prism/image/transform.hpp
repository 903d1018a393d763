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
    template <class = void>
    void apply(const Image& image, View<float, host, dyn, dyn, dyn> out) const;

    /// The 8-bit picture [size, size, 3] that is then normalised.
    template <class = void>
    Image square(const Image& image) const;

private:
    friend class TransformStream;

    /// What becomes of a picture: the canvas resized to `to`, and of that `part` put into the square at (top, left).
    struct Placement {
        Canvas      canvas;
        Size        to;
        Window      part;
        std::size_t top, left;
    };

    template <class = void>
    void check(const Image& image) const;

    template <class = void>
    Image square_whole(const Image& image) const;

    /// The square, black where no picture will be.
    template <class = void>
    Image blank(const Placement& place) const;

    template <class = void>
    static BicubicStream start(const Placement& place, Image& square);

    template <class = void>
    Placement placement(const Image& image) const;

    template <class = void>
    Rgb ground() const;

    template <class = void>
    Placement shorter_side(const Canvas& canvas) const;

    /// The middle of the canvas resized to `to`.
    template <class = void>
    Placement centre(const Canvas& canvas, Size to) const;
};

/// An ImageTransform of a picture whose rows arrive from the top: what can be made of those is made at once.
///
///     TransformStream stream{transform, image, out};
///     stream.advance(n_rows);           // any number of times
///     stream.advance(image.height());   // now `out` is complete
class TransformStream {
public:
    /// Throws as ImageTransform::apply. Keeps a reference to `image`, none to `transform`; reads no pixel yet.
    template <class = void>
    TransformStream(const ImageTransform& transform, const Image& image, View<float, host, dyn, dyn, dyn> out);
    TransformStream(const TransformStream&) = delete;
    TransformStream& operator=(const TransformStream&) = delete;

    /// The first `n_rows` rows of the picture are there and stay as they are.
    template <class = void>
    void advance(std::size_t n_rows);

private:
    /// (v / 255 - mean) / std, each step rounded to f32, for the rows of the square up to `end`.
    template <class = void>
    void normalise(std::size_t end);

    ImageTransform                        transform_;
    const Image&                          image_;
    View<float, host, dyn, dyn, dyn>      out_;
    std::array<std::array<float, 256>, 3> value_;
    Image                                 square_;
    std::optional<BicubicStream>          resizing_;
    std::size_t                           first_ = 0, n_resized_ = 0;  // rows of the square that come of the picture
    std::size_t                           n_normalised_ = 0;
};

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/image/transform.inl"
#endif
