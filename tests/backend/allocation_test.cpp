// What forward passes allocate: nothing. And what happens when an allocation fails.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/cpu/training.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/lm/llama.hpp"
#include "prism/ops/backward.hpp"
#include "prism/vision/vit.hpp"
#include "support/allocations.hpp"
#include "support/random_weights.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <mutex>

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include <dlfcn.h>
#include <pthread.h>
#define PRISM_TEST_COUNTS_LOCKS
#endif

using namespace prism;
using namespace prism::test;

namespace {
std::atomic<std::size_t> locks{0};
}

#if defined(PRISM_TEST_COUNTS_LOCKS)
/// Every lock of this program comes by here.
extern "C" int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
    using Lock = int (*)(pthread_mutex_t*);
    static const auto next = reinterpret_cast<Lock>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
    ++locks;
    return next(mutex);
}

TEST_CASE("backend: locks are counted") {
    const std::size_t before = locks;
    std::mutex        mutex;
    std::lock_guard   lock(mutex);
    CHECK(locks == before + 1);
}
#endif

TEST_CASE("backend: after the first, forward passes of towers and decoders allocate nothing and take no lock") {
    const VitConfig   eye{.image_size = 28, .patch_size = 7, .d_model = 48, .n_layers = 3, .n_heads = 4, .d_ff = 96, .n_registers = 2, .layer_scale = true};
    const LlamaConfig words{.vocab_size = 90, .d_model = 32, .d_ff = 72, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 8};
    for (std::size_t threads : {1, 3}) {
        Cpu        be{{.threads = threads}};
        Vit<Cpu>   vit{eye};
        Llama<Cpu> llm{words};
        randomise(be, vit, 1), randomise(be, llm, 2, Dtype::bf16);
        const auto         pixels = normal(2 * 3 * 28 * 28, 3);
        const PixelView<Cpu> view{pixels.data(), {2, 3, 28, 28}};
        Array              features{2 * 16, 48};
        const auto         bytes = [&](auto&& run) { return dry_run(run).workspace_bytes; };
        Workspace<Cpu>     vision{be, bytes([&, twin = dry_twin(vit)](Dry& dry, Workspace<Dry>& ws) { twin.forward(dry, ws, dry_view(view), {nullptr, {32, 48}}); })};
        Workspace<Cpu>     text{be, bytes([&, twin = dry_twin(llm)](Dry& dry, Workspace<Dry>& ws) {
                                auto               cache = twin.make_cache(dry, 64);
                                const Segment<Dry> batch[]{{&cache, 9}};
                                twin.forward(dry, ws, batch, {nullptr, {9, 32}});
                            })};
        KvCache<Cpu>       cache = llm.make_cache(be, 64);
        Array              x{9, 32}, logits{9, 90};
        const std::int32_t ids[]{1, 2, 3, 4, 5, 6, 7, 8, 9};
        const auto         pass = [&] {
            vit.forward(be, vision, view, features.mat());
            cache.truncate(0);
            for (std::size_t n : {9, 1, 3}) {
                const Segment<Cpu> batch[]{{&cache, n}};
                Mat<Cpu>           rows = x.mat().rows(0, n);
                llm.embed(be, std::span(ids).first(n), rows);
                llm.forward(be, text, batch, rows);
                llm.logits(be, rows, logits.mat().rows(0, n));
            }
        };
        pass();
        const std::size_t before = allocations, locks_before = locks;
        for (int i = 0; i < 20; ++i) pass();
        const std::size_t taken = allocations - before;
        CHECK(locks == locks_before);
        CHECK(taken == 0);
    }
}

TEST_CASE("backend: after the first, gradients and steps allocate nothing and take no lock") {
    constexpr std::size_t n = 90, d = 64, d_ff = 150;
    for (std::size_t threads : {1, 3}) {
        Cpu                be{{.threads = threads}};
        const Array        x = Array::random(n, d, 1), dy = Array::random(n, d, 2), w = Array::random(d_ff, d, 3);
        Array              dx = x, dk = x, dv = x, z = Array::random(n, d_ff, 4), dz = z, dw = w;
        std::vector<float> m(dw.values().size()), v = m;
        const auto         flat = [](Array& a) { return Vec<Cpu>{a.mat().data(), {a.rows() * a.cols()}}; };
        const auto         row = [](Array& a, std::size_t i) { return Vec<Cpu>{a.mat().row(i).data(), {a.cols()}}; };
        const std::vector<std::int32_t> ids(n, 7);
        const auto                      pass = [&] {
            ops::linear_dx<Cpu>(be, z.in(), Packed<f32, host>{w.values().data(), d_ff, d, d}, dx.mat());
            ops::linear_dw<Cpu>(be, z.in(), x.in(), dw.mat());
            ops::column_sums<Cpu>(be, dy.in(), row(dw, 0));
            ops::layer_norm_backward<Cpu>(be, x.in(), x.row(), 1e-6f, dy.in(), dx.mat(), row(dw, 0), row(dw, 1));
            ops::rms_norm_backward<Cpu>(be, x.in(), x.row(), 1e-6f, dy.in(), dx.mat(), row(dw, 0));
            ops::activate_backward<Cpu>(be, Activation::gelu_erf, z.in(), dz.mat());
            ops::silu_mul_backward<Cpu>(be, x.in(), x.in(), dy.in(), dx.mat(), dk.mat());
            ops::scaled_backward<Cpu>(be, x.in(), x.row(), dy.in(), dx.mat(), row(dw, 0));
            for (std::size_t n_kv_heads : {1, 4}) {
                const AttentionShape s{.n_heads = 4, .n_kv_heads = n_kv_heads, .head_dim = 16, .causal = true, .scale = 0.25f};
                const std::size_t    width = n_kv_heads * 16;
                ops::attention_backward<Cpu>(be, x.in(), x.in().cols(0, width), x.in().cols(0, width), x.in(), s, dy.in(), dx.mat(), dk.mat().cols(0, width), dv.mat().cols(0, width));
            }
            ops::rope_half_backward<Cpu>(be, x.in().cols(0, 8), x.in().cols(8, 8), 4, dx.mat());
            ops::scatter_add<Cpu>(be, ids, dy.in(), dw.mat());
            ops::add_table_backward<Cpu>(be, dy.in(), dw.mat().rows(0, 45));
            ops::cross_entropy<Cpu>(be, dz.mat(), ids, 0.5f);
            ops::squared_norm<Cpu>(be, flat(dw));
            ops::adamw<Cpu>(be, flat(dw), flat(dw), {m.data(), {d_ff * d}}, {v.data(), {d_ff * d}}, {.lr = 1e-3});
        };
        pass();
        const std::size_t before = allocations, locks_before = locks;
        for (int i = 0; i < 20; ++i) pass();
        const std::size_t taken = allocations - before;
        CHECK(locks == locks_before);
        CHECK(taken == 0);
    }
}

TEST_CASE("backend: a pool and a backend that cannot be made whole leave nothing behind") {
    for (std::int64_t failing = 0;; ++failing) {
        bool made = false;
        try {
            allocations_until_failure = failing;
            Cpu be{{.threads = 4}};
            made = true;
        } catch (const std::bad_alloc&) {
        }
        allocations_until_failure = std::numeric_limits<std::int64_t>::max();
        if (made) break;
        REQUIRE(failing < 100);
    }
}
