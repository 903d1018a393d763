// Products with few rows: every weight is read once and meets all rows in f32, whatever its format. Reading is the cost.
//
// A warp takes four rows of weights (four outputs, or two gates and their ups). Its lanes read pieces of 16 bytes next to
// each other, a piece of each row at a time, and the following pieces are under way while these are multiplied. Where there
// are few outputs, several warps of a block share rows. Rows of x lie in shared memory, a lane's part of a piece padded so
// that eight lanes reach all banks.
//
// A sum runs over the pieces of a lane, then over the lanes, then over the warps: the order depends on the weights' shape
// alone, not on the rows of x and not on what else is multiplied in the launch.
//
// An RMS norm in front costs no launch: each block finds out what its rows are multiplied by while its first weights are under
// way, and puts normed rows into shared memory. They have the bits that the kernel of norms writes.
#pragma once

#include "prism/backend/cuda/block.hpp"
#include "prism/backend/cuda/kernels/after.hpp"
#include "prism/backend/cuda/kernels/convert.hpp"
#include "prism/backend/cuda/kernels/norm.hpp"
#include "prism/backend/cuda/kernels/pieces.hpp"
#include "prism/backend/cuda/kernels/words.hpp"
#include "prism/backend/cuda/weights.hpp"

namespace prism::cuda {

struct GemvJob : KernelJob {
    std::int32_t splits = 1;  // warps that share rows
};

/// Byte e of a word as 2^23 + it, whose bits it is the lowest of: a permutation of bytes, cheaper than a conversion.
PRISM_DEVICE inline float above_2_23(std::uint32_t word, int e) {
#if defined(__CUDA_ARCH__)
    return float_of(__byte_perm(word, 0x4b000000U, static_cast<unsigned>(0x7440 + e)));
#else
    return float_of((word >> (8 * e) & 0xffU) | 0x4b000000U);
#endif
}

/// Values 4 c ... 4 c + 3 of a piece as numbers, without the scale of their group: q, or q - 8 for four bits.
template <Format F>
PRISM_DEVICE inline void four_values(const Piece& p, int c, float (&v)[4]) {
    PRISM_UNROLL
    for (int e = 0; e < 4; ++e) {
        if constexpr (F::dtype == Dtype::f32) v[e] = float_of(p.at[e]);
        if constexpr (F::dtype == Dtype::bf16) v[e] = float_of(e % 2 ? p.at[2 * c + e / 2] & 0xffff0000U : p.at[2 * c + e / 2] << 16);
        if constexpr (F::dtype == Dtype::f16) v[e] = from_f16(p.at[2 * c + e / 2] >> (e % 2 * 16) & 0xffffU);
        if constexpr (F::dtype == Dtype::q8) v[e] = above_2_23(p.at[c] ^ 0x80808080U, e) - 8388736.0f;
        if constexpr (F::dtype == Dtype::q4 || F::dtype == Dtype::q4m) v[e] = above_2_23(p.at[c % 4] >> (c / 4 * 4) & 0x0f0f0f0fU, e) - 8388616.0f;
    }
}

/// scale q + minimum is scale (q - 8) and this, whose products cancel less.
PRISM_HOST_DEVICE inline float middle(float scale, float minimum) { return 8 * scale + minimum; }

/// x [m, k] times up to eight matrices in rows of WeightRow<F>. A block takes rows 4 i ... 4 i + n_rows - 1 of x.
template <Format F, int n_rows>
struct Gemv {
    static constexpr int max_threads = 256, n_warps = max_threads / warp_size, max_jobs = 8;
    static constexpr int min_blocks = F::values_per_block == 1 || n_rows == 2 ? 2 : n_rows == 1 ? 3 : 0;
    static constexpr int outputs = 4;                                                                       // rows of weights of a warp
    static constexpr int width = F::dtype == Dtype::q8 ? 16 : F::values_per_block > 1 ? 32 : 16 / static_cast<int>(sizeof(typename F::block));  // values of a piece
    static constexpr int slot = width == 4 ? 4 : width + 4;                                                 // floats of x for a piece
    static constexpr int depth = n_rows == 1 && F::values_per_block == 1 ? 2 : 1;                           // pieces of a row on their way at a time
    static constexpr int max_splits = F::values_per_block > 1 ? 4 : 8;
    static constexpr int n_sums = outputs * n_rows, sums_bytes = n_warps * n_sums * 4;
    static constexpr int unit = warp_size * width;                                                          // values that a warp takes at a time
    static constexpr int in_flight = n_rows == 4 ? 1 : n_rows == 2 || F::values_per_block > 1 ? 2 : 4;      // fours of a row of x on their way at a time: more spill

    Rows<const float> x;
    RowNorm           norm;             // of the rows of x, in front of all products
    std::int32_t      n_jobs = 0;
    std::int32_t      stretch = 0;      // units of x in shared memory at a time
    std::int32_t      row_blocks = 1;   // blocks side by side that take other rows of x
    GemvJob           jobs[max_jobs];

    PRISM_HOST_DEVICE static std::int64_t pieces(std::int64_t cols) { return (WeightRow<F>::bytes(cols) - WeightRow<F>::values_at(cols)) / 16; }
    PRISM_HOST_DEVICE static std::int32_t units(std::int64_t cols) { return static_cast<std::int32_t>(ceil_div<std::int64_t>(pieces(cols), warp_size)); }

    /// Warps that share rows of a matrix with n outputs: enough that each of processors_of_sums has two dozen.
    static std::int32_t splits_for(std::int64_t n, bool gated, std::int64_t cols) {
        const std::int64_t groups = ceil_div<std::int64_t>(n * (gated ? 2 : 1), outputs);
        std::int32_t       splits = 1;
        while (splits < max_splits && 2 * splits <= units(cols) && groups * splits < std::int64_t{24} * processors_of_sums) splits *= 2;
        return splits;
    }
    static std::int32_t blocks_for(std::int64_t n, bool gated, std::int32_t splits) {
        return static_cast<std::int32_t>(ceil_div<std::int64_t>(n * (gated ? 2 : 1), std::int64_t{outputs} * (n_warps / splits)));
    }
    /// As many units as fit 48 KiB, in whole turns of all warps, at least one turn (four rows and blocks of four bits: 72 KiB);
    /// no more than there are.
    static std::int32_t stretch_for(std::int64_t cols) {
        constexpr std::int32_t turn = max_splits * depth, bytes = n_rows * warp_size * slot * 4, fit = (49152 - sums_bytes) / (bytes * turn);
        return smaller<std::int32_t>(turn * larger<std::int32_t>(fit, 1), ceil_div<std::int32_t>(units(cols), depth) * depth);
    }
    static std::size_t shared_bytes(std::int32_t stretch) { return static_cast<std::size_t>(sums_bytes) + static_cast<std::size_t>(stretch) * n_rows * warp_size * slot * 4; }

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        struct State {
            float         sum[outputs][n_rows];
            Piece         next[depth][outputs];
            std::uint32_t scale[depth][outputs];
            std::uint32_t row[outputs];  // where its rows of weights begin, in pieces
        };
        Reg<Block, State> state(b);
        float* const      sums = b.template shared<float>(0);
        float* const      staged = b.template shared<float>(sums_bytes);

        int which = 0;
        while (which + 1 < n_jobs && jobs[which + 1].first_block <= b.x / row_blocks) ++which;
        const GemvJob&     job = jobs[which];
        const std::int32_t block = b.x / row_blocks - job.first_block, first_row = b.x % row_blocks * n_rows, splits = job.splits;
        const bool         gated = job.up != nullptr;
        const std::int64_t cols = x.cols, row_bytes = WeightRow<F>::bytes(cols), values_at = WeightRow<F>::values_at(cols);
        const auto         n_pieces = static_cast<std::int32_t>(pieces(cols));
        const std::int32_t n_units = units(cols);

        const auto output_of = [&](int warp, int r) {  // which output a row of weights belongs to
            const std::int64_t group = std::int64_t{block} * (n_warps / splits) + warp / splits;
            return gated ? group * (outputs / 2) + r / 2 : group * outputs + r;
        };
        const std::byte* const bases[2] = {job.w, gated ? job.up : job.w};  // of even and odd rows
        const auto             fetch = [&](State& s, int t, std::int32_t u) {  // units u, u + splits, ... of the warp
            PRISM_UNROLL
            for (int d = 0; d < depth; ++d) {
                const std::int32_t p = (u + d * splits) * warp_size + t % warp_size;
                PRISM_UNROLL
                for (int r = 0; r < outputs; ++r) {
                    s.next[d][r] = Piece{{0, 0, 0, 0}};
                    s.scale[d][r] = 0;
                    if (p < n_pieces) {
                        const std::byte* const row = bases[r % 2] + std::int64_t{16} * s.row[r];
                        s.next[d][r] = stream_16(row + values_at + std::int64_t{16} * p);
                        if constexpr (F::dtype == Dtype::q8) s.scale[d][r] = load_2(row + p / 2 * 2);
                        if constexpr (F::dtype == Dtype::q4) s.scale[d][r] = load_2(row + 2 * p);
                        if constexpr (F::dtype == Dtype::q4m) s.scale[d][r] = load_words<1>(row + 4 * p).at[0];
                    }
                }
            }
        };

        b.each_alone([&](int t) {
            State& s = state[t];
            PRISM_UNROLL
            for (int r = 0; r < outputs; ++r) {
                PRISM_UNROLL
                for (int i = 0; i < n_rows; ++i) s.sum[r][i] = 0;
                // beyond the last output: read it again, write nothing
                s.row[r] = static_cast<std::uint32_t>(smaller<std::int64_t>(output_of(t / warp_size, r), job.n - 1) * (row_bytes / 16));
            }
            fetch(s, t, t / warp_size % splits);
        });
        const float* const scales = norm.weight ? scales_of(b, first_row, sums) : nullptr;
        for (std::int32_t from = 0; from < n_units; from += stretch) {
            const std::int32_t n = smaller(stretch, ceil_div(n_units - from, depth) * depth);
            b.each([&](int t) { stage(t, from, n, first_row, scales, staged); });
            b.each([&](int t) {
                State&    s = state[t];
                const int lane = t % warp_size;
                for (std::int32_t u = t / warp_size % splits; u < n; u += splits * depth) {
                    Piece         piece[depth][outputs];
                    std::uint32_t scale[depth][outputs];
                    PRISM_UNROLL
                    for (int d = 0; d < depth; ++d) {
                        PRISM_UNROLL
                        for (int r = 0; r < outputs; ++r) piece[d][r] = s.next[d][r], scale[d][r] = s.scale[d][r];
                    }
                    fetch(s, t, from + u + splits * depth);
                    PRISM_UNROLL
                    for (int d = 0; d < depth; ++d)
                        if (depth == 1 || u + d * splits < n) multiply(piece[d], scale[d], staged + (std::int64_t{u + d * splits} * warp_size + lane) * slot, n * warp_size * slot, s.sum);
                }
            });
        }

        PRISM_UNROLL
        for (int i = 0; i < n_sums; ++i) {
            Reg<Block, float> one(b);
            b.each_alone([&](int t) { one[t] = state[t].sum[i / n_rows][i % n_rows]; });
            lanes_sum(b, one);
            b.each_alone([&](int t) {
                if (t % warp_size == i) sums[t / warp_size * n_sums + i] = one[t];
            });
        }
        b.barrier();
        b.each_alone([&](int t) {
            const int          groups = n_warps / splits, warp = t / n_sums * splits, r = t % n_sums / n_rows, i = t % n_rows, row = first_row + i;
            const std::int64_t output = output_of(warp, r);
            if (t >= groups * n_sums || row >= x.rows || output >= job.n || (gated && r % 2)) return;
            const auto sum_of = [&](int which_row) {
                float sum = 0;
                for (int s = 0; s < splits; ++s) sum += sums[(warp + s) * n_sums + which_row * n_rows + i];
                return sum;
            };
            float* const y = job.y + row * job.ldy + output;
            if (gated) job.after.write_gated(sum_of(r), sum_of(r + 1), output, y);
            else job.after.write(sum_of(r), output, y);
        });
    }

private:
    /// Row i of x; null beyond the last.
    PRISM_DEVICE const float* row_of(std::int32_t i) const { return i < x.rows ? x.row(i) : nullptr; }

    /// What the norm multiplies each row by, in shared memory: block_sum of Norm, for all rows at once. `scratch` is free until the sums.
    template <class Block>
    PRISM_DEVICE const float* scales_of(Block& b, std::int32_t first_row, float* scratch) const {
        static_assert(max_threads == norm_threads && n_rows * (n_warps + 1) * 4 <= sums_bytes);
        struct Sums {
            float at[n_rows];
        };
        float* const     scales = scratch + n_rows * n_warps;
        Reg<Block, Sums> sums(b);
        b.each_alone([&](int t) {
            PRISM_UNROLL
            for (int i = 0; i < n_rows; ++i) sums[t].at[i] = 0;
            for (std::int32_t j = 4 * t; j < x.cols; j += 4 * max_threads * in_flight) {
                Floats<4> v[n_rows][in_flight];
                PRISM_UNROLL
                for (int i = 0; i < n_rows; ++i)
                    PRISM_UNROLL
                    for (int f = 0; f < in_flight; ++f) v[i][f] = four_of(row_of(first_row + i), x.cols, j + 4 * max_threads * f);
                PRISM_UNROLL
                for (int i = 0; i < n_rows; ++i)
                    PRISM_UNROLL
                    for (int f = 0; f < in_flight; ++f) sums[t].at[i] = add_squares(sums[t].at[i], v[i][f], 0, x.cols, j + 4 * max_threads * f);
            }
        });
        PRISM_UNROLL
        for (int i = 0; i < n_rows; ++i) {
            Reg<Block, float> one(b);
            b.each_alone([&](int t) { one[t] = sums[t].at[i]; });
            lanes_sum(b, one);
            b.each_alone([&](int t) {
                if (t % warp_size == 0) scratch[i * n_warps + t / warp_size] = one[t];
            });
        }
        b.barrier();
        b.each([&](int t) {
            if (t >= n_rows) return;
            float all = scratch[t * n_warps];
            for (int w = 1; w < n_warps; ++w) all += scratch[t * n_warps + w];
            scales[t] = norm_scale(all, x.cols, norm.eps);
        });
        return scales;
    }

    /// n units of x from unit `from` on into shared memory, zeros beyond its last row and column. Null scales: without a norm.
    PRISM_DEVICE void stage(int t, std::int32_t from, std::int32_t n, std::int32_t first_row, const float* scales, float* to) const {
        const std::int32_t fours = n * (unit / 4);
        PRISM_UNROLL
        for (int i = 0; i < n_rows; ++i) {
            const float* const row = row_of(first_row + i);
            const float        scale = scales ? scales[i] : 1;
            for (std::int32_t c0 = t; c0 < fours; c0 += max_threads * in_flight) {
                Floats<4>  v[in_flight], w[in_flight];
                const auto column = [&](int f) { return from * unit + 4 * (c0 + max_threads * f); };
                PRISM_UNROLL
                for (int f = 0; f < in_flight; ++f) v[f] = four_of(row, x.cols, column(f));
                if (scales) {
                    PRISM_UNROLL
                    for (int f = 0; f < in_flight; ++f) w[f] = four_of(norm.weight, x.cols, column(f));
                    PRISM_UNROLL
                    for (int f = 0; f < in_flight; ++f)
                        PRISM_UNROLL
                        for (int e = 0; e < 4; ++e) v[f].at[e] = column(f) + e < x.cols ? v[f].at[e] * scale * w[f].at[e] : 0;  // zeros stay zeros, whatever the scale
                }
                PRISM_UNROLL
                for (int f = 0; f < in_flight; ++f) {
                    const std::int32_t c = c0 + max_threads * f;
                    if (c < fours) store_floats(to + std::int64_t{i} * n * warp_size * slot + c / (width / 4) * slot + c % (width / 4) * 4, v[f]);
                }
            }
        }
    }

    PRISM_DEVICE static void multiply(const Piece (&piece)[outputs], const std::uint32_t (&scale)[outputs], const float* at, std::int32_t row, float (&sum)[outputs][n_rows]) {
        constexpr bool blocks = F::values_per_block > 1;
        float          part[outputs][n_rows], of_x[n_rows];
        PRISM_UNROLL
        for (int i = 0; i < n_rows; ++i) {
            of_x[i] = 0;
            PRISM_UNROLL
            for (int r = 0; r < outputs; ++r) part[r][i] = blocks ? 0 : sum[r][i];
        }
        PRISM_UNROLL
        for (int c = 0; c < width / 4; ++c) {
            float v[n_rows][4];
            PRISM_UNROLL
            for (int i = 0; i < n_rows; ++i) {
                const Piece p = load_16(at + i * row + 4 * c);
                PRISM_UNROLL
                for (int e = 0; e < 4; ++e) v[i][e] = float_of(p.at[e]);
                if constexpr (F::dtype == Dtype::q4m) of_x[i] += (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
            }
            PRISM_UNROLL
            for (int r = 0; r < outputs; ++r) {
                float w[4];
                four_values<F>(piece[r], c, w);
                PRISM_UNROLL
                for (int i = 0; i < n_rows; ++i) {
                    PRISM_UNROLL
                    for (int e = 0; e < 4; ++e) part[r][i] += w[e] * v[i][e];
                }
            }
        }
        PRISM_UNROLL
        for (int r = 0; r < outputs; ++r) {
            PRISM_UNROLL
            for (int i = 0; i < n_rows; ++i) {
                if constexpr (blocks) sum[r][i] += from_f16(scale[r] & 0xffffU) * part[r][i];
                else sum[r][i] = part[r][i];
                if constexpr (F::dtype == Dtype::q4m) sum[r][i] += middle(from_f16(scale[r] & 0xffffU), from_f16(scale[r] >> 16)) * of_x[i];
            }
        }
    }
};

/// The number in column j of a row of a file.
template <Format F>
PRISM_DEVICE inline float file_value(const Stored& w, std::int64_t row, std::int64_t j) {
    constexpr auto     per_block = static_cast<std::int64_t>(F::values_per_block);
    constexpr auto     block_bytes = static_cast<std::int64_t>(sizeof(typename F::block));
    const std::byte*   p = w.data + row * w.stride + j / per_block * block_bytes;
    if constexpr (F::dtype == Dtype::f32) return float_of(load_4(p));
    else if constexpr (F::dtype == Dtype::bf16) return from_bf16(load_2(p));
    else if constexpr (F::dtype == Dtype::f16) return from_f16(load_2(p));
    else {
        const auto  i = static_cast<int>(j % 32);
        const float scale = from_f16(load_2(p));
        if constexpr (F::dtype == Dtype::q8) return scale * static_cast<float>(static_cast<std::int8_t>(p[2 + i]));
        constexpr int head = F::dtype == Dtype::q4m ? 4 : 2;
        const auto    q = static_cast<float>(static_cast<unsigned>(p[head + i % 16]) >> i / 16 * 4 & 15U);
        return F::dtype == Dtype::q4m ? scale * q + from_f16(load_2(p + 2)) : scale * (q - 8);
    }
}

/// x times a matrix in rows of a file, which nothing aligns: slow, for tables of embeddings that serve as heads. A warp
/// takes one output and up to four rows of x.
template <Format F>
struct FileRowsProduct {
    static constexpr int max_threads = 128, n_rows = 4;
    Rows<const float>    x;
    Stored               w, up;  // up.data: y = silu(x w^T) (x up^T)
    std::int32_t         n;
    After                after;
    float*               y;
    std::int64_t         ldy;

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        const auto         output_of = [&](int t) { return std::int64_t{b.x} * (max_threads / warp_size) + t / warp_size; };
        const std::int32_t first_row = b.y * n_rows;
        Reg<Block, float>  gate(b), second(b);
        for (int i = 0; i < n_rows && first_row + i < x.rows; ++i) {
            b.each_alone([&](int t) {
                gate[t] = output_of(t) < n ? lane_sum(w, output_of(t), t % warp_size, x.row(first_row + i)) : 0;
                second[t] = up.data && output_of(t) < n ? lane_sum(up, output_of(t), t % warp_size, x.row(first_row + i)) : 0;
            });
            lanes_sum(b, gate);
            lanes_sum(b, second);
            b.each_alone([&](int t) {
                const std::int64_t output = output_of(t);
                if (t % warp_size != 0 || output >= n) return;
                float* const to = y + (first_row + i) * ldy + output;
                if (up.data) after.write_gated(gate[t], second[t], output, to);
                else after.write(gate[t], output, to);
            });
        }
    }

private:
    PRISM_DEVICE float lane_sum(const Stored& from, std::int64_t row, int lane, const float* p) const {
        float sum = 0;
        for (std::int64_t j = lane; j < x.cols; j += warp_size) sum += file_value<F>(from, row, j) * p[j];
        return sum;
    }
};

}  // namespace prism::cuda
