// Kernels over the rows of matrices: everything element by element, positions. All numbers are f32.
#pragma once

#include "prism/backend/cuda/block.hpp"
#include "prism/backend/cuda/kernels/after.hpp"
#include "prism/backend/cuda/kernels/pieces.hpp"
#include "prism/backend/types.hpp"

namespace prism::cuda {

// ---- element by element ---------------------------------------------------------------------------------------------

/// work(row, column, n) for all elements of a matrix [rows, cols], n = `width` neighbours at a time. The last ones of a
/// row may be fewer.
template <int width, class Work>
struct ForEach {
    static constexpr int max_threads = 256;
    Work                 work;
    std::int32_t         rows, cols;

    static std::int64_t n_blocks(std::int64_t rows, std::int64_t cols) { return ceil_div<std::int64_t>(rows * ceil_div<std::int64_t>(cols, width), max_threads); }

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        const std::int64_t pieces = ceil_div<std::int64_t>(cols, width);
        b.each_alone([&](int t) {
            const std::int64_t i = std::int64_t{b.x} * max_threads + t, row = i / pieces;
            if (row >= rows) return;
            const auto column = static_cast<std::int32_t>((i - row * pieces) * width);  // no second division
            work(row, column, smaller(width, cols - column));
        });
    }
};

/// What ForEach does with n neighbours: a function of their values at (row, column) of up to two matrices, into `y`.
template <class Value>
struct Map {
    Value       value;  // value(row, column, old y) -> new y; the old one is read where Value::reads_y says so
    Rows<float> y;

    PRISM_DEVICE void operator()(std::int64_t row, std::int32_t column, int n) const {
        float* const to = y.row(row) + column;
        if (n == 4 && aligned_to_16(to)) {
            Floats<4> f{};
            if constexpr (Value::reads_y) f = load_floats<4>(to);
            PRISM_UNROLL
            for (int i = 0; i < 4; ++i) f.at[i] = value(row, column + i, f.at[i]);
            store_floats(to, f);
        } else {
            for (int i = 0; i < n; ++i) to[i] = value(row, column + i, Value::reads_y ? to[i] : 0.0f);
        }
    }
};

struct Activate {
    static constexpr bool reads_y = true;
    Activation act;

    PRISM_DEVICE float operator()(std::int64_t, std::int32_t, float z) const { return activated(act, z); }
};
struct SiluMul {
    static constexpr bool reads_y = false;
    Rows<const float> gate, up;

    PRISM_DEVICE float operator()(std::int64_t row, std::int32_t column, float) const {
        return silu(gate.row(row)[column]) * up.row(row)[column];
    }
};
/// y += gamma h, for row i of y with row i mod rows of h; no gamma is one.
struct AddScaled {
    static constexpr bool reads_y = true;
    Rows<const float>     h;
    const float*          gamma;

    PRISM_DEVICE float operator()(std::int64_t row, std::int32_t column, float y) const {
        const float x = h.row(row % h.rows)[column];
        return gamma ? ::fmaf(gamma[column], x, y) : y + x;
    }
};
struct Copy {
    static constexpr bool reads_y = false;
    Rows<const float>     x;

    PRISM_DEVICE float operator()(std::int64_t row, std::int32_t column, float) const { return x.row(row)[column]; }
};

/// What ForEach does with z, where a product's sums wait for it: y = what `after` makes of z (times its row's scale, where
/// there are some); of two matrices z, of silu(z) up. y may be z or up.
struct Finish {
    Rows<const float> z, up;
    const float*      scales;  // [m] or null
    After             after;
    Rows<float>       y;

    PRISM_DEVICE void operator()(std::int64_t row, std::int32_t column, int n) const {
        const float        scale = scales ? scales[row] : 1;
        const float* const from = z.row(row) + column;
        const float* const from_up = up.data ? up.row(row) + column : from;
        float* const       to = y.row(row) + column;
        const auto         finished = [&](float a, float b, int i, float before) {
            return after.value(up.data ? silu(scale * a) * (scale * b) : scale * a, column + i, before);
        };
        if (n == 4 && aligned_to_16(from) && aligned_to_16(from_up) && aligned_to_16(to)) {
            const Floats<4> a = load_floats<4>(from), b = up.data ? load_floats<4>(from_up) : a, before = after.add ? load_floats<4>(to) : Floats<4>{};
            Floats<4>       r;
            PRISM_UNROLL
            for (int i = 0; i < 4; ++i) r.at[i] = finished(a.at[i], b.at[i], i, before.at[i]);
            store_floats(to, r);
        } else {
            for (int i = 0; i < n; ++i) to[i] = finished(from[i], from_up[i], i, after.add ? to[i] : 0);
        }
    }
};

// ---- positions ------------------------------------------------------------------------------------------------------

/// cos, sin [n, n_angles] of (first + *shift + i) theta^(-j / n_angles), every step rounded to f32 as PyTorch does.
struct RopeTableOf {
    std::int64_t        first;
    const std::int32_t* shift;
    float               theta;
    Rows<float>         cos, sin;

    PRISM_DEVICE void operator()(std::int64_t row, std::int32_t j, int) const {
        const float exponent = static_cast<float>(2 * j) / static_cast<float>(2 * cos.cols);
        const float frequency = 1.0f / static_cast<float>(::pow(static_cast<double>(theta), static_cast<double>(exponent)));
        const float angle = static_cast<float>(first + (shift ? *shift : 0) + row) * frequency;
        cos.row(row)[j] = static_cast<float>(::cos(static_cast<double>(angle)));
        sin.row(row)[j] = static_cast<float>(::sin(static_cast<double>(angle)));
    }
};

/// A pair of values by the angle of this cosine and sine. Which product is rounded is said here: a compiler that may choose could
/// choose differently in another kernel, and a key would have two values.
PRISM_DEVICE inline void turn(float c, float s, float a, float b, float& low, float& high) { low = ::fmaf(a, c, -(b * s)), high = ::fmaf(b, c, a * s); }

/// Rotates the heads of x in place, in halves. Columns count the pairs of all heads: head h's j-th is column h n_angles + j.
struct Rotate {
    Rows<const float> cos, sin;
    std::int32_t      head_dim;
    Rows<float>       x;

    PRISM_DEVICE void operator()(std::int64_t row, std::int32_t pair, int) const {
        const std::int32_t n = cos.cols, j = pair % n;
        float* const       at = x.row(row) + std::int64_t{pair / n} * head_dim + j;
        turn(cos.row(row)[j], sin.row(row)[j], at[0], at[n], at[0], at[n]);
    }
};

/// The heads of x as rows of a cache: row i of head h goes to row i + *shift, h `stride` elements further on.
template <class T>
struct SplitHeads {
    Rows<const float>   x;
    std::int64_t        stride;
    const std::int32_t* shift;
    Rows<T>             to;

    PRISM_DEVICE void operator()(std::int64_t row, std::int32_t column, int n) const {
        T* const at = to.row(row + (shift ? *shift : 0));
        for (std::int32_t j = column; j < column + n; ++j) store(at + j / to.cols * stride + j % to.cols, x.row(row)[j]);
    }
};

/// What stands between the projections of attention and the attention: Rotate for the heads of q, in place; Rotate and
/// SplitHeads for those of k, SplitHeads for those of v. A row has columns() of work: pairs of q, then pairs of k and what
/// is not turned of it, then values of v. `width` neighbours at a time: 4 where every row of heads and angles is in whole
/// fours that lie at multiples of their bytes (in_fours()), else 1.
template <class T, int width>
struct RopeAndAppend {
    Rows<const float>   cos, sin;
    Rows<float>         q;
    Rows<const float>   k, v;
    std::int64_t        stride;
    const std::int32_t* shift;
    Rows<T>             keys, values;
    std::int32_t        per_key_head = keys.cols - cos.cols, of_q = q.cols / keys.cols * cos.cols, of_k = k.cols / keys.cols * per_key_head;  // of a row's work

    std::int32_t columns() const { return of_q + of_k + v.cols; }
    bool         in_fours() const {
        const auto whole = [](const auto& m) { return reinterpret_cast<std::uintptr_t>(m.data) % (4 * sizeof *m.data) == 0 && m.ld % 4 == 0 && m.cols % 4 == 0; };
        return whole(cos) && whole(sin) && whole(q) && whole(k) && whole(v) && whole(keys) && whole(values) && stride % 4 == 0;
    }

    PRISM_DEVICE void operator()(std::int64_t row, std::int32_t column, int) const {
        const std::int32_t n = cos.cols, d = keys.cols;
        const std::int64_t at = row + (shift ? *shift : 0);
        if (column < of_q) {
            const std::int32_t head = column / n, j = column - head * n;
            float* const       to = q.row(row) + std::int64_t{head} * d + j;
            turn_to(row, j, to, to);
        } else if (column < of_q + of_k) {
            const std::int32_t head = (column - of_q) / per_key_head, j = column - of_q - head * per_key_head;
            const float* const from = k.row(row) + std::int64_t{head} * d + j;
            T* const           to = keys.row(at) + head * stride + j;
            if (j < n) turn_to(row, j, from, to);
            else store_floats(to + n, load_floats<width>(from + n));
        } else {
            const std::int32_t j = column - of_q - of_k, head = j / d;
            store_floats(values.row(at) + head * stride + (j - head * d), load_floats<width>(v.row(row) + j));
        }
    }

private:
    /// Pairs j ... of a head, by the row's angles.
    template <class To>
    PRISM_DEVICE void turn_to(std::int64_t row, std::int32_t j, const float* from, To* to) const {
        const std::int32_t  n = cos.cols;
        const Floats<width> c = load_floats<width>(cos.row(row) + j), s = load_floats<width>(sin.row(row) + j);
        const Floats<width> a = load_floats<width>(from), b = load_floats<width>(from + n);
        Floats<width>       low, high;
        PRISM_UNROLL
        for (int i = 0; i < width; ++i) turn(c.at[i], s.at[i], a.at[i], b.at[i], low.at[i], high.at[i]);
        store_floats(to, low), store_floats(to + n, high);
    }
};

/// patches [n G_y G_x, channels P P] of pixels [n, channels, H, W]; strides count elements.
struct Patchify {
    const float* pixels;
    std::int64_t image_stride, channel_stride, row_stride;
    std::int32_t grid_y, grid_x, patch;
    Rows<float>  patches;

    PRISM_DEVICE void operator()(std::int64_t row, std::int32_t column, int) const {
        const std::int64_t image = row / (grid_y * grid_x), gy = row / grid_x % grid_y, gx = row % grid_x;
        const std::int32_t channel = column / (patch * patch), y = column / patch % patch, x = column % patch;
        patches.row(row)[column] = pixels[image * image_stride + channel * channel_stride + (gy * patch + y) * row_stride + gx * patch + x];
    }
};

}  // namespace prism::cuda
