#include "prism/image/read.hpp"

#include "support.hpp"
#include "support/cases.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <zlib.h>

using namespace prism;
namespace fs = std::filesystem;

namespace {

Image decode(std::string_view bytes, const ReadOptions& options = {}) {
    return decode_image(std::as_bytes(std::span{bytes}), "test", options);
}

std::vector<fs::path> pictures() {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(test::image_data()))
        if (entry.path().extension() == ".png" || entry.path().extension() == ".jpg") files.push_back(entry.path());
    std::ranges::sort(files);
    return files;
}

std::string big_endian(std::uint32_t v) {
    std::string s;
    for (int shift = 24; shift >= 0; shift -= 8) s += static_cast<char>(v >> shift & 0xff);
    return s;
}

std::string chunk(const std::string& kind, const std::string& data) {
    const std::string body = kind + data;
    const auto        crc = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
    return big_endian(static_cast<std::uint32_t>(data.size())) + body + big_endian(static_cast<std::uint32_t>(crc));
}

std::string deflate(const std::string& raw) {
    std::string data(compressBound(raw.size()), '\0');
    uLongf      n = data.size();
    compress(reinterpret_cast<Bytef*>(data.data()), &n, reinterpret_cast<const Bytef*>(raw.data()), raw.size());
    data.resize(n);
    return data;
}

/// Header fields after the size: depth, colour, compression, filter, interlacing.
std::string png(std::uint32_t width, std::uint32_t height, std::initializer_list<char> fields, const std::string& raw,
                const std::string& before = "") {
    return "\x89PNG\r\n\x1a\n" + chunk("IHDR", big_endian(width) + big_endian(height) + std::string(fields)) + before +
           chunk("IDAT", deflate(raw)) + chunk("IEND", "");
}

/// Decodes something broken: a typed error or a picture, nothing else.
void survive(std::string_view bytes) {
    try {
        decode(bytes, {.max_pixels = 1 << 16});
    } catch (const FormatError&) {}
}

}  // namespace

TEST_CASE("image/read: every kind of PNG and JPEG gives Pillow's RGB") {
    const test::Expected expected{test::image_data() / "expected.safetensors"};
    int                  n = 0;
    for (const auto& file : pictures()) {
        const std::string name = file.filename().string();
        if (name == "cmyk.jpg") continue;
        CAPTURE(name);
        CHECK(test::worst_difference(read_image(file), expected[name + "/rgb"]) <= (name.ends_with(".png") ? 0 : 2));
        ++n;
    }
    CHECK(n >= 50);
}

TEST_CASE("image/read: the reference pictures decode as Pillow has them, JPEG within two levels") {
    int worst_jpeg = 0;
    for (const auto& root : test::reference_roots()) {
        if (!fs::exists(root / "images/expected.safetensors")) continue;
        const test::Expected expected{root / "images/expected.safetensors"};
        for (const TensorInfo& tensor : expected.tensors()) {
            if (!tensor.name.ends_with("/rgb")) continue;
            const auto file = root / "images" / test::part(tensor.name, 0);
            CAPTURE(file.string());
            const int difference = test::worst_difference(read_image(file), tensor);
            if (file.extension() == ".png") CHECK(difference == 0);
            else worst_jpeg = std::max(worst_jpeg, difference);
        }
    }
    CHECK(worst_jpeg <= 2);
    MESSAGE("largest difference of a JPEG: " << worst_jpeg << " levels");
}

TEST_CASE("image/read: CMYK is refused by name") {
    CHECK_THROWS_WITH_AS(read_image(test::image_data() / "cmyk.jpg"),
                         doctest::Contains("CMYK pictures are not supported"), FormatError);
}

TEST_CASE("image/read: files that are not there or not pictures") {
    CHECK_THROWS_AS(read_image("no/such/file.png"), LoadError);
    CHECK_THROWS_AS(read_image(test::image_data()), LoadError);
    CHECK_THROWS_WITH_AS(read_image(test::image_data() / "make_images.py"),
                         doctest::Contains("neither PNG nor JPEG by its content"), FormatError);
    CHECK_THROWS_WITH_AS(decode(""), "test: byte 0: an empty file, where a picture is needed", FormatError);
    CHECK_THROWS_AS(decode("\x89PNG"), FormatError);
    CHECK_THROWS_AS(decode("\xff\xd8\xff"), FormatError);
    CHECK_THROWS_AS(decode("GIF89a\1\0\1\0"), FormatError);
}

TEST_CASE("image/read: the content decides, not the name") {
    const std::string jpeg = read_file(test::image_data() / "444.jpg");
    CHECK(decode_image(std::as_bytes(std::span{jpeg}), "picture.png").width() == 53);
}

TEST_CASE("image/read: zero, absurd and impossible sizes are refused before memory is taken") {
    const auto refuse = [](std::uint32_t width, std::uint32_t height, const char* why,
                           const ReadOptions& options = {}) {
        CAPTURE(width);
        CAPTURE(height);
        CHECK_THROWS_WITH_AS(decode(png(width, height, {8, 2, 0, 0, 0}, "x"), options), doctest::Contains(why),
                             FormatError);
    };
    refuse(0, 1, "width");
    refuse(1, 0, "height");
    refuse(0x80000000, 1, "width");
    refuse(0x7fffffff, 0x7fffffff, "overflow");
    refuse(0x1fffffff, 2, "over the limit of 268435456");
    refuse(1 << 14, (1 << 14) + 1, "over the limit");
    refuse(1 << 14, 1 << 14, "cut off: 16384 x 16384 pixels cannot come from");
    refuse(5, 5, "over the limit of 24", {.max_pixels = 24});

    std::string jpeg = read_file(test::image_data() / "444.jpg");
    const auto  frame = jpeg.find("\xff\xc0");
    REQUIRE(frame != std::string::npos);
    CHECK_THROWS_WITH_AS(decode(jpeg, {.max_pixels = 53 * 38 - 1}), doctest::Contains("over the limit of 2013"),
                         FormatError);
    CHECK_NOTHROW(decode(jpeg, {.max_pixels = 53 * 38}));
    jpeg[frame + 5] = jpeg[frame + 7] = '\x3f';
    CHECK_THROWS_WITH_AS(decode(jpeg), doctest::Contains("cut off: "), FormatError);
    jpeg[frame + 5] = jpeg[frame + 7] = '\xff';
    CHECK_THROWS_WITH_AS(decode(jpeg), doctest::Contains("over the limit"), FormatError);
    jpeg[frame + 5] = jpeg[frame + 6] = 0;
    CHECK_THROWS_AS(decode(jpeg), FormatError);
}

TEST_CASE("image/read: a PNG cut off anywhere is refused, with the place") {
    for (const char* name : {"rgb8.png", "palette4-interlaced.png", "grey16.png"}) {
        const std::string whole = read_file(test::image_data() / name);
        for (std::size_t n = 8; n < whole.size(); ++n) {
            CAPTURE(n);
            try {
                decode(std::string_view{whole}.substr(0, n));
                FAIL("accepted");
            } catch (const FormatError& e) {
                CHECK(e.byte <= n);
                CHECK(e.file == "test");
                CHECK(e.problem.find("cut off") != std::string::npos);
            }
        }
        CHECK_NOTHROW(decode(whole + "trailing bytes"));
    }
}

TEST_CASE("image/read: a JPEG cut off is refused, or gives its rows where the caller listens") {
    for (const char* name : {"420.jpg", "progressive.jpg", "grey.jpg", "restarts.jpg"}) {
        CAPTURE(name);
        const std::string whole = read_file(test::image_data() / name);
        const Image       full = decode(whole);
        std::size_t       n_partial = 0;
        for (std::size_t n = 3; n < whole.size(); ++n) {
            const auto part = std::string_view{whole}.substr(0, n);
            CHECK_THROWS_WITH_AS(decode(part), doctest::Contains("cut off"), FormatError);
            std::string told;
            try {
                const Image image = decode(part, {.on_warning = [&](const std::string& problem) { told = problem; }});
                CHECK(told == "test: cut off: the picture is incomplete");
                CHECK(image.pixels.shape() == full.pixels.shape());
                ++n_partial;
            } catch (const FormatError&) { CHECK(told.empty()); }
        }
        CHECK(n_partial > whole.size() / 3);

        std::string told;
        const Image almost = decode(std::string_view{whole}.substr(0, whole.size() - 2),
                                    {.on_warning = [&](const std::string& problem) { told = problem; }});
        CHECK(almost.pixels == full.pixels);  // only the end marker is missing
        CHECK(!told.empty());
    }
}

TEST_CASE("image/read: damage that a decoder steps over is told to who listens") {
    std::string jpeg = read_file(test::image_data() / "restarts.jpg");
    jpeg.insert(jpeg.rfind("\xff\xd9"), "\x55\x55\x55\x55");
    std::string told;
    CHECK_NOTHROW(decode(jpeg));
    CHECK_NOTHROW(decode(jpeg, {.on_warning = [&](const std::string& problem) { told = problem; }}));
    CHECK(told.find("test: ") == 0);
}

TEST_CASE("image/read: a flipped bit anywhere in a PNG chunk is found by its checksum") {
    for (const char* name : {"rgb8.png", "palette8-trns.png"}) {
        const std::string whole = read_file(test::image_data() / name);
        for (std::size_t at = 0; at < whole.size(); ++at)
            for (const int bit : {0, 5}) {
                CAPTURE(at);
                std::string damaged = whole;
                damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
                CHECK_THROWS_AS(decode(damaged), FormatError);
            }
    }
}

TEST_CASE("image/read: PNG fields that contradict the format are refused though their checksums are right") {
    const std::string row = std::string(1, '\0') + "\1\2\3\4\5\6";
    CHECK_NOTHROW(decode(png(2, 1, {8, 2, 0, 0, 0}, row)));
    CHECK_THROWS_AS(decode(png(2, 1, {3, 2, 0, 0, 0}, row)), FormatError);                   // depth
    CHECK_THROWS_AS(decode(png(2, 1, {4, 2, 0, 0, 0}, row)), FormatError);                   // depth of this colour
    CHECK_THROWS_AS(decode(png(2, 1, {8, 5, 0, 0, 0}, row)), FormatError);                   // colour
    CHECK_THROWS_AS(decode(png(2, 1, {8, 2, 1, 0, 0}, row)), FormatError);                   // compression
    CHECK_THROWS_AS(decode(png(2, 1, {8, 2, 0, 1, 0}, row)), FormatError);                   // filter method
    CHECK_THROWS_AS(decode(png(2, 1, {8, 2, 0, 0, 2}, row)), FormatError);                   // interlacing
    CHECK_THROWS_AS(decode(png(2, 1, {8, 2, 0, 0, 0}, "\5" + row.substr(1))), FormatError);  // filter of a row
    CHECK_THROWS_AS(decode(png(2, 2, {8, 2, 0, 0, 0}, row)), FormatError);                   // a row too few
    CHECK_THROWS_AS(decode(png(2, 1, {8, 3, 0, 0, 0}, row.substr(0, 3))), FormatError);      // no palette
    CHECK_THROWS_AS(decode(png(2, 1, {8, 3, 0, 0, 0}, row.substr(0, 3), chunk("PLTE", "1234"))), FormatError);
    CHECK_THROWS_AS(decode(png(2, 1, {8, 2, 0, 0, 0}, row, chunk("QQQQ", "critical"))), FormatError);
    CHECK_NOTHROW(decode(png(2, 1, {8, 2, 0, 0, 0}, row, chunk("qqqq", "unknown, not critical"))));
}

TEST_CASE("image/read: random damage to any picture ends in a picture or in FormatError") {
    std::mt19937 random{11};
    for (const auto& file : pictures()) {
        CAPTURE(file.string());
        const std::string whole = read_file(file);
        for (int i = 0; i < 60; ++i) {
            std::string damaged = whole;
            for (auto n = 1 + random() % 4; n > 0; --n)
                damaged[random() % damaged.size()] = static_cast<char>(random());
            survive(damaged);
            survive(std::string_view{damaged}.substr(0, random() % damaged.size()));
        }
    }
}

TEST_CASE("image/read: a JPEG of very many scans is given up") {
    std::string       jpeg = read_file(test::image_data() / "grey-progressive.jpg");
    const std::size_t end = jpeg.rfind("\xff\xd9"), scan = jpeg.rfind("\xff\xda");
    const std::string last = jpeg.substr(scan, end - scan);
    for (int i = 0; i < 600; ++i) jpeg.insert(end, last);
    CHECK_THROWS_WITH_AS(decode(jpeg), doctest::Contains("more than 500 scans"), FormatError);
}
