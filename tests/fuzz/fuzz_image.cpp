// Any bytes: a picture, or FormatError. What decodes also passes a transform and comes back from PNG unchanged.
//
//     fuzz_image -max_len=65536 corpus tests/data/images
#include "prism/image/read.hpp"
#include "prism/image/transform.hpp"
#include "prism/image/write.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <zlib.h>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t n, std::size_t max_n);

/// Gives the chunks of a PNG their checksums back after most mutations, so that damage gets past them.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t n, std::size_t max_n, unsigned seed) {
    n = LLVMFuzzerMutate(data, n, max_n);
    if (n < 8 || std::memcmp(data, "\x89PNG", 4) != 0 || seed % 8 == 0) return n;
    const auto read = [&](std::size_t at) {
        return std::uint32_t{data[at]} << 24 | std::uint32_t{data[at + 1]} << 16 | std::uint32_t{data[at + 2]} << 8 |
               data[at + 3];
    };
    for (std::size_t at = 8; n - at >= 12 && read(at) <= n - at - 12; at += 12 + read(at)) {
        const std::uint32_t length = read(at);
        const auto          sum = crc32(0, data + at + 4, length + 4);
        for (std::size_t i = 0; i < 4; ++i) data[at + 8 + length + i] = static_cast<std::uint8_t>(sum >> (24 - 8 * i));
    }
    return n;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    const auto bytes = std::as_bytes(std::span{data, n});
    for (const bool listen : {false, true}) {
        ReadOptions options{.max_pixels = 1 << 16};
        if (listen) options.on_warning = [](const std::string&) {};
        try {
            const Image image = decode_image(bytes, "fuzz", options);
            if (decode_image(encode_png(image), "again").pixels != image.pixels) std::abort();
            constexpr std::size_t size = 16;
            const ImageTransform  transform{.strategy = static_cast<Resize>(n % 4), .size = size};
            std::vector<float>    values(3 * size * size);
            transform.apply(image, {values.data(), {3, size, size}});
        } catch (const FormatError&) {}
    }
    return 0;
}
