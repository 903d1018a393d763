// What this processor can do at most, measured: the numbers that results are held against.
//
//     const MachineLimits limits = measure_limits(cpu);     // about a second
#pragma once

#include "prism/backend/cpu/cpu.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <vector>

namespace prism {

struct MachineLimits {
    double f32_flops = 0;         // multiplications and additions per second, all threads of the backend
    double bytes_per_second = 0;  // read from memory, all threads
};

/// The best of several short bursts: other programs on the machine only ever make a burst slower. `bytes` is how much
/// memory each reading goes through; it should be several times the caches.
inline MachineLimits measure_limits(Cpu& be, std::size_t bytes = std::size_t{512} << 20) {
    using Clock = std::chrono::steady_clock;
    const auto          seconds = [](Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); };
    MachineLimits       limits;
    std::atomic<float>  sink{0};  // keeps the work from being left out
    const std::size_t   n_threads = be.threads(), rounds = 1'000'000;
    for (int i = 0; i < 12; ++i) {
        const auto start = Clock::now();
        be.parallel_for(n_threads, 1, [&](std::size_t, std::size_t) { sink = be.kernels().burst(rounds); });
        limits.f32_flops = std::max(limits.f32_flops, be.kernels().burst_flops * static_cast<double>(rounds * n_threads) / seconds(start));
    }
    if (bytes > 0) {
        std::vector<float> memory(bytes / sizeof(float), 1.0f);
        for (int i = 0; i < 5; ++i) {
            const auto start = Clock::now();
            be.parallel_for(memory.size(), std::size_t{1} << 20, [&](std::size_t begin, std::size_t end) {
                sink = be.kernels().read_all(memory.data() + begin, end - begin);
            });
            limits.bytes_per_second = std::max(limits.bytes_per_second, static_cast<double>(memory.size() * sizeof(float)) / seconds(start));
        }
    }
    return limits;
}

}  // namespace prism
