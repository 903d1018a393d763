// Drills against the scene, read back from their words: what is given names one thing, and the answer is what is true of it.
#include "shapes/source.hpp"
#include "shapes/drills.hpp"

#include <doctest/doctest.h>

#include <map>
#include <sstream>

using namespace prism;
using namespace prism::shapes;

namespace {

/// Every name that looks can have.
std::map<std::string, Looks> all_names(bool plural) {
    std::map<std::string, Looks> names;
    for (unsigned shape = 0; shape <= shape_names.size(); ++shape)
        for (unsigned color = 0; color <= color_names.size(); ++color)
            for (unsigned size = 0; size <= 2; ++size)
                for (unsigned texture = 0; texture <= 2; ++texture) {
                    Looks looks;
                    if (shape) looks.shape = static_cast<Shape>(shape - 1);
                    if (color) looks.color = static_cast<Color>(color - 1);
                    if (size) looks.size = static_cast<shapes::Size>(size - 1);
                    if (texture) looks.texture = static_cast<Texture>(texture - 1);
                    names[looks.text(plural)] = looks;
                }
    return names;
}

const Object* only(const Scene& scene, const Looks& looks) {
    const Object* found = nullptr;
    for (const Object& o : scene.objects)
        if (looks.match(o)) {
            if (found) return nullptr;
            found = &o;
        }
    return found;
}

bool says_word(const std::string& words, const std::string& word) {
    std::istringstream all{words};
    for (std::string w; all >> w;)
        if (w == word) return true;
    return false;
}

/// The name that both sides of a cut leave, where the text has the form "the A<between>the B".
std::optional<std::pair<Looks, Looks>> two_names(const std::string& given, const std::string& between, const std::map<std::string, Looks>& names) {
    const auto at = given.find(' ' + between + " the ");
    if (!given.starts_with("the ") || at == given.npos) return std::nullopt;
    const auto a = names.find(given.substr(4, at - 4)), b = names.find(given.substr(at + between.size() + 6));
    if (a == names.end() || b == names.end()) return std::nullopt;
    return std::pair{a->second, b->second};
}

}  // namespace

TEST_CASE("shapes: what drills give names one thing, and their answers are true of it") {
    const auto                 names = all_names(false), plurals = all_names(true);
    DrillMixture               all_kinds;
    all_kinds.weights.back() = 12;
    std::map<std::string, int> seen;
    for (std::uint64_t i = 0; i < 400; ++i) {
        const Scene scene = make_scene(3, {Split::train, i});
        CAPTURE(i);
        for (const Drill& d : drills(scene, 24, all_kinds)) {
            CAPTURE(d.given);
            CAPTURE(d.answer);
            if (d.given == "text") {
                ++seen["text"];
                REQUIRE(scene.label);
                CHECK(d.answer == scene.label->text);
                continue;
            }
            if (!scene.nodes.empty()) {
                if (d.given == "shapes" || plurals.contains(d.given)) continue;  // there are none
                ++seen["arrow"];
                const bool to = d.given.starts_with("arrow to ");
                const char given = to ? d.given.back() : d.given[0];
                CHECK(std::ranges::any_of(scene.arrows, [&](const Arrow& a) {
                    return scene.nodes[to ? a.to : a.from].letter == given && scene.nodes[to ? a.from : a.to].letter == d.answer[0];
                }));
                continue;
            }
            if (const auto plural = plurals.find(d.given); plural != plurals.end()) {
                ++seen["count"];
                CHECK(d.answer == std::to_string(plural->second.count(scene)));
                continue;
            }
            if (const auto name = names.find(d.given.substr(d.given.find(' ') + 1)); d.given.starts_with('a') && name != names.end()) {
                ++seen["exists"];
                CHECK(d.answer == (name->second.count(scene) ? "Yes" : "No"));
                continue;
            }
            if (const std::size_t of = d.given.find("color of the ") != d.given.npos ? d.given.find("color of the ") : d.given.find("shape of the "); of != d.given.npos) {
                ++seen["alike"];
                const bool        of_color = d.given[of] == 'c';
                const std::string name = d.given.substr(of + 9);
                const auto        word = [&](const Object& o) { return std::string(of_color ? to_string(o.color) : to_string(o.shape)); };
                if (const auto one = names.find(name.substr(4)); one != names.end()) {
                    const Object* const o = only(scene, one->second);
                    REQUIRE(o);
                    CHECK(d.answer == word(*o));
                    continue;
                }
                const bool half = name.find(" to the ") != name.npos;
                const auto pair = two_names(name, half ? "to" : "and", names);
                REQUIRE(pair);
                const Object *const a = only(scene, pair->first), *const b = only(scene, pair->second);
                REQUIRE((a && b && a != b));
                const std::string verdict = word(*a) == word(*b) ? "same" : "different";
                CHECK(d.answer == (of ? word(*a) + ' ' + word(*b) + ' ' : half ? word(*a) + ' ' : "") + verdict);
                continue;
            }
            if (const auto pair = two_names(d.given, "to", names)) {
                ++seen["pair"];
                const Object *const a = only(scene, pair->first), *const b = only(scene, pair->second);
                REQUIRE((a && b && a != b));
                CHECK(says_word(d.answer, "left") == (b->center.x - a->center.x >= 6 * px));
                CHECK(says_word(d.answer, "below") == (a->center.y - b->center.y >= 6 * px));
                CHECK(says_word(d.answer, "larger") == (a->size > b->size));
                CHECK((d.answer.find("same color") != d.answer.npos) == (a->color == b->color));
                CHECK((d.answer.find("different shape") != d.answer.npos) == (a->shape != b->shape));
                continue;
            }
            bool related = false;
            for (std::size_t r = 0; r < relation_names.size(); ++r) {
                const auto        relation = static_cast<Relation>(r);
                const std::string words{relation_names[r]};
                const bool in_steps = d.given.starts_with("is ");
                if (const auto pair = two_names(d.given.substr(in_steps ? 3 : 0), words, names)) {
                    ++seen[in_steps ? "is" : "relation"], related = true;
                    const Object *const a = only(scene, pair->first), *const b = only(scene, pair->second);
                    REQUIRE((a && b));
                    const std::string verdict = (relation <= Relation::different_color ? a->color == b->color : a->shape == b->shape) ? "same" : "different";
                    CHECK(d.answer == (in_steps ? verdict + ' ' : "") + (holds(*a, relation, *b) == Truth::yes ? "Yes" : "No"));
                } else if (const auto name = d.given.starts_with(words + " the ") ? names.find(d.given.substr(words.size() + 5)) : names.end(); name != names.end()) {
                    ++seen["neighbour"], related = true;
                    const Object* const b = only(scene, name->second);
                    REQUIRE(b);
                    CHECK(std::ranges::any_of(scene.objects, [&](const Object& a) { return &a != b && looks_of(a, 15).text() == d.answer && holds(a, relation, *b) == Truth::yes; }));
                }
            }
            if (related) continue;
            if (const auto at = d.given.find("at the "); at < 8) {
                const auto name = names.find(d.given.substr(at + 7));
                REQUIRE(name != names.end());
                const Object* const o = only(scene, name->second);
                REQUIRE(o);
                std::string digits;  // of "[0.12, 0.34, 0.56, 0.78]"
                for (std::size_t edge = 0; edge < 4; ++edge) digits += box_text(scene, o->box()).substr(3 + 6 * edge, 2);
                const std::map<std::string, std::size_t> edges{{"left ", 0}, {"top ", 2}, {"right ", 4}, {"bottom ", 6}};
                ++seen[at ? "edge" : "box"];
                CHECK(d.answer == (at ? digits.substr(edges.at(d.given.substr(0, at)), 2) : digits));
                continue;
            }
            REQUIRE(d.given.starts_with("the "));
            bool at_an_end = false;
            for (std::size_t k = 0; k < place_names.size(); ++k)
                if (d.given.starts_with("the " + std::string(place_names[k]) + ' ')) {
                    ++seen["end"], at_an_end = true;
                    const auto name = names.find(d.given.substr(5 + place_names[k].size()));
                    REQUIRE(name != names.end());
                    const Object* const o = at_end(scene, name->second, static_cast<Place>(k));
                    REQUIRE(o);
                    CHECK(d.answer == shapes::detail::unsaid(*o, name->second));
                }
            if (at_an_end) continue;
            ++seen["looks"];
            const auto name = names.find(d.given.substr(4));
            REQUIRE(name != names.end());
            const Object* const o = only(scene, name->second);
            REQUIRE(o);
            for (const auto word : {to_string(o->size), to_string(o->texture), to_string(o->color), to_string(o->shape)}) CHECK(says_word(d.answer, std::string(word)) != says_word(d.given, std::string(word)));
        }
    }
    for (const char* kind : {"text", "arrow", "count", "exists", "pair", "relation", "neighbour", "box", "edge", "end", "looks", "alike", "is"}) {
        CAPTURE(kind);
        CHECK(seen[kind] > 50);
    }
}

TEST_CASE("shapes: rows of drills learn answers alone, and are as many as asked for") {
    const World         world{.seed = 3, .text_percent = 0, .drill_percent = 40};
    const Tokenizer     words = tokenizer();
    const WorldExamples examples{world, Split::train, 300, {.format = prompt_format::pure(), .transforms = {}, .max_tokens = 512}};
    std::size_t         terse = 0;
    for (std::size_t i = 0; i < 300; ++i) {
        const Row row = world.row(Split::train, i);
        terse += row.terse;
        if (!row.terse) continue;
        std::vector<std::int32_t> learnt;
        const TokenRow            tokens = examples.tokens(i);
        for (std::size_t k = 0; k < tokens.ids.size(); ++k)
            if (tokens.labels[k] != ignored_label) learnt.push_back(tokens.ids[k]);
        std::string answers;
        for (std::size_t t = 1; t < row.turns.size(); t += 2) answers += (t > 1 ? " " : "") + row.turns[t].text;
        CHECK(words.decode(learnt) == answers);
    }
    CHECK(terse > 90);
    CHECK(terse < 150);
}
