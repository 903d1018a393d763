// What forward passes allocate: nothing. And what happens when an allocation fails.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/lm/llama.hpp"
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

TEST_CASE("backend: once every thread has run a tile, forward passes of towers and decoders allocate nothing and take no lock") {
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
        CHECK(taken <= threads - 1);  // the scratch of a thread that came too late for the first pass
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
