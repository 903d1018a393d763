// What a GPU is and can do at most: by its data sheet, and measured in the same run.
#pragma once

#include "bench.hpp"
#include "gpu.hpp"

#include "prism/backend/cuda/cuda.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace program {

/// What the driver of a backend says of its GPU: facts(driver).
template <class D>
struct GpuOf;

/// How large the measured copy and product are: several times the caches, and long enough for the clock.
struct GpuMeasurement {
    std::size_t copied_bytes = std::size_t{1} << 30, product_size = 8192, runs = 10;
};

/// Bytes a second that a copy reads and writes, and operations a second of a product of two square matrices in bf16 (0 where
/// there is no library for it).
template <cuda::Driver D>
Peak measure_gpu(BasicCuda<D>& be, const GpuMeasurement& how = {}) {
    Peak best;
    {
        const std::size_t n = 4096, rows = std::max<std::size_t>(1, how.copied_bytes / sizeof(float) / n);
        const auto        from = be.allocate(rows * n * sizeof(float)), to = be.allocate(rows * n * sizeof(float));
        const Mat<BasicCuda<D>> x{from.template as<float>(), {rows, n}}, y{to.template as<float>(), {rows, n}};
        const auto        row = random_values(n, 1);
        for (std::size_t i = 0; i < rows; ++i) be.upload(row, x.row(i));
        be.copy(x, y);
        best.bytes_per_second = 2 * static_cast<double>(rows * n * sizeof(float)) / time_runs(be, how.runs, 4, [&] { be.copy(x, y); }).min();
    }
    const std::size_t         n = how.product_size;
    const auto                values = random_values(std::min<std::size_t>(n, 64) * n, 2);
    std::vector<bf16::block>  rows(values.size());
    bf16::encode(values, rows);
    const auto x = be.allocate(n * n * sizeof(bf16::block)), w = be.allocate(n * n * sizeof(bf16::block)), y = be.allocate(n * n * sizeof(float));
    for (const auto* matrix : {&x, &w})
        for (std::size_t at = 0; at < n * n; at += rows.size())
            be.driver().to_device(matrix->template as<bf16::block>() + at, rows.data(), std::min(rows.size(), n * n - at) * sizeof(bf16::block));
    const auto                 size = static_cast<std::int64_t>(n);
    const cuda::LibraryProduct product{.type = Dtype::bf16, .m = size, .n = size, .k = size, .x = x.data(), .ldx = size, .w = w.data(), .ldw = size, .y = y.template as<float>(), .ldy = size};
    if (be.driver().multiply(product))
        best.flops_per_second = 2 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) /
                                time_runs(be, how.runs, 4, [&] { static_cast<void>(be.driver().multiply(product)); }).min();
    return best;
}

template <cuda::Driver D>
struct Machine<BasicCuda<D>> {
    static constexpr Dtype weights = Dtype::bf16;

    GpuFacts  gpu;
    GpuLimits limits;
    Peak      best;

    explicit Machine(BasicCuda<D>& be, const GpuMeasurement& how = {}) : gpu(GpuOf<D>::facts(be.driver())), limits(gpu_limits(gpu)), best(measure_gpu(be, how)) {}

    void show() const {
        std::printf("%s: compute capability %d.%d, %d multiprocessors, %.0f GB; driver %s, runtime %s, cuBLASLt %s\n", gpu.name.c_str(), gpu.major, gpu.minor,
                    gpu.n_processors, gpu.memory_bytes * 1e-9, gpu.driver_version.c_str(), gpu.runtime_version.c_str(), gpu.library_version.c_str());
        std::printf("limits by %s: %.1f TFLOP/s in f32, %.1f in bf16, %.0f in fp8, %.0f TOP/s in int8, %.0f GB/s; measured: %.1f TFLOP/s in bf16, %.0f GB/s\n",
                    limits.published ? "data sheet" : "clock and parts", limits.f32_flops * 1e-12, limits.bf16_flops * 1e-12, limits.fp8_flops * 1e-12,
                    limits.int8_ops * 1e-12, limits.bytes_per_second * 1e-9, best.flops_per_second * 1e-12, best.bytes_per_second * 1e-9);
    }
    /// Weights in f32 are multiplied in f32, all others in 16 bits.
    Peak peak(Dtype of, std::size_t) const { return {of == Dtype::f32 ? limits.f32_flops : limits.bf16_flops, limits.bytes_per_second}; }
    Peak measured(Dtype of, std::size_t) const { return {of == Dtype::f32 || best.flops_per_second == 0 ? peak(of, 1).flops_per_second : best.flops_per_second, best.bytes_per_second}; }

    void describe(Json& result) const {
        result["threads"] = 1;
        result["gpu"] = {{"name", gpu.name}, {"compute_capability", std::to_string(gpu.major) + "." + std::to_string(gpu.minor)}, {"multiprocessors", gpu.n_processors},
                         {"driver", gpu.driver_version}, {"runtime", gpu.runtime_version}, {"cublaslt", gpu.library_version}};
        result["limits"] = {{"published", limits.published}, {"f32_flops", limits.f32_flops}, {"bf16_flops", limits.bf16_flops}, {"fp8_flops", limits.fp8_flops},
                            {"int8_ops", limits.int8_ops}, {"bytes_per_second", limits.bytes_per_second}};
        result["measured"] = {{"bf16_flops", best.flops_per_second}, {"bytes_per_second", best.bytes_per_second}};
    }
};

}  // namespace program
