// Scenes of the shapes world: what is in a picture, and where.
//
//     const Scene scene = make_scene(7, {Split::train, 0});   // the same on every machine
//     for (const Object& o : scene.objects) std::cout << to_string(o.color) << ' ' << to_string(o.shape) << '\n';
//
// Lengths are integers, in sixteenths of a pixel, x to the right and y downwards.
#pragma once

#include "random.hpp"

#include "prism/image/image.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prism::shapes {

inline constexpr int px = 16;           // units in a pixel
inline constexpr int longest_side = 96;  // of a picture, in pixels

enum class Shape : std::uint8_t { circle, square, triangle, star, cross, ring };
enum class Color : std::uint8_t { red, orange, yellow, green, cyan, blue, purple, pink };
enum class Size : std::uint8_t { small, large };
enum class Texture : std::uint8_t { plain, striped };

inline constexpr std::array<std::string_view, 6> shape_names{"circle", "square", "triangle", "star", "cross", "ring"};
inline constexpr std::array<std::string_view, 8> color_names{"red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"};
inline constexpr std::array<std::string_view, 2> size_names{"small", "large"};
inline constexpr std::array<std::string_view, 2> texture_names{"plain", "striped"};

inline std::string_view to_string(Shape s) { return shape_names[static_cast<std::size_t>(s)]; }
inline std::string_view to_string(Color c) { return color_names[static_cast<std::size_t>(c)]; }
inline std::string_view to_string(Size s) { return size_names[static_cast<std::size_t>(s)]; }
inline std::string_view to_string(Texture t) { return texture_names[static_cast<std::size_t>(t)]; }

/// Five of the 48 combinations are kept from every split but Split::compositional, which always shows one.
constexpr bool held_out(Shape shape, Color color) {
    constexpr std::array<std::pair<Shape, Color>, 5> kept{{{Shape::star, Color::red}, {Shape::ring, Color::blue}, {Shape::triangle, Color::green},
                                                           {Shape::cross, Color::yellow}, {Shape::square, Color::purple}}};
    for (const auto& [s, c] : kept)
        if (s == shape && c == color) return true;
    return false;
}

/// Circles and squares come twice as often as each of the other shapes.
inline constexpr std::array<int, 6> shape_weights{2, 2, 1, 1, 1, 1};

struct Box {
    int  x1 = 0, y1 = 0, x2 = 0, y2 = 0;
    bool operator==(const Box&) const = default;
    int  width() const { return x2 - x1; }
    int  height() const { return y2 - y1; }
    int  area() const { return width() * height(); }
    Box  grown(int by) const { return {x1 - by, y1 - by, x2 + by, y2 + by}; }
};

constexpr int overlap_area(const Box& a, const Box& b) {
    const int w = std::min(a.x2, b.x2) - std::max(a.x1, b.x1), h = std::min(a.y2, b.y2) - std::max(a.y1, b.y1);
    return w > 0 && h > 0 ? w * h : 0;
}

struct Point {
    int  x = 0, y = 0;
    bool operator==(const Point&) const = default;
};

/// The corners of a shape with straight sides, in 1024ths of its radius; none for circle and ring.
inline std::span<const Point> corners(Shape shape) {
    static constexpr std::array<Point, 4>  square{{{-900, -900}, {900, -900}, {900, 900}, {-900, 900}}};
    static constexpr std::array<Point, 3>  triangle{{{0, -1000}, {1000, 780}, {-1000, 780}}};
    static constexpr std::array<Point, 10> star{{{0, -1024}, {271, -373}, {974, -316}, {438, 142}, {602, 828},
                                                 {0, 461}, {-602, 828}, {-438, 142}, {-974, -316}, {-271, -373}}};
    static constexpr std::array<Point, 12> cross{{{-330, -960}, {330, -960}, {330, -330}, {960, -330}, {960, 330}, {330, 330},
                                                  {330, 960}, {-330, 960}, {-330, 330}, {-960, 330}, {-960, -330}, {-330, -330}}};
    switch (shape) {
        case Shape::square: return square;
        case Shape::triangle: return triangle;
        case Shape::star: return star;
        case Shape::cross: return cross;
        default: return {};
    }
}

struct Object {
    Shape   shape = Shape::circle;
    Color   color = Color::red;
    Size    size = Size::small;
    Texture texture = Texture::plain;
    Point   center{};
    int     radius = 0;
    Rgb     tone{};       // the colour as it is painted: its name's, a little off
    bool    cut = false;  // hangs over the edge of a cropped picture, too little of it inside to tell what it is

    /// The smallest box around what is drawn.
    Box box() const {
        Box        b{-1024, -1024, 1024, 1024};
        const auto points = corners(shape);
        if (!points.empty()) {
            b = {0, 0, 0, 0};
            for (const Point p : points) b = {std::min(b.x1, p.x), std::min(b.y1, p.y), std::max(b.x2, p.x), std::max(b.y2, p.y)};
        }
        const auto scaled = [&](int v) { return v * radius / 1024; };
        return {center.x + scaled(b.x1), center.y + scaled(b.y1), center.x + scaled(b.x2), center.y + scaled(b.y2)};
    }
};

/// Two or three characters in the font at double size; x, y is the upper left corner.
struct Label {
    std::string text;
    Point       at{};
    Box         box() const { return {at.x, at.y, at.x + (static_cast<int>(text.size()) * 12 - 2) * px, at.y + 14 * px}; }
};
inline constexpr std::string_view label_letters = "ACEFHKLMNPRTUXYZ2347";

/// Diagrams: discs with a letter, and arrows between them. No disc has two arrows in, or two out.
struct Node {
    char  letter = 'K';
    Point center{};
};
struct Arrow {
    std::size_t from = 0, to = 0;
};
inline constexpr int              node_radius = 11 * px;
inline constexpr std::string_view node_letters = "HKLMNPRTUXYZ";  // not those that name choices

enum class Kind : std::uint8_t { ordinary, complex, diagram, clutter };
enum class Damage : std::uint8_t { none, blurred, cropped, empty };
enum class Backdrop : std::uint8_t { plain, gradient, checks, speckles };

inline constexpr std::array<std::string_view, 4> kind_names{"ordinary", "complex", "diagram", "clutter"};
inline constexpr std::array<std::string_view, 4> damage_names{"none", "blurred", "cropped", "empty"};
inline constexpr std::array<std::string_view, 4> backdrop_names{"plain", "gradient", "checks", "speckles"};
inline std::string_view to_string(Kind k) { return kind_names[static_cast<std::size_t>(k)]; }
inline std::string_view to_string(Damage d) { return damage_names[static_cast<std::size_t>(d)]; }
inline std::string_view to_string(Backdrop b) { return backdrop_names[static_cast<std::size_t>(b)]; }

struct Scene {
    std::uint64_t        seed = 0;
    SceneId              id{};
    Kind                 kind = Kind::ordinary;
    Damage               damage = Damage::none;
    int                  width = longest_side, height = longest_side;  // pixels
    Backdrop             backdrop = Backdrop::plain;
    Rgb                  shade{}, second{};  // of the background; `second` for backdrops of two
    bool                 dark = false;       // the background, and so what is written on it is white
    std::vector<Object>  objects{};
    std::optional<Label> label{};
    std::vector<Node>    nodes{};
    std::vector<Arrow>   arrows{};
};

/// How much of the smaller of two boxes may lie in the other, in percent.
constexpr int overlap_limit(Kind kind) { return kind == Kind::clutter ? 30 : 5; }

namespace detail {

inline constexpr std::array<Rgb, 8> paints{{{220, 45, 45}, {245, 140, 30}, {240, 215, 50}, {50, 165, 65},
                                            {60, 205, 215}, {45, 85, 220}, {145, 60, 185}, {250, 150, 195}}};

constexpr std::uint64_t squared_distance(Point a, Point b) {
    const std::int64_t dx = a.x - b.x, dy = a.y - b.y;
    return static_cast<std::uint64_t>(dx * dx + dy * dy);
}

/// The largest integer whose square is at most n.
constexpr int square_root(std::uint64_t n) {
    std::uint64_t root = 0;
    for (std::uint64_t bit = std::uint64_t{1} << 31; bit > 0; bit >>= 1)
        if ((root | bit) * (root | bit) <= n) root |= bit;
    return static_cast<int>(root);
}

inline Point random_center(const Scene& scene, int radius, Random& random) {
    const int margin = radius + px;
    return {random.between(margin, scene.width * px - margin), random.between(margin, scene.height * px - margin)};
}

/// Whether an object keeps the limits beside what is there.
inline bool fits(const Scene& scene, const Object& object) {
    const Box box = object.box();
    if (scene.label && overlap_area(scene.label->box().grown(px), box) > 0) return false;
    return std::ranges::all_of(scene.objects, [&](const Object& other) {
        return overlap_area(other.box(), box) * 100 <= overlap_limit(scene.kind) * std::min(other.box().area(), box.area());
    });
}

/// What most objects of a scene share, so that there is something to count.
struct Theme {
    enum { none, shape, color, size, texture } what = none;
    Object like{};
};

inline Object random_looks(Random& random, bool may_be_held_out) {
    Object o;
    do {
        o.shape = static_cast<Shape>(random.weighted(shape_weights));
        o.color = static_cast<Color>(random.below(8));
    } while (held_out(o.shape, o.color) && !may_be_held_out);
    o.size = static_cast<Size>(random.below(2));
    o.texture = random.percent(30) ? Texture::striped : Texture::plain;
    return o;
}

inline void add_objects(Scene& scene, int count, Random& random) {
    const bool compositional = scene.id.split == Split::compositional;
    const bool small_only = scene.kind == Kind::complex;
    Theme      theme;
    if (random.percent(40)) theme.what = static_cast<decltype(theme.what)>(random.between(1, 4)), theme.like = random_looks(random, false);
    const auto looks = [&](bool first) {
        for (;;) {
            Object o = random_looks(random, compositional);
            if (random.percent(75)) {
                if (theme.what == Theme::shape) o.shape = theme.like.shape;
                if (theme.what == Theme::color) o.color = theme.like.color;
                if (theme.what == Theme::size) o.size = theme.like.size;
                if (theme.what == Theme::texture) o.texture = theme.like.texture;
            }
            const bool kept = held_out(o.shape, o.color);
            if (compositional ? (first && !kept) : kept) continue;  // the first one is what a compositional scene is about
            if (small_only) o.size = Size::small;
            return o;
        }
    };
    for (int restart = 0; restart < 20; ++restart) {
        scene.objects.clear();
        for (int n = 0; n < count; ++n) {
            Object o = looks(n == 0);
            for (auto channel = o.tone.begin(); const int paint : paints[static_cast<std::size_t>(o.color)])
                *channel++ = static_cast<std::uint8_t>(std::clamp(paint + random.between(-10, 10), 0, 255));
            bool placed = false;
            for (int attempt = 0; attempt < 60 && !placed; ++attempt) {
                if (attempt == 30) o.size = Size::small;  // where there is no room for a large one
                o.radius = o.size == Size::large ? random.between(10 * px, 12 * px) : small_only ? random.between(5 * px, 6 * px) : random.between(6 * px, 7 * px);
                o.center = random_center(scene, o.radius, random);
                placed = fits(scene, o);
            }
            if (!placed) break;
            scene.objects.push_back(o);
        }
        if (static_cast<int>(scene.objects.size()) == count) break;
    }
    if (compositional) random.shuffle(scene.objects);  // what it is about is not always at the back
}

/// Discs in the places of a grid, and arrows that pass no other disc.
inline void add_diagram(Scene& scene, Random& random) {
    const int          columns = scene.width / 32, rows = std::max(scene.height / 32, 2);
    std::vector<Point> places;
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column)
            places.push_back({(2 * column + 1) * scene.width * px / (2 * columns), (2 * row + 1) * scene.height * px / (2 * rows)});
    random.shuffle(places);
    std::string letters{node_letters};
    random.shuffle(letters);
    const std::size_t n = 4 + random.below(2);
    for (std::size_t i = 0; i < n; ++i) {
        const int room = std::min(scene.width / columns, scene.height / rows) * px / 2 - node_radius - px;
        const int shift = std::clamp(room, 0, 3 * px);
        scene.nodes.push_back({letters[i], {places[i].x + random.between(-shift, shift), places[i].y + random.between(-shift, shift)}});
    }
    std::vector<Arrow> candidates;
    for (std::size_t a = 0; a < n; ++a)
        for (std::size_t b = 0; b < n; ++b) {
            const Point from = scene.nodes[a].center, to = scene.nodes[b].center;
            const bool  clear = a != b && std::ranges::none_of(scene.nodes, [&](const Node& node) {
                if (node.center == from || node.center == to) return false;
                const std::int64_t dx = to.x - from.x, dy = to.y - from.y, px_ = node.center.x - from.x, py = node.center.y - from.y;
                const std::int64_t along = dx * px_ + dy * py, across = dx * py - dy * px_;
                const auto         length = static_cast<std::int64_t>(squared_distance(from, to));
                const std::int64_t keep = node_radius + 3 * px;
                return along > 0 && along < length && across * across < keep * keep * length;
            });
            if (clear) candidates.push_back({a, b});
        }
    random.shuffle(candidates);
    const std::size_t wanted = 3 + random.below(2);
    for (const Arrow& c : candidates) {
        const auto clashes = [&](const Arrow& a) { return a.from == c.from || a.to == c.to || (a.from == c.to && a.to == c.from); };
        if (scene.arrows.size() < wanted && std::ranges::none_of(scene.arrows, clashes)) scene.arrows.push_back(c);
    }
}

inline Rgb grey(int level) { return {static_cast<std::uint8_t>(level), static_cast<std::uint8_t>(level), static_cast<std::uint8_t>(level)}; }

inline void add_background(Scene& scene, Random& random) {
    scene.dark = random.percent(40);
    const int level = scene.dark ? random.between(30, 70) : random.between(195, 240);
    scene.shade = grey(level), scene.second = scene.shade;
    if (scene.kind != Kind::clutter) return;
    scene.backdrop = static_cast<Backdrop>(random.between(1, 3));
    // Tinted, but far from every paint: all three channels stay together.
    for (std::size_t i = 0; i < 3; ++i) {
        scene.shade[i] = static_cast<std::uint8_t>(std::clamp(level + random.between(-15, 15), 0, 255));
        scene.second[i] = static_cast<std::uint8_t>(std::clamp(level + (scene.dark ? 35 : -35) + random.between(-15, 15), 0, 255));
    }
}

}  // namespace detail

/// The scene of a seed and an id. Ordinary scenes hold 3 to 6 objects, complex ones 7 to 15 small ones; where a crowded
/// canvas has no room after twenty beginnings, fewer. Of 100 scenes 10 are diagrams, 15 complex; of 100 ordinary ones 2 are
/// damaged in each of the three ways. Those of the splits compositional and clutter are neither.
inline Scene make_scene(std::uint64_t seed, SceneId id) {
    Scene  scene{.seed = seed, .id = id};
    Random random{seed, id, Purpose::layout};

    constexpr std::array<std::pair<int, int>, 4> canvases{{{96, 96}, {96, 72}, {72, 96}, {96, 54}}};
    const auto canvas = random.pick(canvases);
    scene.width = canvas.first, scene.height = canvas.second;
    const auto kind = random.below(100);
    if (id.split == Split::clutter) scene.kind = Kind::clutter;
    else if (id.split != Split::compositional) scene.kind = kind < 10 ? Kind::diagram : kind < 25 ? Kind::complex : Kind::ordinary;
    detail::add_background(scene, random);
    if (scene.kind == Kind::diagram) {
        detail::add_diagram(scene, random);
        return scene;
    }
    if (scene.kind == Kind::ordinary && id.split != Split::compositional) {
        const auto damage = random.below(100);
        scene.damage = damage < 2 ? Damage::blurred : damage < 4 ? Damage::cropped : damage < 6 ? Damage::empty : Damage::none;
    }
    if (scene.damage == Damage::empty) return scene;

    // 53 of a hundred: complex scenes and diagrams have none, so that it is nearly two in five of all.
    if (scene.kind == Kind::ordinary && scene.damage == Damage::none && random.percent(53)) {
        Label label;
        for (int n = random.between(2, 3); n > 0; --n) label.text += random.pick(label_letters);
        const Box size = label.box();
        label.at = {random.between(2, scene.width - size.x2 / px - 2) * px, random.between(2, scene.height - size.y2 / px - 2) * px};
        scene.label = label;
    }
    const int n_objects = scene.kind == Kind::complex ? random.between(7, 15) : scene.kind == Kind::clutter ? random.between(4, 12) : random.between(3, 6);
    detail::add_objects(scene, n_objects, random);

    if (scene.damage == Damage::cropped) {
        Object&    o = scene.objects.front();
        const int  out = o.radius * 45 / 100;  // less than a third of it stays inside
        const auto side = random.below(4);
        if (side < 2) o.center.x = side == 0 ? -out : scene.width * px + out;
        else o.center.y = side == 2 ? -out : scene.height * px + out;
        o.cut = true;
    }
    return scene;
}

}  // namespace prism::shapes
