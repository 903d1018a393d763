#include "prism/image/resize.hpp"
#include "prism/interop/xtensor.hpp"

#include "support.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

using namespace prism;
using prism::test::pattern;

namespace {

Image noise(std::size_t height, std::size_t width, unsigned seed) {
    std::mt19937 random{seed};
    Image        image = Image::sized(height, width);
    for (auto& value : image.pixels) value = static_cast<std::uint8_t>(random());
    return image;
}

std::vector<std::int32_t> weights(std::size_t n, std::size_t m, std::size_t i, std::size_t first) {
    image_detail::Taps taps;
    taps.set(n, m, i);
    CHECK(taps.first == first);
    return taps.weights;
}

/// The picture on its canvas as pixels of its own.
Image padded(const Canvas& canvas) {
    Image out = Image::sized(canvas.size.height, canvas.size.width);
    for (std::size_t y = 0; y < out.height(); ++y)
        for (std::size_t x = 0; x < out.width(); ++x)
            for (std::size_t c = 0; c < 3; ++c) {
                const std::size_t row = y - canvas.top, column = x - canvas.left;
                const bool        inside = row < canvas.image.height() && column < canvas.image.width();
                out.pixels(y, x, c) = inside ? canvas.image.pixels(row, column, c) : canvas.fill[c];
            }
    return out;
}

Image cut(const Image& image, Window part) {
    Image out = Image::sized(part.height, part.width);
    for (std::size_t y = 0; y < part.height; ++y)
        std::copy_n(image.row(part.top + y) + 3 * part.left, out.row_bytes(), out.row(y));
    return out;
}

}  // namespace

TEST_CASE("image/resize: bicubic weights are Pillow's") {
    using W = std::vector<std::int32_t>;
    CHECK(weights(640, 224, 0, 0) == W{1246769, 1580903, 1151941, 407797, -50803, -111242, -31061});
    CHECK(weights(640, 224, 111, 313) ==
          W{-28782, -103081, -47076, 377880, 1067434, 1464927, 1155305, 472812, -17434, -107460, -40222});
    CHECK(weights(480, 224, 0, 0) == W{1785829, 1914588, 699776, -105122, -100768});
    CHECK(weights(20, 4, 0, 0) ==
          W{633515, 830123, 910222, 830123, 633515, 385934, 152917, 0, -58254, -65536, -43691, -14564, 0});
    CHECK(weights(20, 4, 2, 3) == W{-13252, -39756, -59635, -53009, 0, 139148, 351182, 576468, 755372, 828259, 755372,
                                    576468, 351182, 139148, 0, -53009, -59635});
    CHECK(weights(15, 4, 1, 0) ==
          W{-81190, -44715, 145676, 519097, 900370, 1101065, 974833, 621040, 227991, -17195, -81149, -58741, -12779});
    CHECK(weights(4, 6, 0, 0) == W{4470245, -275941});
}

TEST_CASE("image/resize: the pattern of 20 x 15 becomes the bytes that Pillow 10.2 gives") {
    const Image               small = resize_bicubic(pattern(20, 15), {4, 4});
    const xt::xtensor<int, 3> expected{{{116, 132, 129}, {121, 130, 120}, {135, 135, 126}, {125, 141, 137}},
                                       {{124, 126, 124}, {126, 128, 131}, {130, 124, 126}, {137, 126, 129}},
                                       {{122, 124, 133}, {123, 130, 122}, {139, 120, 127}, {118, 124, 130}},
                                       {{122, 128, 117}, {137, 132, 116}, {145, 122, 145}, {136, 116, 143}}};
    CHECK(as_xtensor(small.view()) == expected);

    const Image wide = resize_bicubic(pattern(20, 15), {.height = 6, .width = 25});
    CHECK(std::accumulate(wide.pixels.begin(), wide.pixels.end(), 0) == 57737);
    CHECK(std::vector<int>(wide.row(0), wide.row(0) + 6) == std::vector<int>{76, 104, 139, 106, 138, 118});
    CHECK(std::vector<int>(wide.row(6) - 6, wide.row(6)) == std::vector<int>{115, 135, 170, 164, 129, 157});
}

TEST_CASE("image/resize: sizes of every kind, 1 x 1 to very wide, equal Pillow") {
    const test::Expected expected{test::image_data() / "expected.safetensors"};
    int                  n = 0;
    for (const TensorInfo& tensor : expected.tensors()) {
        if (!tensor.name.starts_with("resize/")) continue;
        CAPTURE(tensor.name);
        const auto [w, h] = test::parse_size(test::part(tensor.name, 1));
        const auto [to_w, to_h] = test::parse_size(test::part(tensor.name, 2));
        CHECK(test::worst_difference(resize_bicubic(pattern(w, h), {to_h, to_w}), tensor) == 0);
        ++n;
    }
    CHECK(n == 15);
}

TEST_CASE("image/resize: a size that stays keeps every pixel") {
    const Image image = noise(37, 41, 1);
    CHECK(resize_bicubic(image, {37, 41}).pixels == image.pixels);
}

TEST_CASE("image/resize: a window of a padded picture is that window of the whole") {
    const Image image = noise(23, 9, 2);
    for (const Canvas& canvas :
         {Canvas{image, {23, 23}, 0, 7, {122, 116, 104}}, Canvas{image, {40, 9}, 11, 0, {1, 255, 0}},
          Canvas{image, {200, 300}, 150, 290, {9, 8, 7}}, Canvas{image, {23, 9}}})
        for (const Size to : {Size{7, 7}, Size{50, 61}, Size{1, 90}, Size{128, 3}}) {
            const Image whole = resize_bicubic(padded(canvas), to);
            for (const Window part :
                 {Window{0, 0, to.height, to.width}, Window{to.height / 2, to.width / 3, 1, to.width / 2},
                  Window{to.height - 1, 0, 1, 1}}) {
                Image out = Image::sized(part.height, part.width);
                resize_bicubic(canvas, to, part, out.view());
                CHECK(out.pixels == cut(whole, part).pixels);
            }
        }
}

namespace {

template <class Kernel>
Image window_with(const Canvas& canvas, Size to, Window part) {
    Image out = Image::sized(part.height, part.width);
    image_detail::WindowResizing<Kernel>{canvas, to, part, out.view()}.advance(canvas.image.height());
    return out;
}

/// 1, neighbours of the widths that kernels work in, and primes.
constexpr std::array<std::size_t, 16> odd_sizes{1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 21, 22, 31, 64, 97, 211};

}  // namespace

#if defined(__x86_64__) && defined(__GNUC__)
TEST_CASE_TEMPLATE("image/resize: every instruction set gives the bytes of plain C++", Kernel, image_detail::Avx2Resize,
                   image_detail::Avx512Resize) {
    using image_detail::PortableResize;
    if (!Kernel::available()) {
        MESSAGE("not tested: this processor lacks the instructions");
        return;
    }
    const auto same = [](const Canvas& canvas, Size to, Window part) {
        return window_with<Kernel>(canvas, to, part).pixels == window_with<PortableResize>(canvas, to, part).pixels;
    };
    SUBCASE("up and down to every odd size, along either axis") {
        for (const std::size_t from : odd_sizes)
            for (const std::size_t to : odd_sizes)
                for (const std::size_t other : {std::size_t{1}, std::size_t{6}, std::size_t{13}}) {
                    CAPTURE(from);
                    CAPTURE(to);
                    const Image wide = noise(other, from, 11), high = noise(from, other, 12);
                    CHECK(same({wide, {other, from}}, {other, to}, {0, 0, other, to}));
                    CHECK(same({high, {from, other}}, {to, other}, {0, 0, to, other}));
                }
    }
    SUBCASE("windows of pictures anywhere on a canvas") {
        std::mt19937 random{3};
        for (int i = 0; i < 300; ++i) {
            const auto   up_to = [&](std::size_t n) { return static_cast<std::size_t>(random() % (n + 1)); };
            const auto   size = [&] { return 1 + up_to(i % 3 ? 70 : 400); };
            const Image  image = noise(size(), size(), random());
            const Size   to{size(), size()};
            const Size   margin{up_to(i % 2 ? 9 : 200), up_to(i % 2 ? 9 : 200)};
            const Canvas canvas{image,
                                {image.height() + margin.height, image.width() + margin.width},
                                up_to(margin.height),
                                up_to(margin.width),
                                {200, 3, 77}};
            Window       part{up_to(to.height - 1), up_to(to.width - 1), 0, 0};
            part.height = 1 + up_to(to.height - part.top - 1);
            part.width = 1 + up_to(to.width - part.left - 1);
            CHECK(same(canvas, to, {0, 0, to.height, to.width}));
            CHECK(same(canvas, to, part));
        }
    }
    SUBCASE("black and white, where the cubic overshoots most") {
        std::mt19937 random{4};
        Image        image = Image::sized(83, 89);
        for (auto& value : image.pixels) value = random() % 2 ? 255 : 0;
        for (const Size to : {Size{37, 41}, Size{83, 89}, Size{167, 163}, Size{3, 997}})
            CHECK(same({image, {83, 89}}, to, {0, 0, to.height, to.width}));
    }
    SUBCASE("very many taps") {
        const Image line = noise(2, 300'007, 13);
        CHECK(same({line, {2, 300'007}}, {2, 3}, {0, 0, 2, 3}));
    }
}
#endif

#if defined(__x86_64__) && defined(__GNUC__)
using Kernels = std::tuple<image_detail::PortableResize, image_detail::Avx2Resize, image_detail::Avx512Resize>;
#else
using Kernels = std::tuple<image_detail::PortableResize>;
#endif

TEST_CASE_TEMPLATE_DEFINE("image/resize: rows that arrive one by one, or many at once, make the same bytes", Kernel,
                          arriving_rows) {
    if constexpr (requires { Kernel::available(); })
        if (!Kernel::available()) return;
    std::mt19937 random{5};
    for (const std::size_t width : odd_sizes)
        for (const Size to : {Size{7, 11}, Size{100, 90}, Size{59, 1}}) {
            const Image  image = noise(59, width, random());
            const Canvas canvas{image, {70, width + 3}, 6, 2, {9, 8, 7}};
            const Window part{to.height / 3, 0, to.height - to.height / 3, to.width};
            const Image  whole = window_with<Kernel>(canvas, to, part);
            for (const std::size_t step : {1, 13, 58}) {
                // What has not arrived is noise of another seed, which must not be looked at.
                Image                                arriving = noise(59, width, random()), out = whole;
                image_detail::WindowResizing<Kernel> resizing{
                    {arriving, canvas.size, canvas.top, canvas.left, canvas.fill}, to, part, out.view()};
                out.pixels.fill(0);
                std::size_t done = 0;
                for (std::size_t n = 0; n < 59;) {
                    const std::size_t more = std::min(step, 59 - n);
                    std::copy_n(image.row(n), more * image.row_bytes(), arriving.row(n));
                    n += more;
                    const std::size_t now = resizing.advance(n);
                    CHECK(now >= done);
                    done = now;
                    CHECK(cut(out, {0, 0, done, to.width}).pixels == cut(whole, {0, 0, done, to.width}).pixels);
                }
                CHECK(done == part.height);
            }
        }
}

TEST_CASE_TEMPLATE_DEFINE("image/resize: a picture may grow in another thread meanwhile", Kernel, growing_picture) {
    // ThreadSanitizer tells here whether more is read than has arrived.
    if constexpr (requires { Kernel::available(); })
        if (!Kernel::available()) return;
    for (const std::size_t width : odd_sizes) {
        const Image                          whole = noise(120, width, 6);
        Image                                image = Image::sized(120, width), out = Image::sized(50, 31);
        std::atomic<std::size_t>             arrived = 0;
        std::thread                          writer{[&] {
            for (std::size_t y = 0; y < 120; ++y) {
                for (std::size_t i = 0; i < image.row_bytes(); ++i) image.row(y)[i] = whole.row(y)[i];
                arrived = y + 1;
            }
        }};
        image_detail::WindowResizing<Kernel> resizing{{image, {120, width}}, {50, 31}, {0, 0, 50, 31}, out.view()};
        for (std::size_t n = 0; n < 120;) resizing.advance(n = arrived);
        writer.join();
        CHECK(out.pixels == window_with<Kernel>({whole, {120, width}}, {50, 31}, {0, 0, 50, 31}).pixels);
    }
}
TEST_CASE_TEMPLATE_APPLY(arriving_rows, Kernels);
TEST_CASE_TEMPLATE_APPLY(growing_picture, Kernels);

TEST_CASE("image/resize: a line of a million pixels takes memory and time in proportion") {
    const std::size_t n = 1'000'003;
    for (const Size side : {Size{1, n}, Size{n, 1}}) {
        const Image  line = noise(side.height, side.width, 4);
        const Canvas square{line, {n, n}, (n - side.height) / 2, (n - side.width) / 2, {122, 116, 104}};
        Image        out = Image::sized(16, 16);
        resize_bicubic(square, {16, 16}, {0, 0, 16, 16}, out.view());
        CHECK(out.pixels(0, 0, 0) == 122);
        // cut out of a result of 16 x 16000048 pixels, which is never made
        const auto   middle = [](std::size_t extent) { return extent == 1 ? 0 : 7 * extent; };
        const Window part{middle(side.height), middle(side.width), 16, 16};
        resize_bicubic({line, side}, {16 * side.height, 16 * side.width}, part, out.view());
    }
}

TEST_CASE("image/resize: stripes of columns join without a seam") {
    // A stripe has 2^19 weights, so 104857 columns of five each.
    const Image image = noise(2, 50'000, 5);
    const Image wide = resize_bicubic(image, {2, 200'000});
    for (const std::size_t x : {0, 74'890, 104'852, 199'990}) {
        Image out = Image::sized(2, 10);
        resize_bicubic({image, {2, 50'000}}, {2, 200'000}, {0, x, 2, 10}, out.view());
        CHECK(out.pixels == cut(wide, {0, x, 2, 10}).pixels);
    }
}

TEST_CASE("image/resize: shapes that do not fit are refused") {
    const Image image = noise(4, 5, 6);
    Image       out = Image::sized(2, 2);
    CHECK_THROWS_AS(resize_bicubic(Image{}, {2, 2}), ShapeError);
    CHECK_THROWS_AS(resize_bicubic({image, {4, 4}}, {2, 2}, {0, 0, 2, 2}, out.view()), ShapeError);
    CHECK_THROWS_AS(resize_bicubic({image, {4, 5}, 1, 0}, {2, 2}, {0, 0, 2, 2}, out.view()), ShapeError);
    CHECK_THROWS_AS(resize_bicubic({image, {4, 5}}, {2, 2}, {1, 0, 2, 2}, out.view()), ShapeError);
    CHECK_THROWS_AS(resize_bicubic({image, {4, 5}}, {9, 9}, {0, 0, 3, 2}, out.view()), ShapeError);
    CHECK_THROWS_AS(resize_bicubic({image, {4, 5}}, {9, 9}, {0, static_cast<std::size_t>(-1), 2, 2}, out.view()),
                    ShapeError);
    CHECK_THROWS_WITH_AS(crop_and_resize(Image{}, Box::central(1), {2, 2}),
                         "crop_and_resize: image: expected [height, width, 3] with at least one pixel, found [0, 0, 0]",
                         ShapeError);
    CHECK(resize_bicubic(image, {0, 3}).pixels.size() == 0);
}

TEST_CASE("image/resize: crop_and_resize samples as its formula does") {
    const test::Expected expected{test::image_data() / "expected.safetensors"};
    for (const TensorInfo& tensor : expected.tensors()) {
        if (!tensor.name.starts_with("crop/")) continue;
        CAPTURE(tensor.name);
        const auto [w, h] = test::parse_size(test::part(tensor.name, 1));
        CHECK(test::worst_difference(crop_and_resize(pattern(w, h), Box::central(0.9f), {11, 11}), tensor) == 0);
    }
    const Image image = noise(5, 7, 7);
    CHECK(crop_and_resize(image, Box::central(1), {5, 7}).pixels == image.pixels);
    CHECK(crop_and_resize(image, {-0.5f, 0, 1, 1}, {4, 4}).pixels(0, 0, 0) == 0);  // outside: black
    CHECK(crop_and_resize(noise(1, 1, 8), Box::central(0.9f), {3, 1}).height() == 3);
}
