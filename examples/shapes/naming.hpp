// Alignment patch by patch: the projector learns to say, with the language model's own words, what each patch shows.
//
//     NamingTrainer trainer{cpu, vlm, {.batch = 16, .steps = 400}};
//     double loss = trainer.step([&](std::size_t i) { return world.scene(Split::train, k * 16 + i); });
//
// A soft token is read as if it were the last thing in the decoder: behind the final norm, by the table of words. It is to
// give the words of the object there, or "empty", and a character that is written there. So a word of a question resembles
// the patches that it is about before the decoder has seen a picture; from captions and answers alone that takes far longer.
// A linear head, thrown away later, reads where things are off the same tokens: what they do not say, no question draws out.
#pragma once

#include "supervised.hpp"
#include "vocabulary.hpp"

#include "prism/backend/dry/twin.hpp"
#include "prism/model/prismatic.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace prism::shapes {

/// Patches by what is asked of them: pairs of a row and the id of a word.
struct Names {
    std::vector<std::int32_t> rows{}, labels{};
};

/// The words for what a patch shows, from the labels of a supervised tower.
class PatchWords {
public:
    explicit PatchWords(const Tokenizer& words) {
        const auto word = [&](std::string_view text) { return words.encode("the " + std::string(text)).back(); };
        for (const auto name : color_names) ids_[0].push_back(word(name));
        ids_[0].push_back(word("empty"));
        for (const auto name : shape_names) ids_[1].push_back(word(name));
        for (const auto name : size_names) ids_[2].push_back(word(name));
        for (const auto name : texture_names) ids_[3].push_back(word(name));
        for (const char letter : label_letters) ids_[4].push_back(words.encode(std::string("X") + letter).back());
    }
    Names operator()(const PatchTruth& truth) const {
        constexpr std::array asked{Patch::color, Patch::shape, Patch::size, Patch::texture, Patch::letter};
        Names names;
        for (std::size_t k = 0; k < asked.size(); ++k) {
            const auto& labels = truth.labels[static_cast<std::size_t>(asked[k])];
            for (std::size_t i = 0; i < labels.size(); ++i)
                if (labels[i] >= 0 && static_cast<std::size_t>(labels[i]) < ids_[k].size())
                    names.rows.push_back(static_cast<std::int32_t>(i)), names.labels.push_back(ids_[k][static_cast<std::size_t>(labels[i])]);
        }
        return names;
    }

private:
    std::array<std::vector<std::int32_t>, 5> ids_;
};

/// What a linear head reads off a soft token: edges and places as a supervised tower says them, and the edges once more as
/// boxes are written, in tenths and hundredths of the picture.
inline constexpr std::size_t n_digits = 2 * n_edges, n_place_outputs = n_places + 10 * n_digits;

/// Digit k of the box at patch i: tenths and hundredths of x1, y1, x2, y2 by turns; ignored_label where there is none.
inline std::int32_t box_digit(const PatchTruth& truth, std::size_t grid, std::size_t i, std::size_t k) {
    if (!has_box(truth, i)) return ignored_label;
    const float share = truth.edges[i][k / 2] / static_cast<float>(grid) + 0.5f;
    const auto  hundredths = static_cast<std::int32_t>(std::clamp(std::lround(100 * share), 0L, 99L));
    return k % 2 ? hundredths % 10 : hundredths / 10;
}

/// The mean of -log p of the names, several of one patch sharing its probability; that of digits, and the loss of places.
/// Gradients of the projector are added to `grads`, those of the head that reads places to `head_grads`.
template <TrainingBackend B>
double naming_pass(B& be, Workspace<B>& ws, const Prismatic<B>& m, const Linear<B>& head, std::span<const PixelView<B>> pixels, const Names& names, const PatchTruth& truth,
                   Tape<B>& tape, Prismatic<B>* grads, Linear<B>* head_grads) {
    auto              scope = ws.scope();
    const Keep<B>     kept{tape};
    const std::size_t n = pixels[0].extent(0) * m.n_soft_tokens();
    const std::size_t grid = m.config.towers[0].vit.grid();
    Mat<B>            features = ws.mat(n, m.projector.d_vision()), soft = ws.mat(n, m.llm.d_model()), read = ws.like(soft), d_read = ws.like(soft), d = ws.like(soft);
    Mat<B>            said = ws.mat(n, n_place_outputs);
    fuse_towers<B>(be, ws, m.towers, pixels, features);
    m.projector.forward(be, ws, In<B>(features), soft, kept.at("projector"));
    kept("hidden", In<B>(soft));
    std::visit([&](const auto& decoder) { final_norm(decoder).forward(be, soft, read); }, m.llm.decoder);
    ops::clear<B>(be, d);
    const double share = 1 / std::max(1.0, static_cast<double>(names.rows.size()));
    double       loss = head_loss(be, ws, m.llm, kept, In<B>(read), {names.rows, names.labels}, static_cast<float>(share), d, static_cast<LanguageModel<B>*>(nullptr)) * share;

    head.forward(be, read, said);
    if constexpr (B::has_numbers) loss += place_loss(truth, grid, said.cols(0, n_places));
    std::vector<std::int32_t> digits(n, ignored_label);
    for (std::size_t k = 0; k < n_digits; ++k) {
        double boxes = 1;
        if constexpr (B::has_numbers) {
            for (std::size_t i = 0; i < n; ++i) digits[i] = box_digit(truth, grid, i, k), boxes += digits[i] != ignored_label;
        }
        loss += ops::cross_entropy<B>(be, said.cols(n_places + 10 * k, 10), digits, static_cast<float>(1 / (n_digits * boxes))) / (n_digits * boxes);
    }
    backward(be, head, In<B>(read), In<B>(said), d_read, head_grads);
    std::visit([&](const auto& decoder) { backward(be, final_norm(decoder), In<B>(soft), In<B>(d_read), d, static_cast<std::remove_cvref_t<decltype(final_norm(decoder))>*>(nullptr)); }, m.llm.decoder);
    backward(be, ws, m.projector, kept.at("projector"), In<B>(d), Mat<B>{}, grads ? &grads->projector : nullptr);
    return loss;
}

/// `vlm` has to stay where it is; its towers share one size of pictures.
class NamingTrainer {
public:
    NamingTrainer(Cpu& be, Prismatic<Cpu>& vlm, TowerOptions options)
        : be_(&be), vlm_(&vlm), options_(options), words_(tokenizer()), grads_(unbound_twin<Cpu>(vlm)), twin_(dry_twin(vlm)), twin_grads_(dry_twin(vlm)),
          optimizer_(be, vlm, [](std::string_view name) { return name.starts_with("projector."); }, settings()),
          head_(vlm.llm.d_model(), n_place_outputs), head_grads_(vlm.llm.d_model(), n_place_outputs), twin_head_(vlm.llm.d_model(), n_place_outputs),
          head_optimizer_((randomise(be, head_, {.seed = options.seed, .spread = 0.06f}), be), head_, [](std::string_view) { return true; }, settings()),
          twin_arena_(dry_, optimizer_.layout()), ws_(be, 0), pictures_(vlm.transforms()) {
        optimizer_.gradients().bind(grads_), head_optimizer_.gradients().bind(head_grads_), twin_arena_.bind(twin_grads_);
    }

    /// As SupervisedTrainer::step.
    template <class SceneOf>
    double step(SceneOf&& scene) {
        const PatchTruth            truth = draw_with_truth(*be_, pictures_, options_.batch, vlm_->towers[0].config.grid(), scene);
        const Names                 names = words_(truth);
        const auto                  views = pictures_.views();
        std::vector<PixelView<Dry>> dry_views;
        for (const PixelView<Cpu>& view : views) dry_views.push_back(dry_view(view));
        make_room(*be_, ws_, dry_run([&](Dry& dry, Workspace<Dry>& ws) {
                      Tape<Dry> tape;
                      naming_pass<Dry>(dry, ws, twin_, twin_head_, dry_views, names, truth, tape, &twin_grads_, nullptr);
                  }).workspace_bytes);
        tape_.restart();
        const double loss = naming_pass<Cpu>(*be_, ws_, *vlm_, head_, views, names, truth, tape_, &grads_, &head_grads_);
        optimizer_.step(*be_), head_optimizer_.step(*be_);
        return loss;
    }

    std::vector<NamedSpan> state() {
        auto all = whole_state(optimizer_);
        for (NamedSpan s : whole_state(head_optimizer_)) s.name = "head." + s.name, all.push_back(std::move(s));
        return all;
    }
    void set_steps(std::uint64_t n) { optimizer_.set_steps(n), head_optimizer_.set_steps(n); }

private:
    OptimizerOptions settings() const { return {.lr = options_.rate, .beta2 = 0.95, .weight_decay = options_.weight_decay, .total_steps = options_.steps}; }

    Cpu*                            be_;
    Prismatic<Cpu>*                 vlm_;
    TowerOptions                    options_;
    PatchWords                      words_;
    Prismatic<Cpu>                  grads_;
    Dry                             dry_;
    Prismatic<Dry>                  twin_, twin_grads_;
    Optimizer<Cpu>                  optimizer_;
    Linear<Cpu>                     head_, head_grads_;
    Linear<Dry>                     twin_head_;
    Optimizer<Cpu>                  head_optimizer_;
    Arena<Dry>                      twin_arena_;
    Tape<Cpu>                       tape_;
    Workspace<Cpu>                  ws_;
    Pictures                        pictures_;
};

}  // namespace prism::shapes
