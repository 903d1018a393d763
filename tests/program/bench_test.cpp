// Timing on a device, which the processor plays here, and what GPUs can do at most.
#include "prism/backend/cuda/emulated.hpp"

#include "machine_cuda.hpp"

#include <doctest/doctest.h>

#include <string>
#include <utility>

using namespace prism;

template <>
struct program::GpuOf<cuda::Emulator> {
    static GpuFacts facts(cuda::Emulator& driver) {
        return {.name = "NVIDIA H200", .major = 9, .n_processors = driver.n_processors(), .clock_hz = 1e9, .memory_bytes_per_second = 1e9, .driver_version = "13.0"};
    }
};

TEST_CASE("program/bench: each kind of case is timed on a device, in parts that are held against limits") {
    EmulatedCuda                         be{{.driver = {.library = true}}};
    const program::Machine<EmulatedCuda> machine{be, {.copied_bytes = 1 << 16, .product_size = 24, .runs = 2}};
    CHECK(machine.best.bytes_per_second > 0);
    CHECK(machine.best.flops_per_second > 0);
    const program::BenchOptions options{.weights = Dtype::bf16, .runs = 1, .tokens = 3, .context = 2, .ids = 2, .action = 2, .least_runs = 2, .least_s = 0, .past_caches_bytes = 4000};
    const VitConfig             tower{.image_size = 28, .patch_size = 14, .d_model = 16, .n_layers = 2, .n_heads = 2, .d_ff = 16};
    const LlamaConfig           llm{.vocab_size = 32, .d_model = 16, .d_ff = 16, .n_layers = 1, .n_heads = 2, .n_kv_heads = 2, .head_dim = 8};
    const PrismaticConfig       policy{.model_id = "small", .vision_backbone_id = "small", .llm_backbone_id = "small",
                                       .towers = {{"dino", tower, {.stats = statistics::half, .strategy = Resize::naive, .size = 28}}}, .llm = llm};
    const auto check = [&](auto&& time, std::size_t n_parts) {
        program::BenchResult r;
        time(r);
        CHECK(r.parts.size() == n_parts);
        CHECK(r.seconds_min > 0);
        CHECK(r.seconds_median >= r.seconds_min);
        CHECK(r.one_by_one_s > 0);
        CHECK(r.flops() > 0);
        CHECK(r.bytes() > 0);
        // With one limit far away, the other alone decides.
        const auto   either = [](double flops, double bytes) { return [=](std::size_t) { return program::Peak{flops, bytes}; }; };
        const double both = r.fraction_of_peak(either(1e9, 1e9));
        CHECK(r.compute_share(either(1e9, 1e9)) <= both);
        CHECK(r.bandwidth_share(either(1e9, 1e9)) <= both);
        CHECK(r.fraction_of_peak(either(1e9, 1e30)) == doctest::Approx(r.compute_share(either(1e9, 1e30))));
        CHECK(r.fraction_of_peak(either(1e9, 1e30)) == doctest::Approx(static_cast<double>(r.flops()) / 1e9 / r.seconds_median));
    };
    check([&](auto& r) { program::bench_vision(be, {tower}, options, r); }, 1);
    check([&](auto& r) { program::bench_prefill(be, llm, options, r); }, 1);
    check([&](auto& r) { program::bench_decode(be, llm, options, r); }, 1);
    check([&](auto& r) { program::bench_matmul(be, "2x16x32", options, r); }, 1);
    check([&](auto& r) {
        program::bench_action(be, policy, options, r);
        CHECK(r.picture_s > 0);
        CHECK(r.from_pixels_s > 0);
        CHECK(r.from_pixels_s <= r.seconds_median);
    }, 3);

    Json json;
    machine.describe(json);
    CHECK(json.at("gpu").at("name") == "NVIDIA H200");
    CHECK(json.at("gpu").at("driver") == "13.0");
}

TEST_CASE("program/bench: every case that is listed is one") {
    for (const auto& [kind, names] : program::bench_names())
        for (const std::string& name : names)
            if (kind == "vision") CHECK(program::bench_towers(name).size() > 0);  // what a run looks up
            else if (kind != "matmul") CHECK(program::bench_case(std::string(kind) + '/' + name).kind == kind);
    CHECK(program::bench_case("matmul/1x2x3").what == "1x2x3");
    CHECK(program::bench_case("action/Prism-CLIP 7B").kind == "action");  // as a paper calls it
    CHECK_THROWS_WITH_AS(program::bench_case("prefill/lama2-7b"), doctest::Contains("perhaps prefill/llama2-7b"), ConfigError);
}

TEST_CASE("program/bench: limits of GPUs are their data sheets', and of others by their parts") {
    const auto limits = [](std::string name, int major, int minor, int n, double ghz, double gb) {
        return program::gpu_limits({.name = std::move(name), .major = major, .minor = minor, .n_processors = n, .clock_hz = 1e9 * ghz, .memory_bytes_per_second = 1e9 * gb});
    };
    const auto h200 = limits("NVIDIA H200", 9, 0, 132, 1.98, 4800);
    CHECK(h200.published);
    CHECK(h200.bf16_flops == doctest::Approx(989e12));
    CHECK(h200.f32_flops == doctest::Approx(66.9e12).epsilon(0.01));
    CHECK(limits("NVIDIA GH200 480GB", 9, 0, 132, 1.98, 4000).bytes_per_second == doctest::Approx(4e12));  // another GPU
    CHECK_FALSE(limits("Orin", 8, 7, 8, 0.9, 102).published);                                               // a smaller module
    // By its parts, a GPU whose sheet is known comes out as the sheet says.
    for (const auto& [known, same] : {std::pair{limits("NVIDIA A100-SXM4-80GB", 8, 0, 108, 1.41, 2039), limits("A100", 8, 0, 108, 1.41, 2039)},
                                      {limits("NVIDIA GeForce RTX 4090", 8, 9, 128, 2.52, 1008), limits("GeForce", 8, 9, 128, 2.52, 1008)},
                                      {limits("Orin", 8, 7, 16, 1.3, 205), limits("AGX", 8, 7, 16, 1.3, 205)},
                                      {limits("NVIDIA Thor", 11, 0, 20, 1.575, 273), limits("T5000", 11, 0, 20, 1.575, 273)}}) {
        CHECK(known.published);
        CHECK_FALSE(same.published);
        CHECK(same.bf16_flops == doctest::Approx(known.bf16_flops).epsilon(0.02));
        CHECK(same.fp8_flops == doctest::Approx(known.fp8_flops).epsilon(0.02));
        CHECK(same.int8_ops == doctest::Approx(known.int8_ops).epsilon(0.02));
    }
    CHECK(limits("Volta", 7, 0, 80, 1.5, 900).bf16_flops == 0);
}
