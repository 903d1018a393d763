// What this processor can do at most, measured: the numbers that results are held against.
//
//     const MachineLimits limits = measure_limits(cpu);     // about a second
#pragma once

#include "prism/backend/cpu/cpu.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <span>

namespace prism {

struct MachineLimits {
    // Multiplications and additions per second, all threads of the backend, by the type of what is multiplied. bf16 and
    // int8 are as fast as f32 where the processor has nothing for them.
    double f32_flops = 0, bf16_flops = 0, int8_ops = 0;
    double bytes_per_second = 0;  // read from memory, all threads

    /// The limit of products whose rows are taken in this form.
    double flops_of(cpu::Form form) const {
        switch (form) {
            case cpu::Form::f32: return f32_flops;
            case cpu::Form::bf16:
            case cpu::Form::bf16_pair: return bf16_flops;
            case cpu::Form::int8:
            case cpu::Form::int8_pair:
            case cpu::Form::int16: break;
        }
        return int8_ops;
    }
};

/// The best of several short bursts: other programs on the machine only ever make a burst slower. `bytes` is how much
/// memory each reading goes through; it should be several times the caches.
inline MachineLimits measure_limits(Cpu& be, std::size_t bytes = std::size_t{512} << 20) {
    using Clock = std::chrono::steady_clock;
    const auto          seconds = [](Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); };
    MachineLimits       limits;
    std::atomic<float>  sink{0};  // keeps the work from being left out
    const std::size_t   n_threads = be.threads();
    const auto          measure = [&](const cpu::Burst& burst, double& most) {
        const auto rounds = static_cast<std::size_t>(3e9 / burst.operations / 8);  // some milliseconds
        for (int i = 0; i < 4; ++i) {
            const auto start = Clock::now();
            be.parallel_for(n_threads, 1, [&](std::size_t, std::size_t) { sink = burst.run(rounds); });
            most = std::max(most, burst.operations * static_cast<double>(rounds * n_threads) / seconds(start));
        }
    };
    const Buffer<host>     buffer = be.allocate(bytes);
    const std::span<float> memory{static_cast<float*>(buffer.data()), bytes / sizeof(float)};
    std::fill(memory.begin(), memory.end(), 1.0f);
    for (int turn = 0; turn < 5; ++turn) {  // by turns: a neighbour's busy moment does not fall on one kind alone
        measure(be.kernels().burst_f32, limits.f32_flops);
        measure(be.kernels().burst_bf16, limits.bf16_flops);
        measure(be.kernels().burst_int8, limits.int8_ops);
        if (memory.empty()) continue;
        const auto start = Clock::now();
        be.parallel_for(memory.size(), std::size_t{1} << 20, [&](std::size_t begin, std::size_t end) {
            sink = be.kernels().read_all(memory.data() + begin, end - begin);
        });
        limits.bytes_per_second = std::max(limits.bytes_per_second, static_cast<double>(memory.size() * sizeof(float)) / seconds(start));
    }
    limits.bf16_flops = std::max(limits.f32_flops, limits.bf16_flops);
    limits.int8_ops = std::max(limits.f32_flops, limits.int8_ops);
    return limits;
}

}  // namespace prism
