// bench: how fast parts of models are here, and how fast they could be, on any backend. What a machine is and what it can do
// at most is Machine<B>: machine_cpu.hpp, machine_cuda.hpp.
#pragma once

#include "backends.hpp"
#include "bench_cases.hpp"
#include "files.hpp"
#include "options.hpp"
#include "progress.hpp"

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

namespace program {

/// Made from a backend, with what it can do at most:
///     static constexpr Dtype weights       of cases, where none are asked for
///     void show() const                    what it is, on standard output
///     Peak peak(Dtype weights, std::size_t rows) const
///     void describe(Json& result) const    adds what it is to the JSON of a case
/// and where limits are published and measured: Peak measured(Dtype weights, std::size_t rows) const.
template <Backend B>
struct Machine;

/// The names of cases by their kinds.
inline void list_cases(const Common& common) {
    Json all = Json::object();
    for (const auto& [kind, names] : bench_names()) {
        all[std::string(kind)] = names;
        if (common.json) continue;
        for (const std::string& name : names) std::cout << kind << '/' << name << '\n';
    }
    if (common.json) print(all);
}

template <Backend B>
void run_on(const Common& common, const Bench& args) {
    using namespace prism;
    if (args.list) return list_cases(common);
    const auto cases = args.cases.empty() ? std::vector<std::string>{"matmul/288x4096x11008", "vision/dinosiglip-vit-so-224px", "prefill/tinyllama-1.1b", "decode/tinyllama-1.1b"}
                                          : args.cases;
    for (const auto& name : cases) from_options([&] { return bench_case(name); });  // before anything takes time
    B be = open_backend<B>(common);
    const Dtype       weights = common.weights == "as-stored" ? Machine<B>::weights : format_from_name(common.weights, all_formats{});
    std::string       format;
    with_format(weights, all_formats{}, [&]<class F>(F) { format = F::name; });
    const Machine<B> machine = [&] {
        const Progress bar{!common.quiet, "measuring what the machine can do"};
        return Machine<B>{be};
    }();
    constexpr bool records = RecordingBackend<B>, measures = requires { machine.measured(weights, std::size_t{}); };
    std::size_t    n_done = 0;
    if (!common.json) {
        machine.show();
        std::printf("%-34s %-5s %10s %10s", "case", "", "min s", "median s");
        if (records) std::printf(" %10s", "one by one");
        std::printf(" %13s %9s", "of arithmetic", "of memory");
        if (measures) std::printf(" %9s %11s", "of limits", "of measured");
        std::printf("\n");
    }
    for (const auto& name : cases) {
        const BenchResult r = [&] {
            const Progress bar{!common.quiet, name};
            return run_bench(be, name, {.weights = weights, .runs = args.runs});
        }();
        const auto peak = [&](std::size_t rows) { return machine.peak(weights, rows); };
        double     of_measured = 0;
        if constexpr (measures) of_measured = r.fraction_of_peak([&](std::size_t rows) { return machine.measured(weights, rows); });
        if (common.json) {
            Json result{{"case", name}, {"weights", format}, {"compute", common.compute}, {"seconds", {{"min", r.seconds_min}, {"median", r.seconds_median}}},
                        {"flops", r.flops()}, {"bytes", r.bytes()}, {"fraction_of_peak", r.fraction_of_peak(peak)}};
            if (records) result["seconds"]["one_by_one"] = r.one_by_one_s;
            if (r.picture_s > 0) result["seconds"]["picture"] = r.picture_s, result["seconds"]["from_pixels"] = r.from_pixels_s;
            if (measures) result["fraction_of_measured_peak"] = of_measured;
            machine.describe(result);
            // An array, written as it grows: a run that is stopped leaves the lines of what was done.
            if (cases.size() > 1) std::cout << (n_done == 0 ? '[' : ',');
            print(result);
        } else {
            std::printf("%-34s %-5s %10.4g %10.4g", name.c_str(), format.c_str(), r.seconds_min, r.seconds_median);
            if (records) std::printf(" %10.4g", r.one_by_one_s);
            std::printf(" %11.0f %% %7.0f %%", 100 * r.compute_share(peak), 100 * r.bandwidth_share(peak));
            if (measures) std::printf(" %7.0f %% %9.0f %%", 100 * r.fraction_of_peak(peak), 100 * of_measured);
            std::printf("\n");
        }
        ++n_done;
        std::cout.flush(), std::fflush(stdout);
    }
    if (common.json && cases.size() > 1) std::cout << "]\n";
}

}  // namespace program
