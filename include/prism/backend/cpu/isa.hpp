// Instruction sets: what this processor has, and which of our kernels to run on it.
#pragma once

#include "prism/core/error.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace prism {

/// Kernel variants, each a superset of the one before.
enum class Isa : std::uint8_t {
    portable,  // Eigen and plain C++, any processor
    avx2,      // AVX2, FMA, F16C
    avx512,    // AVX-512 F, BW, DQ, VL
};

constexpr std::string_view to_string(Isa isa) {
    return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

/// The widest set that this processor and its operating system run.
inline Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::portable;
}

/// The set of that name. Throws ConfigError when there is none or this processor lacks it.
inline Isa isa_from_name(std::string_view name) {
    for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
        if (name == to_string(isa) && isa <= best_isa()) return isa;
    std::string allowed;
    for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
        if (isa <= best_isa()) allowed += (allowed.empty() ? "" : ", ") + std::string(to_string(isa));
    throw ConfigError{"isa", std::string(name), allowed + " on this processor"};
}

}  // namespace prism
