#include "prism/image/transform.hpp"

#include "prism/image/read.hpp"
#include "support.hpp"
#include "support/cases.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

using namespace prism;

namespace {

std::vector<float> apply(const ImageTransform& transform, const Image& image) {
    std::vector<float> values(3 * transform.size * transform.size);
    transform.apply(image, {values.data(), {3, transform.size, transform.size}});
    return values;
}

Statistics statistics_of_tower(const std::string& tower) {
    return tower == "dino" ? statistics::imagenet : tower == "clip" ? statistics::clip : statistics::half;
}

Image as_image(const TensorInfo& rgb) {
    Image image = Image::sized(rgb.shape[0], rgb.shape[1]);
    std::copy_n(reinterpret_cast<const std::uint8_t*>(rgb.data), image.pixels.size(), image.pixels.data());
    return image;
}

std::span<const std::byte> bytes_of(const TensorInfo& t) { return {t.data, t.bytes()}; }

}  // namespace

TEST_CASE("image/transform: every reference case has the same bits") {
    std::size_t n = 0;
    for (const auto& root : test::reference_roots()) {
        const auto folder = root / "images";
        if (!exists(folder / "cases.json")) continue;
        const test::Expected expected{folder / "expected.safetensors"};
        for (const auto& row : nlohmann::json::parse(std::ifstream{folder / "cases.json"})) {
            const std::string name = row["image"], key = row["tensor"];
            if (!exists(folder / name)) continue;
            CAPTURE(folder.string());
            CAPTURE(key);
            const ImageTransform transform{.stats = statistics_of_tower(row["statistics"]),
                                           .strategy = resize_from_name(row["strategy"].get<std::string>()),
                                           .size = row["size"]};
            const Image          decoded = read_image(folder / name), pillows = as_image(expected[name + "/rgb"]);
            CHECK(test::count_other_bits(apply(transform, pillows), bytes_of(expected[key])) == 0);
            // libjpeg of another version may differ by a level, which the cubic can enlarge.
            const auto   values = apply(transform, decoded), target = to_floats(expected[key]);
            const double level = 1 / (255.0 * *std::ranges::min_element(transform.stats.std));
            double       worst = 0;
            for (std::size_t i = 0; i < values.size(); ++i)
                worst = std::max<double>(worst, std::abs(values[i] - target[i]));
            CHECK(worst <= (name.ends_with(".png") ? 0 : 4 * level));
            ++n;
        }
    }
    CHECK(n > 0);
    MESSAGE(n << " tensors compared");
}

TEST_CASE("image/transform: LLaVA's and OpenVLA's processors, odd sizes and small ones, have the same bits") {
    const test::Expected expected{test::image_data() / "expected.safetensors"};
    int                  n = 0;
    for (const TensorInfo& tensor : expected.tensors()) {
        const std::string family = test::part(tensor.name, 0);
        if (family != "llava" && family != "openvla") continue;
        CAPTURE(tensor.name);
        const std::string strategy = test::part(tensor.name, 1);
        const auto [w, h] = test::parse_size(test::part(tensor.name, 2));
        const Image        image = test::pattern(w, h);
        std::vector<float> values;
        if (family == "llava") {
            values = apply({.stats = statistics::clip,
                            .strategy = strategy == "pad" ? Resize::pad : Resize::crop,
                            .size = 9,
                            .margin = Margin::floor},
                           image);
        } else {
            const Statistics rounded{{0.484375f, 0.455078125f, 0.40625f}, {0.228515625f, 0.2236328125f, 0.224609375f}};
            for (const Statistics& stats : {rounded, statistics::half}) {
                const auto part = apply(
                    {.stats = stats, .strategy = resize_from_name(strategy), .size = 9, .fill = Rgb{127, 127, 127}},
                    image);
                values.insert(values.end(), part.begin(), part.end());
            }
        }
        CHECK(values.size() == tensor.elements());
        CHECK(test::count_other_bits(values, bytes_of(tensor)) == 0);
        ++n;
    }
    CHECK(n == 35);
}

TEST_CASE("image/transform: bytes 0, 127 and 255 become the documented values") {
    Image image = Image::sized(1, 3);
    for (std::size_t c = 0; c < 3; ++c)
        image.pixels(0, 0, c) = 0, image.pixels(0, 1, c) = 127, image.pixels(0, 2, c) = 255;
    const auto check = [&](const Statistics& stats, std::size_t x, const std::array<double, 3>& documented) {
        Image pixel = Image::sized(1, 1);
        std::copy_n(image.row(0) + 3 * x, 3, pixel.row(0));
        const auto values = apply({.stats = stats, .size = 1}, pixel);
        for (std::size_t c = 0; c < 3; ++c)
            CHECK(std::abs(values[c] - documented[c]) <= 0x1p-22);  // one step of f32 at 2
    };
    check(statistics::clip, 0, {-1.7922626, -1.7520971, -1.4802198});
    check(statistics::clip, 1, {0.0617376, 0.1538894, 0.3257286});
    check(statistics::clip, 2, {1.9303361, 2.0748837, 2.1458969});
    check(statistics::imagenet, 0, {-2.1179039, -2.0357141, -1.8044443});
    check(statistics::imagenet, 1, {0.0569397, 0.1876751, 0.4090632});
    check(statistics::imagenet, 2, {2.2489083, 2.4285715, 2.6400001});
    check(statistics::half, 0, {-1, -1, -1});
    check(statistics::half, 1, {-0.00392156839, -0.00392156839, -0.00392156839});
    check(statistics::half, 2, {1, 1, 1});
}

TEST_CASE("image/transform: letterbox fills with 255 times the mean, cut off, or with what is asked for") {
    Image image = Image::sized(1, 9);
    image.pixels.fill(0);
    const auto corner = [&](const ImageTransform& transform) {
        const Image square = transform.square(image);
        return Rgb{square.pixels(0, 0, 0), square.pixels(0, 0, 1), square.pixels(0, 0, 2)};
    };
    CHECK(corner({.stats = statistics::clip, .strategy = Resize::letterbox, .size = 9}) == Rgb{122, 116, 104});
    CHECK(corner({.stats = statistics::half, .strategy = Resize::letterbox, .size = 9}) == Rgb{127, 127, 127});
    CHECK(corner({.stats = statistics::imagenet, .strategy = Resize::pad, .size = 9}) == Rgb{123, 116, 103});
    CHECK(corner({.strategy = Resize::letterbox, .size = 9, .fill = Rgb{1, 2, 3}}) == Rgb{1, 2, 3});
}

TEST_CASE("image/transform: CLIP B resizes to 248 and keeps the middle 224") {
    const Image image = test::pattern(300, 260);
    const Image square = ImageTransform{.strategy = Resize::crop, .size = 224, .resize_to = 248}.square(image);
    const Image resized = resize_bicubic(image, {248, 286});
    for (const std::size_t y : {0, 100, 223})
        CHECK(std::equal(square.row(y), square.row(y) + square.row_bytes(), resized.row(y + 12) + 3 * 31));
}

TEST_CASE("image/transform: a crop larger than the picture leaves black around it, the wider bar after it") {
    Image image = Image::sized(4, 4);
    image.pixels.fill(200);
    const Image square = ImageTransform{.strategy = Resize::crop, .size = 7, .resize_to = 4}.square(image);
    for (std::size_t i = 0; i < 7; ++i) CHECK(square.pixels(i, 3, 0) == (i >= 1 && i < 5 ? 200 : 0));
    for (std::size_t i = 0; i < 7; ++i) CHECK(square.pixels(3, i, 2) == (i >= 1 && i < 5 ? 200 : 0));
}

TEST_CASE("image/transform: OpenVLA's centre crop comes first") {
    const Image          image = test::pattern(60, 27);
    const ImageTransform plain{.strategy = Resize::naive, .size = 11};
    ImageTransform       cropped = plain;
    cropped.centre_crop_area = 0.9f;
    CHECK(cropped.square(image).pixels == crop_and_resize(image, Box::central(0.9f), {11, 11}).pixels);
}

TEST_CASE("image/transform: writes through the strides of its output") {
    const Image          image = test::pattern(20, 15);
    const ImageTransform transform{.size = 5};
    const auto           dense = apply(transform, image);
    std::vector<float>   wide(3 * 6 * 8, -7.0f);
    transform.apply(image, {wide.data(), {3, 5, 5}, {48, 8, 1}});
    for (std::size_t c = 0; c < 3; ++c)
        for (std::size_t y = 0; y < 5; ++y)
            for (std::size_t x = 0; x < 8; ++x)
                CHECK(wide[48 * c + 8 * y + x] == (x < 5 ? dense[25 * c + 5 * y + x] : -7.0f));
}

TEST_CASE("image/transform: names and options that do not exist are refused with what is allowed") {
    CHECK(resize_from_name("resize-naive") == Resize::naive);
    CHECK(resize_from_name("letterbox") == Resize::letterbox);
    CHECK(resize_from_name("resize-crop") == Resize::crop);
    CHECK(resize_from_name("pad") == Resize::pad);
    CHECK_THROWS_WITH_AS(resize_from_name("stretch"),
                         "'image_resize_strategy' is stretch; allowed: resize-naive, letterbox, resize-crop, pad",
                         ConfigError);
    CHECK(statistics_from_name("clip").mean == statistics::clip.mean);
    CHECK(statistics_from_name("imagenet").mean == statistics::imagenet.mean);
    CHECK(statistics_from_name("half").mean == statistics::half.mean);
    CHECK_THROWS_AS(statistics_from_name("dino"), ConfigError);

    const Image image = test::pattern(3, 3);
    CHECK_THROWS_AS(ImageTransform{.size = 0}.square(image), ConfigError);
    CHECK_THROWS_AS((ImageTransform{.strategy = Resize::crop, .resize_to = 0}.square(image)), ConfigError);
    CHECK_THROWS_AS(ImageTransform{.centre_crop_area = 0.0f}.square(image), ConfigError);
    CHECK_THROWS_AS(ImageTransform{.centre_crop_area = NAN}.square(image), ConfigError);
    std::vector<float> values(48);
    CHECK_THROWS_AS((ImageTransform{.size = 5}.apply(image, {values.data(), {3, 4, 4}})), ShapeError);
    CHECK_THROWS_AS((ImageTransform{.size = 4}.apply(Image{}, {values.data(), {3, 4, 4}})), ShapeError);
}
