// Attention on a device: which kernel takes it, and the memory that it needs.
#pragma once

#include "prism/backend/cuda/driver.hpp"
#include "prism/backend/cuda/kernels/attention_decode.hpp"
#include "prism/backend/cuda/kernels/attention_mma.hpp"

#include <algorithm>
#include <bit>
#include <climits>
#include <type_traits>

namespace prism::cuda {

/// Up to so many query rows a sequence take the cache in parts.
inline constexpr std::size_t attend_few_rows = 4;

/// Counters with which the parts of a cache are put together. They fill the first bytes of attend()'s scratch, whatever the
/// shape: zero before the first call, and zero after each.
inline constexpr std::size_t attend_counters = 4096, attend_counter_bytes = attend_counters * sizeof(std::uint32_t);

/// How a cache is cut for few rows.
struct AttendPlan {
    bool        parts = false;  // few rows: else nothing below holds
    int         rows = 1;       // of q that a block takes, of those that share a key head
    bool        wide = false;   // more than 128 dimensions
    std::size_t n_groups = 1, n_parts = 1, n_sequences = 1;  // n_sequences: of a launch

    std::size_t part_floats() const {
        return static_cast<std::size_t>(wide        ? AttendParts<float, 4, 2>::part_floats
                                        : rows == 1 ? AttendParts<float, 1, 1>::part_floats
                                        : rows == 4 ? AttendParts<float, 4, 1>::part_floats
                                                    : AttendParts<float, 8, 1>::part_floats);
    }

    static AttendPlan of(const AttentionShape& s, std::size_t q_rows, std::size_t k_rows, bool shifted) {
        AttendPlan        p;
        const std::size_t n_q = q_rows / s.n_sequences, n_kv = k_rows / s.n_sequences, all = n_q * (s.n_heads / s.n_kv_heads);
        const std::size_t capacity = shifted && s.kv_head_stride ? std::max(n_kv, s.kv_head_stride / s.head_dim) : n_kv;
        p.wide = s.head_dim > 128;
        p.rows = p.wide ? 4 : all == 1 ? 1 : all <= 4 ? 4 : 8;
        p.n_groups = (all + static_cast<std::size_t>(p.rows) - 1) / static_cast<std::size_t>(p.rows);
        p.n_parts = (capacity + DecodeLayout::keys - 1) / DecodeLayout::keys;
        const std::size_t counters = s.n_kv_heads * p.n_groups;
        p.parts = n_q <= attend_few_rows && counters <= attend_counters;
        p.n_sequences = p.parts ? std::min(s.n_sequences, attend_counters / counters) : 1;
        return p;
    }
};

/// Bytes of scratch that attend() needs for such matrices; 0 where it needs none. With a shift that is memory for all keys of
/// the cache's capacity, kv_head_stride / head_dim.
inline std::size_t attend_scratch_bytes(const AttentionShape& shape, std::size_t q_rows, std::size_t k_rows, bool shifted) {
    const AttendPlan plan = AttendPlan::of(shape, q_rows, k_rows, shifted);
    if (!plan.parts || plan.n_parts <= 1) return 0;
    return attend_counter_bytes + plan.n_sequences * shape.n_kv_heads * plan.n_groups * plan.n_parts * plan.part_floats() * sizeof(float);
}

/// Whether attend() takes rows that a cache does not hold yet: the n_q last of one sequence, causal, few.
inline bool attend_appends(const AttentionShape& shape, std::size_t q_rows, std::size_t k_rows, bool shifted) {
    return shape.causal && shape.n_sequences == 1 && shape.q_pos + q_rows == k_rows && AttendPlan::of(shape, q_rows, k_rows, shifted).parts;
}

/// y = softmax(scale q k^T) v per head and sequence, as ops::attention says. Up to attend_few_rows rows a sequence are computed
/// in f32, their keys in parts of 64 side by side. More are computed in f32 too or, if `fast`, on tensor cores in bf16, which
/// takes a head_dim of up to 128, a multiple of 8, and rows of heads that start at multiples of 16 bytes.
///
/// With `shift`, an integer in device memory, n_kv and q_pos are *shift larger than k and the shape say, up to the
/// capacity kv_head_stride / head_dim of a cache of one sequence; what is launched does not depend on it, and bits are those of a
/// call with such n_kv and q_pos. `scratch`: attend_scratch_bytes(), aligned to 16, its counters as described there.
///
/// `fresh`, where attend_appends() says so: the last keys and values, of the rows of q, are no part of the cache yet, and
/// queries are not turned; both is done on the way, with the bits of RopeAndAppend before the call.
template <class D, class T>
void attend(D& driver, std::byte* scratch, Rows<const float> q, Rows<const T> k, Rows<const T> v, const AttentionShape& shape, bool fast,
            const std::int32_t* shift, Rows<float> y, const NewRows<T>& fresh = {}) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, bf16_t>);
    const auto        count = [](std::size_t n) { return static_cast<std::int32_t>(std::min<std::size_t>(n, INT_MAX / 2)); };
    const auto        n_sequences = static_cast<std::int32_t>(shape.n_sequences), n_heads = count(shape.n_heads), n_kv_heads = count(shape.n_kv_heads);
    const auto        head_dim = count(shape.head_dim);
    const auto        head_stride = static_cast<std::int64_t>(shape.kv_head_stride ? shape.kv_head_stride : shape.head_dim);
    AttendArguments<T> a{.q = q.data, .k = k.data, .v = v.data, .y = y.data, .ldq = q.ld, .ldk = k.ld, .ldv = v.ld, .ldy = y.ld, .head_stride = head_stride,
                         .n_q = q.rows / n_sequences, .n_kv = k.rows / n_sequences, .q_pos = count(shape.q_pos), .window = count(shape.window),
                         .head_dim = head_dim, .n_kv_heads = n_kv_heads, .group = n_heads / n_kv_heads, .first_sequence = 0, .causal = shape.causal,
                         .aligned = false, .scale = shape.scale, .shift = shift};
    if (a.n_q == 0) return;

    // Whether the rows of all heads may be read n elements at a time.
    const auto in_pieces = [&]<class U>(const Rows<U>& m, std::int64_t stride, std::int64_t n) {
        return std::bit_cast<std::uintptr_t>(m.data) % (static_cast<std::size_t>(n) * sizeof(U)) == 0 && m.ld % n == 0 && stride % n == 0 && head_dim % n == 0;
    };
    const auto slices = [&](std::int32_t most, auto&& launch) {
        for (a.first_sequence = 0; a.first_sequence < n_sequences; a.first_sequence += most) launch(std::min(most, n_sequences - a.first_sequence));
    };
    constexpr std::int64_t piece = 16 / static_cast<std::int64_t>(sizeof(T));
    constexpr std::int32_t most_z = 65535;

    const AttendPlan plan = AttendPlan::of(shape, static_cast<std::size_t>(q.rows), static_cast<std::size_t>(k.rows), shift != nullptr);
    if (plan.parts) {
        a.aligned = in_pieces(k, head_stride, piece) && in_pieces(v, head_stride, piece);
        const DecodeLayout layout = DecodeLayout::of(sizeof(T), head_dim, plan.rows);
        const auto         run = [&]<int rows, int wide>() {
            slices(std::min(count(plan.n_sequences), most_z), [&](std::int32_t n) {
                driver.launch({count(plan.n_parts), n_kv_heads * count(plan.n_groups), n}, AttendParts<T, rows, wide>::max_threads, layout.bytes,
                              AttendParts<T, rows, wide>{a, fresh, layout, count(plan.n_parts), count(plan.n_groups), reinterpret_cast<std::uint32_t*>(scratch),
                                                         scratch ? reinterpret_cast<float*>(scratch + attend_counter_bytes) : nullptr});
            });
        };
        if (plan.wide) run.template operator()<4, 2>();
        else if (plan.rows == 1) run.template operator()<1, 1>();
        else if (plan.rows == 4) run.template operator()<4, 1>();
        else run.template operator()<8, 1>();
        return;
    }

    const auto with_kernel = [&]<class Kernel>(Kernel kernel) {
        slices(most_z, [&](std::int32_t n) {
            kernel.a = a;
            driver.launch({ceil_div(a.n_q, Kernel::queries), n_heads, n}, Kernel::max_threads, Kernel::shared_bytes, kernel);
        });
    };
    if (fast && head_dim <= 128 && head_dim % 8 == 0 && in_pieces(k, head_stride, piece) && in_pieces(v, head_stride, piece) && in_pieces(q, head_dim, 2) &&
        in_pieces(y, head_dim, 2)) {
        // More queries share what is made of the keys in larger blocks, of which there must be enough. No bit depends on it.
        const bool large = std::int64_t{ceil_div(a.n_q, 128)} * n_heads * n_sequences * 3 >= std::int64_t{driver.n_processors()} * 2;
        const auto run = [&]<int d>() {
            constexpr bool wide = std::is_same_v<T, float> && d > 80;  // what 128 threads would have under way leaves no room in registers
            if (wide || large) with_kernel(AttendMma<T, d, 8>{});
            else if constexpr (!wide) with_kernel(AttendMma<T, d, 4>{});
        };
        if (head_dim <= 64) run.template operator()<64>();
        else if (head_dim <= 72) run.template operator()<72>();
        else if (head_dim <= 80) run.template operator()<80>();
        else if (head_dim <= 96) run.template operator()<96>();
        else run.template operator()<128>();
        return;
    }
    a.aligned = in_pieces(q, head_dim, 4) && in_pieces(k, head_stride, 4) && in_pieces(v, head_stride, 4);
    if (head_dim <= 64) with_kernel(AttendTiles<T, 64>{});
    else if (head_dim <= 72) with_kernel(AttendTiles<T, 72>{});
    else if (head_dim <= 80) with_kernel(AttendTiles<T, 80>{});
    else if (head_dim <= 96) with_kernel(AttendTiles<T, 96>{});
    else if (head_dim <= 128) with_kernel(AttendTiles<T, 128>{});
    else with_kernel(AttendTiles<T, 256, 4, 32>{});
}

}  // namespace prism::cuda
