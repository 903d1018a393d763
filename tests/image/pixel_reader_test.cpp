#include "prism/image/pixel_reader.hpp"

#include "support.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <jpeglib.h>  // needs <cstdio> before it

using namespace prism;
namespace fs = std::filesystem;

namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span{text}); }

/// The pattern as a JPEG: of many blocks, so that its rows come in several goes.
std::string large_jpeg(unsigned width, unsigned height, bool progressive) {
    const Image          image = test::pattern(width, height);
    jpeg_compress_struct encoder{};
    jpeg_error_mgr       errors{};
    encoder.err = jpeg_std_error(&errors);
    jpeg_create_compress(&encoder);
    unsigned char* memory = nullptr;
    unsigned long  n = 0;
    jpeg_mem_dest(&encoder, &memory, &n);
    encoder.image_width = width;
    encoder.image_height = height;
    encoder.input_components = 3;
    encoder.in_color_space = JCS_RGB;
    jpeg_set_defaults(&encoder);
    if (progressive) jpeg_simple_progression(&encoder);
    jpeg_start_compress(&encoder, TRUE);
    for (std::size_t y = 0; y < height; ++y) {
        JSAMPROW row = const_cast<JSAMPROW>(image.row(y));
        jpeg_write_scanlines(&encoder, &row, 1);
    }
    jpeg_finish_compress(&encoder);
    jpeg_destroy_compress(&encoder);
    const std::unique_ptr<unsigned char, decltype(&std::free)> owner{memory, &std::free};
    return {reinterpret_cast<const char*>(memory), n};
}

/// Transforms of every strategy, and what came of them.
class Outputs {
public:
    Outputs() {
        for (const Resize strategy : {Resize::naive, Resize::letterbox, Resize::crop, Resize::pad})
            add({.stats = statistics::clip, .strategy = strategy, .size = 45});
        add({.stats = statistics::half, .size = 150});
        add({.size = 31, .centre_crop_area = 0.9f});
        add({.strategy = Resize::crop, .size = 33, .resize_to = 20});
    }

    std::vector<TowerPixels> towers() {
        std::vector<TowerPixels> list;
        for (std::size_t i = 0; i < transforms_.size(); ++i) {
            const std::size_t size = transforms_[i].size;
            list.push_back({transforms_[i], {values_[i].data(), {3, size, size}}});
        }
        return list;
    }

    const std::vector<std::vector<float>>& values() const { return values_; }

private:
    void add(const ImageTransform& transform) {
        transforms_.push_back(transform);
        values_.emplace_back(3 * transform.size * transform.size, -9.0f);
    }
    std::vector<ImageTransform>     transforms_;
    std::vector<std::vector<float>> values_;
};

}  // namespace

TEST_CASE("image/pixel_reader: every picture has the bits of decoding first and transforming then, on any threads") {
    std::vector<std::string> pictures{large_jpeg(403, 641, false), large_jpeg(10, 515, false),
                                      large_jpeg(3, 1000, true), large_jpeg(700, 130, true)};
    for (const auto& entry : fs::directory_iterator(test::image_data())) {
        const auto file = entry.path();
        if ((file.extension() == ".png" || file.extension() == ".jpg") && file.filename() != "cmyk.jpg")
            pictures.push_back(read_file(file));
    }
    CHECK(pictures.size() >= 54);

    std::array<PixelReader, 3> readers{PixelReader{{.threads = 1}}, PixelReader{{.threads = 2}},
                                       PixelReader{{.threads = 5}}};
    for (std::size_t i = 0; i < pictures.size(); ++i) {
        CAPTURE(i);
        const Image image = decode_image(bytes_of(pictures[i]), "test");
        Outputs     expected;
        for (const TowerPixels& tower : expected.towers()) tower.transform.apply(image, tower.out);
        for (PixelReader& reader : readers)
            for (int time = 0; time < (i < 4 ? 5 : 1); ++time) {  // the helper comes in at other moments
                Outputs    outputs;
                const auto towers = outputs.towers();
                CHECK(reader.decode(bytes_of(pictures[i]), "test", towers).pixels == image.pixels);
                CHECK(outputs.values() == expected.values());
            }
    }
}

TEST_CASE("image/pixel_reader: reads files, and pictures without towers") {
    PixelReader        reader;
    const auto         file = test::image_data() / "420.jpg";
    std::vector<float> values(3 * 9 * 9), expected = values;
    const TowerPixels  tower{{.size = 9}, {values.data(), {3, 9, 9}}};
    CHECK(reader.read(file, {&tower, 1}).pixels == read_image(file).pixels);
    tower.transform.apply(read_image(file), {expected.data(), {3, 9, 9}});
    CHECK(values == expected);
    CHECK(reader.read(file, {}).pixels == read_image(file).pixels);
    CHECK_THROWS_AS(reader.read("no/such/file.jpg", {}), LoadError);
}

TEST_CASE("image/pixel_reader: what cannot be read or made is refused, and the next picture is as good as ever") {
    const std::string jpeg = large_jpeg(300, 500, false);
    for (const std::size_t threads : {1, 2}) {
        PixelReader reader{{.threads = threads}};
        Outputs     expected;
        const auto  expected_towers = expected.towers();
        reader.decode(bytes_of(jpeg), "test", expected_towers);

        std::vector<float>               values(3 * 8 * 8);
        const std::array<TowerPixels, 2> second_misfits{TowerPixels{{.size = 8}, {values.data(), {3, 8, 8}}},
                                                        TowerPixels{{.size = 8}, {values.data(), {3, 8, 4}}}};
        Outputs                          outputs;
        const auto                       towers = outputs.towers();
        for (int time = 0; time < 20; ++time) {
            CHECK_THROWS_AS(reader.decode(bytes_of(jpeg), "test", second_misfits), ShapeError);
            CHECK_THROWS_AS(reader.decode(bytes_of("GIF89a"), "test", towers), FormatError);
            const auto part = bytes_of(jpeg).first(jpeg.size() * static_cast<std::size_t>(time) / 20);
            CHECK_THROWS_AS(reader.decode(part, "test", towers), FormatError);
        }
        reader.decode(bytes_of(jpeg), "test", towers);
        CHECK(outputs.values() == expected.values());

        std::string told;
        const auto  half = bytes_of(jpeg).first(jpeg.size() / 2);
        const Image image = reader.decode(half, "test", towers, {.on_warning = [&](const auto& s) { told = s; }});
        CHECK(told == "test: cut off: the picture is incomplete");
        for (const TowerPixels& tower : expected_towers) tower.transform.apply(image, tower.out);
        CHECK(outputs.values() == expected.values());
    }
}
