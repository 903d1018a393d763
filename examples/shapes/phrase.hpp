// What can be said of objects: looks, and relations of two of them. Words here, truths here.
//
//     const Looks looks{.shape = Shape::circle, .color = Color::red};
//     looks.text();                              // "red circle"
//     looks.count(scene);                        // how many there are
//     holds(scene, a, Relation::left_of, b);     // Truth::yes, no or unclear
#pragma once

#include "scene.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace prism::shapes {

/// Some properties of an object. Those that are not set may be anything.
struct Looks {
    std::optional<Shape>   shape{};
    std::optional<Color>   color{};
    std::optional<Size>    size{};
    std::optional<Texture> texture{};
    bool                   operator==(const Looks&) const = default;

    bool match(const Object& o) const {
        return (!shape || *shape == o.shape) && (!color || *color == o.color) && (!size || *size == o.size) && (!texture || *texture == o.texture);
    }
    std::size_t count(const Scene& scene) const {
        return static_cast<std::size_t>(std::ranges::count_if(scene.objects, [&](const Object& o) { return match(o); }));
    }
    /// Names a combination that training never shows.
    bool names_held_out() const { return shape && color && held_out(*shape, *color); }

    /// "small striped red circle"; "red shape" where the shape is not set.
    std::string text(bool plural = false) const {
        std::string       words;
        const auto        add = [&](std::string_view word) { words += words.empty() ? "" : " ", words += word; };
        if (size) add(to_string(*size));
        if (texture) add(to_string(*texture));
        if (color) add(to_string(*color));
        add(shape ? to_string(*shape) : "shape");
        if (plural) words += shape == Shape::cross ? "es" : "s";
        return words;
    }
};

/// "a red circle", "an orange circle".
inline std::string with_article(const std::string& noun) { return (noun.starts_with('o') ? "an " : "a ") + noun; }
inline std::string capitalised(std::string text) {
    if (!text.empty() && text[0] >= 'a' && text[0] <= 'z') text[0] = static_cast<char>(text[0] - 'a' + 'A');
    return text;
}

enum Property : unsigned { has_shape = 1, has_color = 2, has_size = 4, has_texture = 8 };

/// The chosen properties of an object.
inline Looks looks_of(const Object& o, unsigned properties) {
    Looks looks;
    if (properties & has_shape) looks.shape = o.shape;
    if (properties & has_color) looks.color = o.color;
    if (properties & has_size) looks.size = o.size;
    if (properties & has_texture) looks.texture = o.texture;
    return looks;
}

/// Looks that fit this object alone, out of those that leave the properties in `without` unsaid: a random choice, mostly
/// of the shortest. Empty when nothing short of a place tells it from the others.
inline std::optional<Looks> unique_looks(const Scene& scene, const Object& o, Random& random, unsigned without = 0) {
    std::vector<Looks> shortest, all;
    std::size_t        least = 5;
    for (unsigned properties = 1; properties < 16; ++properties) {
        const Looks looks = looks_of(o, properties);
        if ((properties & without) || looks.count(scene) != 1) continue;
        const auto n = static_cast<std::size_t>(std::popcount(properties));
        if (n < least) shortest.clear(), least = n;
        if (n == least) shortest.push_back(looks);
        all.push_back(looks);
    }
    if (all.empty()) return std::nullopt;
    return random.percent(70) ? random.pick(shortest) : random.pick(all);
}

enum class Relation : std::uint8_t {
    left_of, right_of, above, below, near, far_from, larger_than, smaller_than, same_color, different_color, same_shape, different_shape
};
inline constexpr std::array<std::string_view, 12> relation_names{
    "left of", "right of", "above", "below", "near", "far from", "larger than", "smaller than",
    "the same color as", "a different color from", "the same shape as", "a different shape from"};
inline std::string_view to_string(Relation r) { return relation_names[static_cast<std::size_t>(r)]; }

enum class Truth : std::uint8_t { no, yes, unclear };

/// Whether `a` is in this relation to `b`. Places have margins, between which nobody should be asked: centres less than
/// 6 pixels apart in a direction are neither left nor right; near is within 28 pixels, far from 44.
inline Truth holds(const Object& a, Relation relation, const Object& b) {
    const auto truth = [](bool yes, bool no) { return yes ? Truth::yes : no ? Truth::no : Truth::unclear; };
    const auto further = [&](int v) { return truth(v >= 6 * px, v <= -6 * px); };
    const auto within = [&](int pixels) { return detail::squared_distance(a.center, b.center) <= static_cast<std::uint64_t>(pixels * px) * static_cast<std::uint64_t>(pixels * px); };
    switch (relation) {
        case Relation::left_of: return further(b.center.x - a.center.x);
        case Relation::right_of: return further(a.center.x - b.center.x);
        case Relation::above: return further(b.center.y - a.center.y);
        case Relation::below: return further(a.center.y - b.center.y);
        case Relation::near: return truth(within(28), !within(40));
        case Relation::far_from: return truth(!within(44), within(32));
        case Relation::larger_than: return truth(a.size > b.size, a.size < b.size);
        case Relation::smaller_than: return truth(a.size < b.size, a.size > b.size);
        case Relation::same_color: return truth(a.color == b.color, true);
        case Relation::different_color: return truth(a.color != b.color, true);
        case Relation::same_shape: return truth(a.shape == b.shape, true);
        default: return truth(a.shape != b.shape, true);
    }
}

/// The only other object that is in this relation to `b`; null when there is none, several, or one of which it is unclear.
inline const Object* only_one(const Scene& scene, Relation relation, const Object& b) {
    const Object* found = nullptr;
    for (const Object& a : scene.objects) {
        if (&a == &b) continue;
        const Truth truth = holds(a, relation, b);
        if (truth == Truth::unclear || (truth == Truth::yes && found)) return nullptr;
        if (truth == Truth::yes) found = &a;
    }
    return found;
}

enum class Place : std::uint8_t { leftmost, rightmost, top, bottom };
inline constexpr std::array<std::string_view, 4> place_names{"leftmost", "rightmost", "top", "bottom"};

/// The object that clearly is the one at this end among those of some looks; null when there is none, or only one.
inline const Object* at_end(const Scene& scene, const Looks& looks, Place place) {
    const auto    way = [&](const Object& o) { return place == Place::leftmost ? -o.center.x : place == Place::rightmost ? o.center.x : place == Place::top ? -o.center.y : o.center.y; };
    const Object* best = nullptr;
    for (const Object& o : scene.objects)
        if (looks.match(o) && (!best || way(o) > way(*best))) best = &o;
    if (!best || looks.count(scene) < 2) return nullptr;
    for (const Object& o : scene.objects)
        if (&o != best && looks.match(o) && way(*best) - way(o) < 6 * px) return nullptr;
    return best;
}

inline constexpr std::array<std::string_view, 16> number_words{"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
                                                               "eleven", "twelve", "thirteen", "fourteen", "fifteen"};

/// A box as the answer that names it, in hundredths of the picture's width and height: "[0.12, 0.34, 0.56, 0.78]".
inline std::string box_text(const Scene& scene, const Box& box) {
    const auto part = [](int v, int side) {
        const int   n = std::clamp((v * 100 + side / 2) / side, 0, 100);
        return std::to_string(n / 100) + '.' + static_cast<char>('0' + n / 10 % 10) + static_cast<char>('0' + n % 10);
    };
    const int w = scene.width * px, h = scene.height * px;
    return '[' + part(box.x1, w) + ", " + part(box.y1, h) + ", " + part(box.x2, w) + ", " + part(box.y2, h) + ']';
}

/// A scene in words, for people: its canvas, and a line for everything in it.
inline std::string describe(const Scene& scene) {
    std::string text = std::string(to_string(scene.kind)) + " scene, " + std::to_string(scene.width) + " x " + std::to_string(scene.height) + " pixels, " +
                       std::string(to_string(scene.backdrop)) + (scene.dark ? " dark" : " light") + " background";
    if (scene.damage != Damage::none) text += ", " + std::string(to_string(scene.damage));
    text += '\n';
    for (const Object& o : scene.objects)
        text += looks_of(o, 15).text() + (o.cut ? " (cut off)" : "") + ' ' + box_text(scene, o.box()) + '\n';
    if (scene.label) text += "text " + scene.label->text + ' ' + box_text(scene, scene.label->box()) + '\n';
    for (const Arrow& a : scene.arrows) text += std::string("arrow from ") + scene.nodes[a.from].letter + " to " + scene.nodes[a.to].letter + '\n';
    return text;
}

}  // namespace prism::shapes
