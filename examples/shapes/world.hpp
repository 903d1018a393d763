// The world as training reads it: without files, any row at any time, in any order and on any thread.
//
//     const World world{.seed = 7};
//     const Row row = world.row(Split::train, 123);   // turns to learn from
//     if (row.scene) show(draw(*row.scene));           // the picture that they are about
#pragma once

#include "benchmarks.hpp"
#include "draw.hpp"
#include "drills.hpp"

#include "prism/train/data/conversations.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::shapes {

/// One row of LLaVA's format: a conversation, about a picture or about none.
struct Row {
    std::optional<Scene>     scene{};
    std::vector<prism::Turn> turns{};  // human, gpt, human ...; "<image>\n" opens the first one where there is a picture
    bool                     terse = false;  // drills: turns stand beside each other, without a prompt's words

    void add(std::string human, std::string gpt) {
        turns.push_back({Role::human, std::move(human)});
        turns.push_back({Role::gpt, std::move(gpt)});
    }
};

/// A question as somebody would ask it who knows no benchmark: "Where is the red star?". `way`: of several ways to ask.
inline std::string plainly(const Question& q, std::size_t way = 0) {
    constexpr std::array<const char*, 3> what{"Describe the image.", "What is in the image?", "What is in it?"};
    if (q.box) return "Where is " + q.question + '?';
    if (q.type == Type::caption) return what[way % what.size()];
    const bool closed = !q.choices.empty() && q.choices[0] != "Yes";  // letters, true and false
    return closed ? q.prompt : q.question;
}

struct World {
    std::uint64_t  seed = 0;
    std::size_t    questions = 8;     // in a conversation
    std::uint32_t  text_percent = 5;  // rows without a picture
    std::uint32_t  plain_first = 25, plain_later = 75;  // questions without a benchmark's instructions, in percent: shorter rows
    Mixture        mixture = Mixture::standard();
    CaptionOptions captions{};
    std::uint32_t  drill_percent = 0;  // rows of drills in place of conversations
    std::size_t    n_drills = 24;
    DrillMixture   drill_mixture{};
    std::size_t    most_objects = 15;  // of a scene: with fewer the others are left out, which is where to begin with learning

    Scene scene(Split split, std::uint64_t index) const {
        Scene scene = make_scene(seed, {split, index});
        if (scene.objects.size() > most_objects) scene.objects.erase(scene.objects.begin() + static_cast<std::ptrdiff_t>(most_objects), scene.objects.end());
        return scene;
    }

    /// A conversation. Its first question mostly says what the answer shall look like, as in LLaVA's mixture; the later ones
    /// seldom do, except those whose answers could not be read otherwise.
    Row row(Split split, std::uint64_t index) const {
        Random random{seed, {split, index}, Purpose::dialogue};
        Row    row;
        if (random.percent(text_percent)) {
            for (Exchange& e : text_dialogue(seed, static_cast<std::uint64_t>(split) << 48 | index)) row.add(std::move(e.question), std::move(e.answer));
            return row;
        }
        row.scene = scene(split, index);
        if (drill_percent > 0 && random.percent(drill_percent))
            for (Drill& d : drills(*row.scene, n_drills, drill_mixture)) row.add((row.terse ? "" : "<image>\n") + std::move(d.given), std::move(d.answer)), row.terse = true;
        if (row.terse) return row;
        for (Question& q : conversation(*row.scene, questions, mixture)) {
            const bool first = row.turns.empty();
            const bool plain = random.percent(first ? plain_first : plain_later);
            const std::size_t way = plain && q.type == Type::caption ? random.below(3) : 0;
            row.add((first ? "<image>\n" : "") + (plain ? plainly(q, way) : q.prompt), std::move(q.answer));
        }
        return row;
    }

    /// A picture and its caption: a pair for the contrastive tower, a row of the alignment stage.
    Row caption_row(Split split, std::uint64_t index) const {
        Row row{.scene = scene(split, index)};
        row.add("<image>\nProvide a short image description.", caption(*row.scene, captions));
        return row;
    }
};

/// How many rows a split has; 0 for those that have no end.
constexpr std::uint64_t size_of(Split split) { return split == Split::train ? n_train : split == Split::validation ? n_validation : 0; }

/// FNV-1a of 64 bits: tells whether two machines see the same world.
class Hash {
public:
    void add(std::span<const std::uint8_t> bytes) {
        for (const std::uint8_t byte : bytes) value_ = (value_ ^ byte) * 0x100000001b3;
    }
    void add(std::string_view text) { add({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}), add(std::array<std::uint8_t, 1>{0}); }
    void add(const Image& image) { add({image.row(0), image.pixels.size()}); }
    void add(const Row& row) {
        if (row.scene) add(draw(*row.scene));
        for (const prism::Turn& turn : row.turns) add(turn.text);
    }
    void add(const Example& e) {
        add(draw(e.scene)), add(e.question.prompt);
        for (const std::string& answer : e.answers) add(answer);
    }
    std::string hex() const {
        std::string text;
        for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[value_ >> shift & 15];
        return text;
    }

private:
    std::uint64_t value_ = 0xcbf29ce484222325;
};

/// What a model that never looks at the picture could reach: for each kind of question, the most frequent answer.
class Floor {
public:
    void add(const Question& q) {
        auto& form = answers_[std::string(to_string(q.type)) + (q.detail.empty() ? "" : ", " + q.detail)];
        ++form.n, ++form.times[q.answer];
    }
    struct Line {
        std::string form, answer;
        std::size_t n = 0;
        double      share = 0;
    };
    std::vector<Line> lines() const {
        std::vector<Line> all;
        for (const auto& [name, form] : answers_) {
            Line line;
            line.form = name, line.n = form.n;
            for (const auto& [answer, times] : form.times)
                if (const double share = static_cast<double>(times) / static_cast<double>(form.n); share > line.share) line.answer = answer, line.share = share;
            all.push_back(line);
        }
        return all;
    }
    double share() const {
        double right = 0, n = 0;
        for (const Line& line : lines()) right += line.share * static_cast<double>(line.n), n += static_cast<double>(line.n);
        return n > 0 ? right / n : 0;
    }

private:
    struct Form {
        std::size_t                        n = 0;
        std::map<std::string, std::size_t> times{};
    };
    std::map<std::string, Form> answers_;
};

}  // namespace prism::shapes
