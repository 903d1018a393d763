// Instruction sets: what this processor has, and which of our kernels to run on it.
#pragma once

#include "prism/core/error.hpp"

#include <cstdint>
#include <string>
#include <string_view>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace prism {

/// Kernel variants. The last that a processor runs is its fastest, with one exception: best_isa().
enum class Isa : std::uint8_t {
    portable,     // plain C++, any processor
    avx2,         // AVX2, FMA, F16C
    avx_vnni,     // the same with AVX-VNNI: dot products of int8
    avx512,       // AVX-512 F, BW, DQ, VL
    avx512_vnni,  // the same with VNNI: dot products of int8
    avx512_bf16,  // the same with BF16: dot products of bf16
    amx,          // the same with AMX: tiles of bf16 and int8
};

inline constexpr Isa all_isas[]{Isa::portable, Isa::avx2, Isa::avx_vnni, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx};

constexpr std::string_view to_string(Isa isa) {
    constexpr std::string_view names[]{"portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx"};
    return names[static_cast<std::size_t>(isa)];
}

namespace detail {

/// Whether the processor has AMX and the operating system lets this process use it, which has to be asked for.
inline bool may_use_amx() {
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__) && defined(SYS_arch_prctl)
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned amx_bf16 = 1U << 22, amx_tile = 1U << 24, amx_int8 = 1U << 25, all = amx_bf16 | amx_tile | amx_int8;
    constexpr long     request_permission = 0x1023, tile_data = 18;
    return (d & all) == all && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

/// One bit for each set that this processor and its operating system run.
inline unsigned find_isas() {
    unsigned   isas = 1;
    const auto has = [&](Isa isa, bool there) { isas |= there ? 1U << static_cast<unsigned>(isa) : 0U; return there; };
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    unsigned       a = 0, b = 0, c = 0, d = 0;
    const unsigned seven = __get_cpuid_count(7, 0, &a, &b, &c, &d) ? c : 0, seven_one = __get_cpuid_count(7, 1, &a, &b, &c, &d) ? a : 0;
    const bool     avx_vnni = (seven_one & 1U << 4) != 0, bf16 = (seven_one & 1U << 5) != 0, vnni = (seven & 1U << 11) != 0;
    if (has(Isa::avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) has(Isa::avx_vnni, avx_vnni);
    if (has(Isa::avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512vl")) &&
        has(Isa::avx512_vnni, vnni) && has(Isa::avx512_bf16, bf16))
        has(Isa::amx, may_use_amx());
#else
    static_cast<void>(has);
#endif
    return isas;
}

}  // namespace detail

/// Whether this processor and its operating system run a set.
inline bool runs(Isa isa) {
    static const unsigned isas = detail::find_isas();
    return (isas >> static_cast<unsigned>(isa) & 1U) != 0;
}

/// The fastest set that runs: the last of them, but for avx512_bf16 on Intel's processors. They multiply bf16 at half the rate of
/// f32 (vdpbf16ps takes two cycles where vfmadd231ps takes half a one), other than in AMX's tiles.
inline Isa best_isa() {
    static const Isa best = [] {
        Isa last = Isa::portable;
        for (Isa isa : all_isas)
            if (runs(isa)) last = isa;
#if defined(__x86_64__) && defined(__GNUC__)
        if (last == Isa::avx512_bf16 && __builtin_cpu_is("intel")) return Isa::avx512_vnni;
#endif
        return last;
    }();
    return best;
}

/// Whether weights that a kernel fetches ahead belong into the second-level cache, and not into the first.
inline bool fetches_to_second_level() {
#if defined(__x86_64__) && defined(__GNUC__)
    static const bool amd = (__builtin_cpu_init(), __builtin_cpu_is("amd"));
    return amd;
#else
    return false;
#endif
}

/// The set of that name. Throws ConfigError when there is none or this processor lacks it.
inline Isa isa_from_name(std::string_view name) {
    for (Isa isa : all_isas)
        if (name == to_string(isa) && runs(isa)) return isa;
    std::string allowed;
    for (Isa isa : all_isas)
        if (runs(isa)) allowed.append(allowed.empty() ? "" : ", ").append(to_string(isa));
    throw ConfigError{"isa", std::string(name), allowed + " on this processor"};
}

}  // namespace prism
