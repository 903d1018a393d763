// Kernels: the table of functions that the CPU backend runs, one table per instruction set, chosen at run time.
// Users need no compiler flags: each set is compiled for its own instructions.
#pragma once

#include "prism/backend/cpu/isa.hpp"
#include "prism/backend/types.hpp"
#include "prism/core/tensor.hpp"
#include "prism/quant/panels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PRISM_COMPILED) && !defined(PRISM_COMPILED_KERNELS)
#include <immintrin.h>
#endif

namespace prism::cpu {

/// What the rows of x become before a product.
enum class Form : std::uint8_t {
    f32,        // themselves
    bf16,       // rounded to bf16
    bf16_pair,  // the sum of two bf16: what is lost is below 2^-16 of a value
    int8,       // x = scale q, a scale for four groups of 32; values beyond the row are 0
    int8_pair,  // x = scale (256 q + r), a scale for each group: what is lost is below 2^-16 of its largest value
    int16,      // the same value in one: of each four neighbours the first and third, then the second and fourth
};

/// Rows of x, and what they became.
struct Activations {
    static constexpr std::size_t group = 32, groups_per_scale = 4;  // the latter of Form::int8
    const float*                 x = nullptr;
    std::size_t                  ldx = 0;
    std::byte*                   q = nullptr;       // bf16 or int8
    std::size_t                  ldq = 0, low = 0;  // bytes between rows; from the first to the second of a pair
    float*                       scales = nullptr;  // [rows, n_groups]
    std::int32_t *               sums = nullptr, *low_sums = nullptr;  // [rows, n_groups]: of q; of r, in pairs. AVX-512 VNNI has dot_begin times the former
    std::size_t                  n_groups = 0;

    /// Bytes that `rows` of `cols` take in a form.
    static constexpr std::size_t bytes(Form form, std::size_t rows, std::size_t cols) {
        const std::size_t n_groups = (cols + group - 1) / group;
        const bool        blocks = form == Form::int8 || form == Form::int8_pair || form == Form::int16;
        return form == Form::f32 ? 0 : rows * row_bytes(form, cols) + (blocks ? (rows + 16) * n_groups * 12 : 0);  // kernels may look at 16 rows
    }
    /// Laid out in `memory`, which is aligned to 64 bytes.
    static Activations at(Form form, const float* x, std::size_t ldx, std::size_t rows, std::size_t cols, std::byte* memory) {
        Activations a{x, ldx, memory, row_bytes(form, cols), row_bytes(form, cols) / 2, nullptr, nullptr, nullptr, (cols + group - 1) / group};
        if (!memory) return a;  // rows in f32
        a.scales = reinterpret_cast<float*>(memory + rows * a.ldq);
        a.sums = reinterpret_cast<std::int32_t*>(a.scales + rows * a.n_groups);
        a.low_sums = a.sums + rows * a.n_groups;
        return a;
    }
    Activations from(std::size_t row) const {
        Activations a = *this;
        a.x += row * ldx, a.q += row * ldq;
        if (scales) a.scales += row * n_groups, a.sums += row * n_groups, a.low_sums += row * n_groups;
        return a;
    }

private:
    /// An odd number of cache lines: rows at multiples of 4 KiB would compete for the same lines of the cache.
    static constexpr std::size_t row_bytes(Form form, std::size_t cols) {
        const auto odd_lines = [](std::size_t n) { return ((n + 63) / 64 | 1) * 64; };
        const std::size_t padded = (cols + group - 1) / group * group;
        switch (form) {
            case Form::bf16: return odd_lines(2 * padded);
            case Form::bf16_pair: return 2 * odd_lines(2 * padded);
            case Form::int8: return odd_lines(padded);
            case Form::int8_pair: return 2 * odd_lines(padded);
            case Form::int16: return odd_lines(2 * padded);
            case Form::f32: break;
        }
        return 0;
    }
};

/// Weights of a product: rows, or panels.
struct WeightRows {
    const void*      rows = nullptr;  // blocks of the format
    std::size_t      stride = 0;      // blocks between rows
    const std::byte* panels = nullptr;
    std::size_t      first = 0;       // row of the panels that is row 0 here
};

/// A stretch of one panel: the values of its steps, and their scales.
struct PanelPart { const std::byte *values, *scales; };

/// A tile of a product: m rows of x, columns [begin, end) of the result, and what follows. Strides in elements.
///     y = act(x w^T + bias)            y = y + gamma (x w^T + bias)            y = silu(x w^T) (x up^T)
struct ProductTile {
    static constexpr std::size_t max_rows = 384, max_cols = 128;
    Activations  x;
    std::size_t  m = 0, k = 0;
    WeightRows   w, up;              // up: see above; null where there is none
    std::size_t  begin = 0, end = 0, n = 0;  // n: rows of w in all
    const float* bias = nullptr;     // of column 0
    Activation   act = Activation::none;
    bool         add = false;        // to what is in y
    const float* gamma = nullptr;    // of column 0; null is one
    float*       y = nullptr;        // of column 0
    std::size_t  ldy = 0;
};

/// A block of query rows of one head; keys and values of type T. `pos` is the position of the first row among the keys.
template <class T>
struct AttendTile {
    static constexpr std::size_t max_rows = 384, max_head_dim = 256;
    static constexpr std::size_t part_keys = 1024;               // few rows take longer caches in parts of so many keys
    static constexpr std::size_t part_floats = 2 + max_head_dim + 14;  // of one row and part: the largest score, the sum, the weighted values
    const float* q;
    std::size_t  ldq, n_q, pos;
    const T *    k, *v;
    std::size_t  ldk, ldv, n_kv, head_dim;
    bool         causal;
    std::size_t  window;
    float        scale;
    float*       y;
    std::size_t  ldy;
    std::size_t  first = 0, last = std::numeric_limits<std::size_t>::max();  // keys of this part
    float*       parts = nullptr;  // results of a part go here [n_q, part_floats], and not to y
};

/// How products with weights of one format run.
struct Product {
    Form form = Form::f32;
    void (*run)(const ProductTile&) = nullptr;
};

/// One entry per format.
enum FormatIndex : std::size_t { f32_index, bf16_index, f16_index, q8_index, q4_index, q4m_index, n_formats };
constexpr FormatIndex index_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::bf16: return bf16_index;
        case Dtype::f16: return f16_index;
        case Dtype::q8: return q8_index;
        case Dtype::q4: return q4_index;
        case Dtype::q4m: return q4m_index;
        default: return f32_index;
    }
}

/// Attention of many rows, and of few. The bits of a row do not depend on which others come with it, but on which of the
/// two runs.
template <class T>
struct Attend {
    void (*block)(const AttendTile<T>&) = nullptr;
    void (*row)(const AttendTile<T>&) = nullptr;
};

/// Rounds of arithmetic that waits for nothing, and how many operations one round is.
struct Burst {
    float (*run)(std::size_t rounds) = nullptr;
    double operations = 0;
};

inline constexpr std::size_t few_rows = 32;

struct Kernels {
    std::size_t panel_cols;           // columns that are computed together
    Product     products[n_formats];          // with rows as they are, or as good as that
    Product     rounded_products[n_formats];  // with rows rounded to bf16 or int8 where that is faster
    Product     rounded_blocks[n_formats];    // for more than `few_rows` rows; empty where nothing else is faster then
    void (*convert)(Form, std::size_t cols, const Activations&, std::size_t row);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* y, std::size_t d);
    void (*rms_norm)(const float* x, const float* weight, float eps, float* y, std::size_t d);
    void (*activate)(Activation, float* x, std::size_t n);
    void (*silu_mul)(const float* gate, const float* up, float* y, std::size_t n);
    void (*add_scaled)(const float* h, const float* gamma, float* x, std::size_t n);
    void (*rope)(float* x, std::size_t n_heads, std::size_t head_dim, const float* cos, const float* sin, std::size_t n_angles);
    Attend<float>  attend_f32, rounded_attend_f32;  // rounded: scores and weights may be of bf16
    Attend<bf16_t> attend_bf16, rounded_attend_bf16;
    void (*merge)(const float* parts, std::size_t n_parts, std::size_t stride, std::size_t head_dim, float* y);
    void (*round)(const float* x, bf16_t* y, std::size_t n);
    Burst burst_f32, burst_bf16, burst_int8;  // bf16, int8: those of f32 where there is nothing faster
    float (*read_all)(const float* x, std::size_t n);
};

/// Scratch of one thread for one tile. Threads of a pool take theirs when they start, others with their first tile.
inline constexpr std::size_t scratch_floats = (std::size_t{1} << 20) / sizeof(float);
inline float* scratch() {
    struct Free { void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); } };
    thread_local std::unique_ptr<float[], Free> memory{
        static_cast<float*>(::operator new[](scratch_floats * sizeof(float), std::align_val_t{64}))};
    return memory.get();
}

/// Memory of the thread that calls an operation, until its next one; aligned to 64 bytes. Grows, and is kept. For the rows of
/// x that a product converts, and for what the operation's threads write apart.
inline std::byte* activation_memory(std::size_t bytes) {
    struct Free { void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); } };
    thread_local std::unique_ptr<std::byte[], Free> memory;
    thread_local std::size_t                        size = 0;
    if (bytes > size) {
        memory.reset();
        size = 0;
        memory.reset(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{64})));
        size = bytes;
    }
    return memory.get();
}

/// The tables. A template only so that programs of many sources can compile the kernels once, which takes a while:
///
///     extern template struct prism::cpu::KernelTables<>;      // in every source
///     template struct prism::cpu::KernelTables<>;             // in one
template <int = 0>
struct KernelTables {
    static const Kernels& of(Isa isa);
    /// Panel `p` of a matrix [rows, cols] in the format `wanted`, from a dense tensor of any readable type. Throws LoadError.
    static void fill_panel(const TensorInfo& t, Dtype wanted, std::size_t rows, std::size_t cols, std::size_t p, std::byte* panel);
    /// Row `row` of such a matrix, as blocks one after another.
    static void fill_row(const TensorInfo& t, Dtype wanted, std::size_t cols, std::size_t row, std::byte* to);
};

template <int = 0>
const Kernels& kernels_for(Isa isa) {
    return KernelTables<>::of(isa);
}

#if !defined(PRISM_COMPILED) && !defined(PRISM_COMPILED_KERNELS)  // else the target that is linked has them

#if defined(__CUDACC__)
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675  // "#pragma GCC unroll" is for the host's compiler, to which nvcc hands it on
#endif
namespace portable {
#include "prism/backend/cpu/simd_portable.inl"
#include "prism/backend/cpu/kernels.inl"
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
#include "prism/backend/cpu/kernels.inl"
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
namespace avx_vnni {
#include "prism/backend/cpu/simd_avx_vnni.inl"
#include "prism/backend/cpu/products_int8.inl"

template <int I>
constexpr Kernels kernels() {
    Kernels k = avx2::kernels<I>();
    use_blocks<I, MultiplyBlocks>(k);
    k.burst_int8 = {burst_int8, 8.0 * chains * lanes};
    return k;
}
}  // namespace avx_vnni
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
#include "prism/backend/cpu/kernels.inl"
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c,prefer-vector-width=512")
#endif
namespace avx512_vnni {
#include "prism/backend/cpu/simd_avx512_vnni.inl"
#include "prism/backend/cpu/products_int8.inl"
#include "prism/backend/cpu/products_vnni.inl"

template <int I>
constexpr Kernels kernels() {
    Kernels k = avx512::kernels<I>();
    use_blocks<I, MultiplyGroups>(k);
    k.convert = convert;
    k.burst_int8 = {burst_int8, 8.0 * chains * lanes};
    return k;
}
}  // namespace avx512_vnni
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,f16c,prefer-vector-width=512")
#endif
namespace avx512_bf16 {
#include "prism/backend/cpu/simd_avx512_bf16.inl"

template <int I>
constexpr Kernels kernels() {
    Kernels k = avx512_vnni::kernels<I>();
    k.rounded_products[bf16_index] = {Form::bf16, product<MultiplyBf16>};
    k.rounded_attend_f32.block = attend_rounded<float, PairProducts>;
    k.rounded_attend_bf16.block = attend_rounded<bf16_t, PairProducts>;
    k.convert = convert;
    k.burst_bf16 = {burst_bf16, 4.0 * 2 * chains * lanes};
    return k;
}
}  // namespace avx512_bf16
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16,amx-int8,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16,amx-int8,fma,f16c,prefer-vector-width=512")
#endif
namespace amx {
#include "prism/backend/cpu/simd_amx.inl"

template <int I>
constexpr Kernels kernels() {
    Kernels k = avx512_bf16::kernels<I>();
    k.products[bf16_index] = {Form::bf16_pair, product<MultiplyBf16Tiles<true>>};
    k.rounded_products[bf16_index] = {Form::bf16, product<MultiplyBf16Tiles<false>>};
    k.rounded_attend_f32.block = attend_rounded<float, TileProducts>;
    k.rounded_attend_bf16.block = attend_rounded<bf16_t, TileProducts>;
    k.products[q8_index] = {Form::int8_pair, product<MultiplyBlockTiles<q8>>};
    k.products[q4_index] = {Form::int8_pair, product<MultiplyBlockTiles<q4>>};
    k.products[q4m_index] = {Form::int8_pair, product<MultiplyBlockTiles<q4m>>};
    k.rounded_blocks[f32_index] = {Form::bf16, product<MultiplyRoundedTiles>};
    k.rounded_blocks[q8_index] = {Form::bf16, product<MultiplySpreadTiles<q8>>};
    k.rounded_blocks[q4_index] = {Form::bf16, product<MultiplySpreadTiles<q4>>};
    k.rounded_blocks[q4m_index] = {Form::bf16, product<MultiplySpreadTiles<q4m>>};
    k.burst_bf16 = {burst_tiles<false>, 4.0 * 2 * 16 * 16 * 32};
    k.burst_int8 = {burst_tiles<true>, 4.0 * 2 * 16 * 16 * 64};
    return k;
}
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

// Not inline on purpose: an inline one would be compiled wherever it is called.
template <int I>
const Kernels& KernelTables<I>::of(Isa isa) {
#if defined(__x86_64__) && defined(__GNUC__)
    static constexpr Kernels avx2_table = avx2::kernels<I>(), avx_vnni_table = avx_vnni::kernels<I>(), avx512_table = avx512::kernels<I>(),
                             vnni_table = avx512_vnni::kernels<I>(), bf16_table = avx512_bf16::kernels<I>(), amx_table = amx::kernels<I>();
    switch (isa) {
        case Isa::amx: return amx_table;
        case Isa::avx512_bf16: return bf16_table;
        case Isa::avx512_vnni: return vnni_table;
        case Isa::avx512: return avx512_table;
        case Isa::avx_vnni: return avx_vnni_table;
        case Isa::avx2: return avx2_table;
        case Isa::portable: break;
    }
#endif
    static_cast<void>(isa);
    static constexpr Kernels portable_table = portable::kernels<I>();
    return portable_table;
}

namespace detail {

struct PanelFiller {
    /// Panel `p` of a matrix, from rows in any type.
    template <int I, Format F>
    static void fill(const TensorInfo& t, std::size_t rows, std::size_t cols, std::size_t p, std::byte* panel) {
        using Block = typename F::block;
        const std::size_t first = p * panel_width, n = std::min(panel_width, rows - first), stride = blocks_per_row<F>(cols);
        if (t.dtype == F::dtype && std::bit_cast<std::uintptr_t>(t.data) % alignof(Block) == 0) {
            interleave<F>(Packed<F, host>{reinterpret_cast<const Block*>(t.data) + first * stride, n, cols, stride}, panel, 0, 1);
            return;
        }
        thread_local std::vector<Block> blocks;
        thread_local std::vector<float> values;
        blocks.resize(n * stride);
        if (t.dtype == F::dtype) {
            std::memcpy(blocks.data(), t.data + first * stride * sizeof(Block), n * stride * sizeof(Block));
        } else {
            values.assign(stride * F::values_per_block + 64, 0.0f);
            for (std::size_t i = 0; i < n; ++i) {
                read_row<I>(t, first + i, cols, values);
                F::encode(std::span<const float>(values).first(stride * F::values_per_block), std::span(blocks).subspan(i * stride, stride));
            }
        }
        interleave<F>(Packed<F, host>{blocks.data(), n, cols, stride}, panel, 0, 1);
    }
    /// Row `row` of a dense matrix of any readable type, as f32; `values` may have more room.
    template <int I>
    static void read_row(const TensorInfo& t, std::size_t row, std::size_t cols, std::vector<float>& values) {
        const auto blocks = [&]<Format F>(F) {
            const std::size_t                      n = blocks_per_row<F>(cols);
            thread_local std::vector<typename F::block> stored;
            stored.resize(n);
            values.resize(std::max(values.size(), n * F::values_per_block));
            std::memcpy(stored.data(), t.data + row * n * sizeof(typename F::block), n * sizeof(typename F::block));
            F::decode(std::span<const typename F::block>(stored), std::span(values).first(n * F::values_per_block));
            std::fill(values.begin() + static_cast<std::ptrdiff_t>(cols), values.end(), 0.0f);  // what is left of the last block
        };
        if (stored_bytes(t.dtype, 1) > 0) return with_format(t.dtype, all_formats{}, blocks);
        if (t.dtype == Dtype::other) throw LoadError{t.file, t.name, "a readable element type", "another"};
        for (std::size_t j = 0; j < cols; ++j) values[j] = static_cast<float>(read_element(t.dtype, t.data + (row * cols + j) * item_bytes(t.dtype)));
    }

    // KernelTables' own, here because nvcc takes no generic lambda in a template with a default argument. `I` keeps them
    // from being compiled in sources that leave the tables to another.
    template <int I>
    static void fill_any(const TensorInfo& t, Dtype wanted, std::size_t rows, std::size_t cols, std::size_t p, std::byte* panel) {
        with_format(wanted, all_formats{}, [&]<Format F>(F) { fill<I, F>(t, rows, cols, p, panel); });
    }
    template <int I>
    static void encode_row(const TensorInfo& t, Dtype wanted, std::size_t cols, std::size_t row, std::byte* to) {
        with_format(wanted, all_formats{}, [&]<Format F>(F) {
            const std::size_t  stride = blocks_per_row<F>(cols);
            std::vector<float> values(stride * F::values_per_block);
            read_row<I>(t, row, cols, values);
            F::encode(std::span<const float>(values).first(stride * F::values_per_block), std::span(reinterpret_cast<typename F::block*>(to), stride));
        });
    }
};

}  // namespace detail

template <int I>
void KernelTables<I>::fill_panel(const TensorInfo& t, Dtype wanted, std::size_t rows, std::size_t cols, std::size_t p, std::byte* panel) {
    detail::PanelFiller::fill_any<I>(t, wanted, rows, cols, p, panel);
}

template <int I>
void KernelTables<I>::fill_row(const TensorInfo& t, Dtype wanted, std::size_t cols, std::size_t row, std::byte* to) {
    detail::PanelFiller::encode_row<I>(t, wanted, cols, row, to);
}

#endif

}  // namespace prism::cpu
