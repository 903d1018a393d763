// Attention of few rows over a long cache, in f32: the keys are cut into parts, a block each, and the block that finishes
// last puts the parts together. The rows' own keys and values may be on their way to the cache: then blocks turn what they need.
#pragma once

#include "prism/backend/cuda/kernels/attention.hpp"
#include "prism/backend/cuda/kernels/rows.hpp"

namespace prism::cuda {

/// Where things lie in a block's shared memory, in bytes, and what a part leaves for the others.
struct DecodeLayout {
    static constexpr int keys = 64;  // of a part; whatever the shape, so that bits depend on nothing else
    static constexpr std::size_t most_bytes = 96 * 1024;

    std::int32_t  width = 0, pitch = 0;  // of a row in elements: head_dim in whole pieces of 16 bytes; from a row to the next
    std::uint32_t values = 0, queries = 0, scores = 0, tops = 0, bytes = 0;

    /// Values wait beside the keys, or take their place where there is not room for both.
    static DecodeLayout of(std::size_t element_bytes, std::int32_t head_dim, int rows) {
        const auto         piece = static_cast<std::int32_t>(16 / element_bytes);
        DecodeLayout       l;
        l.width = ceil_div(head_dim, piece) * piece;
        l.pitch = l.width + (l.width / piece % 2 ? 0 : piece);  // an odd number of pieces: 8 rows meet no bank twice
        const auto tile = static_cast<std::uint32_t>(static_cast<std::size_t>(keys * l.pitch) * element_bytes);
        const auto rest = static_cast<std::uint32_t>(4 * rows * (l.width + 2 * keys + 4));
        l.values = 2 * tile + rest <= most_bytes ? tile : 0;
        l.queries = l.values + tile;
        l.scores = l.queries + static_cast<std::uint32_t>(4 * rows * l.width);
        l.tops = l.scores + static_cast<std::uint32_t>(4 * rows * 2 * keys);
        l.bytes = tile + l.values + rest;
        return l;
    }
};

/// Rows that a cache of one sequence does not hold yet, n_q of them, the last of its keys: what RopeAndAppend would do with them
/// before the attention. Queries turn where they are read. Whoever needs a new key or value takes it from here, and of the
/// blocks that do, one writes it to the cache, where none reads it.
template <class T>
struct NewRows {
    Rows<const float> cos, sin;  // [n_q, n_angles]
    Rows<const float> k, v;      // [n_q, n_kv_heads head_dim]
    T *               keys = nullptr, *values = nullptr;  // the cache as in AttendArguments; null: nothing is new, queries are turned

    /// Value `dim` of a head of row i, turned.
    PRISM_DEVICE float turned(const float* head, std::int32_t i, int dim) const {
        const std::int32_t n = cos.cols, j = dim < n ? dim : dim - n;
        if (dim >= 2 * n) return head[dim];
        float low, high;
        turn(cos.row(i)[j], sin.row(i)[j], head[j], head[j + n], low, high);
        return dim < n ? low : high;
    }
};

/// Block (part, group of rows, sequence): the part's keys against up to `rows` query rows that share a key head, of the
/// n_q group ones: row r is query r / group of head r % group. 128 threads; head_dim <= 128 wide. Parts without keys that
/// any row sees have nothing to do and leave nothing. `tickets`: a counter for each (group of rows, sequence), zero before and
/// after; `parts`: for each of these n_parts times part_floats.
template <class T, int rows, int wide>
struct AttendParts {
    static constexpr int max_threads = 128, keys = DecodeLayout::keys, min_blocks = wide == 2 ? 3 : 0;  // shared memory has room for no more
    static constexpr int row_floats = max_threads * wide;         // constants, so that addresses of all rows are one register
    static constexpr int part_floats = rows * (row_floats + 2);  // sums of the rows, their largest scores, the sums of their weights
    static_assert(rows * 16 <= max_threads);

    AttendArguments<T> a;
    NewRows<T>         fresh;
    DecodeLayout       layout;
    std::int32_t       n_parts = 1;   // as many as the cache may ever have
    std::int32_t       n_groups = 1;  // groups of rows of a key head
    std::uint32_t*     tickets = nullptr;
    float*             parts = nullptr;

    struct Dots {
        float at[rows];
    };
    struct Sums {
        float at[wide][rows][2];
    };
    struct Joined {
        float sums[wide][rows], total[rows];
    };

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        const auto         seen = a.seen();
        const std::int32_t lo = seen.first(0), hi = seen.last(a.n_q - 1);
        const std::int32_t first_part = lo / keys, last_part = (hi - 1) / keys, j0 = b.x * keys;
        if (b.x < first_part || b.x > last_part) return;
        const std::int32_t kv_head = b.y / n_groups, first_row = b.y % n_groups * rows;
        const std::int64_t at_kv = kv_head * a.head_stride, kv_row = (std::int64_t{a.first_sequence} + b.z) * seen.n_kv;
        const std::int32_t n_old = fresh.keys ? seen.n_kv - a.n_q : seen.n_kv;  // keys that the cache holds
        const bool         appends = first_row == 0;
        T* const           key_tile = b.template shared<T>(0);
        T* const           value_tile = b.template shared<T>(layout.values);
        float* const       queries = b.template shared<float>(layout.queries);
        float* const       scores = b.template shared<float>(layout.scores);  // [2][rows][keys]
        float* const       tops = b.template shared<float>(layout.tops);      // [rows] of the largest score, [rows] of the weights' sum

        const auto fetch_values = [&](int t) {
            fetch(b, t, value_tile, a.v + kv_row * a.ldv + at_kv, a.ldv, j0, lo, hi, n_old);
            if (fresh.keys) take_new(t, value_tile, fresh.v, false, fresh.values, a.ldv, kv_head, j0, n_old, appends);
        };

        b.each_alone([&](int t) { fetch(b, t, key_tile, a.k + kv_row * a.ldk + at_kv, a.ldk, j0, lo, hi, n_old); });
        b.copies_commit();
        if (layout.values) b.each_alone(fetch_values);
        b.copies_commit();
        b.each_alone([&](int t) {
            PRISM_UNROLL
            for (int r = 0; r < rows; ++r) {
                const std::int32_t row = first_row + r;
                const float* const from = row < a.n_q * a.group ? a.q + query_row(b.z, row) * a.ldq + query_column(kv_head, row) : nullptr;
                PRISM_UNROLL
                for (int w = 0; w < wide; ++w) {
                    const int dim = t + max_threads * w;
                    if (dim < layout.width) queries[r * layout.width + dim] = from && dim < a.head_dim ? from[dim] : 0.0f;
                }
            }
        });
        if (fresh.keys) {
            b.barrier();
            b.each_alone([&](int t) {
                turn_queries(t, queries, first_row);
                take_new(t, key_tile, fresh.k, true, fresh.keys, a.ldk, kv_head, j0, n_old, appends);
            });
        }
        b.template copies_wait<1>();
        b.barrier();

        // A thread has a key, and every second piece of it.
        b.each([&](int t) {
            const Dots dots = multiply(t, key_tile, queries);
            PRISM_UNROLL
            for (int r = 0; r < rows; ++r) scores[(t / keys * rows + r) * keys + t % keys] = dots.at[r];
        });
        if (!layout.values) {
            b.each_alone(fetch_values);
            b.copies_commit();
        }
        soften(b, scores, tops, seen, first_row, j0);
        b.template copies_wait<0>();
        b.barrier();

        // A thread has two neighbouring dimensions, and half of the keys.
        Reg<Block, Sums> sums(b);
        b.each([&](int t) {
            add(t, scores, value_tile, sums[t]);
            if (t >= keys)
                each_dimension(t, sums[t], [&](int r, int dim, float x) { queries[r * layout.width + dim] = x; });  // queries are done with
        });
        const bool alone = first_part == last_part;
        b.each_alone([&](int t) {
            float* const part = alone ? nullptr : part_of(b.z, b.y, b.x);
            if (t < keys)
                each_dimension(t, sums[t], [&](int r, int dim, float x) {
                    const float all = x + queries[r * layout.width + dim];
                    if (!alone) part[r * row_floats + dim] = all;
                    else if (first_row + r < a.n_q * a.group && dim < a.head_dim) *result(b.z, kv_head, first_row + r, dim) = all / tops[rows + r];
                });
            else if (t < keys + 2 * rows && !alone)
                part[rows * row_floats + t - keys] = tops[t - keys];
        });
        if (alone) return;
        std::uint32_t* const ticket = tickets + static_cast<std::int64_t>(b.z) * (a.n_kv_heads * n_groups) + b.y;
        if (!is_last(b, ticket, last_part - first_part + 1)) return;
        join(b, scores, tops, kv_head, first_row, first_part, last_part);
    }

private:
    PRISM_DEVICE std::int64_t query_row(int z, std::int32_t row) const { return (std::int64_t{a.first_sequence} + z) * a.n_q + row / a.group; }
    PRISM_DEVICE std::int64_t query_column(std::int32_t kv_head, std::int32_t row) const {
        return static_cast<std::int64_t>(kv_head * a.group + row % a.group) * a.head_dim;
    }
    PRISM_DEVICE float* result(int z, std::int32_t kv_head, std::int32_t row, int dim) const {
        return a.y + query_row(z, row) * a.ldy + query_column(kv_head, row) + dim;
    }
    PRISM_DEVICE float* part_of(int z, int rows_of_head, std::int32_t part) const {
        return parts + ((static_cast<std::int64_t>(z) * (a.n_kv_heads * n_groups) + rows_of_head) * n_parts + part) * part_floats;
    }

    /// A thread's share of a part's rows; zeros for keys that no row sees, and behind head_dim. Rows n_old ... hi are left alone.
    template <class Block>
    PRISM_DEVICE void fetch(Block& b, int t, T* to, const T* from, std::int64_t ld, std::int32_t j0, std::int32_t lo, std::int32_t hi, std::int32_t n_old) const {
        constexpr int piece = 16 / static_cast<int>(sizeof(T));
        const int     across = layout.width / piece, down = max_threads / across, right = max_threads % across * piece;
        for (int row = t / across, dim = t % across * piece; row < keys; row += down, dim += right) {
            if (dim >= layout.width) dim -= layout.width, ++row;
            if (row >= keys) break;
            if (j0 + row >= n_old && j0 + row < hi) continue;
            const bool     valid = j0 + row >= lo && j0 + row < hi;
            const T* const source = valid ? from + static_cast<std::int64_t>(j0 + row) * ld + dim : from;
            if (a.aligned) {
                b.copy_16(to + row * layout.pitch + dim, source, valid);
            } else {
                for (int e = 0; e < piece; ++e) to[row * layout.pitch + dim + e] = valid && dim + e < a.head_dim ? source[e] : T{};
            }
        }
    }

    /// Where they lie: from global memory all rows at once would take more registers than there are.
    PRISM_DEVICE void turn_queries(int t, float* queries, std::int32_t first_row) const {
        const std::int32_t n = fresh.cos.cols, n_rows = smaller(rows, a.n_q * a.group - first_row);
        PRISM_NO_UNROLL
        for (std::int32_t pair = t; pair < n_rows * n; pair += max_threads) {
            const std::int32_t r = pair / n, j = pair - r * n, i = (first_row + r) / a.group;
            float* const       at = queries + r * layout.width + j;
            turn(fresh.cos.row(i)[j], fresh.sin.row(i)[j], at[0], at[n], at[0], at[n]);
        }
    }

    /// The rows from n_old on that are of this part, from fresh.k or fresh.v to its tile, and with `append` also to the cache.
    PRISM_DEVICE void take_new(int t, T* tile, const Rows<const float>& from, bool turns, T* cache, std::int64_t ld, std::int32_t kv_head, std::int32_t j0,
                               std::int32_t n_old, bool append) const {
        PRISM_NO_UNROLL
        for (std::int32_t i = larger(0, j0 - n_old); i < smaller(a.n_q, j0 + keys - n_old); ++i) {
            const float* const head = from.row(i) + static_cast<std::int64_t>(kv_head) * a.head_dim;
            PRISM_UNROLL
            for (int w = 0; w < wide; ++w) {
                const int dim = t + max_threads * w;
                if (dim >= layout.width) continue;
                T value{};
                if (dim < a.head_dim) {
                    store(&value, turns ? fresh.turned(head, i, dim) : head[dim]);
                    if (append) cache[(n_old + i) * ld + kv_head * a.head_stride + dim] = value;
                }
                tile[(n_old + i - j0) * layout.pitch + dim] = value;
            }
        }
    }

    PRISM_DEVICE Dots multiply(int t, const T* tile, const float* queries) const {
        constexpr int piece = 16 / static_cast<int>(sizeof(T));
        Dots          dots;
        PRISM_UNROLL
        for (int r = 0; r < rows; ++r) dots.at[r] = 0;
        for (int dim = t / keys * piece; dim < layout.width; dim += 2 * piece) {
            const Floats<piece> key = load_floats<piece>(tile + t % keys * layout.pitch + dim);
            PRISM_UNROLL
            for (int r = 0; r < rows; ++r) {
                const Floats<piece> query = load_floats<piece>(queries + r * layout.width + dim);
                PRISM_UNROLL
                for (int e = 0; e < piece; ++e) dots.at[r] += query.at[e] * key.at[e];
            }
        }
        return dots;
    }

    /// A warp for every fourth row: its scores become weights, in the place of the first halves.
    template <class Block>
    PRISM_DEVICE void soften(Block& b, float* scores, float* tops, const typename AttendArguments<T>::Seen& seen, std::int32_t first_row, std::int32_t j0) const {
        PRISM_UNROLL
        for (int i = 0; i < (rows + 3) / 4; ++i) {
            Reg<Block, float> top(b), sum(b);
            b.each_alone([&](int t) {
                const int r = t / warp_size + 4 * i;
                top[t] = minus_infinity();
                if (r >= rows) return;
                const std::int32_t q = (first_row + r) / a.group, lo = seen.first(q), hi = seen.last(q);
                PRISM_UNROLL
                for (int h = 0; h < 2; ++h) {
                    const int   j = t % warp_size + warp_size * h;
                    float&      score = scores[r * keys + j];
                    const float both = (score + scores[(rows + r) * keys + j]) * a.scale;
                    score = j0 + j >= lo && j0 + j < hi ? both : minus_infinity();
                    top[t] = ::fmaxf(top[t], score);
                }
            });
            lanes_join<warp_size, Block, float>(b, top, Larger{});
            b.each_alone([&](int t) {
                const int r = t / warp_size + 4 * i;
                sum[t] = 0;
                if (r >= rows) return;
                const float base = top[t] == minus_infinity() ? 0.0f : top[t];  // no key here: weights of 0, not NaN
                PRISM_UNROLL
                for (int h = 0; h < 2; ++h) {
                    float& score = scores[r * keys + t % warp_size + warp_size * h];
                    score = ::expf(score - base);
                    sum[t] += score;
                }
            });
            lanes_sum(b, sum);
            b.each_alone([&](int t) {
                const int r = t / warp_size + 4 * i;
                if (r < rows && t % warp_size == 0) tops[r] = top[t], tops[rows + r] = sum[t];
            });
        }
    }

    PRISM_DEVICE void add(int t, const float* scores, const T* tile, Sums& sums) const {
        PRISM_UNROLL
        for (int w = 0; w < wide; ++w)
            PRISM_UNROLL
            for (int r = 0; r < rows; ++r) sums.at[w][r][0] = 0, sums.at[w][r][1] = 0;
        PRISM_UNROLL
        for (int w = 0; w < wide; ++w) {
            const int dim = 2 * (t % keys) + 2 * keys * w;
            if (dim >= layout.width) continue;
            for (int j = t / keys * (keys / 2); j < (t / keys + 1) * (keys / 2); j += 4) {
                Floats<2> value[4];
                PRISM_UNROLL
                for (int e = 0; e < 4; ++e) value[e] = load_floats<2>(tile + (j + e) * layout.pitch + dim);
                PRISM_UNROLL
                for (int r = 0; r < rows; ++r) {
                    const Floats<4> weight = load_floats<4>(scores + r * keys + j);
                    PRISM_UNROLL
                    for (int e = 0; e < 4; ++e) sums.at[w][r][0] += weight.at[e] * value[e].at[0], sums.at[w][r][1] += weight.at[e] * value[e].at[1];
                }
            }
        }
    }

    /// f(row, dimension, sum) for all that a thread has.
    template <class F>
    PRISM_DEVICE void each_dimension(int t, const Sums& sums, F&& f) const {
        PRISM_UNROLL
        for (int w = 0; w < wide; ++w)
            PRISM_UNROLL
            for (int e = 0; e < 2; ++e) {
                const int dim = 2 * (t % keys) + 2 * keys * w + e;
                if (dim >= layout.width) continue;
                PRISM_UNROLL
                for (int r = 0; r < rows; ++r) f(r, dim, sums.at[w][r][e]);
            }
    }

    /// What all parts from first to last found, in order. Rows beyond the last are computed as well, and nowhere written.
    template <class Block>
    PRISM_DEVICE void join(Block& b, float* shares, float* tops, std::int32_t kv_head, std::int32_t first_row, std::int32_t first, std::int32_t last) const {
        Reg<Block, float>  top(b);
        Reg<Block, Joined> joined(b);
        b.each_alone([&](int t) {
            top[t] = minus_infinity();
            if (t / 16 >= rows) return;
            for (std::int32_t p = first + t % 16; p <= last; p += 16) top[t] = ::fmaxf(top[t], part_of(b.z, b.y, p)[rows * row_floats + t / 16]);
        });
        lanes_join<16, Block, float>(b, top, Larger{});
        b.each([&](int t) {
            if (t % 16 == 0 && t / 16 < rows) tops[t / 16] = top[t];
            PRISM_UNROLL
            for (int r = 0; r < rows; ++r) {
                joined[t].total[r] = 0;
                PRISM_UNROLL
                for (int w = 0; w < wide; ++w) joined[t].sums[w][r] = 0;
            }
        });
        // `keys` parts at a time: [keys][rows] of their shares, and of their weights
        for (std::int32_t p0 = first; p0 <= last; p0 += keys) {
            const std::int32_t n = smaller(keys, last + 1 - p0);
            b.each([&](int t) {
                for (int i = t; i < n * rows; i += max_threads) {
                    const float* const part = part_of(b.z, b.y, p0 + i / rows) + rows * row_floats + i % rows;
                    const float        share = ::expf(part[0] - tops[i % rows]);  // 0 where a row sees none of the part
                    shares[i] = share;
                    shares[keys * rows + i] = share * part[rows];
                }
            });
            b.each([&](int t) {
                if (t >= a.head_dim) return;
                const float* from = part_of(b.z, b.y, p0) + t;
                for (int p = 0; p < n; ++p, from += part_floats)
                    PRISM_UNROLL
                    for (int r = 0; r < rows; ++r) {
                        joined[t].total[r] += shares[(keys + p) * rows + r];
                        PRISM_UNROLL
                        for (int w = 0; w < wide; ++w)
                            if (w == 0 || t + max_threads * w < a.head_dim) joined[t].sums[w][r] += shares[p * rows + r] * from[r * row_floats + max_threads * w];
                    }
            });
        }
        b.each_alone([&](int t) {
            PRISM_UNROLL
            for (int w = 0; w < wide; ++w)
                PRISM_UNROLL
                for (int r = 0; r < rows; ++r)
                    if (first_row + r < a.n_q * a.group && t + max_threads * w < a.head_dim)
                        *result(b.z, kv_head, first_row + r, t + max_threads * w) = joined[t].sums[w][r] / joined[t].total[r];
        });
    }
};

}  // namespace prism::cuda
