// What write.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/core/error.hpp"
#include "prism/image/write.hpp"
#include "prism/io/file.hpp"

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <string>

#include <spng.h>

namespace prism {

template <class>
std::vector<std::byte> encode_png(const Image& image) {
    expect_pixels("encode_png", image);
    const auto check = [](int code) {
        if (code == SPNG_EMEM) throw std::bad_alloc{};
        if (code != SPNG_OK) throw Error("encode_png: " + std::string(spng_strerror(code)));
    };
    constexpr std::size_t max_side = 0x7fffffff;
    if (image.height() > max_side || image.width() > max_side) check(SPNG_EOVERFLOW);

    const std::unique_ptr<spng_ctx, decltype(&spng_ctx_free)> context{spng_ctx_new(SPNG_CTX_ENCODER), &spng_ctx_free};
    if (!context) throw std::bad_alloc{};
    check(spng_set_option(context.get(), SPNG_ENCODE_TO_BUFFER, 1));
    spng_ihdr header{};
    header.width = static_cast<std::uint32_t>(image.width());
    header.height = static_cast<std::uint32_t>(image.height());
    header.bit_depth = 8;
    header.color_type = SPNG_COLOR_TYPE_TRUECOLOR;
    check(spng_set_ihdr(context.get(), &header));
    check(spng_encode_image(context.get(), image.row(0), image.pixels.size(), SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE));

    int                                               code = SPNG_OK;
    std::size_t                                       n = 0;
    const std::unique_ptr<void, decltype(&std::free)> encoded{spng_get_png_buffer(context.get(), &n, &code),
                                                              &std::free};
    check(code);
    const auto* bytes = static_cast<const std::byte*>(encoded.get());
    return {bytes, bytes + n};
}

template <class>
void write_png(const std::filesystem::path& path, const Image& image) {
    const auto bytes = encode_png(image);
    NewFile    file{path};
    file.write(bytes);
    file.commit();
}

}  // namespace prism
