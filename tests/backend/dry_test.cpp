// The backend without numbers: what it counts, and that real runs need exactly the workspace that it says.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/fusion/projector.hpp"
#include "prism/lm/known.hpp"
#include "prism/model/load.hpp"
#include "prism/vision/towers.hpp"
#include "support/random_weights.hpp"

#include <doctest/doctest.h>

using namespace prism;
using namespace prism::test;

namespace {

Cost tower_cost(const VitConfig& c, std::size_t n = 1) {
    const Vit<Dry> vit{c};
    return dry_run([&](Dry& be, Workspace<Dry>& ws) { vit.forward(be, ws, {nullptr, {n, 3, c.image_size, c.image_size}}, {nullptr, {n * c.n_patches(), c.d_model}}); });
}

/// A tower's work by formula: products of the blocks that run, attention, patches.
std::uint64_t tower_flops(const VitConfig& c) {
    const std::uint64_t s = c.n_tokens(), d = c.d_model, l = c.n_layers - 1;
    return 2 * s * l * (4 * d * d + 2 * d * c.d_ff) + 4 * s * s * d * l + 2 * c.n_patches() * 3 * c.patch_size * c.patch_size * d;
}

template <class Llm>
Cost reading(const Llm& llm, std::size_t before, std::size_t n, Dtype weights, bool scored) {
    return dry_run(
        [&](Dry& be, Workspace<Dry>& ws) {
            auto cache = llm.make_cache(be, before + n);
            cache.advance(before);
            const Segment<Dry> batch[]{{&cache, n}};
            llm.forward(be, ws, batch, {nullptr, {n, llm.d_model()}});
            if (scored) llm.logits(be, {nullptr, {1, llm.d_model()}}, {nullptr, {1, llm.vocab_size()}});
        },
        weights);
}

}  // namespace

TEST_CASE("backend/dry: the work of the published towers is that of the formula") {
    CHECK(tower_cost(vit::dinov2_l14_reg4(224)).flops == tower_flops(vit::dinov2_l14_reg4(224)));
    CHECK(tower_cost(vit::siglip_so400m14(384)).flops == tower_flops(vit::siglip_so400m14(384)));
    CHECK(tower_cost(vit::clip_l14(336)).flops == tower_flops(vit::clip_l14(336)));
    CHECK(tower_cost(vit::clip_b16(), 3).flops == 3 * tower_flops(vit::clip_b16()));
    CHECK(vit::dinov2_l14_reg4(224).n_tokens() == 261);
    CHECK(vit::siglip_so400m14(384).n_tokens() == 729);
    CHECK(vit::clip_l14(336).n_tokens() == 577);
}

TEST_CASE("backend/dry: the work of projector, prefill and decoding is that of the formulas, and decoding reads each weight once") {
    const FusedMlpProjector<Dry> projector{{.d_vision = 2176, .d_model = 4096}};
    CHECK(dry_run([&](Dry& be, Workspace<Dry>& ws) { projector.forward(be, ws, {nullptr, {256, 2176}}, {nullptr, {256, 4096}}); }).flops ==
          2ULL * 256 * (2176ULL * 8704 + 8704ULL * 4096 + 4096ULL * 4096));

    for (const LlamaConfig& c : {llama::llama2_7b(), llama::mistral_7b(), llama::llama_1b()}) {
        const Llama<Dry>    llm{c};
        const std::uint64_t d = c.d_model, heads = c.n_heads * c.head_dim, d_kv = c.n_kv_heads * c.head_dim;
        const std::uint64_t n = c.n_layers * (2 * d * heads + 2 * d * d_kv + 3 * d * c.d_ff), head = d * c.vocab_size;
        const std::uint64_t s = 300;
        // Row i of a causal prefill sees i + 1 keys: 2 s (s + 1) instead of 4 s^2.
        CHECK(reading(llm, 0, s, Dtype::f32, true).flops == 2 * s * n + 2 * s * (s + 1) * heads * c.n_layers + 2 * head);
        const Cost step = reading(llm, 512, 1, Dtype::bf16, true);
        CHECK(step.flops == 2 * (n + head) + 4 * 513 * heads * c.n_layers);
        CHECK(step.weight_bytes == 2 * (n + head));
        CHECK(step.bytes >= step.weight_bytes + 513 * 2 * d_kv * c.n_layers * sizeof(float));
    }
    const PhiConfig     p = phi::phi2();
    const std::uint64_t d = p.d_model;
    CHECK(reading(Phi<Dry>{p}, 0, 1, Dtype::f16, true).weight_bytes == 2 * (p.n_layers * (4 * d * d + 2 * d * p.d_ff) + d * p.vocab_size));
}

TEST_CASE("backend/dry: a real run peaks at exactly the bytes that the dry one says, and refuses one line less") {
    const VitConfig c{.image_size = 42, .patch_size = 14, .d_model = 48, .n_layers = 4, .n_heads = 3, .d_ff = 179, .class_token = false, .attention_pool = true};
    for (std::size_t n : {1, 2, 5}) {
        Cpu      be{{.threads = 2}};
        Vit<Cpu> vit{c};
        randomise(be, vit, 1);
        const auto        pixels = normal(n * 3 * 42 * 42, 2);
        const std::size_t bytes = tower_cost(c, n).workspace_bytes;
        Workspace<Cpu>    ws{be, bytes}, small{be, bytes - Workspace<Cpu>::alignment};
        Array             out{n * 9, 48};
        const auto        run = [&](Workspace<Cpu>& w) { vit.forward(be, w, {pixels.data(), {n, 3, 42, 42}}, out.mat()); };
        run(ws);
        CHECK(ws.peak_bytes() == bytes);
        CHECK_THROWS_WITH_AS(run(small), doctest::Contains("size it with a dry run of the same shapes"), Error);
        run(ws);  // scopes gave everything back
        CHECK(ws.peak_bytes() == bytes);
    }
    const LlamaConfig words{.vocab_size = 90, .d_model = 512, .d_ff = 72, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 128};
    Cpu               be{{.threads = 2}};
    Llama<Cpu>        llm{words};
    randomise(be, llm, 1);
    for (std::size_t n : {1, 2, 33}) {
        const std::size_t  bytes = reading(Llama<Dry>{words}, 5, n, Dtype::f32, false).workspace_bytes;
        Workspace<Cpu>     ws{be, bytes};
        KvCache<Cpu>       cache = llm.make_cache(be, 5 + n);
        Array              x = Array::random(5 + n, 512, 1);
        const Segment<Cpu> first[]{{&cache, 5}}, second[]{{&cache, n}};
        Workspace<Cpu>     other{be, reading(Llama<Dry>{words}, 0, 5, Dtype::f32, false).workspace_bytes};
        llm.forward(be, other, first, x.mat().rows(0, 5));
        llm.forward(be, ws, second, x.mat().rows(5, n));
        CHECK(ws.peak_bytes() == bytes);
    }
    LlamaConfig wide = words;
    wide.d_ff = 2000;
    Llama<Cpu> mixed{wide};
    randomise(be, mixed, 1), randomise(be, mixed.layers[1].mlp.up_proj, 2, Dtype::bf16);  // gate and up in formats of their own take more scratch
    const auto run = [](auto& backend, auto& ws, const auto& model, auto x) {
        auto                                                cache = model.make_cache(backend, 33);
        const Segment<std::remove_reference_t<decltype(backend)>> all[]{{&cache, 33}};
        model.forward(backend, ws, all, x);
    };
    const std::size_t same = reading(Llama<Dry>{wide}, 0, 33, Dtype::f32, false).workspace_bytes;
    const std::size_t bytes = dry_run([&, twin = dry_twin(mixed)](Dry& dry, Workspace<Dry>& ws) { run(dry, ws, twin, Mat<Dry>{nullptr, {33, 512}}); }).workspace_bytes;
    Workspace<Cpu>    ws{be, bytes};
    run(be, ws, mixed, Array::random(33, 512, 1).mat());
    CHECK(bytes > same);
    CHECK(ws.peak_bytes() == bytes);
}

TEST_CASE("backend/dry: a workspace hands out aligned rows that do not share their places in a cache") {
    Cpu            be{{.threads = 1}};
    Workspace<Cpu> ws{be, 1 << 20};
    for (std::size_t cols : {1, 16, 17, 511, 512, 1024}) {
        auto       scope = ws.scope();
        const auto m = ws.mat(3, cols);
        CHECK(std::bit_cast<std::uintptr_t>(m.data()) % 64 == 0);
        CHECK(m.ld() % 16 == 0);
        CHECK(m.ld() % 512 != 0);
        CHECK((m.ld() >= cols && m.ld() <= cols + 31));
    }
    CHECK(ws.capacity_bytes() == 1 << 20);
    CHECK_NOTHROW(ws.vec((1 << 20) / 4));
}
