// What replicas have to do on every backend.
#pragma once

#include "prism/generate/replicas.hpp"
#include "prism/image/read.hpp"
#include "prism/model/pretrained.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

namespace prism::test {

/// Asks one replica and three the same questions.
template <Backend B>
void expect_replicas_alike() {
    const auto                  folder = std::filesystem::path(PRISM_TEST_DATA) / "reference/vlm/siglip-phi";
    const Image                 image = read_image(folder / "image.png");
    const std::vector<Question> questions{{&image, "What is it?"}, {nullptr, "What is red and blue?"}, {&image, "Which colour?"}, {&image, "Where?"}};
    std::vector<std::unique_ptr<B>> backends;
    std::vector<Pretrained<B>>      models;
    for (int i = 0; i < 3; ++i) {
        backends.push_back(std::make_unique<B>());
        models.push_back(from_pretrained(*backends.back(), folder));
    }
    std::vector<Replica<B>> replicas{{*backends[0], models[0]}};
    const AskBatchOptions   options{.max_new_tokens = 4, .max_together = 2};
    const auto              one = ask_batch(replicas, questions, options);
    const auto              plain = ask_batch(*backends[0], models[0], questions, options);
    replicas.push_back({*backends[1], models[1]}), replicas.push_back({*backends[2], models[2]});
    std::vector<std::size_t> tokens(questions.size());
    AskBatchOptions          counting = options;
    counting.on_token = [&](std::size_t question, std::int32_t) { return ++tokens[question] > 0; };
    const auto               three = ask_batch(replicas, questions, counting);
    REQUIRE(one.size() == questions.size());
    REQUIRE(three.size() == questions.size());
    for (std::size_t i = 0; i < questions.size(); ++i) {
        CHECK(one[i].output_ids == plain[i].output_ids);
        CHECK(three[i].output_ids == plain[i].output_ids);
        CHECK(three[i].prompt == plain[i].prompt);
        CHECK(tokens[i] > 0);
    }
    CHECK(ask_batch(replicas, std::span<const Question>{}).empty());
    CHECK(ask_batch(replicas, std::span(questions).first(1), options)[0].output_ids == plain[0].output_ids);
    CHECK_THROWS_AS(ask_batch(std::vector<Replica<B>>{}, questions), ConfigError);
    std::vector<Question> one_is_too_long = questions;
    for (int i = 0; i < 400; ++i) one_is_too_long[3].text += " and another colour";
    CHECK_THROWS_AS(ask_batch(replicas, one_is_too_long, counting), ConfigError);
}

}  // namespace prism::test
