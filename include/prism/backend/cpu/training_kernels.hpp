// TrainingKernels: the table of functions that gradients are made of on the CPU, beside Kernels and picked like it.
#pragma once

#include "prism/backend/cpu/kernels.hpp"

#include <cstddef>
#include <cstdint>

namespace prism::cpu {

/// A tile of a product that sums over the rows of w:     y (+)= a w     or     y (+)= a^T w with `across`
/// a is [m, k], or [k, m]; w is [k, n]. Strides in elements.
struct GradientTile {
    static constexpr std::size_t max_rows = 336, max_cols = 128;  // 336: a multiple of the rows that any set takes at a time
    const float* a = nullptr;
    std::size_t  lda = 0, m = 0, k = 0;
    WeightRows   w;
    std::size_t  begin = 0, end = 0, n = 0;  // columns of this tile, from a multiple of 32 on; n: columns of w in all
    bool         across = false, add = false;
    float*       y = nullptr;  // of column 0
    std::size_t  ldy = 0;
};

/// One key head of one sequence, and the query heads that share it: head_dim wide each, side by side.
struct AttendGradient {
    const float *q, *k, *v, *y, *dy;
    float *      dq, *dk, *dv;
    std::size_t  ldq, ldk, ldv, ldy, lddy, lddq, lddk, lddv;
    std::size_t  n_q, n_kv, n_heads, head_dim;  // n_heads: of queries
    bool         causal;
    std::size_t  pos, window;
    float        scale;

    static constexpr std::size_t most_rows = 84;  // of queries at a time: a multiple of the rows that any set takes at a time
    /// So many that their scores against all keys stay in the second-level cache, all tiles about alike.
    static std::size_t rows(std::size_t n_q, std::size_t n_kv) {
        const std::size_t most = std::clamp<std::size_t>(98304 / (n_kv + 1) / 14 * 14, 28, most_rows), n = (n_q + most - 1) / most;
        return n ? ((n_q + n - 1) / n + 13) / 14 * 14 : 0;
    }
    static constexpr std::size_t padded(std::size_t n) { return (n + 31) / 32 * 32; }
    /// Rows of scores, not at multiples of 2 KiB.
    static std::size_t ld_scores(std::size_t n_kv) { return padded(n_kv) + 16; }
    /// Of the memory that a thread needs for one.
    static std::size_t floats(std::size_t n_q, std::size_t n_kv, std::size_t head_dim) {
        return 5 * padded(n_kv) * padded(head_dim) + rows(n_q, n_kv) * (2 * ld_scores(n_kv) + 4 * (padded(head_dim) + 16));
    }
};

/// What one step of AdamW is made of, in f32.
struct AdamWFactors {
    float keep, to_m, beta2, to_v, rate, root, eps, clip;
};

struct TrainingKernels {
    std::size_t tile_rows;  // rows that are computed together
    void (*products[n_formats])(const GradientTile&);
    void (*attend)(const AttendGradient&, float* memory);
    // Rows of numbers; sums may be null.
    void (*layer_norm)(const float* x, const float* weight, float eps, const float* dy, float* dx, float* w_sums, float* b_sums, std::size_t d);
    void (*rms_norm)(const float* x, const float* weight, float eps, const float* dy, float* dx, float* w_sums, std::size_t d);
    void (*activate)(Activation, const float* z, float* dy, std::size_t n);
    void (*silu_mul)(const float* gate, const float* up, const float* dy, float* dgate, float* dup, std::size_t n);
    void (*scaled)(const float* branch, const float* gamma, const float* dy, float* dbranch, float* sums, std::size_t n);
    double (*cross_entropy)(float* logits, std::size_t n, std::size_t label, float scale);
    double (*squares)(const float* x, std::size_t n);
    void (*adamw)(float* theta, const float* grad, float* m, float* v, std::size_t n, const AdamWFactors&);
};

/// A template for the same reason as KernelTables.
template <int = 0>
struct TrainingTables {
    static const TrainingKernels& of(Isa isa, bool rounded);  // rounded: products in bf16 where that is faster
};

#if !defined(PRISM_COMPILED) && !defined(PRISM_COMPILED_KERNELS)  // else the target that is linked has them

#if defined(__CUDACC__)
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675  // as in kernels.hpp
#endif
namespace portable {
#include "prism/backend/cpu/training.inl"
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#include "prism/backend/cpu/training.inl"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,prefer-vector-width=512")
#endif
namespace avx512 {
#include "prism/backend/cpu/training.inl"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16,amx-int8,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16,amx-int8,fma,f16c,prefer-vector-width=512")
#endif
namespace amx {
#include "prism/backend/cpu/training_amx.inl"
}  // namespace amx
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#if defined(__CUDACC__)
#pragma nv_diagnostic pop
#endif

template <int I>
const TrainingKernels& TrainingTables<I>::of(Isa isa, bool rounded) {
#if defined(__x86_64__) && defined(__GNUC__)
    static constexpr TrainingKernels avx2_table = avx2::training_kernels(), avx512_table = avx512::training_kernels(), amx_table = amx::training_kernels();
    if (isa >= Isa::amx && rounded) return amx_table;
    if (isa >= Isa::avx512) return avx512_table;
    if (isa >= Isa::avx2) return avx2_table;
#endif
    static_cast<void>(isa), static_cast<void>(rounded);
    static constexpr TrainingKernels portable_table = portable::training_kernels();
    return portable_table;
}

#endif

}  // namespace prism::cpu
