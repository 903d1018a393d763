// Reading pictures: PNG and JPEG, told apart by content, to 8-bit RGB with the numbers of Pillow's convert("RGB").
//
//     Image image = read_image("cat.jpg");
#pragma once

#include "prism/image/image.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

namespace prism {

struct ReadOptions {
    /// Larger pictures are refused before memory is taken for them.
    std::uint64_t max_pixels = 1ULL << 28;

    /// Where it is set, a JPEG that ends early gives the rows that are there (grey below them) and this is called with
    /// what is wrong; otherwise such a file is an error. Also told about damage that a decoder can step over.
    std::function<void(const std::string& problem)> on_warning = {};
};

namespace image_detail {

/// Told while a picture is decoded: its first `n_rows` rows are there and stay as they are. The last call has all rows.
using OnRows = std::function<void(std::size_t n_rows)>;

/// decode_image into `image`, which stays where it is meanwhile.
template <class = void>
void decode_into(std::span<const std::byte> bytes, const std::string& name, const ReadOptions& options,
                        Image& image, const OnRows& on_rows = {});

}  // namespace image_detail

/// The picture in `bytes`: PNG of any kind, or JPEG, grey or colour. `name` is for messages. Alpha is dropped without
/// blending; the orientation in EXIF, gamma and colour profiles are not applied.
/// Throws FormatError on anything else: another format, CMYK, damage, an early end, more pixels than allowed.
template <class = void>
Image decode_image(std::span<const std::byte> bytes, const std::string& name, const ReadOptions& options = {});

/// The picture in a file, as decode_image. Throws LoadError when it cannot be read.
template <class = void>
Image read_image(const std::filesystem::path& path, const ReadOptions& options = {});

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/image/read.inl"
#endif
