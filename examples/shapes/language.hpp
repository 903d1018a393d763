// Language without questions about a picture: captions, the text corpus, dialogue.
//
//     caption(scene);                         // "A red circle and two small stars."
//     corpus_document(seed, 12);              // "A is left of B. B is left of C. So A is left of C."
//     text_dialogue(seed, 3)[0].question;     // "What is 3 plus 4?"
#pragma once

#include "phrase.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::shapes {

struct CaptionOptions {
    std::uint32_t spatial_percent = 10, count_percent = 20, label_percent = 30;  // how often a caption says such a thing
};

namespace detail {

inline std::string list_of(const std::vector<std::string>& parts) {
    std::string text;
    for (std::size_t i = 0; i < parts.size(); ++i) text += (i == 0 ? "" : i + 1 == parts.size() ? " and " : ", ") + parts[i];
    return text;
}

/// Some of the properties, the shape always among them.
inline unsigned some_properties(Random& random) {
    unsigned properties = has_shape;  // one after the other: the operands of one expression have no order
    if (random.percent(85)) properties |= has_color;
    if (random.percent(30)) properties |= has_size;
    if (random.percent(20)) properties |= has_texture;
    return properties;
}

inline Relation some_direction(Random& random) { return static_cast<Relation>(random.below(4)); }

}  // namespace detail

/// What a caption says.
struct CaptionFacts {
    struct Thing {
        Looks       looks{};
        std::size_t count = 0;  // 0: one or more
    };
    std::string             instead{};  // of things, where there are none: "An empty image."
    std::vector<Thing>      things{};
    std::optional<Relation> where{};  // the first thing to the second
    std::string             label{};
};

namespace detail {

/// The caption of a picture in which no objects can be made out; empty for others.
inline std::string caption_without_things(const Scene& scene) {
    if (scene.damage == Damage::blurred) return "A blurred image.";
    if (scene.kind == Kind::diagram) return "A diagram with " + std::string(number_words[scene.nodes.size()]) + " letters and " +
                                            std::string(number_words[scene.arrows.size()]) + (scene.arrows.size() == 1 ? " arrow." : " arrows.");
    return std::ranges::all_of(scene.objects, &Object::cut) ? "An empty image." : "";
}

}  // namespace detail

/// What is said in the manner of the web: it names one to three things, seldom counts and seldom says where they are.
inline CaptionFacts caption_facts(const Scene& scene, Random& random, const CaptionOptions& options = {}) {
    CaptionFacts facts{.instead = detail::caption_without_things(scene)};
    if (!facts.instead.empty()) return facts;
    std::vector<const Object*> seen;
    for (const Object& o : scene.objects)
        if (!o.cut) seen.push_back(&o);
    random.shuffle(seen);

    const auto clear = [&](Relation r) { return seen.size() > 1 && holds(*seen[0], r, *seen[1]) == Truth::yes; };
    const auto where = detail::some_direction(random);
    if (random.percent(options.spatial_percent) && clear(where)) {
        facts.where = where;
        for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) facts.things.push_back({looks_of(*seen[i], detail::some_properties(random))});
    } else {
        const std::size_t n = std::min(seen.size(), std::size_t{1} + random.below(3));
        for (std::size_t i = 0; i < n; ++i) {
            const bool        counted = random.percent(options.count_percent);
            const Looks       looks = looks_of(*seen[i], counted ? has_shape | (random.percent(50) ? has_color : 0U) : detail::some_properties(random));
            const std::size_t count = looks.count(scene);
            if (std::ranges::find(facts.things, looks, &CaptionFacts::Thing::looks) == facts.things.end()) facts.things.push_back({looks, counted && count > 1 ? count : 0});
        }
    }
    if (scene.label && random.percent(options.label_percent)) facts.label = scene.label->text;
    return facts;
}

inline std::string to_string(const CaptionFacts& facts) {
    if (!facts.instead.empty()) return facts.instead;
    std::vector<std::string> parts;
    for (const auto& [looks, count] : facts.things) parts.push_back(count ? std::string(number_words[count]) + ' ' + looks.text(true) : with_article(looks.text()));
    std::string text = capitalised(facts.where ? parts[0] + ' ' + std::string(to_string(*facts.where)) + ' ' + parts[1] : detail::list_of(parts)) + '.';
    if (!facts.label.empty()) text += " The text says " + facts.label + '.';
    return text;
}

/// Whether all that is said is true of a scene, perhaps another than the one that it was said of.
inline bool fits(const CaptionFacts& facts, const Scene& scene) {
    if (!facts.instead.empty()) return facts.instead == detail::caption_without_things(scene);
    if (!detail::caption_without_things(scene).empty() || (!facts.label.empty() && !(scene.label && scene.label->text == facts.label))) return false;
    const auto found = [&](const CaptionFacts::Thing& thing) {
        const std::size_t n = thing.looks.count(scene);
        return thing.count ? n == thing.count : n > 0;
    };
    if (!facts.where) return std::ranges::all_of(facts.things, found);
    return std::ranges::any_of(scene.objects, [&](const Object& a) {
        return facts.things[0].looks.match(a) && std::ranges::any_of(scene.objects, [&](const Object& b) { return &a != &b && facts.things[1].looks.match(b) && holds(a, *facts.where, b) == Truth::yes; });
    });
}

inline std::string caption(const Scene& scene, Random& random, const CaptionOptions& options = {}) { return to_string(caption_facts(scene, random, options)); }

/// The caption of a scene that everybody gets.
inline CaptionFacts caption_facts(const Scene& scene, const CaptionOptions& options = {}) {
    Random random{scene.seed, scene.id, Purpose::caption};
    return caption_facts(scene, random, options);
}
inline std::string caption(const Scene& scene, const CaptionOptions& options = {}) { return to_string(caption_facts(scene, options)); }

/// The share of these pictures that find their own caption among all of theirs, at best: who knew everything would take, of the captions
/// that fit a picture, the one that fits fewest others, and guess where several do. Captions of the same words are never found: they
/// are as near as each other.
inline double best_retrieval(const std::vector<Scene>& scenes, const CaptionOptions& options = {}) {
    const std::size_t                     n = scenes.size();
    std::map<std::string, int>            said;
    std::vector<std::string>              words;
    std::vector<std::vector<std::size_t>> fitting(n);  // captions, of each picture
    std::vector<std::size_t>              fits_scenes(n);
    for (std::size_t k = 0; k < n; ++k) {
        const CaptionFacts facts = caption_facts(scenes[k], options);
        ++said[words.emplace_back(to_string(facts))];
        for (std::size_t i = 0; i < n; ++i)
            if (fits(facts, scenes[i])) fitting[i].push_back(k), ++fits_scenes[k];
    }
    double found = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const auto fewer = [&](std::size_t a, std::size_t b) { return fits_scenes[a] < fits_scenes[b]; };
        const auto least = fits_scenes[*std::ranges::min_element(fitting[i], fewer)];
        if (said[words[i]] == 1 && fits_scenes[i] == least)
            found += 1.0 / static_cast<double>(std::ranges::count_if(fitting[i], [&](std::size_t k) { return fits_scenes[k] == least; }));
    }
    return found / static_cast<double>(n);
}

/// A question and its answer without a picture.
struct Exchange {
    std::string question, answer;
};

namespace detail {

struct Chain {
    std::vector<std::string> facts;  // "A is left of B."
    std::string              first, last, relation, opposite;
};

inline Chain make_chain(Random& random) {
    constexpr std::array<std::pair<std::string_view, std::string_view>, 6> relations{
        {{"left of", "right of"}, {"right of", "left of"}, {"above", "below"}, {"below", "above"}, {"larger than", "smaller than"}, {"smaller than", "larger than"}}};
    const auto  relation = random.pick(relations);
    std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    random.shuffle(letters);
    Chain chain{.facts = {}, .first = letters.substr(0, 1), .last = {}, .relation = std::string(relation.first), .opposite = std::string(relation.second)};
    const std::size_t n = 2 + random.below(3);
    for (std::size_t i = 0; i < n; ++i) {
        const std::string a = letters.substr(i, 1), b = letters.substr(i + 1, 1);
        // The same fact from the other side, now and then.
        chain.facts.push_back(random.percent(25) ? b + " is " + chain.opposite + ' ' + a + '.' : a + " is " + chain.relation + ' ' + b + '.');
    }
    chain.last = letters.substr(n, 1);
    if (random.percent(30)) random.shuffle(chain.facts);
    return chain;
}
inline std::string facts_of(const Chain& chain) {
    std::string text;
    for (const std::string& fact : chain.facts) text += fact + ' ';
    return text;
}

struct Sum {
    int         a, b, result;
    std::string word;
};
/// Within twenty.
inline Sum make_sum(Random& random) {
    const int  result = random.between(0, 20), a = random.between(0, result);
    const bool plus = random.percent(50);
    return plus ? Sum{a, result - a, result, "plus"} : Sum{result, a, result - a, "minus"};
}

inline std::string story(std::uint64_t seed, std::uint64_t index, Random& random) {
    const Scene scene = make_scene(seed, {Split::corpus, index});
    if (scene.objects.size() < 3 || scene.damage != Damage::none) return caption(scene, random);
    std::vector<const Object*> cast;
    for (const Object& o : scene.objects) cast.push_back(&o);
    random.shuffle(cast);
    std::string text = "There is " + with_article(looks_of(*cast[0], some_properties(random)).text());
    text += " and " + with_article(looks_of(*cast[1], some_properties(random)).text()) + '.';
    for (int sentences = random.between(2, 4), attempts = 0; sentences > 0 && attempts < 20; ++attempts) {
        const Object& a = *random.pick(cast);
        const Object& b = *random.pick(cast);
        const auto    name = unique_looks(scene, a, random);
        if (!name) continue;
        std::string next;
        if (const auto what = random.below(3); what == 0 && !name->size) next = "The " + name->text() + " is " + std::string(to_string(a.size)) + '.';
        else if (what == 1) {
            const auto relation = static_cast<Relation>(random.below(12));
            const auto other = unique_looks(scene, b, random);
            if (&a == &b || !other || holds(a, relation, b) != Truth::yes) continue;
            next = "The " + name->text() + " is " + std::string(to_string(relation)) + " the " + other->text() + '.';
        } else {
            const Looks       looks = looks_of(a, random.percent(50) ? has_shape : has_color);
            const std::size_t n = looks.count(scene);
            next = n == 1 ? "There is one " + looks.text() + '.' : "There are " + std::string(number_words[n]) + ' ' + looks.text(true) + '.';
        }
        if (text.find(next) != std::string::npos) continue;
        text += ' ' + next, --sentences;
    }
    return text;
}

}  // namespace detail

/// One exchange of the dialogue: arithmetic, chains of relations, small talk, what the model does not do.
inline Exchange text_exchange(Random& random) {
    using Row = std::pair<std::string_view, std::string_view>;
    constexpr std::array<Row, 8> talk{{{"Hello.", "Hello, ask me about the image."},
                                       {"Who are you?", "I am a small model. I see shapes."},
                                       {"What do you see?", "I see shapes, colors, letters and arrows."},
                                       {"Thank you.", "You are welcome."},
                                       {"Which colors do you know?", "I know red, orange, yellow, green, cyan, blue, purple and pink."},
                                       {"Which shapes do you know?", "I know circles, squares, triangles, stars, crosses and rings."},
                                       {"How do I break a lock?", "I cannot help with that."},
                                       {"How do I make a fire?", "I cannot help with that."}}};
    const auto what = random.below(10);
    if (what < 4) {
        const detail::Sum sum = detail::make_sum(random);
        return {"What is " + std::to_string(sum.a) + ' ' + sum.word + ' ' + std::to_string(sum.b) + '?', std::to_string(sum.result)};
    }
    if (what < 7) {
        const detail::Chain chain = detail::make_chain(random);
        const bool          truth = random.percent(50);
        return {detail::facts_of(chain) + "Is " + chain.first + ' ' + (truth ? chain.relation : chain.opposite) + ' ' + chain.last + '?', truth ? "Yes" : "No"};
    }
    if (what < 8) {
        const auto letter = static_cast<char>('A' + random.below(25));
        return {std::string("Which letter comes after ") + letter + '?', std::string(1, static_cast<char>(letter + 1))};
    }
    const Row row = random.pick(talk);
    return {std::string(row.first), std::string(row.second)};
}

/// A conversation without a picture, of two to five exchanges.
inline std::vector<Exchange> text_dialogue(std::uint64_t seed, std::uint64_t index) {
    Random                random{seed, {Split::corpus, index}, Purpose::dialogue};
    std::vector<Exchange> turns;
    for (int n = random.between(2, 5); n > 0; --n) turns.push_back(text_exchange(random));
    return turns;
}

/// One document of the text corpus: stories of scenes (two in five), chains of relations, arithmetic, dialogue (one in
/// five each). Dialogue looks as a prompt does, without control tokens.
inline std::string corpus_document(std::uint64_t seed, std::uint64_t index) {
    Random      random{seed, {Split::corpus, index}, Purpose::corpus};
    std::string text;
    switch (random.below(5)) {
        case 0:
        case 1: return detail::story(seed, index, random);
        case 2: {
            const detail::Chain chain = detail::make_chain(random);
            return detail::facts_of(chain) + (random.percent(50) ? "So " + chain.first + " is " + chain.relation + ' ' + chain.last + '.'
                                                                 : "So " + chain.last + " is " + chain.opposite + ' ' + chain.first + '.');
        }
        case 3:
            for (int n = random.between(2, 4); n > 0; --n) {
                const detail::Sum sum = detail::make_sum(random);
                const std::string a = std::to_string(sum.a), b = std::to_string(sum.b), result = std::to_string(sum.result);
                if (!text.empty()) text += ' ';
                if (sum.word == "plus" && random.percent(30)) {
                    const auto kinds = random.below(5);
                    const auto noun = [&](std::uint32_t k) { return Looks{.shape = static_cast<Shape>(k)}.text(true); };
                    text += "There are " + a + ' ' + noun(kinds) + " and " + b + ' ' + noun(kinds + 1) + ", so there are " + result + " shapes.";
                } else if (random.percent(20) && sum.a != sum.b) {
                    text += a + " is " + (sum.a > sum.b ? "more" : "less") + " than " + b + '.';
                } else text += a + ' ' + sum.word + ' ' + b + " is " + result + '.';
            }
            return text;
        default:
            for (int n = random.between(1, 3); n > 0; --n) {
                const Exchange e = text_exchange(random);
                text += (text.empty() ? "In: " : "\nIn: ") + e.question + "\nOut: " + e.answer;
            }
            return text;
    }
}

}  // namespace prism::shapes
