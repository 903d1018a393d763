// What feature_picture.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/image/resize.hpp"
#include "prism/model/feature_picture.hpp"
#include "prism/vision/pca.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace prism {

template <class>
Image feature_colours(View<const float, host, dyn, dyn> features, std::size_t grid) {
    expect("feature_colours", "features", {grid * grid, any}, features);
    const std::size_t n = features.rows(), k = std::min<std::size_t>(3, features.cols());
    const auto        pca = principal_components(features, k);
    Image             image = Image::sized(grid, grid);
    image.pixels.fill(128);  // what a component that is not there shows
    for (std::size_t j = 0; j < k; ++j) {
        std::vector<double> sorted(n);
        for (std::size_t i = 0; i < n; ++i) sorted[i] = pca.score(i, j);
        std::ranges::sort(sorted);
        const double low = sorted[n / 50], high = sorted[n - 1 - n / 50];
        if (!(high > low)) continue;
        for (std::size_t i = 0; i < n; ++i)
            image.row(i / grid)[3 * (i % grid) + j] = static_cast<std::uint8_t>(std::lround(255 * std::clamp((pca.score(i, j) - low) / (high - low), 0.0, 1.0)));
    }
    return image;
}

template <class>
Image lay_over(const Image& colours, const Image& picture, double opacity) {
    Image result = resize_bicubic(colours, {picture.height(), picture.width()});
    for (std::size_t y = 0; y < result.height(); ++y)
        for (std::size_t x = 0; x < result.width(); ++x) {
            const std::uint8_t* seen = picture.row(y) + 3 * x;
            const double        grey = 0.299 * seen[0] + 0.587 * seen[1] + 0.114 * seen[2];
            for (std::size_t c = 0; c < 3; ++c) {
                std::uint8_t& value = result.row(y)[3 * x + c];
                value = static_cast<std::uint8_t>(std::lround(opacity * value + (1 - opacity) * grey));
            }
        }
    return result;
}

}  // namespace prism
