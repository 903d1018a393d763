// Linear probes on features of which it is known what they hold.
#include "shapes/probe.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

using namespace prism;
using namespace prism::shapes;

namespace {

float noise(Random& random) { return static_cast<float>(random.below(2001)) / 1000.0F - 1; }

/// The mean colour of each patch of a picture, without any resizing: features [rows * columns, 3].
void mean_colors(const Image& image, std::size_t rows, std::size_t columns, std::span<float> out) {
    for (std::size_t p = 0; p < rows * columns; ++p) {
        const std::size_t y1 = p / columns * image.height() / rows, y2 = (p / columns + 1) * image.height() / rows;
        const std::size_t x1 = p % columns * image.width() / columns, x2 = (p % columns + 1) * image.width() / columns;
        for (std::size_t c = 0; c < 3; ++c) {
            double sum = 0;
            for (std::size_t y = y1; y < y2; ++y)
                for (std::size_t x = x1; x < x2; ++x) sum += image.row(y)[3 * x + c];
            out[3 * p + c] = static_cast<float>(sum / static_cast<double>((y2 - y1) * (x2 - x1)));
        }
    }
}

}  // namespace

TEST_CASE("shapes/probe: classes that a line separates are learnt, noise is not") {
    Random    random{1, {}, Purpose::noise};
    ProbeRows train{.d = 6}, test{.d = 6}, blind{.d = 6}, blind_test{.d = 6};
    const auto fill = [&](ProbeRows& rows, std::size_t n, bool informed) {
        for (std::size_t i = 0; i < n; ++i) {
            const int label = random.between(0, 2);
            rows.label.push_back(label);
            for (int j = 0; j < 6; ++j) rows.x.push_back(noise(random) * 100 + (informed && j == label ? 250.0F : 0.0F) + 1000);
        }
    };
    fill(train, 600, true), fill(test, 300, true), fill(blind, 600, false), fill(blind_test, 300, false);
    const LogisticProbe probe{train, 3};
    CHECK(probe.accuracy(test) > 0.99);
    CHECK(LogisticProbe{train, 3}.accuracy(test) == probe.accuracy(test));
    CHECK(LogisticProbe{blind, 3}.accuracy(blind_test) < 1.0 / 3 + 5 * std::sqrt(2.0 / 9 / 300));  // five standard deviations
    CHECK_THROWS_AS(LogisticProbe(ProbeRows{.d = 6}, 3), ConfigError);
}

TEST_CASE("shapes/probe: a point that depends linearly is found exactly, also when a feature never changes") {
    Random    random{2, {}, Purpose::noise};
    ProbeRows rows{.d = 4};
    for (int i = 0; i < 200; ++i) {
        const float a = noise(random), b = noise(random), c = noise(random);
        rows.x.insert(rows.x.end(), {a, b, c, 7});
        rows.target.insert(rows.target.end(), {3 * a - b + 5, 2 * c - 40});
    }
    CHECK(PointProbe(rows, 1e-9).distance(rows) < 1e-4);
    CHECK(PointProbe(rows, 1e-9).predict(rows.row(3))[1] == doctest::Approx(rows.target[7]).epsilon(1e-4));
}

TEST_CASE("shapes/probe: a patch shows the object that covers it") {
    Scene scene{.width = 96, .height = 48};
    scene.objects = {{.shape = Shape::square, .center = {24 * px, 24 * px}, .radius = 12 * px}};
    CHECK(object_at(scene, 2, 1, 6, 6) == scene.objects.data());  // x 16 ... 32, y 16 ... 24
    CHECK(object_at(scene, 0, 0, 6, 6) == nullptr);
    CHECK(object_at(scene, 2, 4, 6, 6) == nullptr);
    scene.objects.push_back(scene.objects[0]);
    CHECK(object_at(scene, 2, 1, 6, 6) == nullptr);  // two share it
}

TEST_CASE("shapes/probe: mean colours tell colours, and little of shapes") {
    const ProbeOptions options{.rows = 12, .columns = 12, .d = 3, .n_train = 300, .n_test = 100};
    const auto         report = probe(3, options, [](const Image& image, std::span<float> out) { mean_colors(image, 12, 12, out); });
    CHECK(report.color > 0.8);
    CHECK(report.color < 1.0);  // stripes
    CHECK(report.shape < report.shape_floor + 0.2);
    CHECK(report.color_floor < 0.25);
    CHECK(report.presence < 0.9);  // a mean colour of the whole picture does not name what is in it
    CHECK(report.center_px > 10);
}

TEST_CASE("shapes/probe: features that hold everything let everything be read") {
    // What a perfect tower would give: at a patch its object's colour, shape and centre; nothing elsewhere. The mean over
    // patches then holds colours and, through a share for each object, their number.
    const ProbeOptions options{.rows = 12, .columns = 12, .d = 17, .n_train = 400, .n_test = 150};
    std::uint64_t      scene_index = 0, scenes = 0;
    const auto         report = probe(3, options, [&](const Image& image, std::span<float> out) {
        Scene scene;
        do scene = make_scene(3, {scenes < options.n_train ? Split::train : Split::validation, scene_index++});
        while (scene.kind != Kind::ordinary || scene.damage != Damage::none);
        if (++scenes == options.n_train) scene_index = 0;
        REQUIRE(image.width() == static_cast<std::size_t>(scene.width));
        std::ranges::fill(out, 0.0F);
        for (std::size_t p = 0; p < 144; ++p) {
            const Object* o = object_at(scene, p / 12, p % 12, 12, 12);
            if (!o) continue;
            const auto x = out.subspan(p * 17, 17);
            x[static_cast<std::size_t>(o->color)] = 1, x[8 + static_cast<std::size_t>(o->shape)] = 1;
            x[14] = static_cast<float>(o->center.x), x[15] = static_cast<float>(o->center.y);
        }
        out[16] = static_cast<float>(scene.objects.size());
    });
    CHECK(report.color == 1.0);
    CHECK(report.shape == 1.0);
    CHECK(report.count > 0.95);
    CHECK(report.presence > 0.95);
    CHECK(report.center_px < 0.5);
    CHECK(report.center_floor_px > 1);
}
