// Norms of rows: a kernel of its own, and what a product takes from it that norms its rows as it reads them. Both have the
// same bits, because the sum of squares has one order: fours of neighbours go to 256 threads in turn, however they lie; a thread
// adds up its own, then come the lanes of a warp, then the warps. It depends on the width alone; threads that have nothing add zeros.
#pragma once

#include "prism/backend/cuda/block.hpp"
#include "prism/backend/cuda/kernels/pieces.hpp"

#include <cmath>

namespace prism::cuda {

/// Threads among which the fours of a row are shared out.
inline constexpr int norm_threads = 256;

/// Numbers j ... j + 3 of a row; zeros behind its end, and where there is no row.
PRISM_DEVICE inline Floats<4> four_of(const float* row, std::int32_t cols, std::int32_t j) {
    if (row && j + 4 <= cols && aligned_to_16(row)) return load_floats<4>(row + j);
    Floats<4> v{};
    if (!row) return v;
    PRISM_UNROLL
    for (int i = 0; i < 4; ++i)
        if (j + i < cols) v.at[i] = row[j + i];
    return v;
}

/// sum + the squares of those of columns j ... j + 3 that there are, less a mean.
PRISM_DEVICE inline float add_squares(float sum, const Floats<4>& v, float mean, std::int32_t cols, std::int32_t j) {
    PRISM_UNROLL
    for (int i = 0; i < 4; ++i)
        if (j + i < cols) sum = ::fmaf(v.at[i] - mean, v.at[i] - mean, sum);
    return sum;
}

/// What the values of a row are multiplied by: 1 / sqrt(mean of squares + eps).
PRISM_DEVICE inline float norm_scale(float squares, std::int32_t cols, float eps) { return 1.0f / ::sqrtf(squares / static_cast<float>(cols) + eps); }

/// An RMS norm in front of a product: y = x / sqrt(mean(x^2) + eps) weight. Without a weight there is none.
struct RowNorm {
    const float* weight = nullptr;
    float        eps = 0;
};

/// y = (x - mean) / sqrt(var + eps) weight + bias, or with `rms` y = x / sqrt(mean(x^2) + eps) weight, one block a row. The
/// variance is taken of x - mean, in a second pass. y may be x.
/// The first fours of a thread, and what they meet later, it asks for at once and keeps: few rows wait for memory, not for bandwidth.
struct Norm {
    static constexpr int         max_threads = norm_threads, min_blocks = 3, n_held = 4;  // min_blocks: 80 registers hold all that
    static constexpr std::size_t shared_bytes = warp_size * sizeof(float);
    Rows<const float>            x;
    const float *                weight, *bias;
    float                        eps;
    bool                         rms;
    Rows<float>                  y;

    /// Those of norm_threads that get a four of so many columns, in whole warps.
    static int threads_for(std::int32_t cols) { return smaller(max_threads, ceil_div(cols, 4 * warp_size) * warp_size); }

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        struct Held {
            Floats<4> x[n_held], weight[n_held], bias[n_held];
        };
        const float* const from = x.row(b.x);
        float* const       to = y.row(b.x);
        float* const       scratch = b.template shared<float>(0);
        Reg<Block, Held>   held(b);
        Reg<Block, float>  sum(b), mean(b);
        // f(their first column, values of x, of weight, of bias) for the fours of thread t: those it holds, and the rest of rows that are wider
        const auto fours = [&](int t, auto&& f) {
            PRISM_UNROLL
            for (int i = 0; i < n_held; ++i) f(4 * (t + i * b.n_threads()), held[t].x[i], held[t].weight[i], held[t].bias[i]);
            for (std::int32_t j = 4 * (t + n_held * b.n_threads()); j < x.cols; j += 4 * b.n_threads())
                f(j, four_of(from, x.cols, j), four_of(weight, x.cols, j), four_of(bias, x.cols, j));
        };
        b.each_alone([&](int t) {
            PRISM_UNROLL
            for (int i = 0; i < n_held; ++i) {
                const std::int32_t j = 4 * (t + i * b.n_threads());
                held[t].x[i] = four_of(from, x.cols, j), held[t].weight[i] = four_of(weight, x.cols, j), held[t].bias[i] = four_of(bias, x.cols, j);
            }
            mean[t] = 0;
        });
        if (!rms) {
            b.each_alone([&](int t) {
                float s = 0;
                fours(t, [&](std::int32_t, const Floats<4>& v, const Floats<4>&, const Floats<4>&) {
                    PRISM_UNROLL
                    for (int i = 0; i < 4; ++i) s += v.at[i];
                });
                mean[t] = s;
            });
            block_sum(b, mean, scratch);
            b.each_alone([&](int t) { mean[t] /= static_cast<float>(x.cols); });
        }
        b.each_alone([&](int t) {
            float s = 0;
            fours(t, [&](std::int32_t j, const Floats<4>& v, const Floats<4>&, const Floats<4>&) { s = add_squares(s, v, mean[t], x.cols, j); });
            sum[t] = s;
        });
        block_sum(b, sum, scratch);
        b.each_alone([&](int t) {
            const float m = mean[t], scale = norm_scale(sum[t], x.cols, eps);
            fours(t, [&](std::int32_t j, const Floats<4>& v, const Floats<4>& w, const Floats<4>& shift) {
                Floats<4> z;
                PRISM_UNROLL
                for (int i = 0; i < 4; ++i) {
                    z.at[i] = (v.at[i] - m) * scale * w.at[i];
                    if (bias) z.at[i] += shift.at[i];
                }
                if (j + 4 <= x.cols && aligned_to_16(to)) return store_floats(to + j, z);
                PRISM_UNROLL
                for (int i = 0; i < 4; ++i)
                    if (j + i < x.cols) to[j + i] = z.at[i];
            });
        });
    }
};

}  // namespace prism::cuda
