// Sampling against a naive implementation of the filters, and bad settings.
#include "prism/generate/sampling.hpp"

#include <doctest/doctest.h>

#include <array>
#include <limits>
#include <map>

using namespace prism;

namespace {

const std::vector<float> logits{1.5f, -0.5f, 2.0f, 0.0f, -3.0f, 1.0f, 2.0f, -1.0f};

/// The probability of each id: penalty, temperature, top-k, top-p, each as its definition says.
std::vector<double> naive(std::vector<float> scores, const SamplingOptions& o, const std::vector<std::int32_t>& before) {
    for (std::size_t i = 0; i < scores.size(); ++i)
        if (std::find(before.begin(), before.end(), static_cast<std::int32_t>(i)) != before.end())
            scores[i] = scores[i] > 0 ? scores[i] / o.repetition_penalty : scores[i] * o.repetition_penalty;
    std::vector<double> p(scores.size());
    double              total = 0;
    for (std::size_t i = 0; i < p.size(); ++i) total += p[i] = std::exp(static_cast<double>(scores[i]) / static_cast<double>(o.temperature));
    const auto rank = [&](std::size_t i) {  // how many ids are likelier
        std::size_t n = 0;
        for (std::size_t j = 0; j < scores.size(); ++j) n += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
        return n;
    };
    const auto drop = [&](auto condition) {
        std::vector<double> kept = p;
        total = 0;
        for (std::size_t i = 0; i < p.size(); ++i) total += kept[i] = condition(i) ? 0 : p[i];
        p = kept;
    };
    if (o.top_k > 0) drop([&](std::size_t i) { return rank(i) >= static_cast<std::size_t>(o.top_k); });
    if (o.top_p < 1)
        drop([&, whole = total](std::size_t i) {
            double likelier = 0;
            for (std::size_t j = 0; j < p.size(); ++j)
                if (rank(j) < rank(i)) likelier += p[j];
            return likelier >= static_cast<double>(o.top_p) * whole;
        });
    for (double& x : p) x /= total;
    return p;
}

std::string message(const SamplingOptions& options) {
    try {
        Sampler{options};
    } catch (const ConfigError& e) { return e.what(); }
    return "taken";
}

}  // namespace

TEST_CASE("generate/sampling: tokens come as often as the naive filters say, and never when they are filtered out") {
    const std::vector<std::int32_t> before{2, 4, 4, 99, -1, 0};
    for (SamplingOptions o : {SamplingOptions{.temperature = 1}, SamplingOptions{.temperature = 0.4f}, SamplingOptions{.temperature = 2.5f, .top_k = 3},
                              SamplingOptions{.temperature = 1, .top_k = 1}, SamplingOptions{.temperature = 1, .top_k = 100}, SamplingOptions{.temperature = 1, .top_p = 0.6f},
                              SamplingOptions{.temperature = 1, .top_p = 0.001f}, SamplingOptions{.temperature = 1, .repetition_penalty = 1.7f},
                              SamplingOptions{.temperature = 0.7f, .top_k = 5, .top_p = 0.9f, .repetition_penalty = 0.5f}}) {
        o.seed = 11;
        const auto          expected = naive(logits, o, before);
        Sampler             sampler{o};
        constexpr int       draws = 20000;
        std::vector<double> count(logits.size());
        for (int i = 0; i < draws; ++i) {
            auto scores = logits;
            ++count[static_cast<std::size_t>(sampler.next(scores, before))];
        }
        for (std::size_t i = 0; i < count.size(); ++i) {
            if (expected[i] == 0) CHECK(count[i] == 0);
            CHECK(std::abs(count[i] - draws * expected[i]) <= 5 * std::sqrt(draws * expected[i] * (1 - expected[i])) + 1e-6);  // five standard deviations
        }
    }
}

TEST_CASE("generate/sampling: temperature 0 takes the most likely, the lowest id among equals; the penalty counts there too") {
    auto scores = logits;
    CHECK(Sampler{{}}.next(scores, {}) == 2);
    scores = logits;
    CHECK(Sampler{{.repetition_penalty = 2}}.next(scores, std::array{2}) == 6);
    scores = logits;
    CHECK(Sampler{{.repetition_penalty = 2}}.next(scores, std::array{2, 6, 0}) == 2);  // 1.0, 1.0, 0.75 against 1.0 of id 5
    scores = {-1, -2};
    CHECK(Sampler{{.repetition_penalty = 3}}.next(scores, std::array{0}) == 1);  // below 0 a score is multiplied
}

TEST_CASE("generate/sampling: scores of a stretch of the vocabulary belong to the ids from its first on") {
    std::vector<float> scores{1, 5, 4};
    CHECK(Sampler{{}}.next(scores, {}, 100) == 101);
    scores = {1, 5, 4};
    CHECK(Sampler{{.repetition_penalty = 10}}.next(scores, std::array{1, 101, 2}, 100) == 102);
}

TEST_CASE("generate/sampling: the same seed gives the same tokens, another seed others") {
    const auto draw = [](std::uint64_t seed) {
        Sampler                   sampler{{.temperature = 1, .seed = seed}};
        std::vector<std::int32_t> ids;
        for (int i = 0; i < 64; ++i) {
            auto scores = logits;
            ids.push_back(sampler.next(scores, ids));
        }
        return ids;
    };
    CHECK(draw(3) == draw(3));
    CHECK(draw(3) != draw(4));
}

TEST_CASE("generate/sampling: settings that mean nothing are refused with their value") {
    constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    for (float t : {-0.1f, nan, inf}) CHECK(message({.temperature = t}).starts_with("'temperature' is "));
    CHECK(message({.top_k = -1}) == "'top_k' is -1; allowed: 0 (all) or over 0");
    for (float p : {0.0f, -0.5f, 1.001f, nan}) CHECK(message({.top_p = p}).starts_with("'top_p' is "));
    for (float r : {0.0f, -1.0f, nan, inf}) CHECK(message({.repetition_penalty = r}).starts_with("'repetition_penalty' is "));
    CHECK(message({.temperature = 100, .top_k = 1, .top_p = 1, .repetition_penalty = 0.1f}) == "taken");
}
