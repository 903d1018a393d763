// What the tests of image/ share: expected tensors, the pattern picture, comparing.
#pragma once

#include "prism/core/tensor.hpp"
#include "prism/image/image.hpp"
#include "prism/io/safetensors.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace prism::test {

inline std::filesystem::path image_data() { return std::filesystem::path(PRISM_TEST_DATA) / "images"; }

/// The tensors of a file, by name.
class Expected {
public:
    explicit Expected(const std::filesystem::path& file) : file_(read_safetensors(file)) {}

    const std::vector<TensorInfo>& tensors() const { return file_.tensors; }
    const TensorInfo&              operator[](const std::string& name) const {
                     for (const TensorInfo& tensor : file_.tensors)
            if (tensor.name == name) return tensor;
        throw std::out_of_range("no expected tensor " + name);
    }

private:
    Safetensors file_;
};

/// The picture that make_images.py calls pattern; prismatic.md 11.2 has it, too.
inline Image pattern(std::size_t width, std::size_t height) {
    Image image = Image::sized(height, width);
    for (std::size_t y = 0; y < height; ++y)
        for (std::size_t x = 0; x < width; ++x)
            for (std::size_t c = 0; c < 3; ++c)
                image.pixels(y, x, c) = static_cast<std::uint8_t>(37 * x + 91 * y + 29 * c + x * y);
    return image;
}

/// The largest difference of two pictures in grey levels; 256 where the shapes differ.
inline int worst_difference(const Image& image, const TensorInfo& expected) {
    if (expected.shape != std::vector{image.height(), image.width(), std::size_t{3}}) return 256;
    int worst = 0;
    for (std::size_t i = 0; i < image.pixels.size(); ++i) {
        const int difference = image.pixels.data()[i] - static_cast<int>(expected.data[i]);
        worst = std::max(worst, difference < 0 ? -difference : difference);
    }
    return worst;
}

/// How many values have other bits than expected.
inline std::size_t count_other_bits(std::span<const float> values, std::span<const std::byte> expected) {
    std::size_t n = 0;
    for (std::size_t i = 0; i < values.size(); ++i) n += std::memcmp(&values[i], &expected[4 * i], 4) != 0;
    return n;
}

/// "31x40": width and height.
inline std::array<std::size_t, 2> parse_size(const std::string& text) {
    const std::size_t x = text.find('x');
    return {std::stoul(text.substr(0, x)), std::stoul(text.substr(x + 1))};
}

/// Text between slash number `i` and the next, from 0.
inline std::string part(const std::string& path, int i) {
    std::size_t begin = 0;
    while (i-- > 0) begin = path.find('/', begin) + 1;
    return path.substr(begin, path.find('/', begin) - begin);
}

}  // namespace prism::test
