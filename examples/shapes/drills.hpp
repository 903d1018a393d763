// Drills: the same facts as questions, in as few words as will do, so that a row of some hundred tokens asks for dozens of them.
//
//     for (const Drill& d : drills(scene, 24)) ...      // "the large circle": "plain red"; "red stars": "2"
//
// What takes a small model long is to find which of several objects is meant. It learns that from how often it has to, and
// a conversation spends most of its tokens on grammar.
#pragma once

#include "questions.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace prism::shapes {

struct Drill {
    std::string given, answer;
};

enum class DrillKind { looks, box, edge, count, exists, pair, relation, neighbour, end, text, arrow, alike };

/// How it is asked whether two objects have a color, or a shape, in common.
enum class AlikeForm {
    word,        // "color of the circle": "red"
    steps,       // "the color of the circle and the star": "red blue different"
    half,        // "color of the circle to the star": "red different"
    verdict,     // "color of the circle and the star": "different"
    is_verdict,  // "is the circle the same color as the star": "different No"
    is           // "the circle the same color as the star": "No"
};

/// How often each kind is tried, in the order of `DrillKind`; many scenes have no text and no arrow. And each form of the last kind.
struct DrillMixture {
    std::array<int, static_cast<std::size_t>(DrillKind::alike) + 1> weights{26, 8, 16, 16, 14, 12, 10, 9, 6, 4, 30, 0};
    std::array<int, static_cast<std::size_t>(AlikeForm::is) + 1>    alike_forms{1, 2, 2, 3, 2, 3};
};

namespace detail {

/// A place without what all places share: "12345678" is "[0.12, 0.34, 0.56, 0.78]".
inline std::string box_digits(const Scene& scene, const Box& box) {
    std::string       digits;
    const std::string text = box_text(scene, box);
    for (std::size_t point = text.find('.'); point != text.npos; point = text.find('.', point + 1)) digits += text.substr(point + 1, 2);
    return digits;
}

/// The properties that a name leaves unsaid, in the order in which names say them; the word "shape" adds nothing.
inline std::string unsaid(const Object& o, const Looks& said) {
    std::string words;
    const auto  add = [&](bool is_said, std::string_view word) {
        if (!is_said) words += (words.empty() ? "" : " "), words += word;
    };
    add(said.size.has_value(), to_string(o.size)), add(said.texture.has_value(), to_string(o.texture));
    add(said.color.has_value(), to_string(o.color)), add(said.shape.has_value(), to_string(o.shape));
    return words;
}

/// All that holds between two objects: "left below far same size different color same shape"; what is unclear is left out.
inline std::string compared(const Object& a, const Object& b) {
    std::string words;
    const auto  add = [&](std::string_view word) { words += words.empty() ? "" : " ", words += word; };
    constexpr std::array<std::pair<Relation, std::string_view>, 6> places{{{Relation::left_of, "left"}, {Relation::right_of, "right"}, {Relation::above, "above"},
                                                                           {Relation::below, "below"}, {Relation::near, "near"}, {Relation::far_from, "far"}}};
    for (const auto& [relation, word] : places)
        if (holds(a, relation, b) == Truth::yes) add(word);
    add(a.size > b.size ? "larger" : a.size < b.size ? "smaller" : "same size");
    add(a.color == b.color ? "same color" : "different color");
    add(a.shape == b.shape ? "same shape" : "different shape");
    return words;
}

/// Whether a relation holds between two objects.
inline Drill whether(const Pair& pair, Relation relation, bool truth) { return {"the " + pair.a + ' ' + std::string(to_string(relation)) + " the " + pair.b, truth ? "Yes" : "No"}; }

/// Neither of two colors says anything by itself about whether they are the same, so that nothing draws a model to look for both: it learns
/// to from forms that say first what is compared, and from others that leave ever more of it out.
inline std::optional<Drill> alike(const Scene& scene, AlikeForm form, Random& random) {
    const bool color = random.percent(65), truth = random.percent(50), turned = random.percent(50);
    const auto relation = color ? turned ? Relation::different_color : Relation::same_color : turned ? Relation::different_shape : Relation::same_shape;
    const auto pair = pair_with(scene, relation, truth, random);
    if (!pair) return std::nullopt;
    const auto        word = [&](const Object& o) { return std::string(color ? to_string(o.color) : to_string(o.shape)); };
    const std::string a = word(*pair->first), b = word(*pair->second), verdict = a == b ? "same" : "different", of = color ? "color of the " : "shape of the ";
    const Drill       is = whether(*pair, relation, truth);
    switch (form) {
        case AlikeForm::word: return Drill{of + pair->a, a};
        case AlikeForm::steps: return Drill{"the " + of + pair->a + " and the " + pair->b, a + ' ' + b + ' ' + verdict};
        case AlikeForm::half: return Drill{of + pair->a + " to the " + pair->b, a + ' ' + verdict};
        case AlikeForm::verdict: return Drill{of + pair->a + " and the " + pair->b, verdict};
        case AlikeForm::is_verdict: return Drill{"is " + is.given, verdict + ' ' + is.answer};
        default: return is;
    }
}

/// What is asked in a few words, and nothing where the scene does not permit it.
inline std::optional<Drill> drill(const Scene& scene, const DrillMixture& mixture, Random& random) {
    const auto kind = static_cast<DrillKind>(random.weighted(mixture.weights));
    const auto nameable = [&](const std::optional<Looks>& looks) { return looks && may_name(scene, *looks); };
    if (kind == DrillKind::text) return scene.label ? std::optional(Drill{"text", scene.label->text}) : std::nullopt;
    if (kind == DrillKind::arrow) {
        if (scene.arrows.empty()) return std::nullopt;
        const Arrow       arrow = random.pick(scene.arrows);
        const std::string from(1, scene.nodes[arrow.from].letter), to(1, scene.nodes[arrow.to].letter);
        return random.percent(50) ? Drill{from + " points at", to} : Drill{"arrow to " + to, from};
    }
    if (scene.objects.empty()) return std::nullopt;
    const Object& o = random.pick(scene.objects);
    switch (kind) {
        case DrillKind::looks: {
            const auto said = unique_looks(scene, o, random, 1U << random.below(4));
            if (!nameable(said)) return std::nullopt;
            return Drill{"the " + said->text(), unsaid(o, *said)};
        }
        case DrillKind::box:
        case DrillKind::edge: {
            constexpr std::array<const char*, 4> edges{"left", "top", "right", "bottom"};
            const auto        said = unique_looks(scene, o, random);
            const std::string digits = box_digits(scene, o.box());
            const auto        edge = random.below(4);
            if (!nameable(said)) return std::nullopt;
            if (kind == DrillKind::box) return Drill{"at the " + said->text(), digits};
            return Drill{std::string(edges[edge]) + " at the " + said->text(), digits.substr(2 * edge, 2)};
        }
        case DrillKind::count: {
            const auto q = ask_count(scene, Type::count, random);
            if (!q) return std::nullopt;
            return Drill{q->about ? q->about->text(true) : "shapes", q->answer};
        }
        case DrillKind::exists: {
            const auto q = ask_exists(scene, random);
            if (!q) return std::nullopt;
            return Drill{with_article(q->about->text()), q->answer};
        }
        case DrillKind::relation: {
            const auto relation = static_cast<Relation>(random.below(12));
            const bool truth = random.percent(50);
            const auto pair = pair_with(scene, relation, truth, random);
            if (!pair) return std::nullopt;
            return whether(*pair, relation, truth);
        }
        case DrillKind::neighbour: {
            const auto    relation = static_cast<Relation>(random.below(12));
            const auto    name = unique_looks(scene, o, random, property_of(relation));
            const Object* other = only_one(scene, relation, o);
            if (!other || !nameable(name)) return std::nullopt;
            return Drill{std::string(to_string(relation)) + " the " + name->text(), looks_of(*other, 15).text()};
        }
        case DrillKind::end: {
            const auto                        place = static_cast<Place>(random.below(4));
            constexpr std::array<unsigned, 3> forms{0, has_shape, has_color};
            const Looks                       said = looks_of(o, random.pick(forms));
            const Object*                     found = at_end(scene, said, place);
            if (!found) return std::nullopt;
            return Drill{"the " + std::string(place_names[static_cast<std::size_t>(place)]) + ' ' + said.text(), unsaid(*found, said)};
        }
        case DrillKind::alike: return alike(scene, static_cast<AlikeForm>(random.weighted(mixture.alike_forms)), random);
        default: {
            const Object& other = random.pick(scene.objects);
            const auto    a = unique_looks(scene, o, random), b = unique_looks(scene, other, random);
            if (&other == &o || !nameable(a) || !nameable(b)) return std::nullopt;
            return Drill{"the " + a->text() + " to the " + b->text(), compared(o, other)};
        }
    }
}

}  // namespace detail

/// Up to `n` drills about one picture, no two of which are given the same, and no box twice.
inline std::vector<Drill> drills(const Scene& scene, std::size_t n, const DrillMixture& mixture = {}) {
    using namespace detail;
    std::vector<Drill> all;
    if (scene.damage != Damage::none) return all;
    Random random{scene.seed, scene.id, Purpose::questions};
    for (int attempt = 0; all.size() < n && attempt < 100; ++attempt) {
        auto d = drill(scene, mixture, random);
        if (!d || std::ranges::find(all, d->given, &Drill::given) != all.end()) continue;
        if (d->answer.size() != 8 || d->answer[0] > '9' || std::ranges::find(all, d->answer, &Drill::answer) == all.end()) all.push_back(std::move(*d));
    }
    return all;
}

}  // namespace prism::shapes
