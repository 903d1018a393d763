// Whole parts of models on random weights, beside the limits of the machine that the same run measures first.
//
//     model_bench                                     all threads;   PRISM_BENCH_THREADS=1 model_bench   one
//
// Peers in the labels: the fastest f32 encoder (OpenVINO 2026.4) reaches 80 to 87 % of the peak on two Zen 5 cores,
// PyTorch 2.15 eager 33 to 37 %, llama.cpp's decode 83 % of the bandwidth with bf16 weights on one.
#include "prism/backend/cpu/limits.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/generate/session.hpp"
#include "prism/lm/known.hpp"
#include "prism/model/random.hpp"
#include "prism/vision/towers.hpp"

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

using namespace prism;

namespace {

/// Seconds of one round of the benchmark's loop.
struct Stopwatch {
    std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    double per_iteration(const benchmark::State& state) const {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / static_cast<double>(state.iterations());
    }
};

Cpu& backend() {
    static Cpu be{{.threads = std::getenv("PRISM_BENCH_THREADS") ? std::strtoul(std::getenv("PRISM_BENCH_THREADS"), nullptr, 10) : 0}};
    return be;
}

MachineLimits& limits() {
    static MachineLimits measured = measure_limits(backend());
    return measured;
}

void encode(benchmark::State& state, const VitConfig& config, const char* peer) {
    Cpu&     be = backend();
    Vit<Cpu> vit{config};
    randomise(be, vit);
    std::vector<float>   pixels(3 * config.image_size * config.image_size, 0.1f), features(config.n_patches() * config.d_model);
    const PixelView<Cpu> view{pixels.data(), {1, 3, config.image_size, config.image_size}};
    const Cost           cost = dry_run([&, twin = dry_twin(vit)](Dry& dry, Workspace<Dry>& ws) {
        twin.forward(dry, ws, dry_view(view), {nullptr, {config.n_patches(), config.d_model}});
    });
    Workspace<Cpu>       ws{be, cost.workspace_bytes};
    const Stopwatch watch;
    for (auto _ : state) vit.forward(be, ws, view, {features.data(), {config.n_patches(), config.d_model}});
    const double flops_per_second = static_cast<double>(cost.flops) / watch.per_iteration(state);
    state.counters["GFLOP/s"] = flops_per_second * 1e-9;
    state.counters["share_of_peak"] = flops_per_second / limits().f32_flops;
    state.SetLabel(peer);
}

struct TextOnly {
    Llama<Cpu> llm;
};

void decode(benchmark::State& state, const LlamaConfig& config, Dtype weights, const char* peer) {
    Cpu&     be = backend();
    TextOnly model{Llama<Cpu>{config}};
    randomise(be, model.llm, {.matrices = weights});
    constexpr std::size_t context = 300, n_new = 16;
    Session               session{be, model, {.max_tokens = context + n_new}};
    std::vector<std::int32_t> ids(context, 5);
    double                    total_s = 0;
    for (auto _ : state) {
        session.forget();
        const double step_s = session.generate(ids, {.max_new_tokens = n_new}).decode_s / (n_new - 1);
        state.SetIterationTime(step_s);
        total_s += step_s;
    }
    const Cost step = dry_run([&, twin = dry_twin(model.llm)](Dry& dry, Workspace<Dry>& ws) {
        auto               cache = twin.make_cache(dry, context + 1);
        cache.advance(context);
        const Segment<Dry> batch[]{{&cache, 1}};
        Mat<Dry>           x = ws.mat(1, config.d_model);
        twin.forward(dry, ws, batch, x);
        twin.logits(dry, x, ws.mat(1, config.vocab_size));
    }, weights);
    const double bytes = static_cast<double>(step.weight_bytes) + 8.0 * config.n_layers * context * config.n_kv_heads * config.head_dim;
    const double bytes_per_second = bytes * static_cast<double>(state.iterations()) / total_s;
    state.counters["GB/s"] = bytes_per_second * 1e-9;
    state.counters["share_of_bandwidth"] = bytes_per_second / limits().bytes_per_second;
    state.SetLabel(peer);
}

void prefill(benchmark::State& state, const LlamaConfig& config, Dtype weights, const char* peer) {
    Cpu&     be = backend();
    TextOnly model{Llama<Cpu>{config}};
    randomise(be, model.llm, {.matrices = weights});
    constexpr std::size_t     n = 288;
    Session                   session{be, model, {.max_tokens = n + 1}};
    std::vector<std::int32_t> ids(n, 5);
    const Stopwatch           watch;
    for (auto _ : state) {
        session.forget();
        session.next_logits(ids);
    }
    const double              seconds = watch.per_iteration(state);
    const Cost cost = dry_run([&, twin = dry_twin(model.llm)](Dry& dry, Workspace<Dry>& ws) {
        auto               cache = twin.make_cache(dry, n);
        const Segment<Dry> batch[]{{&cache, n}};
        Mat<Dry>           x = ws.mat(n, config.d_model);
        twin.forward(dry, ws, batch, x);
    });
    state.counters["tok/s"] = n / seconds;
    state.counters["share_of_f32_peak"] = static_cast<double>(cost.flops) / seconds / limits().f32_flops;
    state.SetLabel(peer);
}

}  // namespace

BENCHMARK_CAPTURE(encode, dinov2_l_224, vit::dinov2_l14_reg4(224), "goal 0.50; OpenVINO 0.80, PyTorch 0.34")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(encode, so400m_224, vit::siglip_so400m14(224), "goal 0.50; OpenVINO 0.82, PyTorch 0.33")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(encode, clip_l_336, vit::clip_l14(336), "OpenVINO 0.86, PyTorch 0.33")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(prefill, llama_1b_bf16_288, llama::llama_1b(), Dtype::bf16, "llama.cpp F16 0.64")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(decode, llama_1b_bf16_at_300, llama::llama_1b(), Dtype::bf16, "llama.cpp 0.83 on one thread")->Unit(benchmark::kMillisecond)->UseManualTime();
BENCHMARK_CAPTURE(decode, llama_1b_f32_at_300, llama::llama_1b(), Dtype::f32, "llama.cpp 0.95 on one thread")->Unit(benchmark::kMillisecond)->UseManualTime();

int main(int argc, char** argv) {
    benchmark::Initialize(&argc, argv);
    std::printf("%zu threads, %s, %s; f32 peak %.0f GFLOP/s, memory %.1f GB/s\n", backend().threads(), to_string(backend().isa()).data(),
#if defined(__clang__)
                "clang " __clang_version__,
#else
                "gcc " __VERSION__,
#endif
                limits().f32_flops * 1e-9, limits().bytes_per_second * 1e-9);
    benchmark::RunSpecifiedBenchmarks();
}
