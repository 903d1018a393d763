// The reference models with their weights kept in other formats: what that costs in scores and in tokens.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/generate/chat.hpp"
#include "prism/io/json.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/model/store_as.hpp"
#include "support/cases.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

using namespace prism;
using namespace prism::test;

namespace {

/// The scores of every position of a prompt about a picture.
struct Scores {
    std::vector<float> logits;
    std::size_t        vocab = 0;

    /// Largest difference over largest score.
    double error(const Scores& other) const {
        float most = 0, largest = 0;
        for (std::size_t i = 0; i < logits.size(); ++i) most = std::max(most, std::fabs(logits[i] - other.logits[i])), largest = std::max(largest, std::fabs(other.logits[i]));
        return static_cast<double>(most) / static_cast<double>(largest);
    }
};

Scores scores(Cpu& be, const std::filesystem::path& folder, const PretrainedOptions& options) {
    const auto vlm = from_pretrained(be, folder, options);
    Chat   chat{be, vlm, std::size_t{512}};
    Scores s;
    chat.show(read_image(folder / "image.png"));
    s.vocab = vlm.model.llm.vocab_size();
    chat.session().all_logits(vlm.tokenizer->encode("How many red circles are there?"), [&](std::size_t, std::span<const float> row) { s.logits.insert(s.logits.end(), row.begin(), row.end()); });
    return s;
}

}  // namespace

TEST_CASE("model/kept formats: scores err by what a format allows, and the first choice changes only where it was close") {
    for (const auto& folder : reference_cases("vlm")) {
        if (layout_of(folder) != Layout::prismatic_run) continue;
        CAPTURE(folder.string());
        Cpu        be{{.threads = 2}}, rounding{{.threads = 2, .compute = Compute::fast}};
        const auto kept = [](Dtype dtype) { return PretrainedOptions{.load = {.kept = keep_weights_as(dtype)}}; };
        const auto exact = scores(be, folder, {});
        struct Case {
            Cpu&   be;
            Dtype  dtype;
            double bound;
        };
        // The small models' weights are random, which is hard on rounding: trained ones cancel less.
        for (const Case& c : {Case{be, Dtype::f32, 0.0}, Case{be, Dtype::f16, 6e-3}, Case{be, Dtype::bf16, 4e-2}, Case{rounding, Dtype::bf16, 8e-2}, Case{be, Dtype::q8, 0.15}}) {
            const auto   found = scores(c.be, folder, kept(c.dtype));
            const double error = found.error(exact);
            CHECK_MESSAGE(error <= c.bound, to_string(c.dtype));
            float largest = 0;
            for (float x : exact.logits) largest = std::max(largest, std::fabs(x));
            for (std::size_t at = 0; at < exact.logits.size(); at += exact.vocab) {  // a margin over four times the error decides
                const auto row = std::span(exact.logits).subspan(at, exact.vocab), other = std::span(found.logits).subspan(at, exact.vocab);
                const auto best = std::max_element(row.begin(), row.end());
                float      second = -INFINITY;
                for (const float& x : row)
                    if (&x != &*best) second = std::max(second, x);
                if (static_cast<double>(*best - second) > 4 * error * static_cast<double>(largest))
                    CHECK(std::max_element(other.begin(), other.end()) - other.begin() == best - row.begin());
            }
        }
        // Products with bf16 weights or blocks are those of their values: the same model with its values widened to f32
        // gives the same scores.
        for (Dtype dtype : {Dtype::bf16, Dtype::q8, Dtype::q4, Dtype::q4m}) {
            auto       vlm = from_pretrained(be, folder, kept(dtype));
            const auto stored = scores(be, folder, kept(dtype));
            store_as(be, vlm.model, Dtype::f32);
            Chat   chat{be, vlm, std::size_t{512}};
            Scores widened{{}, stored.vocab};
            chat.show(read_image(folder / "image.png"));
            chat.session().all_logits(vlm.tokenizer->encode("How many red circles are there?"), [&](std::size_t, std::span<const float> row) { widened.logits.insert(widened.logits.end(), row.begin(), row.end()); });
            CHECK_MESSAGE(stored.error(widened) <= 2e-3, to_string(dtype));
        }
    }
}
