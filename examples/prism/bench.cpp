// bench: how fast parts of models are here, and how fast they could be.
#include "models.hpp"
#include "progress.hpp"

#include "bench_cases.hpp"
#include "prism/io/json.hpp"

#include <cstdio>
#include <iostream>

namespace program {

using namespace prism;

void run(const Common& common, const Bench& args) {
    Cpu                cpu = open_backend(common);
    const auto         cases = args.cases.empty() ? std::vector<std::string>{"matmul/288x4096x11008", "vision/dinosiglip-vit-so-224px", "prefill/tinyllama-1.1b", "decode/tinyllama-1.1b"}
                                                  : args.cases;
    const Dtype        weights = common.weights == "as-stored" ? Dtype::f32 : format_from_name(common.weights, all_formats{});
    for (const auto& name : cases) bench_case(name);  // before anything takes time
    const MachineLimits limits = [&] {
        const Progress bar{!common.quiet, "measuring what the machine can do"};
        return measure_limits(cpu);
    }();
    Json results = Json::array();
    if (!common.json)
        std::printf("%zu threads, %s: %.0f GFLOP/s in f32, %.0f in bf16, %.0f GOP/s in int8, %.1f GB/s from memory\n%-34s %-5s %10s %10s %13s %9s\n", cpu.threads(),
                    to_string(cpu.isa()).data(), limits.f32_flops * 1e-9, limits.bf16_flops * 1e-9, limits.int8_ops * 1e-9, limits.bytes_per_second * 1e-9, "case", "",
                    "min s", "median s", "of arithmetic", "of memory");
    for (const auto& name : cases) {
        const BenchResult r = [&] {
            const Progress bar{!common.quiet, name};
            return run_bench(cpu, name, limits, {.weights = weights, .runs = args.runs});
        }();
        if (common.json)
            results.push_back({{"case", name}, {"threads", r.threads}, {"weights", common.weights == "as-stored" ? "f32" : common.weights}, {"compute", common.compute},
                               {"seconds", {{"min", r.seconds_min}, {"median", r.seconds_median}}}, {"flops", r.flops}, {"bytes", r.bytes},
                               {"fraction_of_peak", r.fraction_of_peak()}});
        else
            std::printf("%-34s %-5s %10.4f %10.4f %11.0f %% %7.0f %%\n", name.c_str(), common.weights == "as-stored" ? "f32" : common.weights.c_str(), r.seconds_min,
                        r.seconds_median, 100 * r.compute_share(), 100 * r.bandwidth_share());
        std::fflush(stdout);
    }
    if (common.json) std::cout << (cases.size() == 1 ? results[0] : results).dump() << '\n';
}

}  // namespace program
