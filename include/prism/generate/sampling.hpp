// Sampling: from the scores of the next token to the token.
//
//     Sampler sampler{{.temperature = 0.4f, .top_k = 50, .seed = 7}};
//     const std::int32_t id = sampler.next(logits, ids_so_far);
#pragma once

#include "prism/core/error.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace prism {

struct SamplingOptions {
    float         temperature = 0;         // 0: the most likely token, always
    std::int64_t  top_k = 0;               // only the k most likely; 0: all
    float         top_p = 1;               // only the most likely that together reach this probability
    float         repetition_penalty = 1;  // scores of tokens that were there are divided by it, or multiplied below 0
    std::uint64_t seed = 0;                // the same seed, the same tokens
};

/// Scores that are no numbers came out of the model. `step` counts generated tokens from 0; `ids` and `text` are what
/// was generated before (the text only where there is a tokenizer).
class GenerationError : public Error {
public:
    GenerationError(std::size_t at, std::vector<std::int32_t> before, std::string so_far = {})
        : Error("generation: the scores of step " + std::to_string(at) + " are not finite"), step(at), ids(std::move(before)),
          text(std::move(so_far)) {}

    std::size_t               step;
    std::vector<std::int32_t> ids;
    std::string               text;
};

/// Draws tokens. Order of the filters as in transformers: repetition penalty, temperature, top-k, top-p.
class Sampler {
public:
    /// Throws ConfigError on a temperature below 0 or NaN, top_k below 0, top_p outside (0, 1], a penalty not over 0.
    explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
        const auto refuse = [](const char* key, auto value, const char* allowed) { throw ConfigError{key, std::to_string(value), allowed}; };
        if (!(options.temperature >= 0) || std::isinf(options.temperature)) refuse("temperature", options.temperature, "0 (greedy) or over 0");
        if (options.top_k < 0) refuse("top_k", options.top_k, "0 (all) or over 0");
        if (!(options.top_p > 0 && options.top_p <= 1)) refuse("top_p", options.top_p, "over 0, at most 1");
        if (!(options.repetition_penalty > 0) || std::isinf(options.repetition_penalty))
            refuse("repetition_penalty", options.repetition_penalty, "over 0");
    }

    /// The next token after `before`. `logits` are those of the ids from `first` on, and are changed. Equal scores go to
    /// the lowest id.
    std::int32_t next(std::span<float> logits, std::span<const std::int32_t> before, std::int32_t first = 0) {
        if (options_.repetition_penalty != 1) {
            std::vector<std::int32_t> seen(before.begin(), before.end());
            std::sort(seen.begin(), seen.end());
            seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
            for (std::int32_t id : seen) {
                if (id < first || static_cast<std::size_t>(id - first) >= logits.size()) continue;
                float& s = logits[static_cast<std::size_t>(id - first)];
                s = s > 0 ? s / options_.repetition_penalty : s * options_.repetition_penalty;
            }
        }
        if (options_.temperature == 0)
            return first + static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
        return first + draw(logits);
    }

    /// The next random number in [0, 1), for who draws elsewhere. 53 bits of the generator: the standard's own distributions
    /// differ between libraries.
    double uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

private:
    std::int32_t draw(std::span<const float> logits) {
        order_.resize(logits.size());
        std::iota(order_.begin(), order_.end(), 0);
        std::size_t n = logits.size();
        const auto  likelier = [&](std::int32_t a, std::int32_t b) {
            const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
            return x != y ? x > y : a < b;
        };
        if (options_.top_k > 0 && static_cast<std::size_t>(options_.top_k) < n) {
            n = static_cast<std::size_t>(options_.top_k);
            std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(n), order_.end(), likelier);
        } else {
            std::sort(order_.begin(), order_.end(), likelier);
        }
        weights_.resize(n);
        const auto score = [&](std::size_t i) { return static_cast<double>(logits[static_cast<std::size_t>(order_[i])]) / static_cast<double>(options_.temperature); };
        double total = 0;
        for (std::size_t i = 0; i < n; ++i) total += weights_[i] = std::exp(score(i) - score(0));
        if (options_.top_p < 1) {
            double kept = 0;
            std::size_t i = 0;
            while (i < n && kept < static_cast<double>(options_.top_p) * total) kept += weights_[i++];
            n = i, total = kept;
        }
        double target = uniform() * total;
        for (std::size_t i = 0; i + 1 < n; ++i)
            if ((target -= weights_[i]) < 0) return order_[i];
        return order_[n - 1];
    }

    SamplingOptions           options_;
    std::mt19937_64           random_;
    std::vector<std::int32_t> order_;
    std::vector<double>       weights_;
};

}  // namespace prism
