// The twelve small benchmarks, and a thirteenth of combinations that training never shows.
//
//     const Example e = example(seed, Benchmark::gqa, 17);
//     draw(e.scene), e.question.prompt, e.answers;
//
// What the answer shall be is decided first, evenly; then scenes are looked through until one has such a question. So
// the words of the questions tell as little about the answers as can be arranged.
#pragma once

#include "questions.hpp"

#include "prism/core/error.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::shapes {

enum class Benchmark : std::uint8_t { vqa, gqa, viz, text, ref, ref_plus, refg, clutter, vsr, tally, pope, ai2d, compositional };
inline constexpr std::size_t n_benchmarks = 13;
inline constexpr std::array<std::string_view, n_benchmarks> benchmark_names{"vqa", "gqa", "viz", "text", "ref", "ref+", "refg",
                                                                            "clutter", "vsr", "tally", "pope", "ai2d", "compositional"};
inline std::string_view to_string(Benchmark b) { return benchmark_names[static_cast<std::size_t>(b)]; }

/// How many scenes a split has, or examples a benchmark.
inline constexpr std::uint64_t n_train = 60'000, n_validation = 4'000, n_examples = 1'024;

struct Example {
    Benchmark                benchmark = Benchmark::vqa;
    std::uint64_t            index = 0;
    Scene                    scene{};
    Question                 question{};
    std::vector<std::string> answers{};  // the answer alone, or ten people's
    std::string              group{};    // what accuracies are also reported for: POPE's three, TallyQA's two, OCID-Ref's three
};

namespace detail {

/// What an example shall be. Empty parts may be anything.
struct Wish {
    Type        type;
    std::string detail{}, answer{};
    std::size_t min_objects = 0, max_objects = 15;

    bool fits(const Question& q) const { return (detail.empty() || q.detail == detail) && (answer.empty() || q.answer == answer); }
};

inline Wish wish_for(Benchmark benchmark, std::uint64_t i, Random& random) {
    const auto yes = [](std::uint64_t n) { return std::string(n % 2 == 0 ? "Yes" : "No"); };
    const auto in_turn = [](const auto& list, std::uint64_t n) { return std::string(list[n % list.size()]); };
    switch (benchmark) {
        case Benchmark::vqa:
        case Benchmark::compositional:
            switch (i % 5) {
                case 0: return {.type = Type::exists, .answer = yes(i / 5)};
                case 1: return {.type = Type::color, .answer = benchmark == Benchmark::vqa ? in_turn(color_names, i / 5) : ""};
                case 2: return {.type = Type::shape, .answer = benchmark == Benchmark::vqa ? in_turn(shape_names, i / 5) : ""};
                case 3:
                    if (benchmark == Benchmark::compositional) return {.type = Type::box};
                    return {.type = Type::size, .answer = in_turn(size_names, i / 5)};
                default: return {.type = Type::count, .answer = std::to_string(i / 5 % (benchmark == Benchmark::vqa ? 7 : 2))};
            }
        case Benchmark::gqa:
            if (i % 3 == 0) return {.type = Type::two_hop, .detail = "color", .answer = in_turn(color_names, i / 3)};
            if (i % 3 == 1) return {.type = Type::two_hop, .detail = "shape", .answer = in_turn(shape_names, i / 3)};
            return {.type = Type::two_hop, .detail = "size", .answer = in_turn(size_names, i / 3)};
        case Benchmark::viz:
            if (i % 2 == 0) return {.type = Type::answerable, .answer = std::string(unanswerable)};
            return {.type = Type::answerable, .answer = i / 2 % 2 == 0 ? in_turn(color_names, i / 4) : in_turn(shape_names, i / 4)};
        case Benchmark::text: return {.type = Type::read};
        case Benchmark::ref: return {.type = Type::box_place};
        case Benchmark::ref_plus: return {.type = Type::box};
        case Benchmark::refg: return {.type = Type::box_long};
        case Benchmark::clutter: return {.type = Type::box, .min_objects = 4 + 3 * (i % 3), .max_objects = 6 + 3 * (i % 3)};
        case Benchmark::vsr: return {.type = Type::statement, .detail = in_turn(relation_names, i), .answer = i / 12 % 2 == 0 ? "True" : "False"};
        case Benchmark::tally: {
            // One in five is the most frequent count. Many things in relation to another are rare: at most seven.
            const bool simple = i % 2 == 0;
            const auto n = random.weighted(std::span(count_weights).first(simple ? 16 : 8));
            return {.type = simple ? Type::tally : Type::related_tally, .answer = std::string(1, static_cast<char>('A' + n)), .min_objects = n};
        }
        case Benchmark::pope: return {.type = Type::exists, .detail = std::array<const char*, 3>{"random", "popular", "adversarial"}[i % 3], .answer = yes(i / 3)};
        default: return {.type = Type::diagram, .answer = std::string(1, static_cast<char>('A' + i % 4))};
    }
}

/// Whether a question names a combination that is held out, or is about an object that has one.
inline bool about_held_out(const Scene& scene, const Question& q) {
    if (!q.about) return false;
    if (q.type == Type::exists || q.type == Type::count) return q.about->names_held_out();
    return std::ranges::any_of(scene.objects, [&](const Object& o) { return q.about->match(o) && held_out(o.shape, o.color); });
}

/// Ten people: eight in ten give the answer, 15 in a hundred another word for it where there is one, five another answer.
inline std::vector<std::string> ten_people(const Question& q, Random& random) {
    constexpr std::array<std::pair<std::string_view, std::string_view>, 6> synonyms{
        {{"circle", "disc"}, {"square", "box"}, {"cross", "plus"}, {"ring", "hoop"}, {"large", "big"}, {"small", "little"}}};
    std::vector<std::string> all;
    for (int i = 0; i < 10; ++i) {
        const auto  chance = random.below(100);
        std::string answer = q.answer;
        if (chance < 15)
            for (const auto& [word, other] : synonyms)
                if (word == q.answer) answer = other;
        const auto other_of = [&](const auto& names) {
            if (std::ranges::find(names, std::string_view(q.answer)) != std::ranges::end(names)) answer = random.pick(names);
        };
        if (chance >= 95) {
            other_of(shape_names), other_of(color_names), other_of(size_names), other_of(texture_names);
            if (q.choices.size() == 2) answer = q.choices[random.below(2)];
            if (q.type == Type::count) answer = std::to_string(random.below(7));
        }
        all.push_back(answer);
    }
    return all;
}

}  // namespace detail

/// An example of a benchmark; any index below 2^32, the test has those below n_examples.
inline Example example(std::uint64_t seed, Benchmark benchmark, std::uint64_t index) {
    const Split split = benchmark == Benchmark::clutter ? Split::clutter : benchmark == Benchmark::compositional ? Split::compositional : Split::test;
    const auto  id = [&](std::uint64_t attempt) { return SceneId{split, static_cast<std::uint64_t>(benchmark) << 48 | index << 16 | attempt}; };
    Random      random{seed, id(0xffff), Purpose::example};
    const auto  wish = detail::wish_for(benchmark, index, random);
    for (std::uint64_t attempt = 0; attempt < 0xffff; ++attempt) {
        Example e{.benchmark = benchmark, .index = index, .scene = make_scene(seed, id(attempt))};
        const std::size_t n = e.scene.objects.size();
        if (n < wish.min_objects || n > wish.max_objects) continue;
        Random draws{seed, id(attempt), Purpose::questions};
        for (int draw = 0; draw < 30; ++draw) {
            auto q = ask(e.scene, wish.type, draws);
            if (!q || !wish.fits(*q)) continue;
            if (benchmark == Benchmark::compositional && !detail::about_held_out(e.scene, *q)) continue;
            e.question = std::move(*q);
            const bool people = benchmark == Benchmark::vqa || benchmark == Benchmark::viz || benchmark == Benchmark::text;
            e.answers = people ? detail::ten_people(e.question, random) : std::vector{e.question.answer};
            if (benchmark == Benchmark::pope) e.group = e.question.detail;
            if (benchmark == Benchmark::tally) e.group = e.question.type == Type::tally ? "simple" : "complex";
            if (benchmark == Benchmark::clutter) e.group = std::array<const char*, 3>{"minimum", "medium", "maximum"}[index % 3];
            if (benchmark == Benchmark::compositional || benchmark == Benchmark::vqa) e.group = to_string(e.question.type);
            return e;
        }
    }
    throw Error("shapes: no scene for example " + std::to_string(index) + " of " + std::string(to_string(benchmark)));
}

}  // namespace prism::shapes
