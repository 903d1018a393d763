// What a processor is and can do at most, measured in the same run.
#pragma once

#include "bench.hpp"

#include "prism/backend/cpu/limits.hpp"

#include <cstdio>

namespace program {

template <>
struct Machine<prism::Cpu> {
    static constexpr prism::Dtype weights = prism::Dtype::f32;

    prism::Cpu*          be;
    prism::MachineLimits limits;

    explicit Machine(prism::Cpu& cpu) : be(&cpu), limits(prism::measure_limits(cpu)) {}

    void show() const {
        std::printf("%zu threads, %s: %.0f GFLOP/s in f32, %.0f in bf16, %.0f GOP/s in int8, %.1f GB/s from memory\n", be->threads(), to_string(be->isa()).data(),
                    limits.f32_flops * 1e-9, limits.bf16_flops * 1e-9, limits.int8_ops * 1e-9, limits.bytes_per_second * 1e-9);
    }
    Peak peak(prism::Dtype of, std::size_t rows) const { return {limits.flops_of(be->form_of(of, rows)), limits.bytes_per_second}; }
    void describe(prism::Json& result) const { result["threads"] = be->threads(); }
};

}  // namespace program
