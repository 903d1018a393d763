// The backward pass of every module against differences of its forward pass, in one direction for each parameter and for the
// input. What is promised of whole steps as well: bits, memory, allocations.
#include "prism/backend/cpu/training.hpp"
#include "prism/train/trainer.hpp"
#include "support/allocations.hpp"
#include "support/random_weights.hpp"
#include "support/tensors.hpp"
#include "support/thread_ranks.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <numeric>

using namespace prism;
using namespace prism::test;

namespace {

/// A module in training: all of its parameters in an arena, a module of gradients beside it.
template <class M>
struct Trained {
    Cpu&       be;
    M &        module, &grads;
    Arena<Cpu> parameters, gradients;

    Trained(Cpu& backend, M& m, M& g, unsigned seed)
        : be(backend), module(m), grads(g), parameters(be, arena_layout(m, [](std::string_view) { return true; })), gradients(be, parameters.layout()) {
        randomise(be, module, seed);
        parameters.adopt(be, module);
        gradients.bind(grads);
    }
};

double dot(std::span<const float> a, std::span<const float> b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return sum;
}

/// The slope of `loss` along `direction` from `at`, by four differences: their error is of the fourth order of the step.
double slope(std::span<float> at, std::span<const float> direction, const std::function<double()>& loss, double step) {
    const std::vector<float> start(at.begin(), at.end());
    const auto               along = [&](double t) {
        for (std::size_t i = 0; i < at.size(); ++i) at[i] = static_cast<float>(static_cast<double>(start[i]) + t * static_cast<double>(direction[i]));
        return loss();
    };
    const double d = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (12 * step);
    std::copy(start.begin(), start.end(), at.begin());
    return d;
}

/// Holds gradients against differences: `back` fills those of parameters and dx.
template <class M>
void check(Trained<M>& t, Array& x, Array& dx, const std::function<double()>& loss, const std::function<void()>& back) {
    t.gradients.clear(t.be);
    back();
    const double step = 0x1p-6;
    for (const Slot& slot : t.parameters.layout().slots) {
        CAPTURE(slot.name);
        const auto   direction = normal(slot.size, 77);
        const double found = dot(t.gradients.values(slot).span(), direction), expected = slope(t.parameters.values(slot).span(), direction, loss, step);
        const double size = std::sqrt(dot(t.gradients.values(slot).span(), t.gradients.values(slot).span()));
        CHECK(std::abs(found - expected) < 2e-3 * size + 2e-4);
    }
    auto&              values = const_cast<std::vector<float>&>(x.values());
    const auto         direction = normal(x.rows() * x.cols(), 78);
    std::vector<float> gradient(direction.size());
    for (std::size_t i = 0; i < x.rows(); ++i)
        for (std::size_t j = 0; j < x.cols(); ++j) gradient[i * x.cols() + j] = dx(i, j);
    const double expected = slope(std::span(values).first(direction.size()), direction, loss, step);
    CHECK(std::abs(dot(gradient, direction) - expected) < 2e-3 * std::sqrt(dot(gradient, gradient)) + 2e-4);
}

/// dot(weights, out), the loss of these tests.
double weighted(const Array& out, const Array& weights) {
    double sum = 0;
    for (std::size_t i = 0; i < out.rows(); ++i)
        for (std::size_t j = 0; j < out.cols(); ++j) sum += static_cast<double>(out(i, j)) * static_cast<double>(weights(i, j));
    return sum;
}

/// A module whose forward writes out from x: forward(ws, x, out, keep) and backward(ws, keep, dy, dx).
template <class M, class Forward, class Backward>
void check_plain(M module, M grads, std::size_t rows, std::size_t d_in, std::size_t d_out, Forward forward, Backward back, bool adds = false) {
    Cpu            be{{.threads = 2}};
    Trained<M>     t{be, module, grads, 5};
    Workspace<Cpu> ws{be, std::size_t{8} << 20};
    Array          x = Array::random(rows, d_in, 1), dx{rows, d_in}, out{rows, d_out}, dy = Array::random(rows, d_out, 2);
    Tape<Cpu>      tape;
    const auto     loss = [&] {
        auto scope = ws.scope();
        ops::clear<Cpu>(be, out.mat());
        forward(be, ws, module, x.mat(), out.mat(), Forget{});
        return weighted(out, dy);
    };
    check(t, x, dx, loss, [&] {
        auto scope = ws.scope();
        tape.restart();
        const Keep<Cpu> kept{tape};
        ops::clear<Cpu>(be, out.mat()), ops::clear<Cpu>(be, dx.mat());
        forward(be, ws, module, x.mat(), out.mat(), kept);
        if (adds) ops::copy<Cpu>(be, dy.in(), dx.mat());
        back(be, ws, module, kept, dy.in(), dx.mat(), &grads);
    });
}

const VitConfig eye{.image_size = 21, .patch_size = 7, .d_model = 24, .n_layers = 3, .n_heads = 3, .d_ff = 40, .n_registers = 2, .pos_embed_prefix = false, .layer_scale = true};
const VitConfig clip_eye{.image_size = 14, .patch_size = 7, .d_model = 20, .n_layers = 3, .n_heads = 2, .d_ff = 36, .norm_pre = true, .act = Activation::quick_gelu};
const LlamaConfig mistral{.vocab_size = 61, .d_model = 24, .d_ff = 40, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 6, .window = 5, .qkv_bias = true};
const PhiConfig   small_phi{.vocab_size = 61, .d_model = 24, .d_ff = 40, .n_layers = 2, .n_heads = 4, .n_kv_heads = 4, .head_dim = 6, .rotary_dim = 4};

PrismaticConfig tiny(LanguageModelConfig llm, ProjectorKind projector) {
    VitConfig second = clip_eye;
    second.image_size = 21;
    return {.model_id = "tiny", .vision_backbone_id = "two eyes", .llm_backbone_id = "small", .towers = {{"dino", eye, {}}, {"clip", second, {}}}, .projector = projector, .llm = std::move(llm)};
}

/// A direction of length one that has a part along the gradient, so that the slope is about the gradient's length over 1.4.
std::vector<float> towards(std::span<const float> gradient, unsigned seed) {
    auto         direction = normal(gradient.size(), seed);
    const double along = std::sqrt(dot(gradient, gradient)), across = std::sqrt(dot(direction, direction));
    for (std::size_t i = 0; i < direction.size(); ++i)
        direction[i] = static_cast<float>((static_cast<double>(direction[i]) / across + (along > 0 ? static_cast<double>(gradient[i]) / along : 0)) / std::sqrt(2.0));
    return direction;
}

/// Holds the gradients of a whole model against differences of `loss`, which may write over them.
void check_whole(const Arena<Cpu>& parameters, const Arena<Cpu>& gradients, const std::function<double()>& loss) {
    const auto               all = gradients.values().span();
    const std::vector<float> kept(all.begin(), all.end());
    for (const Slot& slot : parameters.layout().slots) {
        CAPTURE(slot.name);
        const auto   found = std::span<const float>(kept).subspan(slot.offset, slot.size);
        const auto   direction = towards(found, 77);
        const double size = std::sqrt(dot(found, found)), expected = slope(parameters.values(slot).span(), direction, loss, 0x1p-6);
        CHECK(std::abs(dot(found, direction) - expected) < 1e-3 * size + 2e-4);
    }
}
/// Of a trainer; `loss` is that of a micro-step of weight 1.
void check_whole(Trainer<Cpu>& trainer, const std::function<double()>& loss) {
    loss();
    check_whole(trainer.optimizer().parameters(), trainer.optimizer().gradients(), loss);
}

/// Four rows, two pictures, one row of text alone, with padding behind.
struct Examples {
    std::vector<std::vector<std::int32_t>> ids, labels;
    std::vector<TrainingRow>               rows;
    std::vector<float>                     pixels;
    std::vector<PixelView<Cpu>>            views;

    explicit Examples(bool pictures = true) {
        for (std::size_t r = 0; r < 4; ++r) {
            std::vector<std::int32_t> row, label;
            for (std::size_t i = 0; i < 7 + 2 * (r % 3); ++i) {
                row.push_back(static_cast<std::int32_t>((i * 17 + r * 5) % 61));
                label.push_back(i < 3 || i > 6 + r ? ignored_label : row.back());
            }
            ids.push_back(row), labels.push_back(label);
        }
        for (std::size_t r = 0; r < 4; ++r) rows.push_back({ids[r], labels[r], {}});
        if (!pictures) return;
        rows[0].picture = 1, rows[2].picture = 0, rows[3].picture = 1;
        pixels = normal(2 * 3 * 21 * 21, 9);
        views = {{pixels.data(), {2, 3, 21, 21}}, {pixels.data(), {2, 3, 21, 21}}};
    }
    TrainingBatch<Cpu> batch() const { return {.rows = rows, .pixels = views}; }
};

}  // namespace

TEST_CASE("train: gradients of linear layers, norms and feed-forward halves are the slopes of their forward passes") {
    check_plain(Linear<Cpu>{13, 9}, Linear<Cpu>{13, 9}, 11, 13, 9,
                [](auto& be, auto&, auto& m, auto x, auto y, auto keep) { keep("x", x), m.forward(be, x, y); },
                [](auto& be, auto&, auto& m, auto kept, auto dy, auto dx, auto* grads) { backward(be, m, kept["x"], dy, dx, grads); });
    check_plain(LayerNorm<Cpu>{19, 1e-6f}, LayerNorm<Cpu>{19, 1e-6f}, 7, 19, 19,
                [](auto& be, auto&, auto& m, auto x, auto y, auto keep) { keep("x", x), m.forward(be, x, y); },
                [](auto& be, auto&, auto& m, auto kept, auto dy, auto dx, auto* grads) { backward(be, m, kept["x"], dy, dx, grads); });
    check_plain(RmsNorm<Cpu>{19, 1e-5f}, RmsNorm<Cpu>{19, 1e-5f}, 7, 19, 19,
                [](auto& be, auto&, auto& m, auto x, auto y, auto keep) { keep("x", x), m.forward(be, x, y); },
                [](auto& be, auto&, auto& m, auto kept, auto dy, auto dx, auto* grads) { backward(be, m, kept["x"], dy, dx, grads); });
    const auto run = [](auto& be, auto& ws, auto& m, auto x, auto y, auto keep) { m.forward(be, ws, x, y, keep); };
    const auto back = [](auto& be, auto& ws, auto& m, auto kept, auto dy, auto dx, auto* grads) { backward(be, ws, m, kept, dy, dx, grads); };
    for (Activation act : activations) {
        CAPTURE(to_string(act));
        check_plain(Mlp<Cpu>{11, 29, act}, Mlp<Cpu>{11, 29, act}, 9, 11, 11, run, back);
    }
    check_plain(GatedMlp<Cpu>{11, 29}, GatedMlp<Cpu>{11, 29}, 9, 11, 11, run, back);
    for (ProjectorKind kind : {ProjectorKind::linear, ProjectorKind::gelu_mlp, ProjectorKind::fused_gelu_mlp})
        check_plain(Projector<Cpu>{kind, {7, 13}}, Projector<Cpu>{kind, {7, 13}}, 10, 7, 13, run, back);
    check_plain(SelfAttention<Cpu>{24, 3}, SelfAttention<Cpu>{24, 3}, 14, 24, 24,
                [](auto& be, auto& ws, auto& m, auto x, auto y, auto keep) { m.forward(be, ws, 2, x, y, keep); },
                [](auto& be, auto& ws, auto& m, auto kept, auto dy, auto dx, auto* grads) { backward(be, ws, m, kept, 2, dy, dx, grads); });
}

TEST_CASE("train: gradients of blocks are the slopes of their forward passes: layer scale, grouped heads, windows, ragged batches") {
    for (const VitConfig& c : {eye, clip_eye})
        check_plain(VitBlock<Cpu>{c}, VitBlock<Cpu>{c}, 15, c.d_model, c.d_model,
                    [](auto& be, auto& ws, auto& m, auto x, auto y, auto keep) { ops::copy<Cpu>(be, x, y), m.forward(be, ws, 3, y, keep); },
                    [](auto& be, auto& ws, auto& m, auto kept, auto, auto dx, auto* grads) { backward(be, ws, m, kept, 3, dx, grads); }, true);
    const auto pooled = [](auto rows) { return rows.rows(0, 3); };
    check_plain(AttentionPool<Cpu>{eye}, AttentionPool<Cpu>{eye}, 15, eye.d_model, eye.d_model,
                [&](auto& be, auto& ws, auto& m, auto x, auto y, auto keep) { m.forward(be, ws, 3, x, pooled(y), keep); },
                [&](auto& be, auto& ws, auto& m, auto kept, auto dy, auto dx, auto* grads) { backward(be, ws, m, kept, 3, pooled(dy), dx, grads); });
    const Segment<Cpu> segments[]{{nullptr, 4}, {nullptr, 4}, {nullptr, 1}, {nullptr, 9}};
    const auto         decoder = [&](auto block, auto grads, std::size_t angles) {
        check_plain(std::move(block), std::move(grads), 18, 24, 24,
                    [&](auto& be, auto& ws, auto& m, auto x, auto y, auto keep) {
                        const RopeTable<Cpu> rope(be, ws, angles, 1e4f, std::span<const Segment<Cpu>>(segments));
                        ops::copy<Cpu>(be, x, y);
                        m.forward(be, ws, 0, rope, segments, y, keep);
                    },
                    [&](auto& be, auto& ws, auto& m, auto kept, auto, auto dx, auto* grads_of) {
                        const RopeTable<Cpu> rope(be, ws, angles, 1e4f, std::span<const Segment<Cpu>>(segments));
                        backward(be, ws, m, kept, rope, std::span<const Segment<Cpu>>(segments), dx, grads_of);
                    },
                    true);
    };
    decoder(LlamaBlock<Cpu>{mistral}, LlamaBlock<Cpu>{mistral}, 3);
    decoder(PhiBlock<Cpu>{small_phi}, PhiBlock<Cpu>{small_phi}, 2);
}

TEST_CASE("train: gradients of whole towers are the slopes of their tokens, of their class token and of their pooling head") {
    VitConfig siglip = eye;
    siglip.class_token = false, siglip.n_registers = 0, siglip.attention_pool = true;
    const std::size_t n = 2;
    for (const VitConfig& c : {eye, clip_eye, siglip})
        for (bool pools : {false, true})
            for (bool replay : {true, false}) {
                Cpu                      be{{.threads = 2}};
                Vit<Cpu>                 vit{c}, grads{c};
                Trained<Vit<Cpu>>        t{be, vit, grads, 5};
                const std::size_t        rows = pools ? n : n * c.n_tokens();
                const std::vector<float> noise = normal(n * 3 * c.image_size * c.image_size, 9);
                const PixelView<Cpu>     pixels{noise.data(), {n, 3, c.image_size, c.image_size}};
                Array                    out{rows, c.d_model}, dy = Array::random(rows, c.d_model, 2);
                Tape<Cpu>                tape{{.replay = replay}};
                Workspace<Cpu>           ws{be, std::size_t{8} << 20};
                const auto               pass = [&](auto keep) {
                    if (pools) vit.pooled(be, ws, pixels, out.mat(), keep);
                    else vit.tokens(be, ws, pixels, out.mat(), keep);
                    return weighted(out, dy);
                };
                {
                    auto            scope = ws.scope();
                    const Keep<Cpu> kept{tape};
                    pass(kept);
                    if (pools) pooled_backward(be, ws, vit, kept, pixels, dy.in(), &grads);
                    else tokens_backward(be, ws, vit, kept, pixels, dy.in(), &grads);
                }
                check_whole(t.parameters, t.gradients, [&] { return pass(Forget{}); });
            }
    VitConfig blind = siglip;
    blind.attention_pool = false;
    Cpu            be{{.threads = 1}};
    Workspace<Cpu> ws{be, std::size_t{1} << 20};
    const Vit<Cpu> vit{blind};
    CHECK_THROWS_AS(vit.pooled(be, ws, {nullptr, {1, 3, 21, 21}}, {}), ConfigError);
}

TEST_CASE("train: gradients of whole models are the slopes of their losses: towers, projectors, tied heads, dropout, weights of rows") {
    LlamaConfig tied = mistral;
    tied.tied_embeddings = true, tied.window = 0, tied.qkv_bias = false;
    PhiConfig tied_phi = small_phi;
    tied_phi.tied_embeddings = true;
    const LanguageModelConfig llms[]{mistral, tied, small_phi, tied_phi};
    const ProjectorKind       projectors[]{ProjectorKind::linear, ProjectorKind::gelu_mlp, ProjectorKind::fused_gelu_mlp, ProjectorKind::gelu_mlp};
    const Examples            examples;
    for (std::size_t i = 0; i < 4; ++i) {
        CAPTURE(i);
        Cpu            be{{.threads = 2}};
        PrismaticConfig config = tiny(llms[i], projectors[i]);
        config.towers[0].vit.features_only = i == 1;
        Prismatic<Cpu> model{config};
        randomise(be, model, 3);
        CHECK(trained_in(Stage::full_finetune, model, "vision_backbone.0.blocks." + std::to_string(config.towers[0].vit.n_layers - 2) + ".norm1.weight"));
        Trainer    trainer{be, model, Stage::full_finetune, {.tape = {.replay = i % 2 == 0, .dropout = i == 2 ? 0.3f : 0.0f}}};
        const auto batch = examples.batch();
        check_whole(trainer, [&] {  // the pass itself, because dropout drops the same there
            trainer.drop_gradients();
            return trainer.micro_step(batch);
        });
    }
}

TEST_CASE("train: adapters have the slopes of the loss as gradients, and what is merged is W + alpha / rank B A, also over bf16") {
    const Examples examples;
    Cpu            be{{.threads = 2}};
    for (Dtype base : {Dtype::f32, Dtype::bf16}) {
        Prismatic<Cpu> model{tiny(mistral, ProjectorKind::gelu_mlp)}, plain{tiny(mistral, ProjectorKind::gelu_mlp)};
        randomise(be, model, 3, base), randomise(be, plain, 3, base);
        Trainer    trainer{be, model, Stage::finetune, {.optimizer = {.lr = 1e-2, .total_steps = 4, .warmup_ratio = 0}, .lora = {.rank = 3, .alpha = 6}}};
        Trainer    whole{be, plain, Stage::finetune};
        const auto batch = examples.batch();
        const auto loss = [&] {
            trainer.restored();
            trainer.drop_gradients();
            return trainer.micro_step(batch);
        };
        CHECK(loss() == doctest::Approx(whole.loss(batch)).epsilon(1e-5));  // B is 0
        for (int i = 0; i < 2; ++i) loss(), trainer.step();
        if (base == Dtype::f32) check_whole(trainer, loss);
        for (int i = 0; i < 2; ++i) loss(), trainer.step();

        const ArenaLayout& layout = trainer.optimizer().layout();
        std::size_t        n = 0;
        for (const Slot& slot : layout.slots) n += slot.name.find("lora_") != slot.name.npos;
        CHECK(n == 2 * 7 * 2);                   // matrices of a block, blocks
        CHECK(layout.slots.size() == 4 + n);     // and the projector
        visit(model, [&](const std::string& path, const auto& param) {
            if (!path.ends_with("q_proj.weight")) return;
            const std::string of = path.substr(0, path.size() - 6);
            const auto        a = trainer.optimizer().parameters().values(*layout.find(of + "lora_A.weight")).span();
            const auto        b = trainer.optimizer().parameters().values(*layout.find(of + "lora_B.weight")).span();
            const auto        w = whole.optimizer().parameters().values(*whole.optimizer().layout().find(path)).span();
            const auto* const merged = reinterpret_cast<const float*>(param.stored().data);
            for (std::size_t i = 0; i < 24; ++i)
                for (std::size_t j = 0; j < 24; ++j) {
                    double expected = static_cast<double>(w[i * 24 + j]);
                    for (std::size_t k = 0; k < 3; ++k) expected += 2 * static_cast<double>(b[i * 3 + k]) * static_cast<double>(a[k * 24 + j]);
                    CHECK(static_cast<double>(merged[i * 24 + j]) == doctest::Approx(expected).epsilon(1e-6));
                }
        });
    }
}

TEST_CASE("train: dropout in front of adapters: the slopes of what it leaves, W + alpha / rank B A of what it does not touch, other values in other passes") {
    const Examples examples;
    for (const bool replay : {true, false})
        for (const auto& llm : {LanguageModelConfig{mistral}, LanguageModelConfig{small_phi}}) {
            Cpu            be{{.threads = 2}};
            Prismatic<Cpu> model{tiny(llm, ProjectorKind::gelu_mlp)};
            randomise(be, model, 3);
            Trainer trainer{be, model, Stage::finetune, {.optimizer = {.lr = 1e-2, .total_steps = 4, .warmup_ratio = 0}, .tape = {.replay = replay},
                                                         .lora = {.rank = 3, .alpha = 6, .dropout = 0.4}, .seed = 11}};
            const auto batch = examples.batch();
            const auto loss = [&] {
                trainer.restored();
                trainer.drop_gradients();
                return trainer.micro_step(batch);
            };
            CHECK(loss() == doctest::Approx(trainer.loss(batch)).epsilon(1e-5));  // B is 0
            for (int i = 0; i < 3; ++i) loss(), trainer.step();
            check_whole(trainer, loss);
            const double first = loss(), calm = trainer.loss(batch);
            CHECK(loss() == first);
            CHECK(first != doctest::Approx(calm).epsilon(1e-4));
            trainer.optimizer().set_steps(trainer.optimizer().steps() + 1);
            CHECK(loss() != doctest::Approx(first).epsilon(1e-4));
            const TrainingCost  cost = trainer.cost(batch);
            const std::uint64_t done = be.flops_done();
            trainer.micro_step(batch);
            CHECK((be.flops_done() - done == cost.flops));
            CHECK(trainer.workspace_bytes() == cost.workspace_bytes);
        }
}

TEST_CASE("train: an adapter's layer computes W x + factor B A d(x) in training, with a d of its own") {
    Cpu            be{{.threads = 2}};
    Workspace<Cpu> ws{be, std::size_t{1} << 20};
    constexpr std::size_t n = 37, d_in = 41, d_out = 29, rank = 3;
    const Array x = Array::random(n, d_in, 1), w = Array::random(d_out, d_in, 2);
    Array a = Array::random(rank, d_in, 3), b = Array::random(d_out, rank, 4), y{n, d_out}, other{n, d_out};
    std::vector<float> factor(rank, 0.5f), opposite(rank, -0.5f);
    Linear<Cpu> linear{d_in, d_out, false}, second{d_in, d_out, false};
    const auto  merged = [&](std::size_t i, std::size_t j) {
        double sum = static_cast<double>(w(i, j));
        for (std::size_t k = 0; k < rank; ++k) sum += 0.5 * static_cast<double>(b(i, k)) * static_cast<double>(a(k, j));
        return static_cast<float>(sum);
    };
    std::vector<float> both;
    for (std::size_t i = 0; i < d_out; ++i)
        for (std::size_t j = 0; j < d_in; ++j) both.push_back(merged(i, j));
    for (Linear<Cpu>* l : {&linear, &second}) l->weight.take({both.data(), {}}, Dtype::f32);
    Tape<Cpu>          tape;
    const LowRank<Cpu> low{a.mat(), b.mat(), {}, {}, {factor.data(), {rank}}, {opposite.data(), {rank}}, 0.25f, 17};
    tape.adapt(&linear.weight, low);
    LowRank<Cpu> of_second = low;
    of_second.key = 18;
    tape.adapt(&second.weight, of_second);
    tape.restart(5);
    const Keep<Cpu> keep{tape};
    linear.forward(be, ws, x.in(), y.mat(), keep);
    second.forward(be, ws, x.in(), other.mat(), keep.at("elsewhere"));
    Array seen{n, d_in};
    ops::copy<Cpu>(be, x.in(), seen.mat());
    ops::dropout<Cpu>(be, 0.25f, low.key_in(5), seen.mat());
    double worst = 0, apart = 0;
    for (std::size_t r = 0; r < n; ++r)
        for (std::size_t i = 0; i < d_out; ++i) {
            double expected = 0;
            for (std::size_t j = 0; j < d_in; ++j) expected += static_cast<double>(w(i, j)) * static_cast<double>(x(r, j));
            for (std::size_t k = 0; k < rank; ++k)
                for (std::size_t j = 0; j < d_in; ++j) expected += 0.5 * static_cast<double>(b(i, k)) * static_cast<double>(a(k, j)) * static_cast<double>(seen(r, j));
            worst = std::max(worst, std::abs(expected - static_cast<double>(y(r, i))));
            apart = std::max(apart, std::abs(static_cast<double>(y(r, i)) - static_cast<double>(other(r, i))));
        }
    CHECK(worst < 41 * 4 * 4 * 0x1p-22);  // sums of 41 products of values below 4
    CHECK(apart > 0.1);
    std::size_t dropped = 0;
    for (std::size_t r = 0; r < n; ++r)
        for (std::size_t j = 0; j < d_in; ++j) dropped += seen(r, j) == 0 && x(r, j) != 0;
    CHECK(std::abs(static_cast<double>(dropped) - 0.25 * n * d_in) < 5 * std::sqrt(0.1875 * n * d_in));
}

TEST_CASE("train: a step has the same bits at 1, 2 and 3 threads, and nearly the same whether blocks run again or not") {
    const Examples     examples;
    std::vector<float> first[2];
    for (bool replay : {true, false})
        for (std::size_t threads : {1, 2, 3}) {
            Cpu            be{{.threads = threads}};
            Prismatic<Cpu> model{tiny(mistral, ProjectorKind::fused_gelu_mlp)};
            randomise(be, model, 3);
            Trainer trainer{be, model, Stage::full_finetune, {.optimizer = {.lr = 1e-2, .total_steps = 10}, .accumulation = 2, .tape = {.replay = replay}}};
            for (int i = 0; i < 4; ++i) {
                trainer.micro_step(examples.batch());
                if (trainer.due()) trainer.step();
            }
            const auto all = trainer.optimizer().parameters().values().span();
            if (threads == 1) first[replay].assign(all.begin(), all.end());
            else CHECK(std::equal(all.begin(), all.end(), first[replay].begin()));
        }
    double most = 0;
    for (std::size_t i = 0; i < first[0].size(); ++i) most = std::max(most, std::abs(static_cast<double>(first[0][i] - first[1][i])));
    CHECK(most < 1e-4);  // fused products round otherwise
}

TEST_CASE("train: products of gradients with Compute::fast are those of operands in bf16 where there are tiles, and exact elsewhere") {
    Cpu        exact{{.threads = 2}}, fast{{.threads = 2, .compute = Compute::fast}}, alone{{.threads = 1, .compute = Compute::fast}};
    const bool rounded = fast.isa() >= Isa::amx;
    const auto in_bf16 = [&](const Array& x) {
        Array y{x.rows(), x.cols()};
        for (std::size_t i = 0; i < x.rows(); ++i)
            for (std::size_t j = 0; j < x.cols(); ++j) y.mat()(i, j) = rounded ? static_cast<float>(bf16_t(x(i, j))) : x(i, j);
        return y;
    };
    for (const auto& size : {std::array<std::size_t, 3>{1, 1, 1}, {47, 1, 1}, {100, 33, 50}, {15, 257, 129}, {333, 192, 192}, {1000, 64, 33}}) {
        const std::size_t m = size[0], k = size[1], n = size[2];
        CAPTURE(m);
        CAPTURE(k);
        CAPTURE(n);
        const Array dy = Array::random(m, k, 1), w = Array::random(k, n, 2), x = Array::random(m, n, 3);
        const auto  dx_of = [&](Cpu& be, const Array& d, const Array& weights) {
            Array             dx{d.rows(), weights.cols()};
            Packed<f32, host> packed;
            packed.data = weights.in().data(), packed.stride = weights.in().ld(), packed.rows = weights.rows(), packed.cols = weights.cols();
            Training<Cpu>{be}.linear_dx<f32>(d.in(), packed, dx.mat(), false);
            return dx;
        };
        const auto dw_of = [&](Cpu& be, const Array& d, const Array& rows) {
            Array dw{d.cols(), rows.cols()};
            ops::clear<Cpu>(be, dw.mat());
            Training<Cpu>{be}.linear_dw(d.in(), rows.in(), dw.mat());
            return dw;
        };
        const auto same = [](const Array& a, const Array& b, double tolerance) {
            double most = 0, largest = 0;
            for (std::size_t i = 0; i < a.rows(); ++i)
                for (std::size_t j = 0; j < a.cols(); ++j)
                    most = std::max(most, std::abs(static_cast<double>(a(i, j)) - static_cast<double>(b(i, j)))), largest = std::max(largest, std::abs(static_cast<double>(b(i, j))));
            return most <= tolerance * largest;
        };
        const Array dx = dx_of(fast, dy, w), dw = dw_of(fast, dy, x);
        CHECK(same(dx, dx_of(exact, in_bf16(dy), in_bf16(w)), rounded ? 1e-5 : 0));
        CHECK(same(dw, dw_of(exact, in_bf16(dy), in_bf16(x)), rounded ? 1e-5 : 0));
        CHECK(same(dx_of(alone, dy, w), dx, 0));
        CHECK(same(dw_of(alone, dy, x), dw, 0));
    }
}

TEST_CASE("train: a step with Compute::fast is near the exact one, with the same bits at 1, 2 and 3 threads, through frozen weights too") {
    const Examples examples;
    for (Stage stage : {Stage::full_finetune, Stage::align}) {  // align goes back through a decoder whose weights lie in panels
        CAPTURE(stage == Stage::align);
        std::vector<float> first, exact;
        for (std::size_t threads : {0, 1, 2, 3}) {
            Cpu            be{{.threads = std::max<std::size_t>(1, threads), .compute = threads ? Compute::fast : Compute::exact}};
            Prismatic<Cpu> model{tiny(mistral, ProjectorKind::fused_gelu_mlp)};
            randomise(be, model, 3);
            Trainer trainer{be, model, stage, {}};
            trainer.micro_step(examples.batch());
            const auto all = trainer.optimizer().gradients().values().span();
            if (threads == 0) exact.assign(all.begin(), all.end());
            else if (threads == 1) first.assign(all.begin(), all.end());
            else CHECK(std::equal(all.begin(), all.end(), first.begin()));
        }
        double off = 0;
        for (std::size_t i = 0; i < exact.size(); ++i) off += std::pow(static_cast<double>(first[i]) - static_cast<double>(exact[i]), 2);
        CHECK(std::sqrt(off / dot(exact, exact)) < 0.02);
    }
}

TEST_CASE("train: frozen parts may be in any format, and features in place of pixels give the same gradients") {
    const Examples examples;
    Cpu            be{{.threads = 2}};
    for (Dtype frozen : {Dtype::f32, Dtype::bf16}) {
        Prismatic<Cpu> model{tiny(mistral, ProjectorKind::gelu_mlp)};
        randomise(be, model, 3, frozen);
        const std::size_t  n_patches = model.n_soft_tokens(), width = model.projector.d_vision();
        std::vector<float> features(2 * n_patches * width);
        Workspace<Cpu>     ws{be, std::size_t{8} << 20};
        model.features(be, ws, examples.views, {features.data(), {2 * n_patches, width}});
        Trainer            trainer{be, model, Stage::align};
        const double       loss = trainer.micro_step(examples.batch());
        const auto         values = trainer.optimizer().gradients().values().span();
        const std::vector<float> gradients(values.begin(), values.end());
        trainer.drop_gradients();
        CHECK(trainer.micro_step({.rows = examples.rows, .features = {features.data(), {2 * n_patches, width}}}) == loss);
        CHECK(std::equal(values.begin(), values.end(), gradients.begin()));
        CHECK(trainer.optimizer().layout().slots.size() == 4);
        CHECK(trainer.loss(examples.batch()) == doctest::Approx(loss).epsilon(1e-6));
    }
}

TEST_CASE("train: a micro-step allocates nothing once its sizes have been seen, and takes the memory that was named") {
    const Examples examples, text{false};
    for (Stage stage : {Stage::align, Stage::full_finetune}) {
        Cpu            be{{.threads = 3}};
        Prismatic<Cpu> model{tiny(small_phi, ProjectorKind::fused_gelu_mlp)};
        randomise(be, model, 3);
        Trainer trainer{be, model, stage, {.tape = {.dropout = 0.1f}}};
        const auto batch = examples.batch(), other = text.batch();
        for (int i = 0; i < 3; ++i) trainer.micro_step(batch), trainer.micro_step(other), trainer.step();
        const TrainingCost  cost = trainer.cost(batch);
        const std::uint64_t done = be.flops_done();
        trainer.micro_step(batch);
        CHECK((be.flops_done() - done == cost.flops));
        CHECK(trainer.workspace_bytes() == cost.workspace_bytes);
        const std::size_t before = allocations;
        for (int i = 0; i < 10; ++i) trainer.micro_step(batch), trainer.micro_step(other), trainer.step();
        CHECK(allocations - before <= be.threads() - 1);  // scratch of threads that came too late for the first steps
    }
}

TEST_CASE("train: what a batch may not be is said") {
    Cpu            be{{.threads = 1}};
    Prismatic<Cpu> model{tiny(mistral, ProjectorKind::linear)};
    randomise(be, model, 3);
    Trainer                         trainer{be, model, Stage::finetune};
    Examples                        examples;
    const std::vector<std::int32_t> ignored(5, ignored_label), ids(5, 1);
    CHECK_THROWS_AS(trainer.micro_step({}), ShapeError);
    const TrainingRow nothing[]{{ids, ignored, {}}}, uneven[]{{ids, std::span(ids).first(3), {}}}, blind[]{{ids, ids, 2}};
    CHECK_THROWS_AS(trainer.micro_step({.rows = nothing}), ShapeError);
    CHECK_THROWS_AS(trainer.micro_step({.rows = uneven}), ShapeError);
    CHECK_THROWS_AS(trainer.micro_step({.rows = blind, .pixels = examples.views}), ShapeError);
    CHECK_THROWS_AS(trainer.micro_step({.rows = examples.rows, .pixels = std::span(examples.views).first(1)}), ShapeError);
    const std::vector<std::int32_t> beyond(5, 61);
    const TrainingRow               unknown[]{{beyond, beyond, {}}};
    CHECK_THROWS_AS(trainer.micro_step({.rows = unknown}), ShapeError);
}

TEST_CASE("train: ranks add up their gradients, and have a share of the moments each") {
    const Examples     examples;
    std::vector<float> one, many;
    double             norm = 0;
    for (const std::size_t n : {1U, 3U}) {
        std::vector<std::vector<float>> learnt(n);
        std::vector<double>             norms(n);
        std::vector<std::size_t>        moments(n);
        const auto problems = test::on_ranks(n, [&](const Ranks& ranks) {
            Cpu            be{{.threads = 1}};
            Prismatic<Cpu> model{tiny(small_phi, ProjectorKind::linear)};
            randomise(be, model, 3);
            Trainer trainer{be, model, Stage::finetune, {.optimizer = {.lr = 1e-2, .eps = 1e-3, .total_steps = 3, .warmup_ratio = 0}, .accumulation = 3, .tape = {.dropout = 0.1f}, .seed = 5},
                            sharing<Cpu>(ranks)};
            for (int step = 0; step < 2; ++step) {
                while (!trainer.due()) trainer.micro_step(examples.batch());
                norms[ranks.rank()] += trainer.step().grad_norm;
            }
            const Vec<Cpu> all = trainer.optimizer().parameters().values();
            learnt[ranks.rank()].assign(all.data(), all.data() + all.size());
            moments[ranks.rank()] = trainer.optimizer().m().size();
        });
        for (std::size_t r = 0; r < n; ++r) {
            CHECK(test::said(problems[r]) == "");
            CHECK(learnt[r] == learnt[0]);
            CHECK(norms[r] == norms[0]);
        }
        CHECK(std::accumulate(moments.begin(), moments.end(), std::size_t{0}) == learnt[0].size());
        (n == 1 ? one : many) = learnt[0];
        if (n == 1) norm = norms[0];
        CHECK(norms[0] == doctest::Approx(norm).epsilon(1e-6));
    }
    CHECK(relative_error(many, one) < 1e-5);
}

TEST_CASE("train: dropout drops its share, keeps the mean, and drops the same for the same key") {
    Cpu          be{{.threads = 2}};
    const float  share = 0.3f;
    Array        first{101, 97, 100}, second{101, 97}, other{101, 97};
    const double n = 101 * 97;
    const auto   fill = [&](Array& a, std::uint64_t key) {
        for (std::size_t i = 0; i < a.rows(); ++i)
            for (std::size_t j = 0; j < a.cols(); ++j) a.mat()(i, j) = 1;
        ops::dropout<Cpu>(be, share, key, a.mat());
    };
    fill(first, 7), fill(second, 7), fill(other, 8);
    std::size_t dropped = 0, same = 0;
    for (std::size_t i = 0; i < 101; ++i)
        for (std::size_t j = 0; j < 97; ++j) {
            CHECK((first(i, j) == 0 || first(i, j) == 1 / (1 - share)));
            CHECK(first(i, j) == second(i, j));
            dropped += first(i, j) == 0, same += first(i, j) == other(i, j);
        }
    CHECK(first.kept_to_its_rows());
    // five standard deviations of a binomial count
    CHECK(std::abs(static_cast<double>(dropped) - 0.3 * n) < 5 * std::sqrt(0.21 * n));
    CHECK(std::abs(static_cast<double>(same) - 0.58 * n) < 5 * std::sqrt(0.25 * n));
    CHECK_THROWS_AS(ops::dropout<Cpu>(be, 1.0f, 7, first.mat()), ConfigError);
}
