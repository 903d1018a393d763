// Batches of questions, and what they cost, on the small model of the repository.
#include "prism/prism.hpp"
#include "support/cases.hpp"

#include <doctest/doctest.h>

#include <limits>

using namespace prism;

namespace {

const std::filesystem::path& folder() {
    static const auto path = std::filesystem::path(PRISM_TEST_DATA) / "reference/vlm/prism-dinosiglip+7b";
    return path;
}

}  // namespace

TEST_CASE("generate/ask_batch: answers are those of conversations one by one, whatever decodes together") {
    Cpu         be{{.threads = 2}};
    const auto  vlm = from_pretrained(be, folder());
    const Image a = read_image(folder() / "image.png");
    Image       b = a;
    for (std::size_t i = 0; i < b.pixels.size(); ++i) b.pixels.data()[i] = static_cast<std::uint8_t>(255 - b.pixels.data()[i]);
    const std::vector<Question> questions{{&a, "What is it?"}, {&b, "What is it?"}, {nullptr, "Hello"}, {&a, "In: So?\nOut:", true}, {&b, "Why?"}};
    std::vector<Answer>         one_by_one;
    for (const Question& q : questions) {
        Chat chat{be, vlm};
        if (q.picture) chat.show(*q.picture);
        one_by_one.push_back(q.raw ? chat.ask_raw(q.text, {.max_new_tokens = 9}) : chat.ask(q.text, {.max_new_tokens = 9}));
    }
    for (std::size_t together : {1, 2, 8}) {
        CAPTURE(together);
        std::vector<std::vector<std::int32_t>> heard(questions.size());
        AskBatchOptions                        options{.max_new_tokens = 9, .max_together = together};
        options.on_token = [&](std::size_t q, std::int32_t id) { return heard[q].push_back(id), true; };
        const auto answers = ask_batch(be, vlm, questions, options);
        REQUIRE(answers.size() == questions.size());
        for (std::size_t i = 0; i < answers.size(); ++i) {
            CHECK(answers[i].prompt == one_by_one[i].prompt);
            CHECK(answers[i].input_ids == one_by_one[i].input_ids);
            CHECK(answers[i].output_ids == one_by_one[i].output_ids);
            CHECK(answers[i].text == one_by_one[i].text);
            CHECK(heard[i] == answers[i].output_ids);
            CHECK((answers[i].vision_s > 0) == (questions[i].picture != nullptr));
        }
        CHECK(answers[0].vision_s == answers[3].vision_s);  // one picture, encoded once
    }
    AskBatchOptions brief{.max_new_tokens = 9};
    brief.on_token = [](std::size_t q, std::int32_t) { return q != 1; };
    const auto stopped = ask_batch(be, vlm, questions, brief);
    CHECK(stopped[1].output_ids.size() == 1);
    CHECK(stopped[1].stop == Stop::callback);
    CHECK(stopped[0].output_ids == one_by_one[0].output_ids);
}

TEST_CASE("generate/ask_batch: what does not fit is refused before any work, and an answer ends where the context does") {
    Cpu                         be{{.threads = 1}};
    const auto                  vlm = from_pretrained(be, folder());
    const Image                 image = read_image(folder() / "image.png");
    const ChatParts             parts = chat_parts(vlm, 40);
    const std::vector<Question> fits{{&image, "What is it?"}}, too_long{{&image, "What?"}, {&image, std::string(200, 'x')}};
    const auto                  before = be.flops_done();
    CHECK_THROWS_AS(ask_batch(be, vlm.model, parts, too_long), ConfigError);
    CHECK(be.flops_done() == before);
    const auto answer = ask_batch(be, vlm.model, parts, fits)[0];
    CHECK(answer.stop == Stop::context_full);
    CHECK(answer.input_ids.size() + vlm.model.n_soft_tokens() + answer.output_ids.size() == 40 + 1);
    CHECK(ask_batch(be, vlm.model, parts, fits, {.max_new_tokens = std::numeric_limits<std::size_t>::max()})[0].output_ids == answer.output_ids);  // takes no more memory

    // What the reference cuts while it encodes is no part of what was read.
    ChatParts short_of_words = chat_parts(vlm, 80);
    short_of_words.llm_max_length = 12;
    const std::vector<Question> cut{{&image, std::string(20, 'x')}};
    CHECK(ask_batch(be, vlm.model, short_of_words, cut)[0].input_ids.size() == 12);
    Chat chat{be, vlm.model, short_of_words};
    CHECK(chat.ask(std::string(20, 'x'), {.max_new_tokens = 2}).input_ids.size() == 12);
    CHECK_THROWS_AS(chat.ask("And then?"), ConfigError);  // of a later turn the question itself would be cut off
}

TEST_CASE("generate/session: the backend counts the operations that a dry run foretells") {
    Cpu               be{{.threads = 2}};
    const auto        vlm = from_pretrained(be, folder());
    const ChatParts   parts = chat_parts(vlm, 64);
    const Pixels<Cpu> pixels{be, parts.transforms, read_image(folder() / "image.png")};
    Session           session{be, vlm.model, {.max_tokens = 64}};
    auto              before = be.flops_done();
    session.show(pixels.views());
    CHECK(be.flops_done() - before == seeing_cost(vlm.model, pixels.views()).flops);
    before = be.flops_done();
    const std::vector<std::int32_t> ids{1, 291, 555};
    session.generate(ids, {.max_new_tokens = 1});
    const auto head = 2 * std::uint64_t{vlm.model.llm.d_model()} * vlm.model.llm.vocab_size();
    CHECK(be.flops_done() - before == reading_cost(vlm.model.llm, ids.size() + vlm.model.n_soft_tokens()).flops + head);
}
