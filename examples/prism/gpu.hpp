// GPUs: what they are, and what they can do at most by their data sheets or by their parts.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace program {

/// What a driver says of a GPU.
struct GpuFacts {
    std::string name;
    int         major = 0, minor = 0;                             // compute capability
    int         n_processors = 0;
    double      memory_bytes = 0;
    double      clock_hz = 0;                                     // the highest
    double      memory_bytes_per_second = 0;                      // memory clock times width; 0 where it is not told
    std::string driver_version{}, runtime_version{}, library_version{};  // what the driver can do, the runtime, cuBLASLt
};

/// A second, all processors. Zero: it has no such arithmetic, or nobody says. Products are summed in f32.
struct GpuLimits {
    double f32_flops = 0, bf16_flops = 0, fp8_flops = 0, int8_ops = 0, bytes_per_second = 0;
    bool   published = false;  // from a data sheet; else from clock, processors and bus
};

/// Limits by the data sheet of the GPU where it is known here, else by what its parts can do. f32 is always by its parts.
inline GpuLimits gpu_limits(const GpuFacts& gpu) {
    struct Sheet {
        std::string_view name;
        int              n_processors;  // 0: any; several modules of Jetson share a name
        double           bf16, fp8, int8, bytes_per_second;  // dense; in 1e12 and 1e9
    };
    static constexpr std::array<Sheet, 6> sheets{{
        {"NVIDIA A100-SXM4-80GB", 0, 312, 0, 624, 2039},
        {"NVIDIA H100 80GB HBM3", 0, 989, 1979, 1979, 3350},
        {"NVIDIA H200", 0, 989, 1979, 1979, 4800},
        {"NVIDIA GeForce RTX 4090", 0, 165, 330, 661, 1008},
        {"Orin", 16, 42.7, 0, 85, 205},
        {"NVIDIA Thor", 20, 258, 517, 517, 273},
    }};
    // Multiplications with additions of 16-bit values in a processor and a cycle, and of f32 values outside of tensor cores.
    const int  capability = 10 * gpu.major + gpu.minor;
    const bool games = gpu.name.find("GeForce") != std::string::npos;  // half as many where sums are f32
    const double tensor = capability < 80 ? 0 : capability == 80 || capability == 87 ? 1024 : capability < 90 ? 512 : capability < 100 ? 2048 : capability < 120 ? 4096 : 512;
    const double plain = capability == 80 ? 64 : 128;
    const double cycles = 2 * gpu.n_processors * gpu.clock_hz;
    GpuLimits    limits{.f32_flops = plain * cycles, .bf16_flops = tensor * cycles * (games ? 0.5 : 1), .fp8_flops = capability < 89 ? 0 : 2 * tensor * cycles * (games ? 0.5 : 1),
                        .int8_ops = 2 * tensor * cycles, .bytes_per_second = gpu.memory_bytes_per_second};
    for (const Sheet& s : sheets)
        if (gpu.name == s.name && (s.n_processors == 0 || gpu.n_processors == s.n_processors))
            limits = {limits.f32_flops, 1e12 * s.bf16, 1e12 * s.fp8, 1e12 * s.int8, 1e9 * s.bytes_per_second, true};
    return limits;
}

}  // namespace program
