// How often a model of the shapes world is right, by type of question, and whether it looks at the picture.
//
//     const Measured m = measure(cpu, model, World{.seed = 0}, {.pictures = 2000});
//     m.right(Type::count);                       // 0.94
#pragma once

#include "scoring.hpp"
#include "world.hpp"

#include "prism/generate/ask_batch.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace prism::shapes {

struct MeasureOptions {
    std::size_t pictures = 2000;
    Split       split = Split::validation;
    bool        plainly = false;  // asks as people do, without a benchmark's instructions
    std::function<void(std::size_t done)> on_picture{};
};

/// Answers that are right, of each type; captions are not asked for, because many are right.
struct Measured {
    struct Count {
        std::size_t n = 0, right = 0;
        double      floor = 0;  // right answers of who gives the most frequent one to each kind of question
        double      share() const { return n ? static_cast<double>(right) / static_cast<double>(n) : 0; }
    };
    std::array<Count, n_types> types{};
    Count                      counts_to_six{};  // counts whose answer is at most six
    Count                      boxes{};          // answers that read as boxes, right or not, where boxes are asked for
    std::size_t                asked = 0, other_picture = 0, blank = 0;  // answers, and those that another picture or a grey one changes
    double                     floor = 0;        // of all types together

    double right(Type t) const { return types[static_cast<std::size_t>(t)].share(); }
};

/// Whether an answer is right: boxes where they share more than half with the true one, all others word by word.
inline bool is_right(const Question& q, const std::string& answer) {
    if (!q.box) return exact_match(answer, q.answer);
    const auto said = parse_box(answer), truth = parse_box(q.answer);
    return said && truth && intersection_over_union(*said, *truth) > 0.5;
}

/// Asks every question of the first `pictures` scenes of a split, each in a conversation of its own; and those of every
/// fourth scene again, about the next scene's picture and about a grey one.
template <Backend B, class M>
Measured measure(B& be, const M& model, const ChatParts& parts, const World& world, const MeasureOptions& options = {}) {
    Measured                        m;
    Floor                           floor;
    std::array<Floor, n_types>      floors;  // of each type
    std::vector<prism::Question>    asked;
    const AskBatchOptions           batch{.max_new_tokens = 24, .max_together = 8};
    for (std::size_t i = 0; i < options.pictures; ++i) {
        const Scene                scene = world.scene(options.split, i);
        const Image                picture = draw(scene);
        std::vector<Question>      questions = conversation(scene, world.questions, world.mixture);
        std::erase_if(questions, [](const Question& q) { return q.type == Type::caption; });
        const auto answers = [&](const Image& about) {
            asked.clear();
            for (const Question& q : questions) asked.push_back({&about, options.plainly ? plainly(q) : q.prompt});
            return ask_batch(be, model, parts, asked, batch);
        };
        const std::vector<Answer> found = answers(picture);
        for (std::size_t k = 0; k < questions.size(); ++k) {
            const Question& q = questions[k];
            const bool      right = is_right(q, found[k].text);
            auto&           type = m.types[static_cast<std::size_t>(q.type)];
            ++type.n, type.right += right;
            if (q.type == Type::count && (q.answer.size() == 1 && q.answer[0] <= '6')) ++m.counts_to_six.n, m.counts_to_six.right += right;
            if (q.box) ++m.boxes.n, m.boxes.right += parse_box(found[k].text).has_value();
            floor.add(q), floors[static_cast<std::size_t>(q.type)].add(q);
        }
        if (i % 4 == 0) {
            Image grey = picture;
            std::ranges::fill(grey.pixels, std::uint8_t{128});
            const auto others = answers(draw(world.scene(options.split, i + 1))), blanks = answers(grey);
            for (std::size_t k = 0; k < questions.size(); ++k)
                ++m.asked, m.other_picture += others[k].text != found[k].text, m.blank += blanks[k].text != found[k].text;
        }
        if (options.on_picture) options.on_picture(i + 1);
    }
    m.floor = floor.share();
    for (std::size_t t = 0; t < n_types; ++t) m.types[t].floor = floors[t].share();
    return m;
}

}  // namespace prism::shapes
