// The shapes world: its numbers, its scenes and its pictures, the same everywhere.
#include "shapes/world.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

using namespace prism;
using namespace prism::shapes;

namespace {

bool is_background(const Scene& scene, const std::uint8_t* pixel) { return std::equal(scene.shade.begin(), scene.shade.end(), pixel); }

/// Runs of painted pixels that touch, corners included.
std::size_t painted_parts(const Scene& scene, const Image& image) {
    std::vector<char> seen(image.height() * image.width());
    std::size_t       parts = 0;
    for (std::size_t start = 0; start < seen.size(); ++start) {
        std::vector<std::size_t> open{start};
        bool                     any = false;
        while (!open.empty()) {
            const std::size_t at = open.back(), y = at / image.width(), x = at % image.width();
            open.pop_back();
            if (std::exchange(seen[at], 1) || is_background(scene, image.row(y) + 3 * x)) continue;
            any = true;
            for (std::size_t ny = y == 0 ? 0 : y - 1; ny <= std::min(y + 1, image.height() - 1); ++ny)
                for (std::size_t nx = x == 0 ? 0 : x - 1; nx <= std::min(x + 1, image.width() - 1); ++nx) open.push_back(ny * image.width() + nx);
        }
        parts += any;
    }
    return parts;
}

std::string hash_of(Split split, std::uint64_t n) {
    Hash hash;
    for (std::uint64_t i = 0; i < n; ++i) hash.add(draw(make_scene(7, {split, i}))), hash.add(describe(make_scene(7, {split, i})));
    return hash.hex();
}

}  // namespace

TEST_CASE("shapes/random: Philox gives its authors' numbers") {
    using Words = std::array<std::uint32_t, 4>;
    CHECK(philox({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    CHECK(philox({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) == Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("shapes/random: below is even, and streams of other purposes, scenes, splits and seeds differ") {
    Random                    random{1, {Split::train, 5}, Purpose::layout};
    std::array<int, 7>        times{};
    constexpr int             n = 70'000;
    for (int i = 0; i < n; ++i) ++times[random.below(7)];
    for (const int t : times) CHECK(std::abs(t - n / 7) < 5 * 93);  // five standard deviations: sqrt(n * 6 / 49) = 93
    const auto first = [](std::uint64_t seed, SceneId id, Purpose purpose) { return Random{seed, id, purpose}.next(); };
    const std::uint32_t here = first(1, {Split::train, 5}, Purpose::layout);
    CHECK(here == first(1, {Split::train, 5}, Purpose::layout));
    CHECK(here != first(2, {Split::train, 5}, Purpose::layout));
    CHECK(here != first(1, {Split::test, 5}, Purpose::layout));
    CHECK(here != first(1, {Split::train, 6}, Purpose::layout));
    CHECK(here != first(1, {Split::train, 5 + (std::uint64_t{1} << 48)}, Purpose::layout));
    CHECK(here != first(1, {Split::train, 5}, Purpose::caption));
}

TEST_CASE("shapes/scene: shares, counts, limits") {
    std::map<Kind, int> kinds;
    int                 labels = 0;
    constexpr int       n = 4000;
    for (int i = 0; i < n; ++i) {
        const Scene scene = make_scene(3, {Split::train, static_cast<std::uint64_t>(i)});
        CAPTURE(i);
        ++kinds[scene.kind], labels += scene.label.has_value();
        REQUIRE(std::max(scene.width, scene.height) == longest_side);
        if (scene.kind == Kind::diagram) {
            REQUIRE(scene.objects.empty());
            REQUIRE(!scene.arrows.empty());
            for (const Node& node : scene.nodes) {
                REQUIRE(std::min({node.center.x, node.center.y, scene.width * px - node.center.x, scene.height * px - node.center.y}) >= node_radius);
                REQUIRE(std::ranges::count(scene.nodes, node.letter, &Node::letter) == 1);
            }
            for (const Arrow& a : scene.arrows) REQUIRE(std::ranges::count(scene.arrows, a.to, &Arrow::to) == 1);
            continue;
        }
        const auto [least, most] = scene.kind == Kind::complex ? std::pair<std::size_t, std::size_t>{7, 15} : std::pair<std::size_t, std::size_t>{3, 6};
        if (scene.damage == Damage::empty) REQUIRE(scene.objects.empty());
        else REQUIRE((scene.objects.size() >= least && scene.objects.size() <= most));
        for (const Object& a : scene.objects) {
            REQUIRE(!held_out(a.shape, a.color));
            if (a.cut) continue;
            const shapes::Box box = a.box();
            REQUIRE((box.x1 >= 0 && box.y1 >= 0 && box.x2 <= scene.width * px && box.y2 <= scene.height * px));
            if (scene.label) REQUIRE(overlap_area(scene.label->box(), box) == 0);
            for (const Object& b : scene.objects)
                if (&a != &b && !b.cut) REQUIRE(overlap_area(box, b.box()) * 100 <= overlap_limit(scene.kind) * std::min(box.area(), b.box().area()));
        }
    }
    CHECK(std::abs(kinds[Kind::diagram] - n / 10) < 5 * 19);
    CHECK(std::abs(kinds[Kind::complex] - n * 15 / 100) < 5 * 23);
    CHECK(std::abs(labels - n * 38 / 100) < 5 * 31);
}

TEST_CASE("shapes/scene: every compositional scene shows a held-out combination, clutter has other backgrounds and overlaps") {
    std::size_t overlaps = 0;
    for (std::uint64_t i = 0; i < 300; ++i) {
        const Scene scene = make_scene(3, {Split::compositional, i});
        CHECK(std::ranges::any_of(scene.objects, [](const Object& o) { return held_out(o.shape, o.color); }));
        const Scene clutter = make_scene(3, {Split::clutter, i});
        CHECK(clutter.backdrop != Backdrop::plain);
        for (const Object& a : clutter.objects) {
            CHECK(!held_out(a.shape, a.color));
            for (const Object& b : clutter.objects) {
                const int both = overlap_area(a.box(), b.box()), smaller = std::min(a.box().area(), b.box().area());
                if (&a == &b) continue;
                CHECK(both * 100 <= overlap_limit(Kind::clutter) * smaller);
                overlaps += both * 100 > overlap_limit(Kind::ordinary) * smaller;
            }
        }
    }
    CHECK(overlaps > 100);
}

TEST_CASE("shapes/draw: as many parts are painted as there are objects, each fills its box, and nothing else is painted") {
    std::size_t scenes = 0;
    for (std::uint64_t i = 0; i < 1000; ++i) {
        const Scene scene = make_scene(5, {Split::train, i});
        if (scene.damage != Damage::none || scene.label || scene.kind == Kind::diagram) continue;
        const Image image = draw(scene);
        CAPTURE(i);
        REQUIRE(image.width() == static_cast<std::size_t>(scene.width));
        REQUIRE(image.height() == static_cast<std::size_t>(scene.height));
        bool apart = true;
        for (const Object& a : scene.objects)
            for (const Object& b : scene.objects) apart &= &a == &b || overlap_area(a.box().grown(px), b.box().grown(px)) == 0;
        scenes += apart;
        if (apart) CHECK(painted_parts(scene, image) == scene.objects.size());
        for (int y = 0; y < scene.height; ++y)
            for (int x = 0; x < scene.width; ++x) {
                const shapes::Box  pixel{x * px, y * px, (x + 1) * px, (y + 1) * px};
                const bool inside = std::ranges::any_of(scene.objects, [&](const Object& o) { return overlap_area(o.box().grown(1), pixel) > 0; });
                if (!inside) REQUIRE(is_background(scene, image.row(static_cast<std::size_t>(y)) + 3 * x));
            }
        for (const Object& o : scene.objects) {  // something is painted in the outermost pixel of each side, a 16th off at most
            const shapes::Box  box = o.box();
            const auto painted = [&](int x1, int y1, int x2, int y2) {
                for (int y = y1 / px; y <= y2 / px && y < scene.height; ++y)
                    for (int x = x1 / px; x <= x2 / px && x < scene.width; ++x)
                        if (!is_background(scene, image.row(static_cast<std::size_t>(y)) + 3 * x)) return true;
                return false;
            };
            CHECK(painted(box.x1, box.y1, box.x1 + px, box.y2));
            CHECK(painted(box.x2 - px, box.y1, box.x2, box.y2));
            CHECK(painted(box.x1, box.y1, box.x2, box.y1 + px));
            CHECK(painted(box.x1, box.y2 - px, box.x2, box.y2));
        }
    }
    CHECK(scenes > 100);
}

TEST_CASE("shapes/draw: a square covers pixels by area") {
    Scene  scene{.width = 96, .height = 96, .shade = {0, 0, 0}};
    Object o{.shape = Shape::square, .center = {20 * px + 5, 30 * px + 3}, .radius = 128, .tone = {255, 255, 255}};
    scene.objects = {o};
    const Image image = draw(scene);
    const shapes::Box   box = o.box();
    double      sum = 0;
    for (std::size_t i = 0; i < image.pixels.size(); i += 3) sum += image.pixels.data()[i] / 255.0;
    const double area = box.area() / double{px * px}, edge = (box.width() + box.height()) * 2 / double{px};
    // Heights are sampled at eighths, so each of the two level edges is off by at most half of one.
    CHECK(std::abs(sum - area) <= edge / 32 + edge / 510);
}

TEST_CASE("shapes/draw: the same bytes everywhere") {
    // These are the world. A change of any of them makes another world: pictures, splits and models made before are void.
    CHECK(hash_of(Split::train, 300) == "af7414f3b866b4c4");
    CHECK(hash_of(Split::compositional, 100) == "57c4530d105595b8");
    CHECK(hash_of(Split::clutter, 100) == "fe7207ae2bf98b2b");
    CHECK(hash_of(Split::fresh, 100) == "15085dc3151a55f6");
}
