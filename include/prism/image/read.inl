// What read.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/core/error.hpp"
#include "prism/image/read.hpp"
#include "prism/io/file.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include <csetjmp>
#include <jpeglib.h>  // needs <cstdio> before it
#include <spng.h>

namespace prism {

namespace image_detail {

/// Throws FormatError unless the picture is within the limit and `data_bytes` can hold it at all. A format packs at
/// most `pixels_per_byte` pixels into a byte, so that memory is taken in proportion to what is really there.
template <class = void>
void check_picture_size(const std::string& name, std::uint64_t byte, std::uint64_t height, std::uint64_t width,
                               std::uint64_t max_pixels, std::uint64_t data_bytes, std::uint64_t pixels_per_byte) {
    const std::string size = std::to_string(width) + " x " + std::to_string(height) + " pixels";
    if (height == 0 || width == 0) throw FormatError{name, byte, "the picture has " + size};
    if (height > max_pixels / width)
        throw FormatError{name, byte, "the picture has " + size + ", over the limit of " + std::to_string(max_pixels)};
    if (height * width / pixels_per_byte > data_bytes)
        throw FormatError{name, byte,
                          "cut off: " + size + " cannot come from " + std::to_string(data_bytes) + " bytes"};
}

/// A PNG in memory, read through libspng.
class PngReader {
public:
    PngReader(std::span<const std::byte> bytes, const std::string& name)
        : bytes_(bytes), name_(name), context_(spng_ctx_new(0), &spng_ctx_free) {
        if (!context_) throw std::bad_alloc{};
        // 64 MiB for what surrounds the pixels: text and profiles may be compressed a thousandfold.
        check(spng_set_chunk_limits(context_.get(), 64U << 20, 64U << 20));
        check(spng_set_crc_action(context_.get(), SPNG_CRC_ERROR, SPNG_CRC_ERROR));
        check(spng_set_png_stream(context_.get(), &PngReader::feed, this));
    }

    void read(const ReadOptions& options, Image& image, const OnRows& on_rows) {
        spng_ihdr header{};
        check(spng_get_ihdr(context_.get(), &header));
        // Deflate shrinks by 1032 at most, and a pixel has one bit at least.
        check_picture_size(name_, at_, header.height, header.width, options.max_pixels, bytes_.size(),
                           1032 * std::uint64_t{8} / std::max(1U, bits_per_pixel(header)));

        std::size_t stored_bytes = 0;
        check(spng_decoded_image_size(context_.get(), SPNG_FMT_RAW, &stored_bytes));
        image = Image::sized(header.height, header.width);
        if (header.color_type == SPNG_COLOR_TYPE_TRUECOLOR && header.bit_depth == 8) {
            decode(image.row(0), stored_bytes);
        } else {
            std::vector<std::uint8_t> stored(stored_bytes);
            decode(stored.data(), stored_bytes);
            const std::size_t stride = stored_bytes / header.height;
            const auto        colours = colour_table(header);
            for (std::size_t y = 0; y < header.height; ++y)
                expand(header, colours, stored.data() + y * stride, image.row(y), image.width());
        }
        check(spng_decode_chunks(context_.get()));
        if (cut_off_) check(SPNG_EOF);  // libspng does without an end
        if (on_rows) on_rows(image.height());
    }

private:
    using Colours = std::array<Rgb, 256>;

    static int feed(spng_ctx*, void* self, void* into, std::size_t n) {
        auto& reader = *static_cast<PngReader*>(self);
        if (n > reader.bytes_.size() - reader.at_) {
            reader.cut_off_ = true;
            return SPNG_IO_EOF;
        }
        std::memcpy(into, reader.bytes_.data() + reader.at_, n);
        reader.at_ += n;
        return 0;
    }

    void check(int code) const {
        if (code == SPNG_OK) return;
        if (code == SPNG_EMEM) throw std::bad_alloc{};
        throw FormatError{name_, at_, "PNG: " + std::string(cut_off_ ? "cut off" : spng_strerror(code))};
    }

    void decode(std::uint8_t* into, std::size_t n) {
        check(spng_decode_image(context_.get(), into, n, SPNG_FMT_RAW, 0));
    }

    static unsigned n_channels(const spng_ihdr& header) {
        switch (header.color_type) {
            case SPNG_COLOR_TYPE_TRUECOLOR: return 3;
            case SPNG_COLOR_TYPE_TRUECOLOR_ALPHA: return 4;
            case SPNG_COLOR_TYPE_GRAYSCALE_ALPHA: return 2;
            default: return 1;
        }
    }
    static unsigned bits_per_pixel(const spng_ihdr& header) { return header.bit_depth * n_channels(header); }

    /// What each number of a palette, or each grey of at most 8 bits, stands for. Past the palette's end: black.
    Colours colour_table(const spng_ihdr& header) {
        Colours colours{};
        if (header.color_type == SPNG_COLOR_TYPE_INDEXED) {
            spng_plte palette{};
            check(spng_get_plte(context_.get(), &palette));
            for (std::size_t i = 0; i < std::min<std::size_t>(palette.n_entries, 256); ++i)
                colours[i] = {palette.entries[i].red, palette.entries[i].green, palette.entries[i].blue};
        } else if (header.bit_depth <= 8) {
            const unsigned white = (1U << header.bit_depth) - 1;
            for (unsigned i = 0; i <= white; ++i) colours[i].fill(static_cast<std::uint8_t>(i * (255 / white)));
        }
        return colours;
    }

    /// One row of `n` pixels as stored, to RGB. Alpha and tRNS are dropped without blending. Of 16 bits the upper 8 are
    /// kept, except that a 16-bit grey without alpha is cut at 255: so does Pillow, whose mode "I" it is.
    static void expand(const spng_ihdr& header, const Colours& colours, const std::uint8_t* stored, std::uint8_t* rgb,
                       std::size_t n) {
        const unsigned channels = n_channels(header), depth = header.bit_depth;
        if (channels == 1 && depth < 8) {
            for (std::size_t x = 0; x < n; ++x, rgb += 3) {
                const std::size_t bit = x * depth;
                const unsigned    value = stored[bit / 8] >> (8 - depth - bit % 8) & ((1U << depth) - 1);
                std::copy_n(colours[value].data(), 3, rgb);
            }
        } else if (channels == 1 && depth == 8) {
            for (std::size_t x = 0; x < n; ++x, rgb += 3) std::copy_n(colours[stored[x]].data(), 3, rgb);
        } else if (channels == 1) {
            for (std::size_t x = 0; x < n; ++x, rgb += 3)
                std::fill_n(rgb, 3, stored[2 * x] == 0 ? stored[2 * x + 1] : std::uint8_t{255});
        } else {
            const std::size_t sample = depth / 8, green = channels >= 3 ? sample : 0, blue = 2 * green;
            for (std::size_t x = 0; x < n; ++x, rgb += 3, stored += channels * sample)
                rgb[0] = stored[0], rgb[1] = stored[green], rgb[2] = stored[blue];
        }
    }

    std::span<const std::byte>                          bytes_;
    const std::string&                                  name_;
    std::size_t                                         at_ = 0;
    bool                                                cut_off_ = false;
    std::unique_ptr<spng_ctx, decltype(&spng_ctx_free)> context_;
};

/// A JPEG in memory, read through libjpeg, whose defaults are Pillow's: the accurate integer DCT and smooth chroma
/// upsampling. libjpeg reports errors by a jump, which must not pass a frame that has destructors to run: only the
/// member functions marked noexcept call it, and they return false after a jump.
class JpegReader {
public:
    JpegReader(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {
        jpeg_.err = jpeg_std_error(&errors_);
        jpeg_.client_data = this;
        errors_.error_exit = [](j_common_ptr jpeg) {
            auto& reader = of(jpeg);
            reader.errors_.format_message(jpeg, reader.problem_.data());
            std::longjmp(reader.jump_, 1);
        };
        errors_.emit_message = [](j_common_ptr jpeg, int level) {
            if (level < 0 && of(jpeg).errors_.num_warnings++ == 0)
                of(jpeg).errors_.format_message(jpeg, of(jpeg).warning_.data());
        };
        source_.next_input_byte = reinterpret_cast<const JOCTET*>(bytes.data());
        source_.bytes_in_buffer = bytes.size();
        source_.init_source = [](j_decompress_ptr) {};
        source_.term_source = [](j_decompress_ptr) {};
        source_.resync_to_restart = &jpeg_resync_to_restart;
        source_.fill_input_buffer = [](j_decompress_ptr jpeg) -> boolean {
            static constexpr std::array<JOCTET, 2> end_of_image{0xff, JPEG_EOI};
            of(jpeg).cut_off_ = true;
            jpeg->src->next_input_byte = end_of_image.data();
            jpeg->src->bytes_in_buffer = end_of_image.size();
            return TRUE;
        };
        source_.skip_input_data = [](j_decompress_ptr jpeg, long n) {
            if (n <= 0) return;
            const auto skip = static_cast<std::size_t>(n);
            if (skip > jpeg->src->bytes_in_buffer) {
                jpeg->src->fill_input_buffer(jpeg);
            } else {
                jpeg->src->next_input_byte += skip;
                jpeg->src->bytes_in_buffer -= skip;
            }
        };
        // A scan of a few bytes can go over the whole picture; real files have about ten of them.
        progress_.progress_monitor = [](j_common_ptr jpeg) {
            constexpr int max_scans = 500;
            auto&         reader = of(jpeg);
            if (reader.jpeg_.input_scan_number <= max_scans) return;
            std::snprintf(reader.problem_.data(), reader.problem_.size(), "more than %d scans", max_scans);
            std::longjmp(reader.jump_, 1);
        };
    }
    JpegReader(const JpegReader&) = delete;
    JpegReader& operator=(const JpegReader&) = delete;
    ~JpegReader() { jpeg_destroy_decompress(&jpeg_); }

    void read(const ReadOptions& options, Image& image, const OnRows& on_rows) {
        if (!read_header()) fail();
        if (jpeg_.num_components != 1 && jpeg_.num_components != 3)
            throw FormatError{name_, at(),
                              jpeg_.num_components == 4 ? "JPEG: CMYK pictures are not supported"
                                                        : "JPEG: neither grey nor of three colours"};
        // A block of 8 x 8 takes one bit at least.
        check_picture_size(name_, at(), jpeg_.image_height, jpeg_.image_width, options.max_pixels, bytes_.size(), 512);
        image = Image::sized(jpeg_.image_height, jpeg_.image_width);
        if (!start()) fail();
        while (jpeg_.output_scanline < jpeg_.output_height) {
            if (!decode_rows(image.row(0), image.row_bytes())) fail();
            if (on_rows) on_rows(jpeg_.output_scanline);
        }
        if (!finish()) fail();
        if (cut_off_ && !options.on_warning) fail();
        if (cut_off_) options.on_warning(name_ + ": cut off: the picture is incomplete");
        else if (errors_.num_warnings > 0 && options.on_warning) options.on_warning(name_ + ": " + warning_.data());
    }

private:
    static JpegReader& of(j_common_ptr jpeg) { return *static_cast<JpegReader*>(jpeg->client_data); }
    static JpegReader& of(j_decompress_ptr jpeg) { return *static_cast<JpegReader*>(jpeg->client_data); }

    bool read_header() noexcept {
        if (setjmp(jump_)) return false;
        jpeg_create_decompress(&jpeg_);
        jpeg_.src = &source_;
        jpeg_.progress = &progress_;
        jpeg_read_header(&jpeg_, TRUE);
        return true;
    }

    bool start() noexcept {
        if (setjmp(jump_)) return false;
        jpeg_.out_color_space = JCS_RGB;
        jpeg_start_decompress(&jpeg_);
        return true;
    }

    /// The next rows of the picture that begins at `rows`.
    bool decode_rows(std::uint8_t* rows, std::size_t row_bytes) noexcept {
        if (setjmp(jump_)) return false;
        for (JDIMENSION k = 0; k < rows_at_once && jpeg_.output_scanline < jpeg_.output_height; ++k) {
            JSAMPROW row = rows + jpeg_.output_scanline * row_bytes;
            jpeg_read_scanlines(&jpeg_, &row, 1);
        }
        return true;
    }

    bool finish() noexcept {
        if (setjmp(jump_)) return false;
        jpeg_finish_decompress(&jpeg_);
        return true;
    }

    std::uint64_t at() const { return cut_off_ ? bytes_.size() : bytes_.size() - source_.bytes_in_buffer; }

    [[noreturn]] void fail() const {
        const std::string problem = cut_off_ ? "cut off" : problem_.data();
        throw FormatError{name_, at(), "JPEG: " + problem};
    }

    static constexpr JDIMENSION rows_at_once = 64;  // between two words to who follows

    std::span<const std::byte>        bytes_;
    const std::string&                name_;
    jpeg_decompress_struct            jpeg_{};
    jpeg_error_mgr                    errors_{};
    jpeg_source_mgr                   source_{};
    jpeg_progress_mgr                 progress_{};
    std::array<char, JMSG_LENGTH_MAX> problem_{}, warning_{};
    bool                              cut_off_ = false;
    std::jmp_buf                      jump_;
};

inline bool starts_with(std::span<const std::byte> bytes, std::string_view magic) {
    return bytes.size() >= magic.size() && std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
}

template <class>
void decode_into(std::span<const std::byte> bytes, const std::string& name, const ReadOptions& options,
                        Image& image, const OnRows& on_rows) {
    using namespace std::string_view_literals;
    if (starts_with(bytes, "\x89PNG\r\n\x1a\n"sv)) return PngReader{bytes, name}.read(options, image, on_rows);
    if (starts_with(bytes, "\xff\xd8\xff"sv)) return JpegReader{bytes, name}.read(options, image, on_rows);
    throw FormatError{
        name, 0, bytes.empty() ? "an empty file, where a picture is needed" : "neither PNG nor JPEG by its content"};
}

}  // namespace image_detail

template <class>
Image decode_image(std::span<const std::byte> bytes, const std::string& name, const ReadOptions& options) {
    Image image;
    image_detail::decode_into(bytes, name, options, image);
    return image;
}

template <class>
Image read_image(const std::filesystem::path& path, const ReadOptions& options) {
    const std::string bytes = read_file(path);
    return decode_image(std::as_bytes(std::span{bytes}), path.string(), options);
}

}  // namespace prism
