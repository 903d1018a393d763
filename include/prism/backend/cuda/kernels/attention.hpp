// Attention of many rows in f32: softmax(scale q k^T) v over tiles of keys, with the largest score and the sum of weights so
// far; of the scores, one tile is kept. What the kernels of all forms share stands here, too.
#pragma once

#include "prism/backend/cuda/block.hpp"
#include "prism/backend/cuda/kernels/words.hpp"

namespace prism::cuda {

/// What every form of attention gets. Pointers are to the first row and head of the first sequence; sizes are counted in
/// elements. Query head h reads key head h / group. T: float or bf16_t.
template <class T>
struct AttendArguments {
    const float*        q = nullptr;
    const T*            k = nullptr;
    const T*            v = nullptr;
    float*              y = nullptr;
    std::int64_t        ldq = 0, ldk = 0, ldv = 0, ldy = 0;
    std::int64_t        head_stride = 0;  // from a key head to the next
    std::int32_t        n_q = 0, n_kv = 0, q_pos = 0, window = 0, head_dim = 0;
    std::int32_t        n_kv_heads = 1, group = 1;
    std::int32_t        first_sequence = 0;  // of those that the grid's z counts
    bool                causal = false;
    bool                aligned = false;  // rows of heads may be read in pieces, as the kernel reads them
    float               scale = 1;
    const std::int32_t* shift = nullptr;  // added to n_kv and q_pos; null: 0

    /// Which keys a row sees: [first(i), last(i)).
    struct Seen {
        std::int32_t n_kv, q_pos, window;
        bool         causal;

        PRISM_DEVICE std::int32_t first(std::int32_t i) const { return window ? larger(0, q_pos + i + 1 - window) : 0; }
        PRISM_DEVICE std::int32_t last(std::int32_t i) const { return causal ? smaller(n_kv, q_pos + i + 1) : n_kv; }
    };
    PRISM_DEVICE Seen seen() const {
        const std::int32_t by = shift ? *shift : 0;
        return {n_kv + by, q_pos + by, window, causal};
    }
};

PRISM_HOST_DEVICE inline float minus_infinity() { return float_of(0xff800000U); }

/// One of a butterfly's steps towards the largest; a NaN among scores shows in their exponentials.
struct Larger {
    PRISM_DEVICE float operator()(float p, float q) const { return ::fmaxf(p, q); }
};

/// 8 rows_each queries of a head against tiles of `keys` keys, for head_dim <= d, d a multiple of 8. Thread (ty, tx) of 8 x 16
/// has the queries ty + 8 i; of a tile's scores those with the keys tx + 16 j, of the sums the dimensions tx + 16 j: rows of
/// shared memory are then read without conflicts. Grid: ceil(n_q / queries), query heads, sequences.
template <class T, int d, int rows_each = 8, int keys = 64>
struct AttendTiles {
    static constexpr int max_threads = 128;
    static constexpr int queries = 8 * rows_each;
    static constexpr int keys_each = keys / 16, dims_each = (d + 15) / 16;
    static constexpr int pitch = d + 4, weights_pitch = keys + 16;  // in floats
    static constexpr std::size_t shared_bytes = sizeof(float) * ((queries + keys) * pitch + queries * weights_pitch);
    static_assert(d % 8 == 0 && keys % 16 == 0);

    AttendArguments<T> a;

    struct Row {
        float at[rows_each];
    };
    struct Scores {
        float at[rows_each][keys_each];
    };
    struct Sums {
        float at[rows_each][dims_each];
    };

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        const auto         seen = a.seen();
        const std::int32_t first = (b.grid_x - 1 - b.x) * queries, beyond = smaller(first + queries, a.n_q);  // with a mask the longest come first
        const std::int32_t begin = seen.first(first) / keys * keys, end = seen.last(beyond - 1);
        const std::int64_t kv_row = (std::int64_t{a.first_sequence} + b.z) * seen.n_kv, kv_head = b.y / a.group * a.head_stride;
        const std::int64_t q_row = (std::int64_t{a.first_sequence} + b.z) * a.n_q, head = static_cast<std::int64_t>(b.y) * a.head_dim;
        const T* const     k = a.k + kv_row * a.ldk + kv_head;
        const T* const     v = a.v + kv_row * a.ldv + kv_head;
        float* const       rows = b.template shared<float>(0);
        float* const       tile = rows + queries * pitch;  // keys, then values
        float* const       weights = tile + keys * pitch;

        Reg<Block, Sums>   sums(b);
        Reg<Block, Row>    top(b), total(b);
        Reg<Block, Scores> scores(b);
        b.each([&](int t) {
            fill(t, rows, queries, a.q + q_row * a.ldq + head, a.ldq, first, a.n_q);
            PRISM_UNROLL
            for (int i = 0; i < rows_each; ++i) {
                top[t].at[i] = minus_infinity(), total[t].at[i] = 0;
                PRISM_UNROLL
                for (int j = 0; j < dims_each; ++j) sums[t].at[i][j] = 0;
            }
        });
        for (std::int32_t j0 = begin; j0 < end; j0 += keys) {
            b.each([&](int t) { fill(t, tile, keys, k, a.ldk, j0, end); });
            b.each_alone([&](int t) { multiply(t, rows, tile, scores[t], first, j0, seen); });
            soften(b, scores, top, total, sums);
            b.each([&](int t) {
                PRISM_UNROLL
                for (int i = 0; i < rows_each; ++i)
                    PRISM_UNROLL
                    for (int j = 0; j < keys_each; ++j) weights[(t / 16 + 8 * i) * weights_pitch + t % 16 + 16 * j] = scores[t].at[i][j];
            });
            b.each([&](int t) { fill(t, tile, keys, v, a.ldv, j0, end); });
            b.each([&](int t) { add(t, weights, tile, sums[t]); });
        }
        PRISM_UNROLL
        for (int i = 0; i < rows_each; ++i) {
            Reg<Block, float> all(b);
            b.each_alone([&](int t) { all[t] = total[t].at[i]; });
            lanes_sum<16>(b, all);
            b.each_alone([&](int t) {
                const std::int32_t row = first + t / 16 + 8 * i;
                if (row >= a.n_q) return;
                float* const y = a.y + (q_row + row) * a.ldy + head;
                const float  inverse = 1.0f / all[t];
                PRISM_UNROLL
                for (int j = 0; j < dims_each; ++j)
                    if (t % 16 + 16 * j < a.head_dim) y[t % 16 + 16 * j] = sums[t].at[i][j] * inverse;
            });
        }
    }

private:
    /// Rows [from_row, from_row + n) to shared memory, with zeros from row `end` and dimension head_dim on.
    template <class U>
    PRISM_DEVICE void fill(int t, float* to, int n, const U* from, std::int64_t ld, std::int32_t from_row, std::int32_t end) const {
        for (int i = t; i < n * (d / 4); i += max_threads) {
            const int row = i / (d / 4), dim = i % (d / 4) * 4;
            Floats<4> x{};
            if (from_row + row < end) {
                const U* const at = from + static_cast<std::int64_t>(from_row + row) * ld + dim;
                if (a.aligned) {
                    if (dim < a.head_dim) x = load_floats<4>(at);
                } else {
                    PRISM_UNROLL
                    for (int e = 0; e < 4; ++e)
                        if (dim + e < a.head_dim) x.at[e] = load(at + e);
                }
            }
            store_floats(to + row * pitch + dim, x);
        }
    }

    /// Scores of the thread's queries with its keys; minus infinity where a query does not see a key.
    PRISM_DEVICE void multiply(int t, const float* rows, const float* tile, Scores& s, std::int32_t first, std::int32_t j0,
                               const typename AttendArguments<T>::Seen& seen) const {
        PRISM_UNROLL
        for (int i = 0; i < rows_each; ++i)
            PRISM_UNROLL
            for (int j = 0; j < keys_each; ++j) s.at[i][j] = 0;
        for (int dim = 0; dim < d; dim += 4) {
            Floats<4> key[keys_each];
            PRISM_UNROLL
            for (int j = 0; j < keys_each; ++j) key[j] = load_floats<4>(tile + (t % 16 + 16 * j) * pitch + dim);
            PRISM_UNROLL
            for (int i = 0; i < rows_each; ++i) {
                const Floats<4> query = load_floats<4>(rows + (t / 16 + 8 * i) * pitch + dim);
                PRISM_UNROLL
                for (int j = 0; j < keys_each; ++j)
                    PRISM_UNROLL
                    for (int e = 0; e < 4; ++e) s.at[i][j] += query.at[e] * key[j].at[e];
            }
        }
        PRISM_UNROLL
        for (int i = 0; i < rows_each; ++i) {
            const std::int32_t row = first + t / 16 + 8 * i, lo = seen.first(row), hi = seen.last(row);
            PRISM_UNROLL
            for (int j = 0; j < keys_each; ++j) {
                const std::int32_t key = j0 + t % 16 + 16 * j;
                s.at[i][j] = key >= lo && key < hi ? s.at[i][j] * a.scale : minus_infinity();
            }
        }
    }

    /// Scores become weights; what was summed before shrinks where a larger score has come.
    template <class Block>
    PRISM_DEVICE void soften(Block& b, Reg<Block, Scores>& scores, Reg<Block, Row>& top, Reg<Block, Row>& total, Reg<Block, Sums>& sums) const {
        PRISM_UNROLL
        for (int i = 0; i < rows_each; ++i) {
            Reg<Block, float> now(b);
            b.each_alone([&](int t) {
                now[t] = top[t].at[i];
                PRISM_UNROLL
                for (int j = 0; j < keys_each; ++j) now[t] = ::fmaxf(now[t], scores[t].at[i][j]);
            });
            lanes_join<16, Block, float>(b, now, Larger{});
            b.each_alone([&](int t) {
                const float base = now[t] == minus_infinity() ? 0.0f : now[t];  // no key yet: 0, not NaN
                const float shrink = ::expf(top[t].at[i] - base);
                float       sum = 0;
                PRISM_UNROLL
                for (int j = 0; j < keys_each; ++j) {
                    scores[t].at[i][j] = ::expf(scores[t].at[i][j] - base);
                    sum += scores[t].at[i][j];
                }
                top[t].at[i] = now[t];
                total[t].at[i] = total[t].at[i] * shrink + sum;
                PRISM_UNROLL
                for (int j = 0; j < dims_each; ++j) sums[t].at[i][j] *= shrink;
            });
        }
    }

    /// sums += weights values
    PRISM_DEVICE void add(int t, const float* weights, const float* tile, Sums& sums) const {
        for (int key = 0; key < keys; key += 4) {
            float value[4][dims_each];
            PRISM_UNROLL
            for (int e = 0; e < 4; ++e)
                PRISM_UNROLL
                for (int j = 0; j < dims_each; ++j) value[e][j] = t % 16 + 16 * j < d ? tile[(key + e) * pitch + t % 16 + 16 * j] : 0.0f;
            PRISM_UNROLL
            for (int i = 0; i < rows_each; ++i) {
                const Floats<4> weight = load_floats<4>(weights + (t / 16 + 8 * i) * weights_pitch + key);
                PRISM_UNROLL
                for (int e = 0; e < 4; ++e)
                    PRISM_UNROLL
                    for (int j = 0; j < dims_each; ++j) sums.at[i][j] += weight.at[e] * value[e][j];
            }
        }
    }
};

}  // namespace prism::cuda
