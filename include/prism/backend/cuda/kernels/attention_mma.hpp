// Attention of many rows on tensor cores: q, k, v and the weights rounded to bf16, sums and softmax in f32.
#pragma once

#include "prism/backend/cuda/kernels/attention.hpp"

namespace prism::cuda {

/// 2^x, to a few units in the last place; 0 where it would be denormal.
PRISM_DEVICE inline float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return ::exp2f(x);
#endif
}

/// 16 queries of a head for each warp, against tiles of 64 keys, for head_dim <= d, both multiples of 8. Rows of k and v start
/// at multiples of 16 bytes, those of q and y at multiples of 8. Scores, weights and sums stay in registers; while they are
/// made of a tile's keys, its values are on their way, and during its values the next keys. Queries are rounded once, k and
/// v for each block. Grid: ceil(n_q / queries), query heads, sequences.
template <class T, int d, int warps>
struct AttendMma {
    static constexpr int max_threads = warp_size * warps;
    static constexpr int queries = 16 * warps, keys = 64;
    static constexpr int depth = (d + 15) / 16 * 16, steps = depth / 16;  // of the scores' sums; above head_dim are zeros
    static constexpr int across = d / 8;                                  // tiles of the result's columns
    static constexpr int pitch = depth + 8;                               // 16-byte pieces in a row: odd, so that 8 rows meet no bank twice
    static constexpr int pieces = keys * (depth / 8), pieces_each = (pieces + max_threads - 1) / max_threads;
    static constexpr bool        converts = std::is_same_v<T, float>;
    static constexpr std::size_t shared_bytes = std::size_t{2} * 2 * keys * pitch;
    static_assert(d % 8 == 0);

    AttendArguments<T> a;

    struct Queries {
        std::uint32_t at[steps][4];
    };
    struct Scores {
        float at[keys / 8][4];
    };
    struct Weights {
        std::uint32_t at[keys / 16][4];
    };
    struct Sums {
        float at[across][4];
    };
    struct Pair {  // of the two rows of a thread: lane / 4, and 8 more
        float at[2];
    };
    struct Coming {  // what a thread has asked for and not yet stored, where it must be rounded on the way
        Floats<8> at[converts ? pieces_each : 1];
    };

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        const auto           seen = a.seen();
        const std::int32_t   first = (b.grid_x - 1 - b.x) * queries, beyond = smaller(first + queries, a.n_q);  // with a mask the longest come first
        const std::int32_t   begin = seen.first(first) / keys * keys, end = seen.last(beyond - 1);
        const std::int64_t   kv_row = (std::int64_t{a.first_sequence} + b.z) * seen.n_kv, kv_head = b.y / a.group * a.head_stride;
        const std::int64_t   q_row = (std::int64_t{a.first_sequence} + b.z) * a.n_q, head = static_cast<std::int64_t>(b.y) * a.head_dim;
        const T* const       k = a.k + kv_row * a.ldk + kv_head;
        const T* const       v = a.v + kv_row * a.ldv + kv_head;
        std::uint16_t* const key_tile = b.template shared<std::uint16_t>(0);
        std::uint16_t* const value_tile = key_tile + keys * pitch;
        const float          log2_e = 1.44269504f;
        // The sign goes to the queries: then the largest product is the largest score.
        const float          sign = a.scale > 0 ? 1.0f : a.scale < 0 ? -1.0f : a.scale, unit = a.scale != 0 ? ::fabsf(a.scale) * log2_e : log2_e;

        Reg<Block, Queries> query(b);
        Reg<Block, Sums>    sums(b);
        Reg<Block, Pair>    top(b), total(b);
        Reg<Block, Coming>  coming(b);
        fetch(b, coming, key_tile, k, a.ldk, begin, end);
        b.each_alone([&](int t) {
            read_queries(t, query[t], a.q + q_row * a.ldq + head, first, sign);
            PRISM_UNROLL
            for (int h = 0; h < 2; ++h) top[t].at[h] = minus_infinity(), total[t].at[h] = 0;
            PRISM_UNROLL
            for (int n = 0; n < across; ++n)
                PRISM_UNROLL
                for (int e = 0; e < 4; ++e) sums[t].at[n][e] = 0;
        });
        deliver(b, coming, key_tile);
        for (std::int32_t j0 = begin; j0 < end; j0 += keys) {
            Reg<Block, Scores>  scores(b);
            Reg<Block, Weights> weights(b);
            fetch(b, coming, value_tile, v, a.ldv, j0, end);
            multiply(b, query, key_tile, scores);
            if (j0 < seen.first(beyond - 1) || j0 + keys > seen.last(first))  // some row does not see some key
                b.each_alone([&](int t) {
                    PRISM_UNROLL
                    for (int h = 0; h < 2; ++h) {
                        const std::int32_t row = first + t / warp_size * 16 + t % warp_size / 4 + 8 * h, lo = seen.first(row), hi = seen.last(row);
                        PRISM_UNROLL
                        for (int n = 0; n < keys / 8; ++n)
                            PRISM_UNROLL
                            for (int e = 0; e < 2; ++e) {
                                const std::int32_t key = j0 + 8 * n + t % 4 * 2 + e;
                                if (key < lo || key >= hi) scores[t].at[n][2 * h + e] = minus_infinity();
                            }
                    }
                });
            soften(b, scores, unit, top, total, sums, weights);
            deliver(b, coming, value_tile);
            if (j0 + keys < end) fetch(b, coming, key_tile, k, a.ldk, j0 + keys, end);
            add(b, weights, value_tile, sums);
            if (j0 + keys < end) deliver(b, coming, key_tile);
        }
        PRISM_UNROLL
        for (int h = 0; h < 2; ++h) {
            Reg<Block, float> all(b);
            b.each_alone([&](int t) { all[t] = total[t].at[h]; });
            lanes_sum<4>(b, all);
            b.each_alone([&](int t) {
                const std::int32_t row = first + t / warp_size * 16 + t % warp_size / 4 + 8 * h;
                if (row >= a.n_q) return;
                float* const y = a.y + (q_row + row) * a.ldy + head;
                const float  inverse = 1.0f / all[t];
                PRISM_UNROLL
                for (int n = 0; n < across; ++n)
                    if (8 * n < a.head_dim) store_floats(y + 8 * n + t % 4 * 2, Floats<2>{{sums[t].at[n][2 * h] * inverse, sums[t].at[n][2 * h + 1] * inverse}});
            });
        }
    }

private:
    /// Asks for the rows [from_row, from_row + keys), zeros from row `end` and dimension head_dim on.
    template <class Block>
    PRISM_DEVICE void fetch(Block& b, Reg<Block, Coming>& coming, std::uint16_t* to, const T* from, std::int64_t ld, std::int32_t from_row, std::int32_t end) const {
        b.each_alone([&](int t) {
            PRISM_UNROLL
            for (int i = 0; i < pieces_each; ++i) {
                const int piece = t + i * max_threads, row = piece / (depth / 8), dim = piece % (depth / 8) * 8;
                if (pieces % max_threads != 0 && piece >= pieces) break;
                const bool     valid = from_row + row < end && dim < a.head_dim;
                const T* const at = valid ? from + static_cast<std::int64_t>(from_row + row) * ld + dim : from;
                if constexpr (converts) {
                    if (valid) coming[t].at[i] = load_floats<8>(at);
                    else coming[t].at[i] = Floats<8>{};
                } else {
                    b.copy_16(to + row * pitch + dim, at, valid);
                }
            }
        });
        if constexpr (!converts) b.copies_commit();
    }
    /// Waits for it. On return all threads see it, and none reads the other tile any more.
    template <class Block>
    PRISM_DEVICE void deliver(Block& b, Reg<Block, Coming>& coming, std::uint16_t* to) const {
        if constexpr (converts) {
            b.each([&](int t) {
                PRISM_UNROLL
                for (int i = 0; i < pieces_each; ++i) {
                    const int piece = t + i * max_threads, row = piece / (depth / 8), dim = piece % (depth / 8) * 8;
                    if (pieces % max_threads != 0 && piece >= pieces) break;
                    Words<4> w;
                    PRISM_UNROLL
                    for (int e = 0; e < 4; ++e) w.at[e] = pack_bf16(coming[t].at[i].at[2 * e], coming[t].at[i].at[2 * e + 1]);
                    store_words(to + row * pitch + dim, w);
                }
            });
        } else {
            b.template copies_wait<0>();
            b.barrier();
        }
    }

    /// The queries of a warp as the left operands of its products, straight from memory: four lanes read 32 bytes of a row.
    PRISM_DEVICE void read_queries(int t, Queries& query, const float* q, std::int32_t first, float sign) const {
        PRISM_UNROLL
        for (int s = 0; s < steps; ++s)
            PRISM_UNROLL
            for (int i = 0; i < 4; ++i) {
                const std::int32_t row = first + t / warp_size * 16 + t % warp_size / 4 + i % 2 * 8, dim = 16 * s + i / 2 * 8 + t % 4 * 2;
                Floats<2>          x{};
                if (row < a.n_q && dim < a.head_dim) x = load_floats<2>(q + row * a.ldq + dim);
                query.at[s][i] = pack_bf16(x.at[0] * sign, x.at[1] * sign);
            }
    }

    template <class Block>
    PRISM_DEVICE void multiply(Block& b, Reg<Block, Queries>& query, const std::uint16_t* tile, Reg<Block, Scores>& scores) const {
        b.each_alone([&](int t) {
            PRISM_UNROLL
            for (int n = 0; n < keys / 8; ++n)
                PRISM_UNROLL
                for (int e = 0; e < 4; ++e) scores[t].at[n][e] = 0;
        });
        PRISM_UNROLL
        for (int s = 0; s < steps; ++s)
            PRISM_UNROLL
            for (int n = 0; n < keys / 8; n += 2) {
                Reg<Block, Words<4>> key(b);  // 16 keys, 16 dimensions
                b.load_matrix_4([&](int t) { return key[t].at; },
                                [&](int t) -> const void* { return tile + (8 * n + t % 32 / 16 * 8 + t % 8) * pitch + 16 * s + t % 16 / 8 * 8; });
                PRISM_UNROLL
                for (int e = 0; e < 2; ++e)
                    b.mma_bf16([&](int t) { return scores[t].at[n + e]; }, [&](int t) { return query[t].at[s]; }, [&](int t) { return key[t].at + 2 * e; });
            }
    }

    /// Scores, without their unit, become weights; what was summed before shrinks where a larger score has come.
    template <class Block>
    PRISM_DEVICE void soften(Block& b, Reg<Block, Scores>& scores, float unit, Reg<Block, Pair>& top, Reg<Block, Pair>& total, Reg<Block, Sums>& sums,
                             Reg<Block, Weights>& weights) const {
        PRISM_UNROLL
        for (int h = 0; h < 2; ++h) {
            Reg<Block, float> now(b);
            b.each_alone([&](int t) {
                now[t] = top[t].at[h];
                PRISM_UNROLL
                for (int n = 0; n < keys / 8; ++n) now[t] = ::fmaxf(now[t], ::fmaxf(scores[t].at[n][2 * h], scores[t].at[n][2 * h + 1]));
            });
            lanes_join<4, Block, float>(b, now, Larger{});
            b.each_alone([&](int t) {
                const float base = now[t] == minus_infinity() ? 0.0f : now[t] * unit;  // no key yet: 0, not NaN
                const float shrink = fast_exp2(::fmaf(top[t].at[h], unit, -base));
                float       sum = 0;
                PRISM_UNROLL
                for (int n = 0; n < keys / 8; ++n) {
                    const float low = fast_exp2(::fmaf(scores[t].at[n][2 * h], unit, -base)), high = fast_exp2(::fmaf(scores[t].at[n][2 * h + 1], unit, -base));
                    sum += low + high;
                    weights[t].at[n / 2][n % 2 * 2 + h] = pack_bf16(low, high);
                }
                top[t].at[h] = now[t];
                total[t].at[h] = total[t].at[h] * shrink + sum;
                PRISM_UNROLL
                for (int n = 0; n < across; ++n) sums[t].at[n][2 * h] *= shrink, sums[t].at[n][2 * h + 1] *= shrink;
            });
        }
    }

    template <class Block>
    PRISM_DEVICE void add(Block& b, Reg<Block, Weights>& weights, const std::uint16_t* tile, Reg<Block, Sums>& sums) const {
        PRISM_UNROLL
        for (int s = 0; s < keys / 16; ++s)
            PRISM_UNROLL
            for (int n = 0; n < across; n += 2) {
                Reg<Block, Words<4>> value(b);  // 16 keys, 16 dimensions
                b.load_matrix_4_transposed([&](int t) { return value[t].at; },
                                           [&](int t) -> const void* { return tile + (16 * s + t % 16 / 8 * 8 + t % 8) * pitch + 8 * n + t % 32 / 16 * 8; });
                PRISM_UNROLL
                for (int e = 0; e < 2 && n + e < across; ++e)
                    b.mma_bf16([&](int t) { return sums[t].at[n + e]; }, [&](int t) { return weights[t].at[s]; }, [&](int t) { return value[t].at + 2 * e; });
            }
    }
};

}  // namespace prism::cuda
