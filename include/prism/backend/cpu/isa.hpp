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

/// Kernel variants, each a superset of the one before.
enum class Isa : std::uint8_t {
    portable,     // plain C++, any processor
    avx2,         // AVX2, FMA, F16C
    avx512,       // AVX-512 F, BW, DQ, VL
    avx512_vnni,  // the same with VNNI: dot products of int8
    avx512_bf16,  // the same with BF16: dot products of bf16
    amx,          // the same with AMX: tiles of bf16 and int8
};

inline constexpr Isa all_isas[]{Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx};

constexpr std::string_view to_string(Isa isa) {
    constexpr std::string_view names[]{"portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};
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

inline Isa find_widest_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        unsigned   a = 0, b = 0, c = 0, d = 0;
        const bool vnni = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & 1U << 11) != 0;
        const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1U << 5) != 0;
        if (!vnni || !bf16) return vnni ? Isa::avx512_vnni : Isa::avx512;
        return may_use_amx() ? Isa::amx : Isa::avx512_bf16;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::portable;
}

}  // namespace detail

/// The widest set that this processor and its operating system run.
inline Isa widest_isa() {
    static const Isa widest = detail::find_widest_isa();
    return widest;
}

/// The fastest set: the widest, but where bf16 are multiplied at half the rate of f32. So do Intel's processors (vdpbf16ps takes
/// two cycles where vfmadd231ps takes half a one), which are fast at bf16 in AMX's tiles alone.
inline Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
    static const bool slow_bf16 = widest_isa() == Isa::avx512_bf16 && __builtin_cpu_is("intel");
    if (slow_bf16) return Isa::avx512_vnni;
#endif
    return widest_isa();
}

/// The set of that name. Throws ConfigError when there is none or this processor lacks it.
inline Isa isa_from_name(std::string_view name) {
    for (Isa isa : all_isas)
        if (name == to_string(isa) && isa <= widest_isa()) return isa;
    std::string allowed;
    for (Isa isa : all_isas)
        if (isa <= widest_isa()) allowed.append(allowed.empty() ? "" : ", ").append(to_string(isa));
    throw ConfigError{"isa", std::string(name), allowed + " on this processor"};
}

}  // namespace prism
