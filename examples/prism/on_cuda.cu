// The commands that compute, on an NVIDIA GPU. The one source of the program that nvcc compiles.
// prism/cuda.cuh without prism/prism.hpp: nvcc has enough to do without the processor's kernels.
#include "prism/backend/cuda/cuda.hpp"
#include "prism/backend/cuda/runtime.cuh"

#include "answers.hpp"
#include "bench.hpp"
#include "features.hpp"
#include "logits.hpp"
#include "machine_cuda.hpp"

#include <cuda_runtime_api.h>

#include <string>

namespace program {

using Gpu = prism::BasicCuda<prism::cuda::Runtime>;  // which prism/cuda.cuh calls prism::Cuda

template <>
struct GpuOf<prism::cuda::Runtime> {
    static GpuFacts facts(prism::cuda::Runtime& driver) {
        const auto& info = driver.info();
        const auto  attribute = [&](cudaDeviceAttr which) {
            int value = 0;
            return cudaDeviceGetAttribute(&value, which, info.index) == cudaSuccess ? static_cast<double>(value) : 0.0;
        };
        const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
        // Clocks are in kHz; memory delivers twice a cycle.
        return {.name = info.name, .major = info.major, .minor = info.minor, .n_processors = info.n_processors, .memory_bytes = static_cast<double>(info.memory_bytes),
                .clock_hz = 1e3 * attribute(cudaDevAttrClockRate),
                .memory_bytes_per_second = 2e3 * attribute(cudaDevAttrMemoryClockRate) * attribute(cudaDevAttrGlobalMemoryBusWidth) / 8,
                .driver_version = version(info.driver_version), .runtime_version = version(info.runtime_version),
                .library_version = std::to_string(info.cublaslt_version / 10000) + "." + std::to_string(info.cublaslt_version % 10000 / 100) + "." + std::to_string(info.cublaslt_version % 100)};
    }
};

namespace on_cuda {

void run(const Common& common, const Ask& args) { run_on<Gpu>(common, args); }
void run(const Common& common, const Chat& args) { run_on<Gpu>(common, args); }
void run(const Common& common, const Score& args) { run_on<Gpu>(common, args); }
void run(const Common& common, const Act& args) { run_on<Gpu>(common, args); }
void run(const Common& common, const Features& args) { run_on<Gpu>(common, args); }
void run(const Common& common, const Logits& args) { run_on<Gpu>(common, args); }
void run(const Common& common, const Bench& args) { run_on<Gpu>(common, args); }

}  // namespace on_cuda

}  // namespace program
