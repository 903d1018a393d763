// Writing pictures: PNG, 8-bit RGB.
//
//     write_png("features.png", image);
#pragma once

#include "prism/image/image.hpp"

#include <cstddef>
#include <filesystem>
#include <vector>

namespace prism {

/// The bytes of a PNG file. Throws ShapeError on an empty picture, Error when it is too large for the format.
template <class = void>
std::vector<std::byte> encode_png(const Image& image);

/// Writes a PNG file: beside its place, then renamed, so that no reader sees half of it. Throws LoadError when the
/// place cannot be written, and as encode_png.
template <class = void>
void write_png(const std::filesystem::path& path, const Image& image);

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/image/write.inl"
#endif
