// A tower that learns from captions: SigLIP's objective over pictures and what is said of them.
//
//     ContrastiveTrainer trainer{cpu, tower, {.steps = 1500}};
//     for (std::size_t k = 0; k < 1500; ++k)
//         trainer.step(transform, 256, [&](std::size_t i) { return world.caption_row(Split::train, k * 256 + i); });
//     train_stage(trainer, captions_of_the_world, plan, folder);      // or through prism's loader, with checkpoints
//
// What is trained is what a language model reads: the output of the second-to-last block, averaged over patches. The text
// tower and both projections are thrown away afterwards.
#pragma once

#include "contrastive.hpp"
#include "pretraining.hpp"
#include "vocabulary.hpp"

#include "prism/model/random.hpp"
#include "prism/train/data/batch.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace prism::shapes {

struct TextConfig {
    std::size_t vocab_size = 0;  // 0: the world's
    std::size_t max_tokens = 24, d_model = 96, n_layers = 2, n_heads = 3;

    VitConfig block() const { return {.d_model = d_model, .n_layers = n_layers, .n_heads = n_heads, .d_ff = 4 * d_model}; }
};

/// Captions by their length, so that those of one length attend in one call and nothing is padded.
struct Captions {
    struct Group {
        std::size_t length, first, n;  // the captions order[first] ... order[first + n - 1]
        std::size_t row;               // the first token's
    };
    std::vector<std::int32_t> ids{};    // [n_tokens], group by group
    std::vector<std::size_t>  order{};
    std::vector<Group>        groups{};

    Captions() = default;
    /// Cuts each to `max_tokens`. Throws ShapeError for one without tokens.
    Captions(std::span<const std::span<const std::int32_t>> rows, std::size_t max_tokens) : order(rows.size()) {
        const auto length = [&](std::size_t i) { return std::min(rows[i].size(), max_tokens); };
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::ranges::stable_sort(order, {}, length);
        for (std::size_t k = 0; k < order.size(); ++k) {
            const std::size_t n = length(order[k]);
            if (n == 0) throw ShapeError{"Captions", "rows", "at least one token each", "none in caption " + std::to_string(order[k])};
            if (groups.empty() || groups.back().length != n) groups.push_back({n, k, 0, ids.size()});
            ++groups.back().n;
            ids.insert(ids.end(), rows[order[k]].begin(), rows[order[k]].begin() + static_cast<std::ptrdiff_t>(n));
        }
    }
    std::size_t size() const { return order.size(); }
};

/// The sum of what the tokens of a caption become in a few blocks that look both ways.
template <Backend B>
struct TextTower {
    TextConfig               config;
    Embedding<B>             embed_tokens;
    Param<B>                 pos_embed;  // [max_tokens, d]
    std::vector<VitBlock<B>> blocks;

    static constexpr auto params = fields(field("embed_tokens", &TextTower::embed_tokens), field("pos_embed", &TextTower::pos_embed), field("blocks", &TextTower::blocks));

    explicit TextTower(const TextConfig& c)
        : config(c), embed_tokens(c.vocab_size, c.d_model), pos_embed({c.max_tokens, c.d_model}) {
        for (std::size_t i = 0; i < c.n_layers; ++i) blocks.emplace_back(c.block());
    }

    /// out [n_captions, d], in the captions' own order.
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, const Captions& captions, Mat<B> out, K keep = {}) const {
        auto   scope = keep.scope(ws);
        Mat<B> x = ws.mat(captions.ids.size(), config.d_model);
        embed_tokens.forward(be, captions.ids, x);
        ops::clear<B>(be, out);
        for (const Captions::Group& g : captions.groups) {
            const Mat<B> tokens = x.rows(g.row, g.length * g.n);
            ops::add_table<B>(be, pos_embed.mat().rows(0, g.length), tokens);
            for (std::size_t i = 0; i < blocks.size(); ++i)
                keep.at("length", g.length).block(be, ws, "blocks", i, tokens, [&](auto inside) { blocks[i].forward(be, ws, g.n, tokens, inside); });
            for (std::size_t k = 0; k < g.n; ++k) add_sums<B>(be, tokens.rows(k * g.length, g.length), out.rows(captions.order[g.first + k], 1));
        }
    }
};

template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const TextTower<B>& m, Keep<B> kept, const Captions& captions, In<B> dout, TextTower<B>& grads) {
    auto   scope = ws.scope();
    Mat<B> d = ws.mat(captions.ids.size(), m.config.d_model);
    for (const Captions::Group& g : captions.groups) {
        const Mat<B> tokens = d.rows(g.row, g.length * g.n);
        for (std::size_t k = 0; k < g.n; ++k) add_sums_backward<B>(be, dout.rows(captions.order[g.first + k], 1), tokens.rows(k * g.length, g.length));
        for (std::size_t i = m.blocks.size(); i-- > 0;)
            kept.at("length", g.length).unwind(
                be, ws, "blocks", i, [&](Mat<B> x, Keep<B> inside) { m.blocks[i].forward(be, ws, g.n, x, inside); },
                [&](Keep<B> inside) { backward(be, ws, m.blocks[i], inside, g.n, tokens, &grads.blocks[i]); });
        ops::add_table_backward<B>(be, tokens, gradient_rows(grads.pos_embed).rows(0, g.length));
    }
    backward(be, m.embed_tokens, captions.ids, d, &grads.embed_tokens);
}

struct ContrastiveConfig {
    VitConfig   tower;
    TextConfig  text{};
    std::size_t d_common = 128, together = 16;  // the width that both are compared in; pictures that pass the tower at a time
};

/// A tower, a text tower, and the linear maps of both into one space. Only directions count there, so sums over patches and
/// tokens are as good as means; and only differences between the rows of a batch, so the maps need no bias.
template <Backend B>
struct ContrastivePair {
    ContrastiveConfig config;
    Vit<B>            tower;
    TextTower<B>      text;
    Linear<B>         projection, text_projection;
    Param<B>          log_scale, bias;  // [1] each: SigmoidScale

    static constexpr auto params = fields(field("tower", &ContrastivePair::tower), field("text", &ContrastivePair::text), field("projection", &ContrastivePair::projection),
                                          field("text_projection", &ContrastivePair::text_projection), field("scale.log", &ContrastivePair::log_scale),
                                          field("scale.bias", &ContrastivePair::bias));

    explicit ContrastivePair(const ContrastiveConfig& c)
        : config(c), tower(c.tower), text(c.text), projection(c.tower.d_model, c.d_common, false), text_projection(c.text.d_model, c.d_common, false), log_scale({1}),
          bias({1}) {}

    /// x, y [n, d_common] of pixels [n, 3, S, S] and n captions, row i with row i. Throws ShapeError.
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, PixelView<B> pixels, const Captions& captions, Mat<B> x, Mat<B> y, K keep = {}) const {
        const std::size_t n = pixels.extent(0), n_patches = tower.n_patches();
        if (captions.size() != n) throw ShapeError{"ContrastivePair", "captions", std::to_string(n) + ", one for each picture", std::to_string(captions.size())};
        auto   scope = keep.scope(ws);
        Mat<B> seen = ws.mat(n, tower.d_model()), said = ws.mat(n, config.text.d_model), features = ws.mat(std::min(config.together, n) * n_patches, tower.d_model());
        ops::clear<B>(be, seen);
        in_parts<B>(pixels, config.together, [&](std::size_t i, std::size_t first, PixelView<B> some) {
            const Mat<B> patches = features.rows(0, some.extent(0) * n_patches);
            tower.forward(be, ws, some, patches, keep.at("pictures", i));
            add_sums<B>(be, patches, seen.rows(first, some.extent(0)));
        });
        text.forward(be, ws, captions, said, keep.at("text"));
        keep("seen", seen), keep("said", said);
        projection.forward(be, seen, x);
        text_projection.forward(be, said, y);
    }
};

/// Of its forward: from dx, dy [n, d_common].
template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const ContrastivePair<B>& m, Keep<B> kept, PixelView<B> pixels, const Captions& captions, In<B> dx, In<B> dy, ContrastivePair<B>& grads) {
    auto              scope = ws.scope();
    const std::size_t n = pixels.extent(0), n_patches = m.tower.n_patches();
    const In<B>       seen = kept["seen"], said = kept["said"];
    Mat<B>            d_seen = ws.like(seen), d_said = ws.like(said), features = ws.mat(std::min(m.config.together, n) * n_patches, m.tower.d_model());
    backward(be, m.projection, seen, dx, d_seen, &grads.projection);
    backward(be, m.text_projection, said, dy, d_said, &grads.text_projection);
    backward(be, ws, m.text, kept.at("text"), captions, In<B>(d_said), grads.text);
    in_parts<B>(pixels, m.config.together, [&](std::size_t i, std::size_t first, PixelView<B> some) {
        const Mat<B> d = features.rows(0, some.extent(0) * n_patches);
        add_sums_backward<B>(be, d_seen.rows(first, some.extent(0)), d);
        backward(be, ws, m.tower, kept.at("pictures", i), some, In<B>(d), &grads.tower);
    });
}

/// Rows [n, d] less their mean. Its own gradient: it is symmetric.
inline void centre(std::span<float> rows, std::size_t d) {
    const std::size_t n = rows.size() / d;
    for (std::size_t j = 0; j < d; ++j) {
        double sum = 0;
        for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(rows[i * d + j]);
        const auto mean = static_cast<float>(sum / static_cast<double>(n));
        for (std::size_t i = 0; i < n; ++i) rows[i * d + j] -= mean;
    }
}

/// SigLIP's loss of a batch, of rows less their mean over the batch: what all pictures, or all captions, share says nothing of
/// who belongs to whom, and in front of it a fresh tower learns nothing for a long time. Gradients of `weight` times that are added to `grads`, none where it is null; `retrieved`, unless
/// null, becomes the share of pictures whose own caption is the nearest.
template <TrainingBackend B>
double contrastive_pass(B& be, Workspace<B>& ws, const ContrastivePair<B>& m, PixelView<B> pixels, const Captions& captions, Tape<B>& tape, double weight,
                        ContrastivePair<B>* grads, double* retrieved = nullptr) {
    auto              scope = ws.scope();
    const std::size_t n = pixels.extent(0), d = m.config.d_common;
    const Keep<B>     kept{tape};
    Mat<B>            x = ws.mat(n, d), y = ws.like(x), dx = ws.like(x), dy = ws.like(x);
    if (grads) m.forward(be, ws, pixels, captions, x, y, kept);
    else m.forward(be, ws, pixels, captions, x, y);
    double loss = 0;
    if constexpr (B::has_numbers) {
        const auto gathered = [&](Mat<B> from) {
            std::vector<float> rows(n * d);
            for (std::size_t i = 0; i < n; ++i) std::ranges::copy(from.row(i).span(), rows.begin() + static_cast<std::ptrdiff_t>(i * d));
            centre(rows, d);
            return rows;
        };
        const auto         pictures = gathered(x), texts = gathered(y);
        const SigmoidScale scale{.log_scale = static_cast<double>(m.log_scale.view()(0)), .bias = static_cast<double>(m.bias.view()(0))};
        SigmoidGradients   g;
        loss = sigmoid_loss(pictures, texts, d, scale, grads ? &g : nullptr);
        if (retrieved) *retrieved = retrieval(pictures, texts, d);
        if (grads) {
            centre(g.pictures, d), centre(g.captions, d);
            for (std::size_t i = 0; i < n * d; ++i) {
                dx(i / d, i % d) = static_cast<float>(weight) * g.pictures[i];
                dy(i / d, i % d) = static_cast<float>(weight) * g.captions[i];
            }
            gradient(grads->log_scale)(0) += static_cast<float>(weight * g.log_scale);
            gradient(grads->bias)(0) += static_cast<float>(weight * g.bias);
        }
    }
    if (grads) backward(be, ws, m, kept, pixels, captions, In<B>(dx), In<B>(dy), *grads);
    return loss;
}

struct ContrastiveOptions {
    std::uint64_t    steps = 1;    // of the whole run, for the learning rate
    double           rate = 1e-3;  // its peak
    std::uint64_t    seed = 7;     // of everything but the tower
    TextConfig       text{};
    std::size_t      d_common = 128, together = 16;
    OptimizerOptions optimizer{.beta2 = 0.95, .weight_decay = 0.05};  // without rate and steps
    TapeOptions      tape{.replay = false};                           // as memory allows: a batch of 256 pictures of 81 patches takes about a gigabyte
};

/// Trains a tower in its place: its parameters move into the trainer, where the tower goes on reading them. A StageTrainer.
class ContrastiveTrainer {
public:
    ContrastiveTrainer(Cpu& be, Vit<Cpu>& tower, const ContrastiveOptions& options)
        : be_(&be), words_(tokenizer()), pair_(pair(be, tower, options, words_.size())), grads_(pair_.config), twin_(pair_.config), twin_grads_(pair_.config),
          optimizer_(be, pair_, [&](std::string_view name) { return !name.starts_with("tower.") || reaches_features(tower.config, name.substr(6)); }, settings(options)),
          twin_arena_(dry_, optimizer_.layout()), tape_(options.tape), dry_tape_(options.tape), ws_(be, 0) {
        share_parameters(pair_.tower, tower);
        optimizer_.gradients().bind(grads_);
        twin_arena_.bind(twin_grads_);
        const auto set = [&](const char* name, double value) { optimizer_.parameters().values(*optimizer_.layout().find(name))(0) = static_cast<float>(value); };
        set("scale.log", SigmoidScale{}.log_scale), set("scale.bias", SigmoidScale{}.bias);
    }
    ContrastiveTrainer(const ContrastiveTrainer&) = delete;
    ContrastiveTrainer& operator=(const ContrastiveTrainer&) = delete;

    /// The loss of a batch of pictures with captions; gradients of `weight` times that are added up. The loss compares all of a
    /// batch: several micro-steps of a step are no substitute for a larger one.
    double micro_step(const Batch& batch, double weight) {
        std::vector<std::span<const std::int32_t>> rows;
        for (const std::size_t r : batch.picture_rows) rows.push_back(batch.row_ids(r));
        return pass(view(batch.pixels.at(0).data(), rows.size()), rows, weight, &grads_, nullptr);
    }
    double step(double rate) { return optimizer_.step(*be_, rate).grad_norm; }
    /// Both, at the rate that the options give: pixels [n, 3, S, S] as the tower's transform makes them, n captions.
    double step(std::span<const float> pixels, std::span<const std::string> captions) {
        const double loss = pass(pixels, captions, 1, &grads_, nullptr);
        optimizer_.step(*be_);
        return loss;
    }
    /// The same for rows of the world: row(i) is asked for 0 ... n - 1, on several threads, and has a scene and its caption.
    template <class RowOf>
    double step(const ImageTransform& transform, std::size_t n, RowOf&& row) {
        Pictures   pictures{{transform}};
        const auto captions = draw_rows(pictures, n, row);
        return step({pictures.view().data(), n * pictures.view().stride(0)}, captions);
    }
    template <class RowOf>
    double retrieval(const ImageTransform& transform, std::size_t n, RowOf&& row) {
        Pictures   pictures{{transform}};
        const auto captions = draw_rows(pictures, n, row);
        return retrieval({pictures.view().data(), n * pictures.view().stride(0)}, captions);
    }
    /// The share of pictures whose own caption is the nearest of the batch.
    double retrieval(std::span<const float> pixels, std::span<const std::string> captions) {
        double share = 0;
        pass(pixels, captions, 0, nullptr, &share);
        return share;
    }

    void                   clear_gradients() { optimizer_.gradients().clear(*be_); }
    std::vector<NamedSpan> parameters() { return named_parameters(optimizer_); }
    std::vector<NamedSpan> moments() { return named_moments(optimizer_); }
    std::vector<NamedSpan> state() { return whole_state(optimizer_); }
    void                   set_steps(std::uint64_t n) { optimizer_.set_steps(n); }
    Optimizer<Cpu>&        optimizer() { return optimizer_; }

    ContrastivePair<Cpu>& pair() { return pair_; }
    /// Scratch that is taken now, and what the last batch cost in floating-point operations.
    std::size_t   workspace_bytes() const { return ws_.capacity_bytes(); }
    std::uint64_t flops() const { return flops_; }

private:
    static ContrastivePair<Cpu> pair(Cpu& be, const Vit<Cpu>& tower, const ContrastiveOptions& o, std::size_t n_words) {
        ContrastiveConfig c{.tower = tower.config, .text = o.text, .d_common = o.d_common, .together = o.together};
        if (c.text.vocab_size == 0) c.text.vocab_size = n_words;
        ContrastivePair<Cpu> pair{c};
        randomise(be, pair, {.seed = o.seed, .spread = 0.06f});
        share_parameters(tower, pair.tower);
        return pair;
    }
    static OptimizerOptions settings(const ContrastiveOptions& o) {
        OptimizerOptions s = o.optimizer;
        s.lr = o.rate, s.total_steps = o.steps;
        return s;
    }
    /// Draws rows, and returns their captions.
    template <class RowOf>
    std::vector<std::string> draw_rows(Pictures& pictures, std::size_t n, RowOf& row) {
        std::vector<std::string> captions(n);
        pictures.draw(*be_, n, [&](std::size_t i) {
            auto one = row(i);
            captions[i] = std::move(one.turns[1].text);
            return std::move(one.scene).value();
        });
        return captions;
    }
    PixelView<Cpu> view(const float* pixels, std::size_t n) const {
        const std::size_t size = pair_.tower.config.image_size;
        return {pixels, {n, 3, size, size}};
    }
    double pass(std::span<const float> pixels, std::span<const std::string> captions, double weight, ContrastivePair<Cpu>* grads, double* retrieved) {
        const std::size_t size = pair_.tower.config.image_size;
        if (pixels.size() != captions.size() * 3 * size * size)
            throw ShapeError{"ContrastiveTrainer", "pixels", std::to_string(captions.size()) + " pictures of " + std::to_string(3 * size * size), std::to_string(pixels.size())};
        std::vector<std::vector<std::int32_t>> ids;
        for (const std::string& text : captions) ids.push_back(words_.encode(text));
        const std::vector<std::span<const std::int32_t>> rows(ids.begin(), ids.end());
        return pass(view(pixels.data(), rows.size()), rows, weight, grads, retrieved);
    }
    double pass(PixelView<Cpu> pixels, std::span<const std::span<const std::int32_t>> rows, double weight, ContrastivePair<Cpu>* grads, double* retrieved) {
        const Captions captions{rows, pair_.config.text.max_tokens};
        dry_tape_.restart();
        const Cost cost = dry_run([&](Dry& dry, Workspace<Dry>& ws) {
            contrastive_pass(dry, ws, twin_, dry_view(pixels), captions, dry_tape_, 0.0, grads ? &twin_grads_ : nullptr);
        });
        flops_ = cost.flops;
        make_room(*be_, ws_, cost.workspace_bytes);
        tape_.restart();
        return contrastive_pass(*be_, ws_, pair_, pixels, captions, tape_, weight, grads, retrieved);
    }

    Cpu*                 be_;
    Tokenizer            words_;
    ContrastivePair<Cpu> pair_, grads_;
    Dry                  dry_;
    ContrastivePair<Dry> twin_, twin_grads_;  // the same without numbers: say how much room a batch takes
    Optimizer<Cpu>       optimizer_;
    Arena<Dry>           twin_arena_;
    Tape<Cpu>            tape_;
    Tape<Dry>            dry_tape_;
    Workspace<Cpu>       ws_;
    std::uint64_t        flops_ = 0;
};

static_assert(StageTrainer<ContrastiveTrainer>);

}  // namespace prism::shapes
