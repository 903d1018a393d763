// Products with many rows: tiles of the result on tensor cores (weights of 16, 8 or 4 bits) or by f32 fma (f32 weights).
//
// Rows of x are split into numbers of 16 bits first (SplitRows): one each (fast), or two, whose sum keeps f32's first 16 bits
// (exact); both meet the same weights. Blocks of 8 and 4 bits become bf16 on the way from shared memory to the tensor cores,
// which holds their whole numbers exactly; the sums of a group of 32 are scaled in f32. So the split of x is all that is lost.
//
// Columns of x are stored in the order in which a lane finds weights next to each other: the 32 values of a group are the
// positions 8 c + 2 q + e of registers c = 0 ... 3 of the lanes with number q modulo 4, lower halves e = 0 and upper e = 1.
#pragma once

#include "prism/backend/cuda/block.hpp"
#include "prism/backend/cuda/kernels/after.hpp"
#include "prism/backend/cuda/kernels/convert.hpp"
#include "prism/backend/cuda/kernels/gemv.hpp"
#include "prism/backend/cuda/kernels/pieces.hpp"
#include "prism/backend/cuda/kernels/words.hpp"
#include "prism/backend/cuda/weights.hpp"

namespace prism::cuda {

/// In which order a group of 32 columns of x is stored: as it is, for blocks of 8 bits, for blocks of 4.
enum class Columns : std::uint8_t { plain, bytes, halves };

/// The column of a group that is stored at position 8 c + 2 q + e.
PRISM_HOST_DEVICE constexpr int column_at(Columns order, int c, int q, int e) {
    return order == Columns::plain ? 8 * c + 2 * q + e : (order == Columns::bytes ? 8 * q + 4 * (c / 2) : 4 * q + 16 * (c / 2)) + c % 2 + 2 * e;
}

/// x [m, k] as one or two matrices [m, padded] of 16 bits; `padded` is k in whole groups of 32, filled with zeros.
/// f16: rows are scaled by a power of two that brings their largest number to 2^12, where neither it nor a sum overflows and
/// the second number keeps 2^-37 of it; `scales` [m] takes what undoes it. A block a row.
struct SplitRows {
    static constexpr int max_threads = 128;
    Rows<const float>    x;
    std::byte*           to;
    std::int64_t         padded;
    std::int32_t         parts;          // 1 or 2
    Columns              order;
    bool                 f16;
    float*               scales;         // with f16
    float*               sums;           // [groups, ld_sums]: of a group of every row, as it is stored; may be null
    std::int64_t         ld_sums;        // a multiple of 4; the grid then has m in whole fours

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        const std::int32_t row = b.x;
        const bool         there = row < x.rows;
        const float* const from = x.row(there ? row : 0);
        Reg<Block, float>  most(b), sum(b);
        if (f16) {
            b.each_alone([&](int t) {
                most[t] = 0;
                for (std::int32_t j = t; j < x.cols; j += max_threads) most[t] = larger(most[t], ::fabsf(from[j]));
            });
            block_join<Block, float>(b, most, b.template shared<float>(0), [](float p, float q) { return larger(p, q); });
            b.each_alone([&](int t) {
                const std::uint32_t exponent = smaller(253U, larger(1U, 266U - smaller(265U, bits_of(most[t]) >> 23)));
                most[t] = float_of(exponent << 23);
                if (t == 0) scales[row] = float_of((254U - exponent) << 23);
            });
        }
        for (std::int64_t g0 = 0; g0 < padded / 32; g0 += max_threads / 4) {
            b.each_alone([&](int t) {
                const std::int64_t g = g0 + t / 4;
                sum[t] = 0;
                if (g >= padded / 32 || !there) return;
                const float   scale = f16 ? most[t] : 1;
                std::uint32_t high[4], low[4];
                PRISM_UNROLL
                for (int q = 0; q < 4; ++q) {
                    float first[2], second[2];
                    PRISM_UNROLL
                    for (int e = 0; e < 2; ++e) {
                        const std::int64_t j = 32 * g + column_at(order, t % 4, q, e);
                        const float        v = j < x.cols ? scale * from[j] : 0;
                        first[e] = f16 ? from_f16(f16_bits(v)) : from_bf16(bf16_bits(v));
                        second[e] = first[e] - first[e] == 0 ? v - first[e] : 0;  // an infinity has no rest
                        if (!f16) second[e] = from_bf16(bf16_bits(second[e]));
                        sum[t] += parts == 2 ? first[e] + second[e] : first[e];
                    }
                    high[q] = f16 ? pack_f16(first[0], first[1]) : pack_bf16(first[0], first[1]);
                    low[q] = f16 ? pack_f16(second[0], second[1]) : pack_bf16(second[0], second[1]);
                }
                std::byte* const at = to + (row * padded + 32 * g + 8 * (t % 4)) * 2;
                store_16(at, {{high[0], high[1], high[2], high[3]}});
                if (parts == 2) store_16(at + x.rows * padded * 2, {{low[0], low[1], low[2], low[3]}});
            });
            if (!sums) continue;
            lanes_sum<4>(b, sum);
            b.each_alone([&](int t) {
                if (t % 4 == 0 && g0 + t / 4 < padded / 32) sums[(g0 + t / 4) * ld_sums + row] = sum[t];
            });
        }
    }
};

/// Numbers of 16 bits in pairs, a - b: exact for the whole numbers that blocks hold.
PRISM_HOST_DEVICE inline std::uint32_t minus_bf16(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
    std::uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(b), "r"(0xbf80bf80U), "r"(a));
    return d;
#else
    return pack_bf16(from_bf16(a & 0xffffU) - from_bf16(b & 0xffffU), from_bf16(a >> 16) - from_bf16(b >> 16));
#endif
}

/// Bytes 0 and 2 (odd: 1 and 3) of a word as two bf16; of q4 and q4m their low halves (high: the upper ones).
template <Format F>
PRISM_HOST_DEVICE inline std::uint32_t two_weights(std::uint32_t word, int odd, int high) {
    word >>= 8 * odd + 4 * high;
    // 128 + n has the bits of n below, for n < 128; the sign bit of a byte makes the 128 that is taken away a 256
    if constexpr (F::dtype == Dtype::q8) return minus_bf16((word & 0x007f007fU) | 0x43004300U, (word & 0x00800080U) | 0x43004300U);
    else return minus_bf16((word & 0x000f000fU) | 0x43004300U, 0x43084308U);  // q - 8
}

/// How the columns of a product of few rows are cut: by the weights' shape alone, into as many parts as give each of
/// processors_of_sums two tiles, of about 512 columns at least: less is not worth what a part leaves in memory.
struct ColumnParts {
    static constexpr int most = 8, most_tiles = 2 * processors_of_sums, most_rows = 64;  // parts; tiles times parts; rows of x

    std::int32_t steps = 0, n = 1;  // of 32 columns, in whole eights (scales come that many at a time); parts

    /// Of n rows of weights, those of gates and ups alike.
    static ColumnParts of(std::int64_t n, std::int64_t cols) {
        const std::int64_t all = ceil_div<std::int64_t>(cols, 32), wanted = smaller(smaller<std::int64_t>(most, most_tiles / ceil_div<std::int64_t>(n, 64)), all / 16);
        const std::int64_t steps = ceil_div<std::int64_t>(ceil_div(all, larger<std::int64_t>(wanted, 1)), 8) * 8;
        return {static_cast<std::int32_t>(steps), static_cast<std::int32_t>(ceil_div(all, steps))};
    }
    /// What all parts leave in memory, in tiles of any size.
    static std::size_t floats(std::int64_t n, std::int64_t cols) {
        const std::int32_t parts = of(n, cols).n;
        return parts > 1 ? static_cast<std::size_t>(ceil_div<std::int64_t>(n, 128) * 128 * most_rows * parts) : 0;
    }
};

struct TileJob : KernelJob {
    ColumnParts  parts{};         // which the grid's y counts
    std::int32_t first_part = 0;  // of its tiles, among those that all jobs leave in memory
};

/// Tiles [bm, bn] of products of x, as SplitRows has left it, with matrices in rows of WeightRow<F>. Eight warps, two by four,
/// over 32 columns at a time, which copies bring to shared memory some steps ahead. Every sum runs over the columns in order;
/// where few tiles would leave a device idle, over those of each part, and then over the parts, which the block that finishes last
/// puts together: ColumnParts, for up to 64 rows of x.
template <Format F, int n_parts, int bm, int bn>
struct TileProduct {
    static constexpr bool blocks = F::values_per_block > 1, minima = F::dtype == Dtype::q4m;
    static constexpr int  max_threads = 256, max_jobs = 8, step = 32;
    static constexpr bool in_parts = bm <= ColumnParts::most_rows;                           // only so few rows have their columns cut
    static_assert(!in_parts || bm == ColumnParts::most_rows);                                // what ColumnParts::floats() counts with
    static constexpr int  min_blocks = blocks && bm == 128 ? 1 : F::dtype == Dtype::q8 && n_parts == 2 && bn == 128 ? 0 : 2;
    static constexpr int  n_stages = n_parts == 2 && bm == 128 ? 3 : 4;
    static constexpr int  mi = bm / 32, nj = bn / 32;                                        // tiles of 16 x 8 of a warp
    static constexpr int  weight_bytes = F::dtype == Dtype::q8 ? 32 : blocks ? 16 : 64;      // of a row and step
    static constexpr int  x_bytes = bm * step * 2, w_bytes = bn * weight_bytes, sums_bytes = minima ? bm * 4 : 0;
    static constexpr int  stage_bytes = n_parts * x_bytes + w_bytes + sums_bytes;
    static constexpr int  w_copies = larger(1, bn * weight_bytes / 16 / max_threads);         // of 16 bytes, of a thread and step
    static constexpr int  period = minima ? 4 : 8;                                           // steps whose scales are 16 bytes
    static constexpr int  scales_at = n_stages * stage_bytes, scales_bytes = blocks ? 2 * bn * 16 : 0;
    static constexpr int  ld_out = bn + 4;                                                   // of sums on their way out, half a tile at a time
    static constexpr std::size_t shared_bytes = larger(scales_at + scales_bytes, bm / 2 * ld_out * 4);

    const std::byte*   x = nullptr;       // [parts][m][padded] of 16 bits
    const float*       row_scales = nullptr;
    const float*       sums = nullptr;    // with minima: [groups][ld_sums]
    std::int64_t       ld_sums = 0;
    std::int32_t       m = 0, cols = 0, n_jobs = 0;
    std::uint32_t*     tickets = nullptr;  // [max_jobs ColumnParts::most_tiles], where columns are cut: zero before and after
    float*             partial = nullptr;  // of tiles and their parts: the sums of every thread
    TileJob            jobs[max_jobs];

    std::int32_t        tiles_down() const { return ceil_div<std::int32_t>(m, bm); }
    static std::int32_t tiles_across(std::int64_t n, bool gated) { return static_cast<std::int32_t>(ceil_div<std::int64_t>(n, gated ? bn / 2 : bn)); }

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        struct State {
            float         sum[mi][nj][4];
            float         part[mi][4];                            // of a group of blocks
            std::uint32_t a[n_parts][blocks ? 2 : 1][mi][4];
            std::uint32_t w[nj < 2 ? 2 : nj][2];
            std::uint32_t group[4];
            const std::byte* x_from;                              // what it copies in every step
            const std::byte* w_from[w_copies];
        };
        Reg<Block, State> state(b);
        std::byte* const  memory = b.template shared<std::byte>(0);

        const std::int32_t down = ceil_div<std::int32_t>(m, bm), across = b.x / down;  // tiles with the same weights side by side
        int                which = 0;
        while (which + 1 < n_jobs && jobs[which + 1].first_block <= across) ++which;
        const TileJob&     job = jobs[which];
        const bool         gated = job.up != nullptr;
        const std::int32_t m0 = b.x % down * bm, n0 = (across - job.first_block) * (gated ? bn / 2 : bn);
        const std::int32_t n_steps = ceil_div<std::int32_t>(cols, step);
        const std::int32_t first = in_parts ? b.y * job.parts.steps : 0, last = in_parts ? smaller(n_steps, first + job.parts.steps) : n_steps;
        if (in_parts && b.y >= job.parts.n) return;
        const std::int64_t padded = std::int64_t{n_steps} * step, row_bytes = WeightRow<F>::bytes(cols), values_at = WeightRow<F>::values_at(cols);

        // Rows of weights of a tile; gated ones are eight gates and their eight ups in turn, which meet in one thread. A
        // thread copies the same pieces in every step, those of rows 256 / pieces apart.
        constexpr int w_pieces = weight_bytes / 16, w_apart = max_threads / w_pieces, x_apart = max_threads / 4;
        const auto    output_of = [&](int r) { return n0 + (gated ? r / 16 * 8 + r % 8 : r); };
        const auto    weights_of = [&](int r) { return (gated && r / 8 % 2 ? job.up : job.w) + smaller(output_of(r), job.n - 1) * row_bytes; };
        b.each_alone([&](int t) {
            State& s = state[t];
            s.x_from = x + (smaller<std::int64_t>(m0 + t / 4, m - 1) * padded + t % 4 * 8) * 2;
            PRISM_UNROLL
            for (int i = 0; i < w_copies; ++i) s.w_from[i] = weights_of(t / w_pieces % bn + i * w_apart) + values_at + t % w_pieces * 16;
        });
        const auto fetch = [&](State& state_of, int t, std::int32_t s) {
            std::byte* const to = memory + s % n_stages * stage_bytes;
            PRISM_UNROLL
            for (int p = 0; p < n_parts; ++p) {
                PRISM_UNROLL
                for (int i = 0; i < bm / x_apart; ++i) {
                    const bool there = m0 + t / 4 + i * x_apart < m;
                    b.copy_16(to + p * x_bytes + swizzled(t / 4, t % 4) + i * x_apart * 64,
                              state_of.x_from + (there ? (p * std::int64_t{m} + i * x_apart) * padded * 2 + s * 64 : 0), there);
                }
            }
            std::byte* const w = to + n_parts * x_bytes;
            PRISM_UNROLL
            for (int i = 0; i < w_copies; ++i) {
                const int r = t / w_pieces + i * w_apart;
                if (r >= bn) break;
                const std::int32_t at = s * weight_bytes;  // of plain rows, the last step may lack some
                const bool         there = output_of(r) < job.n && (blocks || at + t % w_pieces * 16 < row_bytes);
                std::byte* const   into = w + (blocks ? t * 16 : swizzled(t / w_pieces, t % w_pieces)) + i * w_apart * weight_bytes;
                b.copy_16(into, state_of.w_from[i] + (blocks || there ? at : 0), there);
            }
            if constexpr (minima) {
                if (t < bm / 4) {
                    const bool there = m0 + 4 * t < m;
                    b.copy_16(w + w_bytes + 16 * t, sums + s * ld_sums + (there ? m0 + 4 * t : 0), there);
                }
            }
            if constexpr (blocks) {
                if (s % period == 0 && t < bn) b.copy_16(memory + scales_at + (s / period % 2 * bn + t) * 16, weights_of(t) + s / period * 16, output_of(t) < job.n);
            }
        };

        b.each_alone([&](int t) {
            State& s = state[t];
            PRISM_UNROLL
            for (int i = 0; i < mi; ++i) {
                PRISM_UNROLL
                for (int j = 0; j < nj; ++j) s.sum[i][j][0] = s.sum[i][j][1] = s.sum[i][j][2] = s.sum[i][j][3] = 0;
            }
        });
        for (std::int32_t s = first; s < first + n_stages - 1; ++s) {
            b.each_alone([&](int t) {
                if (s < last) fetch(state[t], t, s);
            });
            b.copies_commit();
        }
        for (std::int32_t s = first; s < last; ++s) {
            b.template copies_wait<n_stages - 2>();
            b.barrier();
            b.each_alone([&](int t) {
                if (s + n_stages - 1 < last) fetch(state[t], t, s + n_stages - 1);
            });
            b.copies_commit();
            std::byte* const at = memory + s % n_stages * stage_bytes;
            if constexpr (blocks) multiply_blocks(b, state, at, at + n_parts * x_bytes, memory + scales_at + s / period % 2 * bn * 16, s % period);
            else multiply_values(b, state, at, at + n_parts * x_bytes);
        }
        if constexpr (in_parts) {
            if (job.parts.n > 1 && !join(b, state, job, job.first_part + (across - job.first_block) * job.parts.n)) return;
        }
        b.barrier();

        float* const out = b.template shared<float>(0);
        for (int half = 0; half < 2; ++half) {
            b.each([&](int t) {
                const int warp = t / warp_size, lane = t % warp_size;
                if (warp / 4 != half) return;
                PRISM_UNROLL
                for (int i = 0; i < mi; ++i) {
                    PRISM_UNROLL
                    for (int j = 0; j < nj; ++j) {
                        PRISM_UNROLL
                        for (int e = 0; e < 4; ++e)
                            out[(i * 16 + lane / 4 + e / 2 * 8) * ld_out + warp % 4 * (bn / 4) + j * 8 + lane % 4 * 2 + e % 2] = state[t].sum[i][j][e];
                    }
                }
            });
            b.each([&](int t) {
                const int width = gated ? bn / 2 : bn;
                for (int c = t; c < bm / 2 * width; c += max_threads) {
                    const int          r = c / width, j = c % width;
                    const std::int32_t row = m0 + half * (bm / 2) + r, column = n0 + j;
                    if (row >= m || column >= job.n) continue;
                    const float  scale = row_scales ? row_scales[row] : 1;
                    const float* const z = out + r * ld_out + (gated ? j / 8 * 16 + j % 8 : j);
                    float* const to = job.y + row * job.ldy + column;
                    if (gated) job.after.write_gated(scale * z[0], scale * z[8], column, to);
                    else job.after.write(scale * z[0], column, to);
                }
            });
        }
    }

private:
    /// Leaves the sums of a part in memory, where those of its tile begin at `first`. The last block of the tile gets those of all
    /// parts, added in order, and `true`.
    template <class Block, class State>
    PRISM_DEVICE bool join(Block& b, State& state, const TileJob& job, std::int32_t first) const {
        const auto each_four = [&](int t, std::int32_t part, auto&& f) {  // f(four sums, where they lie): of neighbours beside each other
            float* const at = partial + (std::int64_t{first} + part) * (bm * bn) + 4 * t;
            PRISM_UNROLL
            for (int i = 0; i < mi; ++i) {
                if (t / warp_size / 4 * (bm / 2) + i * 16 >= m) continue;  // rows of no x
                PRISM_UNROLL
                for (int j = 0; j < nj; ++j) f(state[t].sum[i][j], at + (i * nj + j) * 4 * max_threads);
            }
        };
        b.each_alone([&](int t) {
            each_four(t, b.y, [](const float(&sum)[4], float* to) { store_floats(to, Floats<4>{{sum[0], sum[1], sum[2], sum[3]}}); });
        });
        if (!is_last(b, tickets + first, job.parts.n)) return false;
        b.each_alone([&](int t) {
            for (std::int32_t part = 0; part < job.parts.n; ++part)
                each_four(t, part, [&](float(&sum)[4], const float* from) {
                    const Floats<4> more = load_floats<4>(from);
                    PRISM_UNROLL
                    for (int e = 0; e < 4; ++e) sum[e] = part ? sum[e] + more.at[e] : more.at[e];
                });
        });
        return true;
    }

    /// Where 16 bytes of a row of 64 lie, so that eight rows below each other reach all banks.
    PRISM_DEVICE static int swizzled(int row, int piece) { return row * 64 + (piece ^ (row / 2 % 4)) * 16; }

    template <class Block>
    PRISM_DEVICE static void mma(Block& b, auto&& d, auto&& a, auto&& w) {
        if constexpr (F::dtype == Dtype::f16) b.mma_f16(d, a, w);
        else b.mma_bf16(d, a, w);
    }

    template <class Block, class State>
    PRISM_DEVICE static void load_rows(Block& b, State& state, const std::byte* x, int k, int slot) {
        PRISM_UNROLL
        for (int p = 0; p < n_parts; ++p) {
            PRISM_UNROLL
            for (int i = 0; i < mi; ++i)
                b.load_matrix_4([&](int t) { return state[t].a[p][slot][i]; },
                                [&](int t) { return x + p * x_bytes + swizzled(t / warp_size / 4 * (bm / 2) + i * 16 + t % 16, 2 * k + t % 32 / 16); });
        }
    }

    template <class Block, class State>
    PRISM_DEVICE static void multiply_values(Block& b, State& state, const std::byte* x, const std::byte* w) {
        PRISM_UNROLL
        for (int k = 0; k < 2; ++k) {
            load_rows(b, state, x, k, 0);
            PRISM_UNROLL
            for (int j = 0; j < nj; j += 2)
                b.load_matrix_4([&](int t) { return state[t].w[j]; },
                                [&](int t) { return w + swizzled(t / warp_size % 4 * (bn / 4) + j * 8 + t % 32 / 16 * 8 + t % 8, 2 * k + t % 16 / 8); });
            PRISM_UNROLL
            for (int p = 0; p < n_parts; ++p) {
                PRISM_UNROLL
                for (int i = 0; i < mi; ++i) {
                    PRISM_UNROLL
                    for (int j = 0; j < nj; ++j)
                        mma(b, [&](int t) { return state[t].sum[i][j]; }, [&](int t) { return state[t].a[p][0][i]; }, [&](int t) { return state[t].w[j]; });
                }
            }
        }
    }

    template <class Block, class State>
    PRISM_DEVICE static void multiply_blocks(Block& b, State& state, const std::byte* x, const std::byte* w, const std::byte* scales, int at) {
        load_rows(b, state, x, 0, 0);
        load_rows(b, state, x, 1, 1);
        PRISM_UNROLL
        for (int j = 0; j < nj; ++j) {
            b.each_alone([&](int t) {
                auto&         s = state[t];
                const std::byte* const row = w + (t / warp_size % 4 * (bn / 4) + j * 8 + t % 32 / 4) * weight_bytes;
                std::uint32_t          words[2];
                memcpy(words, __builtin_assume_aligned(row + t % 4 * (weight_bytes / 4), weight_bytes / 4), static_cast<std::size_t>(weight_bytes / 4));
                PRISM_UNROLL
                for (int c = 0; c < 4; ++c) s.group[c] = two_weights<F>(words[F::dtype == Dtype::q8 ? c / 2 : 0], c % 2, F::dtype == Dtype::q8 ? 0 : c / 2);
                PRISM_UNROLL
                for (int i = 0; i < mi; ++i) s.part[i][0] = s.part[i][1] = s.part[i][2] = s.part[i][3] = 0;
            });
            PRISM_UNROLL
            for (int k = 0; k < 2; ++k) {
                PRISM_UNROLL
                for (int p = 0; p < n_parts; ++p) {
                    PRISM_UNROLL
                    for (int i = 0; i < mi; ++i)
                        mma(b, [&](int t) { return state[t].part[i]; }, [&](int t) { return state[t].a[p][k][i]; }, [&](int t) { return state[t].group + 2 * k; });
                }
            }
            b.each_alone([&](int t) {
                auto& s = state[t];
                PRISM_UNROLL
                for (int e = 0; e < 2; ++e) {
                    const std::byte* const of = scales + (t / warp_size % 4 * (bn / 4) + j * 8 + t % 4 * 2 + e) * 16 + at * (16 / period);
                    const float            scale = from_f16(load_2(of)), minimum = minima ? middle(scale, from_f16(load_2(of + 2))) : 0;
                    PRISM_UNROLL
                    for (int i = 0; i < mi; ++i) {
                        PRISM_UNROLL
                        for (int r = 0; r < 2; ++r) {
                            float& sum = s.sum[i][j][2 * r + e];
                            sum += scale * s.part[i][2 * r + e];
                            if constexpr (minima)
                                sum += minimum * float_of(load_words<1>(w + w_bytes + (t / warp_size / 4 * (bm / 2) + i * 16 + t % 32 / 4 + 8 * r) * 4).at[0]);
                        }
                    }
                }
            });
        }
    }
};

/// Tiles of 64 x 64 of products with f32 weights, by fma: 256 threads, four rows and four columns each.
struct FmaTileProduct {
    static constexpr int         max_threads = 256, max_jobs = 8, tile = 64, step = 16, ld = tile + 4;
    static constexpr std::size_t shared_bytes = 2 * step * ld * sizeof(float);
    Rows<const float>            x;
    std::int32_t                 n_jobs = 0;
    KernelJob                    jobs[max_jobs];

    static std::int32_t tiles_across(std::int64_t n, bool gated) { return static_cast<std::int32_t>(ceil_div<std::int64_t>(n, gated ? tile / 2 : tile)); }

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        struct State {
            float sum[4][4];
            Piece x, w;  // of the next step
        };
        Reg<Block, State> state(b);
        float* const      xs = b.template shared<float>(0);  // [step][ld], and the same of the weights
        float* const      ws = xs + step * ld;

        const std::int32_t down = ceil_div<std::int32_t>(x.rows, tile), across = b.x / down;
        int                which = 0;
        while (which + 1 < n_jobs && jobs[which + 1].first_block <= across) ++which;
        const KernelJob&   job = jobs[which];
        const bool         gated = job.up != nullptr;
        const std::int32_t m0 = b.x % down * tile, n0 = (across - job.first_block) * (gated ? tile / 2 : tile);
        const std::int64_t row_bytes = WeightRow<f32>::bytes(x.cols);
        const auto         fetch = [&](State& s, int t, std::int32_t k0) {
            const int          r = t / 4, k = k0 + t % 4 * 4;
            const std::int32_t row = m0 + r, output = n0 + (gated ? r / 32 * 16 + r % 16 : r);  // gated: sixteen gates, their ups
            s.x = s.w = Piece{{0, 0, 0, 0}};
            if (row < x.rows) {
                const float* const p = x.row(row) + k;
                if (k + 4 <= x.cols && aligned_to_16(p)) {
                    s.x = load_16(p);
                } else {
                    PRISM_UNROLL
                    for (int e = 0; e < 4; ++e)
                        if (k + e < x.cols) s.x.at[e] = bits_of(p[e]);
                }
            }
            if (output < job.n && k < x.cols) s.w = load_16((gated && r / 16 % 2 ? job.up : job.w) + output * row_bytes + std::int64_t{k} * 4);
        };

        b.each_alone([&](int t) {
            PRISM_UNROLL
            for (int i = 0; i < 4; ++i) {
                PRISM_UNROLL
                for (int j = 0; j < 4; ++j) state[t].sum[i][j] = 0;
            }
            fetch(state[t], t, 0);
        });
        for (std::int32_t k0 = 0; k0 < x.cols; k0 += step) {
            b.each([&](int t) {
                PRISM_UNROLL
                for (int e = 0; e < 4; ++e) {
                    xs[(t % 4 * 4 + e) * ld + t / 4] = float_of(state[t].x.at[e]);
                    ws[(t % 4 * 4 + e) * ld + t / 4] = float_of(state[t].w.at[e]);
                }
            });
            b.each([&](int t) {
                State& s = state[t];
                if (k0 + step < x.cols) fetch(s, t, k0 + step);
                PRISM_UNROLL
                for (int k = 0; k < step; ++k) {
                    const Piece p = load_16(xs + k * ld + t / 16 * 4);
                    PRISM_UNROLL
                    for (int j = 0; j < 4; ++j) {
                        const float w = ws[k * ld + j * 16 + t % 16];
                        PRISM_UNROLL
                        for (int i = 0; i < 4; ++i) s.sum[i][j] += float_of(p.at[i]) * w;
                    }
                }
            });
        }
        b.each_alone([&](int t) {
            PRISM_UNROLL
            for (int i = 0; i < 4; ++i) {
                const std::int32_t row = m0 + t / 16 * 4 + i;
                PRISM_UNROLL
                for (int j = 0; j < 4; ++j) {
                    const std::int32_t column = n0 + (gated ? j / 2 : j) * 16 + t % 16;
                    if (row >= x.rows || column >= job.n || (gated && j % 2)) continue;
                    float* const to = job.y + row * job.ldy + column;
                    if (gated) job.after.write_gated(state[t].sum[i][j], state[t].sum[i][(j + 1) % 4], column, to);
                    else job.after.write(state[t].sum[i][j], column, to);
                }
            }
        });
    }
};

}  // namespace prism::cuda
