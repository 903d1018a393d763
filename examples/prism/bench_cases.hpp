// Timing parts of models on random weights, beside what the machine can do at most, measured in the same run.
//
//     const BenchResult r = run_bench(cpu, "vision/dinosiglip-vit-so-224px", {.weights = Dtype::f32});
//     std::cout << r.seconds_median << " s, " << r.fraction_of_peak() << " of the peak\n";
#pragma once

#include "prism/backend/cpu/limits.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/fusion/splice.hpp"
#include "prism/lm/known.hpp"
#include "prism/model/random.hpp"
#include "prism/vision/towers.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace prism {

struct BenchOptions {
    Dtype       weights = Dtype::f32;  // of the matrices; towers too
    std::size_t runs = 5;              // timed ones, after one that is not
    std::size_t tokens = 288;          // of a prefill
    std::size_t context = 300;         // tokens in the cache of a decode step
};

struct BenchResult {
    std::string   name;
    std::size_t   threads = 0;
    Dtype         weights = Dtype::f32;
    double        seconds_min = 0, seconds_median = 0;
    std::uint64_t flops = 0, bytes = 0;  // of one run; bytes are those of weights and cache
    Compute       compute = Compute::exact;
    cpu::Form     form = cpu::Form::f32;  // of the rows that meet the weights
    MachineLimits limits;

    /// Share of the limit that bounds the work: arithmetic for many rows, memory for a single one.
    double fraction_of_peak() const { return std::max(compute_share(), bandwidth_share()); }
    double compute_share() const { return static_cast<double>(flops) / seconds_median / limits.flops_of(form); }
    double bandwidth_share() const { return static_cast<double>(bytes) / seconds_median / limits.bytes_per_second; }
};

namespace detail {

inline void time_runs(BenchResult& result, std::size_t runs, const std::function<void()>& run) {
    std::vector<double> seconds;
    for (std::size_t i = 0; i <= runs; ++i) {
        const auto start = std::chrono::steady_clock::now();
        run();
        if (i > 0) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(seconds.begin(), seconds.end());
    result.seconds_min = seconds.front();
    result.seconds_median = seconds[seconds.size() / 2];
}

inline void bench_vision(Cpu& be, const BackboneSpec& spec, const BenchOptions& options, BenchResult& result) {
    std::vector<Vit<Cpu>>       towers;
    std::vector<std::vector<float>> pixels;
    std::vector<PixelView<Cpu>> views;
    std::size_t                 d = 0;
    for (std::size_t i = 0; i < spec.n_towers; ++i) {
        const VitConfig config = tower_config(spec, i);
        randomise(be, towers.emplace_back(config), {.seed = i, .matrices = options.weights, .distinct_rows = 64});
        pixels.emplace_back(3 * config.image_size * config.image_size, 0.1f);
        views.push_back({pixels.back().data(), {1, 3, config.image_size, config.image_size}});
        d += config.d_model;
    }
    const std::size_t  n = towers[0].n_patches();
    result.form = be.form_of(options.weights, n);
    std::vector<float> features(n * d);
    const Cost         cost = dry_run([&](Dry& dry, Workspace<Dry>& ws) {
        std::vector<Vit<Dry>>       twins;
        std::vector<PixelView<Dry>> dry_views;
        for (std::size_t i = 0; i < towers.size(); ++i) twins.push_back(dry_twin(towers[i])), dry_views.push_back(dry_view(views[i]));
        fuse_towers<Dry>(dry, ws, twins, dry_views, {nullptr, {n, d}});
    }, options.weights);
    Workspace<Cpu> ws{be, cost.workspace_bytes};
    result.flops = cost.flops, result.bytes = cost.weight_bytes;
    time_runs(result, options.runs, [&] { fuse_towers<Cpu>(be, ws, towers, views, {features.data(), {n, d}}); });
}

/// `n_new` tokens after `n_before`, the scores of the last one included.
inline void bench_decoder(Cpu& be, const LanguageModelConfig& config, std::size_t n_before, std::size_t n_new, const BenchOptions& options, BenchResult& result) {
    LanguageModel<Cpu> llm{config};
    result.form = be.form_of(options.weights, n_new);
    randomise(be, llm, {.seed = 1, .matrices = options.weights, .distinct_rows = 64});
    const auto run = [&](auto& backend, auto& ws, auto& model, auto& cache, const std::vector<std::int32_t>& ids) {
        using B = std::remove_cvref_t<decltype(backend)>;
        auto             scope = ws.scope();
        Mat<B>           x = ws.mat(ids.size(), model.d_model());
        const Segment<B> batch[]{{&cache, ids.size()}};
        model.embed(backend, ids, x);
        model.forward(backend, ws, batch, x);
        model.logits(backend, x.rows(ids.size() - 1, 1), ws.mat(1, model.vocab_size()));
    };
    const std::vector<std::int32_t> before(n_before, 5), fresh(n_new, 7);
    const auto cost_of = [&](std::size_t cached, const std::vector<std::int32_t>& ids) {
        return dry_run([&, twin = dry_twin(llm)](Dry& dry, Workspace<Dry>& ws) {
            auto cache = twin.make_cache(dry, cached + ids.size());
            cache.advance(cached);
            run(dry, ws, twin, cache, ids);
        }, options.weights);
    };
    const Cost     cost = cost_of(n_before, fresh);
    Workspace<Cpu> ws{be, std::max(cost.workspace_bytes, n_before ? cost_of(0, before).workspace_bytes : 0)};
    auto           cache = llm.make_cache(be, n_before + n_new);
    if (n_before) run(be, ws, llm, cache, before);
    const std::uint64_t cache_bytes = std::visit([&](const auto& c) { return 2 * sizeof(float) * c.n_layers * c.n_kv_heads * c.head_dim * (n_before + n_new); }, config);
    result.flops = cost.flops, result.bytes = cost.weight_bytes + cache_bytes;
    time_runs(result, options.runs, [&] {
        cache.truncate(n_before);
        run(be, ws, llm, cache, fresh);
    });
}

/// "288x4096x11008"
inline std::array<std::size_t, 3> matmul_sizes(std::string_view sizes) {
    std::array<std::size_t, 3> mkn{};
    std::size_t                i = 0;
    for (char c : sizes) {
        if (c == 'x' && i < 2 && mkn[i] > 0) ++i;
        else if (c >= '0' && c <= '9' && mkn[i] < 1'000'000) mkn[i] = 10 * mkn[i] + static_cast<std::size_t>(c - '0');
        else throw ConfigError{"case", "matmul/" + std::string(sizes), "matmul/<m>x<k>x<n>"};
    }
    if (i != 2 || mkn[2] == 0) throw ConfigError{"case", "matmul/" + std::string(sizes), "matmul/<m>x<k>x<n>"};
    return mkn;
}

inline void bench_matmul(Cpu& be, std::string_view sizes, const BenchOptions& options, BenchResult& result) {
    const auto [m, k, n] = matmul_sizes(sizes);
    result.form = be.form_of(options.weights, m);
    Linear<Cpu> layer(k, n, false);
    randomise(be, layer, {.matrices = options.weights, .distinct_rows = 64});
    Workspace<Cpu> ws{be, (m + 1) * (k + n + 64) * sizeof(float)};
    Mat<Cpu>       x = ws.mat(m, k), y = ws.mat(m, n);
    for (std::size_t r = 0; r < m; ++r) std::fill_n(x.row(r).data(), k, 0.5f);
    result.flops = 2 * std::uint64_t{m} * k * n, result.bytes = stored_bytes(options.weights, std::uint64_t{k} * n);
    time_runs(result, options.runs, [&] { layer.forward(be, x, y); });
}

/// "llama2-7b", "tinyllama-1.1b", or an id of Prismatic's.
inline LanguageModelConfig bench_language_model(std::string_view name) {
    if (name == "tinyllama-1.1b") return llama::llama_1b();
    if (name == "llama2-7b") return llama::llama2_7b();
    if (name == "llama2-13b") return llama::llama2_13b();
    if (name == "mistral-7b") return llama::mistral_7b();
    if (name == "phi-2") return phi::phi2();
    if (name == "qwen2.5-0.5b") return llama::qwen25_0_5b();
    return published_config(language_backbone_from_id(name));
}

}  // namespace detail

/// A case by its name: what kind it is, and of what.
struct BenchCase {
    std::string_view kind, what;
};

/// Throws ConfigError for a name that is no case.
inline BenchCase bench_case(std::string_view name) {
    const std::size_t slash = std::min(name.find('/'), name.size());
    const BenchCase   c{name.substr(0, slash), name.substr(std::min(slash + 1, name.size()))};
    if (c.kind == "vision") backbone_from_id(c.what);
    else if (c.kind == "prefill" || c.kind == "decode") detail::bench_language_model(c.what);
    else if (c.kind == "matmul") detail::matmul_sizes(c.what);
    else throw ConfigError{"case", std::string(name), "vision/<backbone>, prefill/<llm>, decode/<llm>, matmul/<m>x<k>x<n>"};
    return c;
}

/// Runs one case: vision/<vision backbone id>, prefill/<language model>, decode/<language model>, matmul/<m>x<k>x<n>.
/// Language models go by Prismatic's ids or as llama2-7b, llama2-13b, mistral-7b, phi-2, qwen2.5-0.5b, tinyllama-1.1b.
/// Weights are made in memory in their format. `limits`: what measure_limits(be) gave. Throws ConfigError for other names.
inline BenchResult run_bench(Cpu& be, std::string_view name, const MachineLimits& limits, const BenchOptions& options = {}) {
    BenchResult result{.name = std::string(name), .threads = be.threads(), .weights = options.weights, .compute = be.compute(),
                       .limits = limits};
    const auto [kind, what] = bench_case(name);
    if (options.runs == 0) throw ConfigError{"runs", "0", "at least 1"};
    if (kind == "vision") detail::bench_vision(be, backbone_from_id(what), options, result);
    else if (kind == "prefill") detail::bench_decoder(be, detail::bench_language_model(what), 0, std::max<std::size_t>(options.tokens, 1), options, result);
    else if (kind == "decode") detail::bench_decoder(be, detail::bench_language_model(what), options.context, 1, options, result);
    else detail::bench_matmul(be, what, options, result);
    return result;
}

}  // namespace prism
