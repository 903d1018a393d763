// The small decoder learns the world's language before it sees a picture.
//
//     TextTrainer trainer{cpu, vlm.llm, {.batch = 64, .steps = 500}};
//     double loss = trainer.step(k);          // documents k batch ... (k + 1) batch - 1 of the corpus
#pragma once

#include "language.hpp"
#include "pretraining.hpp"
#include "vocabulary.hpp"

#include "prism/train.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace prism::shapes {

struct TextOptions {
    std::size_t   batch = 64, steps = 500;
    double        rate = 2e-3, weight_decay = 0.05;
    std::uint64_t seed = 0;  // of the corpus
};

/// `llm` has to stay where it is.
class TextTrainer {
public:
    TextTrainer(Cpu& be, LanguageModel<Cpu>& llm, TextOptions options)
        : options_(options), words_(tokenizer()),
          trainer_(be, llm, Stage::finetune, {.optimizer = {.lr = options.rate, .beta2 = 0.95, .weight_decay = options.weight_decay, .total_steps = options.steps}, .tape = {.replay = false}}) {}

    /// The mean of -log p over the tokens of one batch of documents, each with its end.
    double step(std::size_t k) {
        const double loss = trainer_.micro_step({.rows = rows(k * options_.batch)});
        trainer_.step();
        return loss;
    }
    /// The same of documents that a run of `steps` steps never reads.
    double held_out() { return trainer_.loss({.rows = rows(std::size_t{1} << 32)}); }

    std::vector<NamedSpan> state() { return whole_state(trainer_.optimizer()); }
    void                   set_steps(std::uint64_t n) { trainer_.optimizer().set_steps(n); }

private:
    std::span<const TrainingRow> rows(std::size_t first) {
        ids_.resize(options_.batch), labels_.resize(options_.batch), rows_.clear();
        for (std::size_t i = 0; i < options_.batch; ++i) {
            ids_[i] = words_.encode(corpus_document(options_.seed, first + i));
            if (const auto end = words_.eos_id()) ids_[i].push_back(*end);
            labels_[i] = ids_[i];
            rows_.push_back({ids_[i], labels_[i], {}});
        }
        return rows_;
    }

    TextOptions                            options_;
    Tokenizer                              words_;
    Trainer<Cpu, LanguageModel>            trainer_;
    std::vector<std::vector<std::int32_t>> ids_, labels_;
    std::vector<TrainingRow>               rows_;
};

}  // namespace prism::shapes
