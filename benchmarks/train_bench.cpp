// Gradients beside the operations they belong to, in one run. The rates are those of processor time, which other programs on
// the machine disturb least.
//
//     train_bench                    one thread;    PRISM_BENCH_THREADS=0 train_bench    all
#include "prism/backend/cpu/limits.hpp"
#include "prism/backend/cpu/training.hpp"
#include "prism/ops/backward.hpp"
#include "prism/ops/linear.hpp"
#include "prism/quant/panels.hpp"

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace prism;

namespace {

Cpu& backend() {
    static const char* const threads = std::getenv("PRISM_BENCH_THREADS");
    static Cpu               be{{.threads = threads ? std::strtoul(threads, nullptr, 10) : 1, .isa = std::getenv("PRISM_BENCH_ISA") ? isa_from_name(std::getenv("PRISM_BENCH_ISA")) : best_isa()}};
    return be;
}

/// Rows on cache lines, as a workspace hands them out.
struct Rows {
    Buffer<host> memory;
    Mat<Cpu>     view;
    Rows(std::size_t n, std::size_t d) {
        const std::size_t line = (d + 15) / 16 * 16, ld = line % 512 == 0 ? line + 16 : line;
        memory = backend().allocate(n * ld * sizeof(float));
        view = {static_cast<float*>(memory.data()), {n, d}, {ld, 1}};
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t j = 0; j < d; ++j) view(i, j) = static_cast<float>((i * 31 + j * 17) % 101) * 0.01f - 0.5f;
    }
};

template <class Body>
void measure(benchmark::State& state, std::uint64_t flops, Body&& body) {
    body();
    for (auto _ : state) body();
    state.counters["FLOP/s"] = benchmark::Counter(static_cast<double>(flops), benchmark::Counter::kIsIterationInvariantRate);
}

enum class What { forward, dx, dw };

template <Format F>
void linear_in(benchmark::State& state, What what, bool panels) {
    const auto n = static_cast<std::size_t>(state.range(0)), d_in = static_cast<std::size_t>(state.range(1)), d_out = static_cast<std::size_t>(state.range(2));
    const Rows                     x{n, d_in}, y{n, d_out}, dw{what == What::dw ? d_out : 0, d_in};
    std::vector<typename F::block> blocks(d_out * blocks_per_row<F>(d_in));
    std::vector<float>             values(blocks.size() * F::values_per_block, 0.01f);
    F::encode(values, blocks);
    Packed<F, host>    w{blocks.data(), d_out, d_in, blocks_per_row<F>(d_in)};
    const Buffer<host> in_panels = backend().allocate(panels_bytes<F>(d_out, d_in));
    interleave<F>(w, static_cast<std::byte*>(in_panels.data()), 0, (d_out + panel_width - 1) / panel_width);
    if (panels) w.panels = static_cast<const std::byte*>(in_panels.data()), w.data = nullptr;
    measure(state, 2 * n * d_in * d_out, [&] {
        if (what == What::forward) ops::linear<Cpu>(backend(), x.view, w, {}, y.view);
        else if (what == What::dx) ops::linear_dx<Cpu>(backend(), y.view, w, x.view);
        else ops::linear_dw<Cpu>(backend(), y.view, x.view, dw.view);
    });
}

void linear(benchmark::State& state, Dtype weights, What what, bool panels) {
    with_format(weights, all_formats{}, [&]<Format F>(F) { linear_in<F>(state, what, panels); });
}

void attention(benchmark::State& state, bool backward, bool causal) {
    const auto n = static_cast<std::size_t>(state.range(0)), heads = static_cast<std::size_t>(state.range(1)), d = static_cast<std::size_t>(state.range(2));
    const AttentionShape s{.n_heads = heads, .n_kv_heads = heads, .head_dim = d, .causal = causal, .scale = 0.1f};
    const Rows           q{n, heads * d}, k{n, heads * d}, v{n, heads * d}, y{n, heads * d}, dy{n, heads * d}, dq{n, heads * d}, dk{n, heads * d}, dv{n, heads * d};
    measure(state, s.flops(n, n) / 2 * (backward ? 5 : 2), [&] {
        if (backward) ops::attention_backward<Cpu>(backend(), q.view, k.view, v.view, y.view, s, dy.view, dq.view, dk.view, dv.view);
        else ops::attention<Cpu>(backend(), q.view, In<Cpu>(k.view), In<Cpu>(v.view), s, y.view);
    });
}

void layer_norm(benchmark::State& state) {
    const auto n = static_cast<std::size_t>(state.range(0)), d = static_cast<std::size_t>(state.range(1));
    const Rows x{n, d}, dy{n, d}, dx{n, d}, sums{3, d};
    for (auto _ : state) ops::layer_norm_backward<Cpu>(backend(), x.view, sums.view.row(0), 1e-6f, dy.view, dx.view, sums.view.row(1), sums.view.row(2));
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * n * d * 16));
}

void adamw(benchmark::State& state) {
    const auto n = static_cast<std::size_t>(state.range(0));
    const Rows all{4, n};
    for (auto _ : state) ops::adamw<Cpu>(backend(), all.view.row(0), all.view.row(1), all.view.row(2), all.view.row(3), {.lr = 1e-4});
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * n * 28));
}

void sizes(benchmark::internal::Benchmark* b) {
    b->ArgNames({"n", "d_in", "d_out"});
    for (const auto& s : {std::vector<std::int64_t>{2048, 1024, 4096}, {2048, 4096, 1024}, {4000, 192, 192}, {4000, 192, 768}, {4000, 768, 192}, {2000, 96, 288}}) b->Args(s);
}
void heads(benchmark::internal::Benchmark* b) {
    b->ArgNames({"n", "heads", "head_dim"});
    for (const auto& s : {std::vector<std::int64_t>{256, 16, 64}, {729, 16, 72}, {1024, 8, 128}, {65, 24, 32}}) b->Args(s);
}

}  // namespace

BENCHMARK_CAPTURE(linear, forward, Dtype::f32, What::forward, true)->Apply(sizes);
BENCHMARK_CAPTURE(linear, dx_rows, Dtype::f32, What::dx, false)->Apply(sizes);
BENCHMARK_CAPTURE(linear, dx_panels, Dtype::f32, What::dx, true)->Apply(sizes);
BENCHMARK_CAPTURE(linear, dw, Dtype::f32, What::dw, true)->Apply(sizes);
BENCHMARK_CAPTURE(linear, dx_bf16_panels, Dtype::bf16, What::dx, true)->Args({2048, 1024, 4096});
BENCHMARK_CAPTURE(linear, dx_q8_panels, Dtype::q8, What::dx, true)->Args({2048, 1024, 4096});
BENCHMARK_CAPTURE(linear, dx_q4_rows, Dtype::q4, What::dx, false)->Args({2048, 1024, 4096});
BENCHMARK_CAPTURE(linear, dx_q4_panels, Dtype::q4, What::dx, true)->Args({2048, 1024, 4096});
BENCHMARK_CAPTURE(attention, forward, false, false)->Apply(heads);
BENCHMARK_CAPTURE(attention, backward, true, false)->Apply(heads);
BENCHMARK_CAPTURE(attention, forward_causal, false, true)->Apply(heads);
BENCHMARK_CAPTURE(attention, backward_causal, true, true)->Apply(heads);
BENCHMARK(layer_norm)->ArgNames({"n", "d"})->Args({2048, 1024})->Args({4000, 192});
BENCHMARK(adamw)->Arg(1 << 20);

int main(int argc, char** argv) {
    benchmark::Initialize(&argc, argv);
    std::printf("%zu threads, %s, f32 peak %.0f GFLOP/s\n", backend().threads(), to_string(backend().isa()).data(), measure_limits(backend(), 0).f32_flops * 1e-9);
    benchmark::RunSpecifiedBenchmarks();
}
