#include "prism/image/write.hpp"

#include "prism/image/read.hpp"
#include "support.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <string>

#include <unistd.h>

using namespace prism;
namespace fs = std::filesystem;

TEST_CASE("image/write: what is written reads back, and only it is in the folder") {
    const fs::path folder = fs::temp_directory_path() / ("prism-image-write-" + std::to_string(::getpid()));
    fs::create_directory(folder);
    for (const auto& [width, height] : {std::array<std::size_t, 2>{1, 1}, {1, 7}, {64, 63}, {301, 5}}) {
        const Image image = test::pattern(width, height);
        write_png(folder / "a.png", image);
        CHECK(read_image(folder / "a.png").pixels == image.pixels);
    }
    CHECK(std::distance(fs::directory_iterator(folder), {}) == 1);
    fs::remove_all(folder);
}

TEST_CASE("image/write: an empty picture and a place that is not there are refused") {
    CHECK_THROWS_AS(encode_png(Image{}), ShapeError);
    CHECK_THROWS_AS(write_png("no/such/folder/a.png", test::pattern(2, 2)), LoadError);
}
