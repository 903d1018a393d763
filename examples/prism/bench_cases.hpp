// Timing parts of models on random weights, on any backend.
//
//     const BenchResult r = run_bench(be, "vision/dinosiglip-vit-so-224px", {.weights = Dtype::bf16});
//     std::cout << r.seconds_median << " s\n";
#pragma once

#include "prism/backend/dry/twin.hpp"
#include "prism/fusion/splice.hpp"
#include "prism/generate/recorded_action.hpp"
#include "prism/generate/session.hpp"
#include "prism/io/name_map.hpp"
#include "prism/lm/known.hpp"
#include "prism/model/pixels.hpp"
#include "prism/model/prismatic.hpp"
#include "prism/model/random.hpp"
#include "prism/model/registry.hpp"
#include "prism/vision/towers.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace program {

using namespace prism;

struct BenchOptions {
    Dtype       weights = Dtype::f32;  // of the matrices; towers too
    std::size_t runs = 5;              // timed ones, after one that is not
    std::size_t tokens = 288;          // of a prefill
    std::size_t context = 300;         // tokens in the cache of a decode step
    std::size_t ids = 24;              // of an action's prompt, its picture not counted
    std::size_t action = 7;            // tokens of an action
    // Of a device, which is not alone with its host: there are never few runs, and of what is short many in a row; and its
    // cache would hold a single matrix from one run to the next, where a model has others in between.
    std::size_t   least_runs = 20;
    double        least_s = 0.02;
    std::uint64_t past_caches_bytes = std::uint64_t{512} << 20;
};

/// Work that one limit bounds: arithmetic for many rows, memory for a single one.
struct BenchPart {
    std::uint64_t flops = 0, bytes = 0;  // of one run; bytes are those of weights and cache
    std::size_t   rows = 0;              // that meet the weights at a time
};

/// What a machine can do at most with rows that meet weights of some type.
struct Peak {
    double flops_per_second = 0, bytes_per_second = 0;
};

struct BenchResult {
    std::string            name;
    Dtype                  weights = Dtype::f32;
    double                 seconds_min = 0, seconds_median = 0;
    double                 one_by_one_s = 0;  // where the backend records: the median when it is given every operation anew
    double                 picture_s = 0;     // of an action: preparing its picture, the median, which the others include
    double                 from_pixels_s = 0;  // of an action: the rest, the median
    std::vector<BenchPart> parts{};           // one after another

    std::uint64_t flops() const { return sum(&BenchPart::flops); }
    std::uint64_t bytes() const { return sum(&BenchPart::bytes); }

    /// Shares of what there is at most; `peak(rows)` is the Peak for so many rows.
    template <class PeakOf>
    double compute_share(PeakOf&& peak) const {
        return share([&](const BenchPart& p) { return static_cast<double>(p.flops) / peak(p.rows).flops_per_second; });
    }
    template <class PeakOf>
    double bandwidth_share(PeakOf&& peak) const {
        return share([&](const BenchPart& p) { return static_cast<double>(p.bytes) / peak(p.rows).bytes_per_second; });
    }
    /// Each part held against the limit that bounds it.
    template <class PeakOf>
    double fraction_of_peak(PeakOf&& peak) const {
        return share([&](const BenchPart& p) {
            const Peak most = peak(p.rows);
            return std::max(static_cast<double>(p.flops) / most.flops_per_second, static_cast<double>(p.bytes) / most.bytes_per_second);
        });
    }

private:
    std::uint64_t sum(std::uint64_t BenchPart::*of) const {
        std::uint64_t all = 0;
        for (const BenchPart& p : parts) all += p.*of;
        return all;
    }
    template <class Least>
    double share(Least&& least) const {
        double seconds = 0;
        for (const BenchPart& p : parts) seconds += least(p);
        return seconds / seconds_median;
    }
};

/// Seconds of several runs.
struct Times {
    std::vector<double> seconds;

    double min() const { return *std::ranges::min_element(seconds); }
    double median() const {
        auto sorted = seconds;
        std::ranges::sort(sorted);
        return sorted[sorted.size() / 2];
    }
};

/// Times `run` so often, `repeats` of it at a time, until the backend has done it.
template <Backend B, class Run>
Times time_runs(B& be, std::size_t runs, std::size_t repeats, Run&& run) {
    Times times;
    be.wait();
    for (std::size_t i = 0; i < runs; ++i) {
        const auto start = std::chrono::steady_clock::now();
        for (std::size_t r = 0; r < repeats; ++r) run();
        be.wait();
        times.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / static_cast<double>(repeats));
    }
    return times;
}

template <Backend B>
std::size_t n_runs(const BenchOptions& options) {
    return RecordingBackend<B> ? std::max(options.runs, options.least_runs) : options.runs;
}

/// Times run(), which does the same `n_same` times; recorded where the backend records, and one by one besides.
template <Backend B, class Run>
void time_work(B& be, BenchResult& result, const BenchOptions& options, std::size_t n_same, Run&& run) {
    const auto per_run = [&](double seconds) { return seconds / static_cast<double>(n_same); };
    run();
    if constexpr (RecordingBackend<B>) {
        auto recording = be.record(run);
        be.replay(recording);
        const double      once = time_runs(be, 1, 1, [&] { be.replay(recording); }).seconds[0];
        const std::size_t repeats = std::clamp<std::size_t>(static_cast<std::size_t>(options.least_s / once), 1, 100);
        const Times       times = time_runs(be, n_runs<B>(options), repeats, [&] { be.replay(recording); });
        result.seconds_min = per_run(times.min()), result.seconds_median = per_run(times.median());
        result.one_by_one_s = per_run(time_runs(be, options.runs, repeats, run).median());
    } else {
        const Times times = time_runs(be, options.runs, 1, run);
        result.seconds_min = per_run(times.min()), result.seconds_median = per_run(times.median());
    }
}

/// About N(0, 1), the same for a seed. (Zeros, and values that are all alike, let a processor run faster than real ones.)
inline std::vector<float> random_values(std::size_t n, std::uint64_t seed) {
    std::vector<float> values(n);
    for (std::size_t i = 0; i < n; ++i) values[i] = prism::detail::random_normal(seed, i);
    return values;
}

inline std::vector<std::int32_t> random_ids(std::size_t n, std::size_t vocab_size, std::uint64_t seed) {
    std::vector<std::int32_t> ids(n);
    for (std::size_t i = 0; i < n; ++i) ids[i] = static_cast<std::int32_t>(prism::detail::random_bits(seed, i) % vocab_size);
    return ids;
}

template <Backend B>
void bench_vision(B& be, const std::vector<VitConfig>& configs, const BenchOptions& options, BenchResult& result) {
    std::vector<Vit<B>> towers;
    Pixels<B>           pixels;
    std::size_t         d = 0;
    for (std::size_t i = 0; i < configs.size(); ++i) {
        const std::size_t size = configs[i].image_size;
        randomise(be, towers.emplace_back(configs[i]), {.seed = i, .matrices = options.weights, .distinct_rows = 64});
        pixels.add(be, random_values(3 * size * size, i), {1, 3, size, size});
        d += configs[i].d_model;
    }
    const std::size_t n = towers[0].n_patches();
    const auto        features = be.allocate(n * d * sizeof(float));
    const Cost        cost = dry_run([&](Dry& dry, Workspace<Dry>& ws) {
        std::vector<Vit<Dry>>       twins;
        std::vector<PixelView<Dry>> dry_views;
        for (std::size_t i = 0; i < towers.size(); ++i) twins.push_back(dry_twin(towers[i])), dry_views.push_back(dry_view(pixels.views()[i]));
        fuse_towers<Dry>(dry, ws, twins, dry_views, {nullptr, {n, d}});
    }, options.weights);
    Workspace<B> ws{be, cost.workspace_bytes};
    result.parts.push_back({cost.flops, cost.weight_bytes, n});
    time_work(be, result, options, 1, [&] { fuse_towers<B>(be, ws, towers, pixels.views(), {features.template as<float>(), {n, d}}); });
}

/// Reads ids after what the cache holds, and scores what follows.
template <Backend B>
void read_and_score(B& be, Workspace<B>& ws, const LanguageModel<B>& llm, KvCache<B>& cache, const std::vector<std::int32_t>& ids) {
    auto             scope = ws.scope();
    Mat<B>           x = ws.mat(ids.size(), llm.d_model());
    const Segment<B> batch[]{{&cache, ids.size()}};
    llm.embed(be, ids, x);
    llm.forward(be, ws, batch, x);
    llm.logits(be, x.rows(ids.size() - 1, 1), ws.mat(1, llm.vocab_size()));
}

/// `n_new` tokens after `n_before`, the scores of the last one included.
template <Backend B>
Cost decoder_cost(const LanguageModel<B>& llm, std::size_t n_before, std::size_t n_new, Dtype weights) {
    return dry_run([&, twin = dry_twin(llm)](Dry& dry, Workspace<Dry>& ws) {
        auto cache = twin.make_cache(dry, n_before + n_new);
        cache.advance(n_before);
        read_and_score(dry, ws, twin, cache, std::vector<std::int32_t>(n_new));
    }, weights);
}
template <Backend B>
BenchPart decoder_part(const LanguageModel<B>& llm, std::size_t n_before, std::size_t n_new, Dtype weights) {
    const std::uint64_t cache_bytes = std::visit([&](const auto& c) { return 2 * sizeof(float) * c.n_layers * c.n_kv_heads * c.head_dim * (n_before + n_new); }, llm.config());
    const Cost          cost = decoder_cost(llm, n_before, n_new, weights);
    return {cost.flops, cost.weight_bytes + cache_bytes, n_new};
}

template <Backend B>
void bench_prefill(B& be, const LanguageModelConfig& config, const BenchOptions& options, BenchResult& result) {
    LanguageModel<B> llm{config};
    randomise(be, llm, {.seed = 1, .matrices = options.weights, .distinct_rows = 64});
    const std::size_t n = std::max<std::size_t>(options.tokens, 1);
    const auto        ids = random_ids(n, llm.vocab_size(), 7);
    Workspace<B>      ws{be, decoder_cost(llm, 0, n, options.weights).workspace_bytes};
    auto              cache = llm.make_cache(be, n);
    result.parts.push_back(decoder_part(llm, 0, n, options.weights));
    time_work(be, result, options, 1, [&] {
        cache.truncate(0);
        read_and_score(be, ws, llm, cache, ids);
    });
}

/// A language model alone, as Session takes it.
template <Backend B>
struct BenchDecoder {
    LanguageModel<B> llm;
};

/// Seconds between the tokens of an answer, from the fourth on: where steps are recorded, that is done by then.
template <Backend B, class M>
Times time_steps(Session<B, M>& session, const std::vector<std::int32_t>& prompt, std::size_t n, const SamplingOptions& sampling) {
    using Clock = std::chrono::steady_clock;
    std::vector<Clock::time_point> at;
    session.generate(prompt, {.max_new_tokens = n + 3, .sampling = sampling, .on_token = [&](std::int32_t) {
                                  at.push_back(Clock::now());
                                  return true;
                              }});
    Times times;
    for (std::size_t i = 3; i < at.size(); ++i) times.seconds.push_back(std::chrono::duration<double>(at[i] - at[i - 1]).count());
    return times;
}

/// One token after `context` others: where the backend records, the steps of an answer, choosing the tokens included.
template <Backend B>
void bench_decode(B& be, const LanguageModelConfig& config, const BenchOptions& options, BenchResult& result) {
    BenchDecoder<B> model{LanguageModel<B>{config}};
    const auto&     llm = model.llm;
    randomise(be, model.llm, {.seed = 1, .matrices = options.weights, .distinct_rows = 64});
    const auto before = random_ids(options.context, llm.vocab_size(), 5);
    if constexpr (RecordingBackend<B>) {
        const std::size_t         n = n_runs<B>(options);
        Session<B, BenchDecoder<B>> session{be, model, {.max_tokens = std::max<std::size_t>(before.size(), 1) + n + 3}};
        const auto                prompt = before.empty() ? std::vector<std::int32_t>{1} : before;
        const Times               times = time_steps(session, prompt, n, {});
        result.seconds_min = times.min(), result.seconds_median = times.median();
        // A penalty is the host's business, and its smallest makes no difference to the work.
        result.one_by_one_s = time_steps(session, prompt, n, {.repetition_penalty = 1.0001f}).median();
        result.parts.push_back(decoder_part(llm, prompt.size() + 2 + n / 2, 1, options.weights));
    } else {
        const std::vector<std::int32_t> fresh{7};
        Workspace<B> ws{be, std::max(decoder_cost(llm, before.size(), 1, options.weights).workspace_bytes,
                                     before.empty() ? 0 : decoder_cost(llm, 0, before.size(), options.weights).workspace_bytes)};
        auto         cache = llm.make_cache(be, before.size() + 1);
        if (!before.empty()) read_and_score(be, ws, llm, cache, before);
        result.parts.push_back(decoder_part(llm, before.size(), 1, options.weights));
        time_work(be, result, options, 1, [&] {
            cache.truncate(before.size());
            read_and_score(be, ws, llm, cache, fresh);
        });
    }
}

/// A whole action, from a camera's picture to its tokens.
template <Backend B>
void bench_action(B& be, const PrismaticConfig& config, const BenchOptions& options, BenchResult& result) {
    Prismatic<B> model{config};
    randomise(be, model, {.seed = 1, .matrices = options.weights, .distinct_rows = 64});
    const std::size_t n_soft = model.n_soft_tokens(), n_rows = n_soft + options.ids, n_tokens = std::max<std::size_t>(options.action, 1);
    const auto        ids = random_ids(options.ids, model.llm.vocab_size(), 3);
    Image             image = Image::sized(480, 640);
    for (std::size_t y = 0; y < image.height(); ++y)
        for (std::size_t x = 0; x < image.row_bytes(); ++x) image.row(y)[x] = static_cast<std::uint8_t>(prism::detail::random_bits(y, x));

    std::vector<PixelView<Dry>> seen;
    for (const TowerConfig& t : config.towers) seen.push_back({nullptr, {1, 3, t.vit.image_size, t.vit.image_size}});
    const Cost seeing = dry_run([&, twin = dry_twin(model)](Dry& dry, Workspace<Dry>& ws) { twin.see(dry, ws, seen, {nullptr, {n_soft, model.llm.d_model()}}); },
                                options.weights);
    result.parts = {{seeing.flops, seeing.weight_bytes, n_soft}, decoder_part(model.llm, 0, n_rows, options.weights)};
    for (std::size_t i = 1; i < n_tokens; ++i) result.parts.push_back(decoder_part(model.llm, n_rows + i - 1, 1, options.weights));

    Times      pictures, rests, all;
    const auto time_actions = [&](std::size_t runs, auto&& show, auto&& act) {
        pictures = {}, rests = {}, all = {};
        for (std::size_t i = 0; i < runs; ++i) {
            const auto start = std::chrono::steady_clock::now();
            show();
            pictures.seconds.push_back(prism::detail::seconds_since(start));
            act();
            all.seconds.push_back(prism::detail::seconds_since(start));
            rests.seconds.push_back(all.seconds.back() - pictures.seconds.back());
        }
    };
    const auto keep_times = [&] {
        result.seconds_min = all.min(), result.seconds_median = all.median();
        result.picture_s = pictures.median(), result.from_pixels_s = rests.median();
    };
    if constexpr (RecordingBackend<B>) {
        RecordedAction<B>   action{be, model, n_rows + n_tokens};
        const ActionRequest request{n_tokens, 0, model.llm.vocab_size()};
        const auto          show = [&] { action.show(image); };
        time_actions(2, show, [&] { action.act(ids, request); });  // once for memory, once to record it
        time_actions(n_runs<B>(options), show, [&] { action.act(ids, request); });
        keep_times();
        Times one_by_one;
        for (std::size_t i = 0; i < options.runs; ++i) {
            RecordedAction<B> fresh{be, model, n_rows + n_tokens};  // its first action is not recorded
            time_actions(1, [&] { fresh.show(image); }, [&] { fresh.act(ids, request); });
            one_by_one.seconds.push_back(all.seconds[0]);
        }
        result.one_by_one_s = one_by_one.median();
    } else {
        Session<B, Prismatic<B>> session{be, model, {.max_tokens = n_rows + n_tokens}};
        std::optional<Pixels<B>> pixels;
        const auto               transforms = model.transforms();
        const auto               show = [&] { pixels.emplace(be, transforms, image); };
        const auto               act = [&] { session.show(pixels->views()), session.generate(ids, {.max_new_tokens = n_tokens}); };
        time_actions(1, show, act);
        time_actions(options.runs, show, act);
        keep_times();
    }
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

template <Backend B>
void bench_matmul(B& be, std::string_view sizes, const BenchOptions& options, BenchResult& result) {
    const auto [m, k, n] = matmul_sizes(sizes);
    const std::uint64_t bytes = stored_bytes(options.weights, std::uint64_t{k} * n);
    const std::size_t      n_layers = RecordingBackend<B> ? static_cast<std::size_t>(std::clamp<std::uint64_t>(options.past_caches_bytes / bytes, 1, 64)) : 1;
    std::vector<Linear<B>> layers;
    for (std::size_t i = 0; i < n_layers; ++i) randomise(be, layers.emplace_back(k, n, false), {.seed = i, .matrices = options.weights, .distinct_rows = 64});
    Workspace<B> ws{be, (m + 1) * (k + n + 64) * sizeof(float)};
    Mat<B>       x = ws.mat(m, k), y = ws.mat(m, n);
    for (std::size_t r = 0; r < m; ++r) be.upload(random_values(k, r), x.row(r));
    result.parts.push_back({2 * std::uint64_t{m} * k * n, bytes, m});
    time_work(be, result, options, n_layers, [&] {
        for (const auto& layer : layers) layer.forward(be, x, y);
    });
}

/// Language models by names of their own, with the vocabulary that they were published with.
struct BenchLanguageModel {
    std::string_view name;
    LanguageModelConfig (*config)();
};
inline constexpr std::array<BenchLanguageModel, 6> bench_language_models{{
    {"tinyllama-1.1b", [] { return LanguageModelConfig{llama::llama_1b()}; }},
    {"llama2-7b", [] { return LanguageModelConfig{llama::llama2_7b()}; }},
    {"llama2-13b", [] { return LanguageModelConfig{llama::llama2_13b()}; }},
    {"mistral-7b", [] { return LanguageModelConfig{llama::mistral_7b()}; }},
    {"phi-2", [] { return LanguageModelConfig{phi::phi2()}; }},
    {"qwen2.5-0.5b", [] { return LanguageModelConfig{llama::qwen25_0_5b()}; }},
}};

/// One of these, or an id of Prismatic's.
inline LanguageModelConfig bench_language_model(std::string_view name) {
    for (const auto& m : bench_language_models)
        if (m.name == name) return m.config();
    return published_config(language_backbone_from_id(name));
}

/// "openvla-7b", or a model of Prismatic's by id.
inline PrismaticConfig bench_policy(std::string_view name) { return composition_of(name == "openvla-7b" ? "prism-dinosiglip-224px+7b" : name); }

/// "dinosiglip-224", "dinosiglip-384", or an id of Prismatic's.
inline const BackboneSpec& bench_backbone(std::string_view name) {
    return backbone_from_id(name == "dinosiglip-224" ? "dinosiglip-vit-so-224px" : name == "dinosiglip-384" ? "dinosiglip-vit-so-384px" : name);
}

inline std::vector<VitConfig> bench_towers(std::string_view name) {
    const BackboneSpec&    spec = bench_backbone(name);
    std::vector<VitConfig> configs;
    for (std::size_t i = 0; i < spec.n_towers; ++i) configs.push_back(tower_config(spec, i));
    return configs;
}

/// What cases of each kind can be of.
inline std::vector<std::pair<std::string_view, std::vector<std::string>>> bench_names() {
    std::vector<std::string> towers{"dinosiglip-224", "dinosiglip-384"}, decoders, policies{"openvla-7b"};
    for (const auto& b : backbones) towers.emplace_back(b.id);
    for (const auto& m : bench_language_models) decoders.emplace_back(m.name);
    for (const auto& m : language_backbones) decoders.emplace_back(m.id);
    for (const auto& m : registry) policies.emplace_back(m.id);
    return {{"vision", towers}, {"prefill", decoders}, {"decode", decoders}, {"action", policies}, {"matmul", {"<m>x<k>x<n>"}}};
}

/// A case by its name: what kind it is, and of what.
struct BenchCase {
    std::string_view kind, what;
};

/// Throws ConfigError for a name that is no case.
inline BenchCase bench_case(std::string_view name) {
    const std::size_t slash = std::min(name.find('/'), name.size());
    const BenchCase   c{name.substr(0, slash), name.substr(std::min(slash + 1, name.size()))};
    try {
        if (c.kind == "vision") bench_backbone(c.what);
        else if (c.kind == "prefill" || c.kind == "decode") bench_language_model(c.what);
        else if (c.kind == "action") bench_policy(c.what);
        else if (c.kind == "matmul") matmul_sizes(c.what);
        else throw ConfigError{"case", std::string(name), "vision/<backbone>, prefill/<llm>, decode/<llm>, action/<policy>, matmul/<m>x<k>x<n>; prism bench --list names all"};
    } catch (const ConfigError& e) {
        if (e.key == "case") throw;
        std::vector<std::string> names;
        for (const auto& [kind, of_kind] : bench_names())
            if (kind == c.kind) names = of_kind;
        const auto near = nearest_name(c.what, names);
        throw ConfigError{"case", std::string(name), "what prism bench --list names" + (near ? ", perhaps " + std::string(c.kind) + '/' + *near : "")};
    }
    return c;
}

/// Runs one case: vision/<vision backbone id>, prefill/<language model>, decode/<language model>, action/<policy>,
/// matmul/<m>x<k>x<n>, as bench_names() has them. Weights are made in memory in their format. Throws ConfigError for other names.
template <Backend B>
BenchResult run_bench(B& be, std::string_view name, const BenchOptions& options = {}) {
    BenchResult result{.name = std::string(name), .weights = options.weights};
    const auto [kind, what] = bench_case(name);
    if (options.runs == 0) throw ConfigError{"runs", "0", "at least 1"};
    if (kind == "vision") bench_vision(be, bench_towers(what), options, result);
    else if (kind == "prefill") bench_prefill(be, bench_language_model(what), options, result);
    else if (kind == "decode") bench_decode(be, bench_language_model(what), options, result);
    else if (kind == "action") bench_action(be, bench_policy(what), options, result);
    else bench_matmul(be, what, options, result);
    return result;
}

}  // namespace program
