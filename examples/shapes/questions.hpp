// Questions about a scene, with the answers that follow from it, and conversations made of them.
//
//     Random random{seed, id, Purpose::questions};
//     const auto q = ask(scene, Type::color, random);     // "What color is the small star?", "red"; or nothing
//     for (const Question& turn : conversation(scene)) ...
//
// An answer is drawn first, or a scene is asked only what could be answered either way, so that the words of a question
// tell little about its answer.
#pragma once

#include "language.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::shapes {

enum class Type : std::uint8_t {
    exists, color, shape, size, texture, count, related_count, relation, compare, two_hop, statement,
    box, box_place, box_long, tally, related_tally, diagram, read, answerable, caption
};
inline constexpr std::size_t n_types = 20;
inline constexpr std::array<std::string_view, n_types> type_names{
    "exists", "color", "shape", "size", "texture", "count", "related count", "relation", "compare", "two hop", "statement",
    "box", "box by place", "box by relation", "tally", "related tally", "diagram", "read", "answerable", "caption"};
inline std::string_view to_string(Type t) { return type_names[static_cast<std::size_t>(t)]; }

struct Question {
    Type                     type = Type::exists;
    std::string              detail{};    // of the type: a relation, a property, how an absent thing was chosen
    std::string              question{};  // alone
    std::string              prompt{};    // as a benchmark asks it, with what the answer shall look like
    std::string              answer{};
    std::vector<std::string> choices{};  // where the answer is one of a few tokens
    std::optional<Box>       box{};      // where the answer is a place
    std::optional<Looks>     about{};    // what is asked about, where looks alone say it
};

inline constexpr std::string_view unanswerable = "Unanswerable";

/// What the world does not have.
inline constexpr std::array<std::string_view, 10> foreign_nouns{"dog", "cat", "car", "tree", "house", "bird", "boat", "flower", "table", "person"};

namespace detail {

/// How often a count is asked for, of a hundred: nought to fifteen.
inline constexpr std::array<int, 16> count_weights{8, 19, 17, 14, 11, 8, 6, 4, 3, 2, 2, 2, 1, 1, 1, 1};

inline std::string short_prompt(const std::string& question) { return question + "\nAnswer the question using a single word or phrase."; }
inline std::string letters_prompt(const std::string& question, std::span<const std::string> options) {
    std::string text = question;
    for (std::size_t i = 0; i < options.size(); ++i) text += std::string("\n") + static_cast<char>('A' + i) + ". " + options[i];
    return text + "\nAnswer with the option's letter from the given choices directly.";
}
inline std::vector<std::string> letters(std::size_t n) {
    std::vector<std::string> all;
    for (std::size_t i = 0; i < n; ++i) all.emplace_back(1, static_cast<char>('A' + i));
    return all;
}

inline Question short_question(Type type, std::string detail, std::string question, std::string answer) {
    std::string prompt = short_prompt(question);
    return {.type = type, .detail = std::move(detail), .question = std::move(question), .prompt = std::move(prompt), .answer = std::move(answer)};
}
inline Question yes_or_no(Type type, std::string detail, std::string question, bool yes) {
    Question q = short_question(type, std::move(detail), std::move(question), yes ? "Yes" : "No");
    q.choices = {"Yes", "No"};
    return q;
}

/// Looks that may be spoken of in this scene.
inline bool may_name(const Scene& scene, const Looks& looks) { return scene.id.split == Split::compositional || !looks.names_held_out(); }

inline Looks random_subject(const Scene& scene, Random& random, unsigned properties) {
    for (;;) {
        const Object o = random_looks(random, true);
        if (const Looks looks = looks_of(o, properties); may_name(scene, looks)) return looks;
    }
}

inline std::string_view value_of(const Object& o, Property property) {
    return property == has_shape ? to_string(o.shape) : property == has_color ? to_string(o.color) : property == has_size ? to_string(o.size) : to_string(o.texture);
}

inline std::optional<Question> ask_exists(const Scene& scene, Random& random) {
    if (scene.kind == Kind::diagram) return std::nullopt;
    constexpr std::array<std::string_view, 3> ways{"random", "popular", "adversarial"};
    const auto     way = random.below(3);
    const bool     yes = random.percent(50);
    const auto     form = random.below(10);
    const unsigned properties = way == 2 || (way == 1 && form < 7) ? has_shape | has_color
                                : way == 1 ? has_shape
                                : form < 6 ? has_shape | has_color
                                : form < 7 ? has_shape
                                : form < 8 ? has_color
                                : form < 9 ? has_shape | has_color | has_size
                                           : has_shape | has_color | has_texture;
    const auto popular = [](const Object& o) { return o.shape == Shape::circle || o.shape == Shape::square; };
    for (int attempt = 0; attempt < 20; ++attempt) {
        Object o;
        if (yes) {
            if (scene.objects.empty()) return std::nullopt;
            o = random.pick(scene.objects);
        } else {
            o = random_looks(random, true);
            if (way == 2 && scene.objects.empty()) return std::nullopt;
            if (way == 2) o.shape = random.pick(scene.objects).shape, o.color = random.pick(scene.objects).color;
        }
        const Looks looks = looks_of(o, properties);
        if ((way == 1 && !popular(o)) || !may_name(scene, looks) || (looks.count(scene) > 0) != yes) continue;
        Question q = yes_or_no(Type::exists, std::string(ways[way]), "Is there " + with_article(looks.text()) + (random.percent(70) ? " in the image?" : "?"), yes);
        q.about = looks;
        return q;
    }
    return std::nullopt;
}

/// What property an object has that is the only one to fit the rest of its looks.
inline std::optional<Question> ask_property(const Scene& scene, Type type, Property property, Random& random) {
    const std::string_view     wanted = property == has_shape   ? random.pick(shape_names)
                                        : property == has_color ? random.pick(color_names)
                                        : property == has_size  ? random.pick(size_names)
                                                                : random.pick(texture_names);
    std::vector<const Object*> candidates;
    for (const Object& o : scene.objects)
        if (value_of(o, property) == wanted) candidates.push_back(&o);
    if (candidates.empty()) return std::nullopt;
    const auto looks = unique_looks(scene, *random.pick(candidates), random, property);
    if (!looks || !may_name(scene, *looks)) return std::nullopt;
    const std::string subject = "the " + looks->text();
    Question q = short_question(type, {}, property == has_texture ? "Is " + subject + " striped or plain?" : "What " + std::string(to_string(type)) + " is " + subject + '?',
                                std::string(wanted));
    q.about = looks;
    return q;
}

/// Looks of at most two properties, in a random order.
inline std::vector<Looks> countable(const Scene& scene, Random& random) {
    std::vector<Looks> all;
    for (std::size_t shape = 0; shape < 7; ++shape)
        for (std::size_t color = 0; color < 9; ++color)
            for (std::size_t size = 0; size < 3; ++size)
                for (std::size_t texture = 0; texture < 3; ++texture) {
                    if ((shape > 0) + (color > 0) + (size > 0) + (texture > 0) > 2) continue;
                    Looks looks;
                    if (shape) looks.shape = static_cast<Shape>(shape - 1);
                    if (color) looks.color = static_cast<Color>(color - 1);
                    if (size) looks.size = static_cast<Size>(size - 1);
                    if (texture) looks.texture = static_cast<Texture>(texture - 1);
                    if (may_name(scene, looks)) all.push_back(looks);
                }
    random.shuffle(all);
    return all;
}

inline Question count_question(Type type, std::string question, std::size_t n) {
    if (type == Type::count || type == Type::related_count) return short_question(type, {}, std::move(question), std::to_string(n));
    std::vector<std::string> options;
    for (int i = 0; i < 16; ++i) options.push_back(std::to_string(i));
    Question q{.type = type, .question = std::move(question), .answer = std::string(1, static_cast<char>('A' + n)), .choices = letters(16)};
    q.prompt = letters_prompt(q.question, options);
    return q;
}

/// A count that is drawn first: nought to six alike for short answers, seldom more than six for letters.
inline std::optional<Question> ask_count(const Scene& scene, Type type, Random& random) {
    const std::size_t wanted = type == Type::count ? random.below(7) : random.weighted(count_weights);
    if (scene.kind == Kind::diagram) {
        if (scene.arrows.size() != wanted) return std::nullopt;
        return count_question(type, "How many arrows are there?", wanted);
    }
    if (scene.objects.size() == wanted && random.percent(50)) return count_question(type, "How many shapes are there?", wanted);
    for (const Looks& looks : countable(scene, random)) {
        if (looks.count(scene) != wanted) continue;
        Question q = count_question(type, "How many " + looks.text(true) + " are there?", wanted);
        q.about = looks;
        return q;
    }
    return std::nullopt;
}

inline std::optional<Question> ask_related_count(const Scene& scene, Type type, Random& random) {
    if (scene.objects.empty()) return std::nullopt;
    const std::size_t wanted = type == Type::related_count ? random.below(7) : random.weighted(count_weights);
    for (int attempt = 0; attempt < 40; ++attempt) {
        const Relation relation = some_direction(random);
        const Object&  b = random.pick(scene.objects);
        const auto     name = unique_looks(scene, b, random);
        if (!name || !may_name(scene, *name)) continue;
        constexpr std::array<unsigned, 4> forms{0, has_shape, has_color, has_size};
        const Looks                       looks = random_subject(scene, random, random.pick(forms));
        std::size_t                       n = 0;
        bool                              clear = true;
        for (const Object& a : scene.objects) {
            if (&a == &b || !looks.match(a)) continue;
            const Truth truth = holds(a, relation, b);
            n += truth == Truth::yes, clear &= truth != Truth::unclear;
        }
        if (clear && n == wanted) return count_question(type, "How many " + looks.text(true) + " are " + std::string(to_string(relation)) + " the " + name->text() + '?', n);
    }
    return std::nullopt;
}

/// The property that a relation is about, which names of the two must not tell.
inline unsigned property_of(Relation r) {
    switch (r) {
        case Relation::larger_than:
        case Relation::smaller_than: return has_size;
        case Relation::same_color:
        case Relation::different_color: return has_color;
        case Relation::same_shape:
        case Relation::different_shape: return has_shape;
        default: return 0;
    }
}

struct Pair {
    std::string   a, b;
    const Object *first, *second;
};

/// Names of two objects for which the relation is, or is not, the case; only from scenes that have both kinds of pairs.
inline std::optional<Pair> pair_with(const Scene& scene, Relation relation, bool wanted, Random& random) {
    std::vector<std::pair<const Object*, const Object*>> yes, no;
    std::vector<std::optional<Looks>>                    names;
    for (const Object& o : scene.objects) {
        names.push_back(unique_looks(scene, o, random, property_of(relation)));
        if (names.back() && !may_name(scene, *names.back())) names.back().reset();
    }
    for (const Object& a : scene.objects)
        for (const Object& b : scene.objects) {
            const auto index = [&](const Object& o) { return static_cast<std::size_t>(&o - scene.objects.data()); };
            if (&a == &b || !names[index(a)] || !names[index(b)]) continue;
            const Truth truth = holds(a, relation, b);
            if (truth == Truth::yes) yes.emplace_back(&a, &b);
            if (truth == Truth::no) no.emplace_back(&a, &b);
        }
    if (yes.empty() || no.empty()) return std::nullopt;
    const auto [a, b] = random.pick(wanted ? yes : no);
    return Pair{names[static_cast<std::size_t>(a - scene.objects.data())]->text(), names[static_cast<std::size_t>(b - scene.objects.data())]->text(), a, b};
}

inline std::optional<Question> ask_relation(const Scene& scene, Type type, Random& random) {
    const auto relation = static_cast<Relation>(random.below(12));
    const bool truth = random.percent(50);
    const auto pair = pair_with(scene, relation, truth, random);
    if (!pair) return std::nullopt;
    const std::string words{to_string(relation)};
    if (type == Type::relation) return yes_or_no(type, words, "Is the " + pair->a + ' ' + words + " the " + pair->b + '?', truth);
    Question q{.type = type, .detail = words, .question = "The " + pair->a + " is " + words + " the " + pair->b + '.', .answer = truth ? "True" : "False", .choices = {"True", "False"}};
    q.prompt = "Based on the image, is this statement \"True\" or \"False\"? " + q.question + "\nRespond with \"True\" or \"False\" directly.";
    return q;
}

inline std::optional<Question> ask_compare(const Scene& scene, Random& random) {
    const unsigned property = random.percent(50) ? has_shape : has_color;
    Looks          more = random_subject(scene, random, property), less = random_subject(scene, random, property);
    if (more.count(scene) == less.count(scene)) return std::nullopt;
    if (more.count(scene) < less.count(scene)) std::swap(more, less);
    const bool yes = random.percent(50);
    if (!yes) std::swap(more, less);
    return yes_or_no(Type::compare, {}, "Are there more " + more.text(true) + " than " + less.text(true) + '?', yes);
}

inline std::optional<Question> ask_two_hop(const Scene& scene, Random& random) {
    if (scene.objects.empty()) return std::nullopt;
    constexpr std::array<std::pair<Property, std::string_view>, 3> properties{{{has_color, "color"}, {has_shape, "shape"}, {has_size, "size"}}};
    const auto property = random.pick(properties);
    for (int attempt = 0; attempt < 10; ++attempt) {
        const auto    relation = static_cast<Relation>(random.below(12));
        const Object& b = random.pick(scene.objects);
        const auto    name = unique_looks(scene, b, random, property_of(relation));
        const Object* a = only_one(scene, relation, b);
        if (!a || !name || !may_name(scene, *name) || property_of(relation) == property.first) continue;
        return short_question(Type::two_hop, std::string(property.second),
                              "What " + std::string(property.second) + " is the shape that is " + std::string(to_string(relation)) + " the " + name->text() + '?',
                              std::string(value_of(*a, property.first)));
    }
    return std::nullopt;
}

inline Question box_question(const Scene& scene, Type type, std::string phrase, const Object& o) {
    Question q{.type = type, .question = std::move(phrase), .answer = box_text(scene, o.box()), .box = o.box()};
    q.prompt = "Please provide the bounding box coordinate of the region this sentence describes: \"" + q.question + '"';
    return q;
}

inline std::optional<Question> ask_box(const Scene& scene, Type type, Random& random) {
    if (scene.objects.empty()) return std::nullopt;
    const Object& o = random.pick(scene.objects);
    if (type == Type::box) {
        const auto looks = unique_looks(scene, o, random);
        if (!looks || !may_name(scene, *looks)) return std::nullopt;
        Question q = box_question(scene, type, "the " + looks->text(), o);
        q.about = looks;
        return q;
    }
    if (type == Type::box_place) {
        const auto    place = static_cast<Place>(random.below(4));
        constexpr std::array<unsigned, 3> forms{0, has_shape, has_color};
        const Looks   looks = looks_of(o, random.pick(forms));
        const Object* found = at_end(scene, looks, place);
        if (!found) return std::nullopt;
        return box_question(scene, type, "the " + std::string(place_names[static_cast<std::size_t>(place)]) + ' ' + looks.text(), *found);
    }
    const auto    relation = some_direction(random);
    const Looks   looks = looks_of(o, some_properties(random));
    const Object& b = random.pick(scene.objects);
    const auto    name = unique_looks(scene, b, random);
    if (&o == &b || !name || !may_name(scene, *name) || !may_name(scene, looks)) return std::nullopt;
    for (const Object& a : scene.objects)
        if (&a != &b && looks.match(a) && holds(a, relation, b) != (&a == &o ? Truth::yes : Truth::no)) return std::nullopt;
    return box_question(scene, type, "the " + looks.text() + " that is " + std::string(to_string(relation)) + " the " + name->text(), o);
}

inline std::optional<Question> ask_diagram(const Scene& scene, Random& random) {
    if (scene.arrows.empty()) return std::nullopt;
    const Arrow arrow = random.pick(scene.arrows);
    const bool  backwards = random.percent(50);
    const char  given = scene.nodes[backwards ? arrow.to : arrow.from].letter, wanted = scene.nodes[backwards ? arrow.from : arrow.to].letter;
    std::string others;
    for (const Node& node : scene.nodes)
        if (node.letter != wanted && node.letter != given) others += node.letter;
    random.shuffle(others);
    std::string rest{node_letters};  // four discs leave too few others
    random.shuffle(rest);
    for (const char c : rest)
        if (std::ranges::none_of(scene.nodes, [&](const Node& node) { return node.letter == c; })) others += c;
    const std::size_t        place = random.below(4);
    std::vector<std::string> options;
    for (std::size_t i = 0, next = 0; i < 4; ++i) options.emplace_back(1, i == place ? wanted : others[next++]);
    Question q{.type = Type::diagram, .detail = backwards ? "points at" : "is pointed at",
               .question = backwards ? std::string("Which letter points at ") + given + '?' : std::string("Which letter does ") + given + " point at?",
               .answer = std::string(1, static_cast<char>('A' + place)), .choices = letters(4)};
    q.prompt = letters_prompt(q.question, options);
    return q;
}

/// A question that may have no answer: about something absent, foreign, cut off, or in a picture that shows nothing.
inline std::optional<Question> ask_answerable(const Scene& scene, Random& random) {
    constexpr std::array<std::pair<Property, Type>, 3> properties{{{has_color, Type::color}, {has_shape, Type::shape}, {has_size, Type::size}}};
    const auto     picked = random.pick(properties);
    const Property property = picked.first;
    const Type     type = picked.second;
    std::optional<Question> q;
    const auto about = [&](const std::string& subject) { return short_question(type, {}, "What " + std::string(to_string(type)) + " is the " + subject + '?', std::string(unanswerable)); };
    const auto absent = [&](bool even_if_there) {
        const unsigned all = has_shape | has_color | has_size;
        for (int attempt = 0; attempt < 20 && !q; ++attempt) {
            const Looks looks = random_subject(scene, random, all & ~static_cast<unsigned>(property) & (random.percent(50) ? all : ~static_cast<unsigned>(has_size)));
            if (looks != Looks{} && (even_if_there || looks.count(scene) == 0)) q = about(looks.text());
        }
    };
    if (scene.damage == Damage::blurred) absent(true);
    else if (scene.damage == Damage::cropped) {
        const auto cut = std::ranges::find_if(scene.objects, &Object::cut);
        const auto looks = unique_looks(scene, *cut, random, has_shape | has_size | has_texture);
        if (!looks) return std::nullopt;
        q = short_question(Type::shape, {}, "What shape is the " + looks->text() + '?', std::string(unanswerable));
    } else if (random.percent(50)) {
        for (int attempt = 0; attempt < 20 && !q; ++attempt) q = ask_property(scene, type, property, random);
    } else if (random.percent(25)) q = about(std::string(random.pick(foreign_nouns)));
    else absent(false);
    if (!q) return std::nullopt;
    q->detail = to_string(q->type), q->type = Type::answerable;
    q->prompt = q->question + "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\nAnswer the question using a single word or phrase.";
    return q;
}

}  // namespace detail

/// A question of a type about a scene, or nothing where the scene, or what was drawn, does not permit one.
inline std::optional<Question> ask(const Scene& scene, Type type, Random& random) {
    using namespace detail;
    const bool whole = scene.damage == Damage::none || scene.damage == Damage::empty;
    if (!whole && type != Type::answerable && type != Type::caption) return std::nullopt;
    switch (type) {
        case Type::exists: return ask_exists(scene, random);
        case Type::color: return ask_property(scene, type, has_color, random);
        case Type::shape: return ask_property(scene, type, has_shape, random);
        case Type::size: return ask_property(scene, type, has_size, random);
        case Type::texture: return ask_property(scene, type, has_texture, random);
        case Type::count:
        case Type::tally: return ask_count(scene, type, random);
        case Type::related_count:
        case Type::related_tally: return ask_related_count(scene, type, random);
        case Type::relation:
        case Type::statement: return ask_relation(scene, type, random);
        case Type::compare: return ask_compare(scene, random);
        case Type::two_hop: return ask_two_hop(scene, random);
        case Type::box:
        case Type::box_place:
        case Type::box_long: return ask_box(scene, type, random);
        case Type::diagram: return ask_diagram(scene, random);
        case Type::read:
            if (!scene.label) return std::nullopt;
            return short_question(type, {}, "What does the text say?", scene.label->text);
        case Type::answerable: return ask_answerable(scene, random);
        default: return Question{.type = type, .question = "Provide a short image description.", .prompt = "Provide a short image description.", .answer = caption(scene, random)};
    }
}

/// How often each type is asked, in the order of `Type`.
struct Mixture {
    std::array<int, n_types> weights{};

    /// The study's: of a hundred questions 40 are of the kind of VQA, 20 ask for boxes, 15 for yes or no, true or false,
    /// 10 for letters, 5 for captions, 5 for a text; 5 have no picture (Conversations::text_percent). Weights of
    /// letters and texts are higher, because few scenes have any.
    static constexpr Mixture standard() { return {{7, 25, 14, 6, 5, 14, 4, 5, 2, 6, 5, 14, 13, 16, 4, 2, 18, 30, 4, 6}}; }
    /// What a model should learn first: what there is, its properties, and where it is.
    static constexpr Mixture attributes_first() { return {{20, 20, 15, 8, 6, 10, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 20, 14, 2, 5}}; }
};

/// Questions about one picture, no two alike; fewer than `n` where the scene has no more.
inline std::vector<Question> conversation(const Scene& scene, std::size_t n = 8, const Mixture& mixture = Mixture::standard()) {
    Random                random{scene.seed, scene.id, Purpose::questions};
    std::vector<Question> turns;
    for (int attempt = 0; turns.size() < n && attempt < 200; ++attempt) {
        const auto type = static_cast<Type>(random.weighted(mixture.weights));
        auto       q = ask(scene, type, random);
        const auto same = [&](const Question& other) { return other.prompt == q->prompt; };
        if (q && std::ranges::none_of(turns, same)) turns.push_back(std::move(*q));
    }
    return turns;
}

}  // namespace prism::shapes
