// Pixels: pictures as the towers of a model read them, on its backend.
//
//     const Pixels<B> pixels{be, vlm.transforms(), read_image("cat.jpg")};
//     vlm.see(be, ws, pixels.views(), soft_tokens);
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/buffer.hpp"
#include "prism/image/transform.hpp"
#include "prism/ops/patchify.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace prism {

/// One tensor [n, 3, S, S] a tower, of the same n pictures.
template <Backend B>
class Pixels {
public:
    Pixels(B& be, std::span<const ImageTransform> towers, std::span<const Image> images) {
        for (const ImageTransform& t : towers) {
            const std::size_t  plane = 3 * t.size * t.size;
            std::vector<float> values(images.size() * plane);
            for (std::size_t i = 0; i < images.size(); ++i) t.apply(images[i], {values.data() + i * plane, {3, t.size, t.size}});
            add(be, values, {images.size(), 3, t.size, t.size});
        }
    }
    Pixels(B& be, std::span<const ImageTransform> towers, const Image& image) : Pixels(be, towers, std::span(&image, 1)) {}

    /// From values that are normalised already, a tower's [n, 3, S, S] after another's.
    Pixels() = default;
    void add(B& be, std::span<const float> values, std::array<std::size_t, 4> shape) {
        buffers_.push_back(be.allocate(values.size() * sizeof(float)));
        auto* data = buffers_.back().template as<float>();
        be.upload(values, Vec<B>{data, {values.size()}});
        views_.push_back(PixelView<B>{data, shape});
    }

    std::span<const PixelView<B>> views() const { return views_; }

private:
    std::vector<Buffer<typename B::space>> buffers_;
    std::vector<PixelView<B>>              views_;
};

}  // namespace prism
