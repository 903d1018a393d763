// One step of training a language model of 98 M parameters: time, arithmetic, and the share of what the processor does at most,
// measured first in the same run. On a machine that others use, the time that threads computed says more than the clock's.
//
//     step_bench [--rows 4] [--tokens 256] [--threads 0] [--steps 5] [--replay] [--fast]
//
// benchmarks/step_peer.py makes the same step with PyTorch.
#include "prism/backend/cpu/limits.hpp"
#include "prism/backend/cpu/training.hpp"
#include "prism/model/random.hpp"
#include "prism/train/trainer.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

using namespace prism;

int main(int argc, char** argv) {
    const auto option = [&](const char* name, std::size_t fallback) {
        for (int i = 1; i + 1 < argc; ++i)
            if (std::strcmp(argv[i], name) == 0) return static_cast<std::size_t>(std::strtoul(argv[i + 1], nullptr, 10));
        return fallback;
    };
    const auto        given = [&](const char* name) { return std::any_of(argv + 1, argv + argc, [&](const char* a) { return std::strcmp(a, name) == 0; }); };
    const bool        replay = given("--replay"), fast = given("--fast");
    const std::size_t n_rows = option("--rows", 4), n_tokens = option("--tokens", 256), n_steps = option("--steps", 5);
    Cpu               be{{.threads = option("--threads", 0), .compute = fast ? Compute::fast : Compute::exact}};
    const auto        limits = measure_limits(be, 0);

    LanguageModel<Cpu> model{LlamaConfig{.vocab_size = 8192, .d_model = 768, .d_ff = 2048, .n_layers = 12, .n_heads = 12, .n_kv_heads = 12, .head_dim = 64}};
    randomise(be, model);
    Trainer trainer{be, model, Stage::finetune, {.optimizer = {.lr = 1e-4, .total_steps = 1000}, .tape = {.replay = replay}}};

    std::vector<std::vector<std::int32_t>> ids(n_rows, std::vector<std::int32_t>(n_tokens + 1));
    std::vector<TrainingRow>               rows;
    for (std::size_t r = 0; r < n_rows; ++r) {
        for (std::size_t i = 0; i <= n_tokens; ++i) ids[r][i] = static_cast<std::int32_t>((i * 2654435761u + r * 40503u) % 8192);
        rows.push_back({ids[r], ids[r], {}});
    }
    const TrainingBatch<Cpu> batch{.rows = rows};
    const TrainingCost       cost = trainer.cost(batch);
    std::vector<double>      seconds, computing;
    for (std::size_t i = 0; i <= n_steps; ++i) {
        const auto         start = std::chrono::steady_clock::now();
        const std::clock_t cpu = std::clock();
        trainer.micro_step(batch);
        trainer.step();
        if (i == 0) continue;  // which fetches memory
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        computing.push_back(static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC);
    }
    const double least = *std::min_element(seconds.begin(), seconds.end()), busy = *std::min_element(computing.begin(), computing.end());
    const double flops = static_cast<double>(cost.flops), most = limits.f32_flops;
    std::printf("%zu parameters, %zu rows of %zu tokens, %zu threads%s%s\n", trainer.optimizer().layout().size, n_rows, n_tokens, be.threads(), replay ? ", blocks run again" : "", fast ? ", products in bf16" : "");
    std::printf("step %.3f s, %.1f GFLOP of products and attention, %.1f GFLOP/s: %.2f of the %.1f that registers alone do\n", least, flops / 1e9, flops / least / 1e9,
                flops / least / most, most / 1e9);
    std::printf("threads computed for %.3f s: %.2f of what they could have done\n", busy, flops / (busy / static_cast<double>(be.threads())) / most);
    std::printf("memory: %.0f MB of scratch, %.0f MB of parameters, gradients and moments\n", static_cast<double>(cost.workspace_bytes) / 1e6, static_cast<double>(cost.state_bytes) / 1e6);
}
