// Kernels: the table of functions that the CPU backend runs, one table per instruction set, chosen at run time.
// Users need no compiler flags: each set is compiled for its own instructions.
#pragma once

#include "prism/backend/cpu/isa.hpp"
#include "prism/backend/types.hpp"
#include "prism/quant/format.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace prism::cpu {

/// Values that one `W` of a stored weight stands for: 1, or those of a block.
template <class W> inline constexpr std::size_t values_of = 1;
template <> inline constexpr std::size_t values_of<q8::block> = q8::values_per_block;
template <> inline constexpr std::size_t values_of<q4::block> = q4::values_per_block;
template <> inline constexpr std::size_t values_of<q4m::block> = q4m::values_per_block;

/// `n` values further on, in whole blocks.
template <class W> constexpr const W* advance(const W* w, std::size_t n) { return w + n / values_of<W>; }

/// Rows of activations in int8, by groups of 32: x = scale q. Values beyond the row are 0. For weights that are stored
/// with an offset, `sums` holds scale times the sum of q, and `fours` 8 times the sums of four neighbouring q.
struct QuantisedRows {
    static constexpr std::size_t group = 32;
    struct Fours { std::int32_t at[group / 4]; };
    float *      scales, *sums;
    Fours*       fours;
    std::int8_t* q;
    std::size_t  n_groups;

    /// Laid out in `memory`; throws ShapeError when the rows do not fit a thread's scratch.
    static QuantisedRows at(float* memory, std::size_t rows, std::size_t cols);
};

/// A tile of y = act(x w^T + bias): m rows, n columns, sums over k. Strides in elements of what is pointed to.
template <class W>
struct GemmTile {
    static constexpr std::size_t max_rows = 384, max_cols = 128;
    const float* x;
    std::size_t  ldx, m, k;
    const W*     w;
    std::size_t  ldw, n;
    const float* bias;
    Activation   act;
    float*       y;
    std::size_t  ldy;
    const QuantisedRows* quantised;  // x once more, for gemv with blocks
};

/// A block of query rows of one head. `pos` is the position of the first row among the keys.
struct AttendTile {
    static constexpr std::size_t max_rows = 64, max_head_dim = 256;
    const float* q;
    std::size_t  ldq, n_q, pos;
    const float *k, *v;
    std::size_t  ldk, ldv, n_kv, head_dim;
    bool         causal;
    std::size_t  window;
    float        scale;
    float*       y;
    std::size_t  ldy;
};

/// One function per stored type.
template <template <class> class Signature>
using PerType = std::tuple<Signature<float>, Signature<bf16_t>, Signature<fp16_t>, Signature<q8::block>, Signature<q4::block>, Signature<q4m::block>>;
template <class W> using GemmFn = void (*)(const GemmTile<W>&);
template <class W> using WidenFn = void (*)(const W*, float*, std::size_t);

struct Kernels {
    std::size_t      panel;  // columns of a gemm tile
    PerType<GemmFn>  gemm, gemv;
    PerType<WidenFn> widen;
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* y, std::size_t d);
    void (*rms_norm)(const float* x, const float* weight, float eps, float* y, std::size_t d);
    void (*activate)(Activation, float* x, std::size_t n);
    void (*silu_mul)(const float* gate, const float* up, float* y, std::size_t n);
    void (*add_scaled)(const float* h, const float* gamma, float* x, std::size_t n);
    void (*rope)(float* x, std::size_t n_heads, std::size_t head_dim, const float* cos, const float* sin, std::size_t n_angles);
    void (*attend)(const AttendTile&);
    void (*attend_row)(const AttendTile&);
    void (*quantise)(const float* x, std::size_t n, const QuantisedRows& to, std::size_t row);
    float (*burst)(std::size_t n);
    float (*read_all)(const float* x, std::size_t n);
    double burst_flops;  // of one round of burst
};

/// Scratch of one thread for one tile, taken when the thread runs its first.
inline constexpr std::size_t scratch_floats = (std::size_t{1} << 20) / sizeof(float);
inline float* scratch() {
    struct Free { void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); } };
    thread_local std::unique_ptr<float[], Free> memory{
        static_cast<float*>(::operator new[](scratch_floats * sizeof(float), std::align_val_t{64}))};
    return memory.get();
}

inline QuantisedRows QuantisedRows::at(float* memory, std::size_t rows, std::size_t cols) {
    constexpr std::size_t floats_per_group = 2 + 2 * group / sizeof(float);
    const std::size_t     n_groups = (cols + group - 1) / group, n = rows * n_groups;
    if (n * floats_per_group > scratch_floats)
        throw ShapeError{"linear", "x", "at most " + std::to_string(scratch_floats / floats_per_group / rows * group) + " columns for quantised weights", std::to_string(cols)};
    auto* const fours = reinterpret_cast<Fours*>(memory + 2 * n);
    return {memory, memory + n, fours, reinterpret_cast<std::int8_t*>(fours + n), n_groups};
}

namespace portable {
#include "prism/backend/cpu/simd_portable.inl"
#include "prism/backend/cpu/kernels.inl"

/// The tile as an Eigen product, for processors without kernels of ours.
template <class W>
inline void eigen_gemm(const GemmTile<W>& t) {
    using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using Stride = Eigen::OuterStride<>;
    using Eigen::Index;
#if defined(_OPENMP)
    omp_set_num_threads(1);  // the pool's threads are all there are
#endif
    constexpr std::size_t           stretch = scratch_floats / GemmTile<W>::max_cols;
    float* const                    w = scratch();
    Eigen::Map<RowMajor, 0, Stride> y(t.y, Index(t.m), Index(t.n), Stride(Index(t.ldy)));
    for (std::size_t p = 0; p == 0 || p < t.k; p += stretch) {
        const std::size_t k = std::min(stretch, t.k - p);
        for (std::size_t j = 0; j < t.n; ++j) widen_row(advance(t.w + j * t.ldw, p), w + j * k, k);
        const Eigen::Map<const RowMajor, 0, Stride> x(t.x + p, Index(t.m), Index(k), Stride(Index(t.ldx)));
        const Eigen::Map<const RowMajor>            weights(w, Index(t.n), Index(k));
        if (p == 0) y.noalias() = x * weights.transpose();
        else y.noalias() += x * weights.transpose();
    }
    for (std::size_t i = 0; i < t.m; ++i) {
        if (t.bias)
            for (std::size_t j = 0; j < t.n; ++j) t.y[i * t.ldy + j] += t.bias[j];
        activate_row(t.act, t.y + i * t.ldy, t.n);
    }
}
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#include "prism/backend/cpu/simd_avx2.inl"
#include "prism/backend/cpu/simd_int8_x86.inl"
#include "prism/backend/cpu/kernels.inl"
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
#include "prism/backend/cpu/simd_avx512.inl"
#include "prism/backend/cpu/simd_int8_x86.inl"
#include "prism/backend/cpu/kernels.inl"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/// The tables. A template only so that programs of many sources can compile the kernels once, which takes a while:
///
///     extern template struct prism::cpu::KernelTables<>;      // in every source
///     template struct prism::cpu::KernelTables<>;             // in one
template <int = 0>
struct KernelTables {
    static const Kernels& of(Isa isa);
};

// Not inline on purpose: an inline one would be compiled wherever it is called.
template <int I>
const Kernels& KernelTables<I>::of(Isa isa) {
#if defined(__x86_64__) && defined(__GNUC__)
    static constexpr Kernels avx2_table = avx2::kernels(), avx512_table = avx512::kernels();
    if (isa == Isa::avx512) return avx512_table;
    if (isa == Isa::avx2) return avx2_table;
#endif
    static_cast<void>(isa);
    static constexpr Kernels portable_table = [] {
        Kernels k = portable::kernels();
        k.gemm = {portable::eigen_gemm<float>, portable::eigen_gemm<bf16_t>, portable::eigen_gemm<fp16_t>, portable::eigen_gemm<q8::block>,
                  portable::eigen_gemm<q4::block>, portable::eigen_gemm<q4m::block>};
        return k;
    }();
    return portable_table;
}

inline const Kernels& kernels_for(Isa isa) { return KernelTables<>::of(isa); }

}  // namespace prism::cpu
