// Gradients against f64: analytic ones at sizes around the tiles, within bounds that follow from the number of roundings, and
// differences of losses at small odd sizes.
#include "prism/ops/backward.hpp"
#include "prism/backend/cpu/training.hpp"
#include "prism/backend/dry/training.hpp"
#include "prism/ops/linear.hpp"
#include "prism/ops/rows.hpp"
#include "prism/quant/panels.hpp"
#include "support/arrays.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <string>

using namespace prism;
using namespace prism::test;

namespace {

Vec<Cpu> first_row(Array& a) { return {a.mat().data(), {a.cols()}}; }
const Vec<Cpu> none{};

/// A matrix in a format, as rows and as panels, and the values that it has there.
template <Format F>
struct Stored {
    std::size_t                    rows, cols, stride;
    std::vector<typename F::block> blocks;
    Buffer<host>                   panels;
    Array                          values;

    Stored(std::size_t n, std::size_t d, unsigned seed) : rows(n), cols(d), stride(blocks_per_row<F>(d) + 1), blocks(n * stride), values(n, d) {
        std::vector<float> row(stride * F::values_per_block);
        for (std::size_t i = 0; i < n; ++i) {
            const auto drawn = normal(d, seed + static_cast<unsigned>(i));
            std::fill(row.begin(), row.end(), 0.0f);
            std::copy(drawn.begin(), drawn.end(), row.begin());
            F::encode(std::span<const float>(row), std::span(blocks).subspan(i * stride, stride));
            F::decode(std::span<const typename F::block>(blocks).subspan(i * stride, stride), std::span(row));
            std::copy_n(row.begin(), d, values.mat().row(i).data());
        }
        panels = Cpu{{.threads = 1}}.allocate(panels_bytes<F>(n, d));
        interleave<F>(in_rows(), static_cast<std::byte*>(panels.data()), 0, (n + panel_width - 1) / panel_width);
    }
    Packed<F, host> in_rows() const { return {blocks.data(), rows, cols, stride}; }
    /// Rows from `first` on of the matrix in panels.
    Packed<F, host> in_panels(std::size_t first = 0) const { return {nullptr, rows - first, cols, 0, static_cast<const std::byte*>(panels.data()), first}; }
};

struct Sizes { std::size_t n, d_out, d_in; };
constexpr Sizes around_tiles[]{{1, 1, 1}, {2, 3, 5}, {13, 17, 31}, {14, 16, 32}, {15, 31, 33}, {31, 255, 65}, {64, 256, 64}, {97, 257, 127}, {383, 40, 129}, {385, 300, 17}, {769, 129, 300}};

}  // namespace

TEST_CASE("ops/backward: gradients of a set are made of the widest vectors that it has") {
    const auto rows = [](Isa isa) { return cpu::TrainingTables<>::of(isa, false).tile_rows; };
    CHECK(rows(Isa::avx_vnni) == rows(Isa::avx2));
    CHECK(rows(Isa::avx512_vnni) == rows(Isa::avx512));
    if (runs(Isa::avx2)) CHECK(rows(Isa::portable) != rows(Isa::avx2));
}

TEST_CASE_TEMPLATE("ops/backward: linear_dx is within the rounding of its sum, whatever the format and the order of the weights", F, f32, bf16, f16, q8, q4, q4m) {
    for (const Sizes& s : around_tiles) {
        const Stored<F> w{s.d_out, s.d_in, 1};
        const Array     dy = Array::random(s.n, s.d_out, 2, s.d_out + 3), before = Array::random(s.n, s.d_in, 3, s.d_in + 5);
        std::vector<double> sums(s.n * s.d_in), magnitudes(sums);
        for (std::size_t i = 0; i < s.n; ++i)
            for (std::size_t o = 0; o < s.d_out; ++o)
                for (std::size_t j = 0; j < s.d_in; ++j) {
                    const double product = at(dy, i, o) * at(w.values, o, j);
                    sums[i * s.d_in + j] += product, magnitudes[i * s.d_in + j] += std::abs(product);
                }
        for (Isa isa : isas())
            for (int variant = 0; variant < 3; ++variant) {
                Cpu        be{{.threads = 2, .isa = isa}};
                const bool add = variant == 2;
                Array      dx = before;
                ops::linear_dx<Cpu>(be, dy.in(), variant == 1 ? w.in_panels() : w.in_rows(), dx.mat(), add);
                const auto   old = [&](std::size_t i, std::size_t j) { return add ? at(before, i, j) : 0; };
                const double error = worst(dx, [&](std::size_t i, std::size_t j) { return sums[i * s.d_in + j] + old(i, j); },
                                           [&](std::size_t i, std::size_t j) { return sum_bound(s.d_out, magnitudes[i * s.d_in + j] + std::abs(old(i, j))); });
                if (!(error <= 1) || !dx.kept_to_its_rows()) FAIL_CHECK(to_string(isa) << ", " << s.n << " x " << s.d_out << " x " << s.d_in << ", variant " << variant << ": " << error);
            }
    }
}

TEST_CASE_TEMPLATE("ops/backward: linear_dx gives the same bits for weights in rows, in panels, and as a part of panels", F, f32, bf16, q8, q4m) {
    const std::size_t n = 70, d_out = 90, d_in = 75;
    const Stored<F>   w{d_out, d_in, 1};
    const Array       dy = Array::random(n, d_out, 2);
    for (Isa isa : isas()) {
        Cpu   be{{.threads = 2, .isa = isa}};
        Array rows{n, d_in}, panels{n, d_in}, part{n, d_in}, tail{n, d_in};
        ops::linear_dx<Cpu>(be, dy.in(), w.in_rows(), rows.mat());
        ops::linear_dx<Cpu>(be, dy.in(), w.in_panels(), panels.mat());
        CHECK(rows.values() == panels.values());
        for (std::size_t first : {1, 16, 37}) {
            auto some = w.in_rows();
            some.data += first * some.stride, some.rows -= first;
            ops::linear_dx<Cpu>(be, dy.in().cols(first, d_out - first), some, tail.mat());
            ops::linear_dx<Cpu>(be, dy.in().cols(first, d_out - first), w.in_panels(first), part.mat());
            CHECK(tail.values() == part.values());
        }
    }
}

TEST_CASE("ops/backward: linear_dw adds to what is there, within the rounding of its sum") {
    for (const Sizes& s : around_tiles)
        for (std::size_t apart : {0, 512}) {
            const Array dy = Array::random(s.n, s.d_out, 1, apart ? apart : s.d_out + 3), x = Array::random(s.n, s.d_in, 2, apart ? apart : s.d_in + 1);
            const Array before = Array::random(s.d_out, s.d_in, 3, s.d_in + 5);
            std::vector<double> sums(s.d_out * s.d_in), magnitudes(sums);
            for (std::size_t i = 0; i < s.n; ++i)
                for (std::size_t o = 0; o < s.d_out; ++o)
                    for (std::size_t j = 0; j < s.d_in; ++j) {
                        const double product = at(dy, i, o) * at(x, i, j);
                        sums[o * s.d_in + j] += product, magnitudes[o * s.d_in + j] += std::abs(product);
                    }
            for (Isa isa : isas()) {
                Cpu   be{{.threads = 2, .isa = isa}};
                Array dw = before;
                ops::linear_dw<Cpu>(be, dy.in(), x.in(), dw.mat());
                const double error = worst(dw, [&](std::size_t o, std::size_t j) { return sums[o * s.d_in + j] + at(before, o, j); },
                                           [&](std::size_t o, std::size_t j) { return sum_bound(s.n, magnitudes[o * s.d_in + j] + std::abs(at(before, o, j))); });
                if (!(error <= 1) || !dw.kept_to_its_rows()) FAIL_CHECK(to_string(isa) << ", " << s.n << " x " << s.d_out << " x " << s.d_in << ": " << error);
            }
        }
}

TEST_CASE("ops/backward: products of nothing are nothing") {
    Cpu                be{{.threads = 2}};
    std::vector<float> values(6, 3.0f);
    ops::linear_dx<Cpu>(be, In<Cpu>{nullptr, {2, 0}}, Packed<f32, host>{nullptr, 0, 3, 3}, Mat<Cpu>{values.data(), {2, 3}}, true);
    CHECK(values == std::vector<float>(6, 3.0f));
    ops::linear_dw<Cpu>(be, In<Cpu>{nullptr, {0, 2}}, In<Cpu>{nullptr, {0, 3}}, Mat<Cpu>{values.data(), {2, 3}});
    CHECK(values == std::vector<float>(6, 3.0f));
    ops::linear_dx<Cpu>(be, In<Cpu>{nullptr, {2, 0}}, Packed<f32, host>{nullptr, 0, 3, 3}, Mat<Cpu>{values.data(), {2, 3}});
    CHECK(values == std::vector<float>(6, 0.0f));
    ops::linear_dx<Cpu>(be, In<Cpu>{nullptr, {0, 2}}, Packed<f32, host>{nullptr, 2, 3, 3}, Mat<Cpu>{nullptr, {0, 3}});
}

TEST_CASE("ops/backward: sums of rows, of repeats and into a table are within their rounding and add to what is there") {
    for (Isa isa : isas())
        for (std::size_t d : {1, 7, 16, 33, 100, 300})
            for (std::size_t n : {1, 3, 65, 400}) {
                Cpu         be{{.threads = 2, .isa = isa}};
                const Array dy = Array::random(n, d, 1, d + 3), before = Array::random(1, d, 2);
                const auto  column = [&](std::size_t j, std::size_t step, std::size_t from, bool magnitude) {
                    double sum = magnitude ? std::abs(at(before, 0, j)) : at(before, 0, j);
                    for (std::size_t i = from; i < n; i += step) sum += magnitude ? std::abs(at(dy, i, j)) : at(dy, i, j);
                    return sum;
                };
                Array sums = before;
                ops::column_sums<Cpu>(be, dy.in(), first_row(sums));
                CHECK(sums.kept_to_its_rows());
                CHECK(worst(sums, [&](std::size_t, std::size_t j) { return column(j, 1, 0, false); },
                            [&](std::size_t, std::size_t j) { return sum_bound(n, column(j, 1, 0, true)); }) <= 1);
                if (n % 5 != 0) continue;
                Array table{5, d, d + 2}, words{7, d, d + 1};
                for (std::size_t i = 0; i < 5; ++i) std::copy_n(before.values().data(), d, table.mat().row(i).data());
                for (std::size_t i = 0; i < 7; ++i) std::copy_n(before.values().data(), d, words.mat().row(i).data());
                ops::add_table_backward<Cpu>(be, dy.in(), table.mat());
                std::vector<std::int32_t> ids(n);
                for (std::size_t i = 0; i < n; ++i) ids[i] = static_cast<std::int32_t>(i % 5) + 1;
                ops::scatter_add<Cpu>(be, ids, dy.in(), words.mat());
                CHECK((table.kept_to_its_rows() && words.kept_to_its_rows()));
                CHECK(worst(table, [&](std::size_t i, std::size_t j) { return column(j, 5, i, false); },
                            [&](std::size_t i, std::size_t j) { return sum_bound(n / 5, column(j, 5, i, true)); }) <= 1);
                CHECK(worst(words, [&](std::size_t i, std::size_t j) { return i >= 1 && i <= 5 ? column(j, 5, i - 1, false) : at(before, 0, j); },
                            [&](std::size_t i, std::size_t j) { return i >= 1 && i <= 5 ? sum_bound(n / 5, column(j, 5, i - 1, true)) : 0; }) <= 1);
            }
}

TEST_CASE("ops/backward: gradients of norms are within the rounding of their sums, and add to what is there") {
    constexpr float eps = 1e-5f;
    for (const bool centred : {true, false})
        for (Isa isa : isas())
            for (std::size_t d : {1, 2, 7, 15, 16, 17, 33, 97, 192, 1000})
                for (std::size_t n : {1, 3, 70}) {
                    Cpu         be{{.threads = 2, .isa = isa}};
                    const Array x = Array::random(n, d, 1, d + 5, 2, 1), w = Array::random(1, d, 2), dy = Array::random(n, d, 3, d + 1), before = Array::random(n, d, 4, d + 3);
                    const Array sums = Array::random(1, d, 5);
                    Array       dx = before, dw = sums, db = sums;
                    if (centred) ops::layer_norm_backward<Cpu>(be, x.in(), w.row(), eps, dy.in(), dx.mat(), first_row(dw), first_row(db));
                    else ops::rms_norm_backward<Cpu>(be, x.in(), w.row(), eps, dy.in(), dx.mat(), first_row(dw));
                    std::vector<double> expected(n * d), bound(expected), w_sum(d), w_magnitude(d), b_sum(d), b_magnitude(d);
                    for (std::size_t i = 0; i < n; ++i) {
                        const double count = static_cast<double>(d);
                        double       mean = 0, magnitude = 0, variance = 0, h_mean = 0, hx_mean = 0, h_magnitude = 0, hx_magnitude = 0;
                        for (std::size_t j = 0; j < d; ++j) mean += at(x, i, j) / count, magnitude += std::abs(at(x, i, j)) / count;
                        if (!centred) mean = magnitude = 0;
                        for (std::size_t j = 0; j < d; ++j) variance += (at(x, i, j) - mean) * (at(x, i, j) - mean) / count;
                        const double r = 1 / std::sqrt(variance + static_cast<double>(eps));
                        for (std::size_t j = 0; j < d; ++j) {
                            const double normal = (at(x, i, j) - mean) * r, h = at(dy, i, j) * at(w, 0, j);
                            h_mean += centred ? h / count : 0, h_magnitude += centred ? std::abs(h) / count : 0;
                            hx_mean += h * normal / count, hx_magnitude += std::abs(h * normal) / count;
                        }
                        // Relative errors: of a normal value (mean, difference, variance, root), and of a mean over d.
                        const double of_mean = (count + 8) * u;
                        for (std::size_t j = 0; j < d; ++j) {
                            const double g = at(dy, i, j), normal = (at(x, i, j) - mean) * r, h = g * at(w, 0, j);
                            const double of_normal = of_mean * (std::abs(normal) + r * magnitude) + 4 * u * r * std::abs(at(x, i, j));
                            expected[i * d + j] = at(before, i, j) + r * (h - h_mean - normal * hx_mean);
                            bound[i * d + j] = 2 * u * (std::abs(at(before, i, j)) + std::abs(expected[i * d + j])) +
                                               r * (3 * of_mean * (std::abs(h) + h_magnitude + std::abs(normal) * hx_magnitude) + of_normal * std::abs(hx_mean) +
                                                    std::abs(normal) * h_magnitude * count / std::max(1.0, count) * of_mean * r * magnitude * 4);
                            w_sum[j] += g * normal, b_sum[j] += g;
                            w_magnitude[j] += std::abs(g) * (std::abs(normal) * (static_cast<double>(n) + 2) * u + of_normal), b_magnitude[j] += std::abs(g);
                        }
                    }
                    const double x_error = worst(dx, [&](std::size_t i, std::size_t j) { return expected[i * d + j]; }, [&](std::size_t i, std::size_t j) { return bound[i * d + j]; });
                    const double w_error = worst(dw, [&](std::size_t, std::size_t j) { return w_sum[j] + at(sums, 0, j); },
                                                 [&](std::size_t, std::size_t j) { return w_magnitude[j] + sum_bound(n, std::abs(at(sums, 0, j))); });
                    const double b_error = worst(db, [&](std::size_t, std::size_t j) { return centred ? b_sum[j] + at(sums, 0, j) : at(sums, 0, j); },
                                                 [&](std::size_t, std::size_t j) { return sum_bound(n, b_magnitude[j] + std::abs(at(sums, 0, j))); });
                    if (!(x_error <= 1 && w_error <= 1 && b_error <= 1) || !dx.kept_to_its_rows())
                        FAIL_CHECK(to_string(isa) << ", " << n << " x " << d << (centred ? ", layer_norm: " : ", rms_norm: ") << x_error << " " << w_error << " " << b_error);
                    Array again = before;  // frozen weights
                    if (centred) ops::layer_norm_backward<Cpu>(be, x.in(), w.row(), eps, dy.in(), again.mat(), none, none);
                    else ops::rms_norm_backward<Cpu>(be, x.in(), w.row(), eps, dy.in(), again.mat(), none);
                    CHECK(again.values() == dx.values());
                }
}

namespace {

/// The derivative of an activation, from differences in f64.
double slope(Activation act, double z) {
    const double h = 1e-5;
    return (8 * (activation(act, z + h) - activation(act, z - h)) - (activation(act, z + 2 * h) - activation(act, z - 2 * h))) / (12 * h);
}

}  // namespace

TEST_CASE("ops/backward: slopes of activations are exact to some roundings of one, far from zero too") {
    for (Isa isa : isas())
        for (std::size_t d : {1, 15, 33, 201}) {
            Cpu         be{{.threads = 2, .isa = isa}};
            const Array z = Array::random(6, d, 1, d + 3, 4), up = Array::random(6, d, 2), dy = Array::random(6, d, 3, d + 1);
            for (Activation act : activations) {
                Array g = dy;
                ops::activate_backward<Cpu>(be, act, z.in(), g.mat());
                const double error = worst(g, [&](std::size_t i, std::size_t j) { return at(dy, i, j) * slope(act, at(z, i, j)); },
                                           [&](std::size_t i, std::size_t j) { return std::abs(at(dy, i, j)) * (16 * u * (1 + std::abs(at(z, i, j))) + 1e-10); });
                if (!(error <= 1) || !g.kept_to_its_rows()) FAIL_CHECK(to_string(isa) << ", " << to_string(act) << ": " << error);
            }
            Array dgate{6, d, d + 2}, dup = dy;
            ops::silu_mul_backward<Cpu>(be, z.in(), up.in(), dup.in(), dgate.mat(), dup.mat());
            CHECK(worst(dgate, [&](std::size_t i, std::size_t j) { return at(dy, i, j) * at(up, i, j) * slope(Activation::silu, at(z, i, j)); },
                        [&](std::size_t i, std::size_t j) { return std::abs(at(dy, i, j) * at(up, i, j)) * (16 * u * (1 + std::abs(at(z, i, j))) + 1e-10); }) <= 1);
            CHECK(worst(dup, [&](std::size_t i, std::size_t j) { return at(dy, i, j) * activation(Activation::silu, at(z, i, j)); },
                        [&](std::size_t i, std::size_t j) { return std::abs(at(dy, i, j)) * (2 * u * std::abs(at(z, i, j)) + activation_bound(at(z, i, j))); }) <= 1);
            CHECK((dgate.kept_to_its_rows() && dup.kept_to_its_rows()));
        }
    Cpu   be{{.threads = 1}};
    Array far{1, 6}, g{1, 6};
    for (Activation act : activations) {
        const float zs[]{-1e4f, -200, -30, 30, 200, 1e4f};
        for (std::size_t j = 0; j < 6; ++j) far.mat()(0, j) = zs[j], g.mat()(0, j) = 1;
        ops::activate_backward<Cpu>(be, act, far.in(), g.mat());
        for (std::size_t j = 0; j < 6; ++j) CHECK(std::abs(at(g, 0, j) - (j < 3 && act != Activation::none ? 0 : 1)) <= 1e-5);
    }
}

TEST_CASE("ops/backward: scaled_backward, in place too") {
    for (Isa isa : isas())
        for (std::size_t d : {1, 17, 130}) {
            Cpu         be{{.threads = 2, .isa = isa}};
            const std::size_t n = 75;
            const Array branch = Array::random(n, d, 1, d + 1), gamma = Array::random(1, d, 2), dy = Array::random(n, d, 3, d + 3);
            Array       dbranch = dy, dgamma = gamma, frozen{n, d, d + 3};
            ops::scaled_backward<Cpu>(be, branch.in(), gamma.row(), dbranch.in(), dbranch.mat(), first_row(dgamma));
            ops::scaled_backward<Cpu>(be, branch.in(), gamma.row(), dy.in(), frozen.mat(), none);
            CHECK(dbranch.values() == frozen.values());
            CHECK(worst(dbranch, [&](std::size_t i, std::size_t j) { return at(dy, i, j) * at(gamma, 0, j); },
                        [&](std::size_t i, std::size_t j) { return u * std::abs(at(dy, i, j) * at(gamma, 0, j)); }) <= 1);
            const auto sum = [&](std::size_t j, bool magnitude) {
                double s = magnitude ? std::abs(at(gamma, 0, j)) : at(gamma, 0, j);
                for (std::size_t i = 0; i < n; ++i) s += magnitude ? std::abs(at(dy, i, j) * at(branch, i, j)) : at(dy, i, j) * at(branch, i, j);
                return s;
            };
            CHECK(worst(dgamma, [&](std::size_t, std::size_t j) { return sum(j, false); }, [&](std::size_t, std::size_t j) { return sum_bound(n, sum(j, true)); }) <= 1);
        }
}

namespace {

struct Heads {
    Array q, k, v, y, dy, dq, dk, dv;
};

/// Gradients of attention in f64, and a bound of the error of each.
struct AttentionReference {
    std::vector<double> dq, dk, dv, q_bound, k_bound, v_bound;

    AttentionReference(const Array& q, const Array& k, const Array& v, const Array& dy, const AttentionShape& s)
        : dq(q.rows() * q.cols()), dk(k.rows() * k.cols()), dv(dk), q_bound(dq.size()), k_bound(dk.size()), v_bound(dk.size()) {
        const std::size_t   n_q = q.rows() / s.n_sequences, n_kv = k.rows() / s.n_sequences, d = s.head_dim;
        const double        scale = static_cast<double>(s.scale);
        std::vector<double> p(n_kv), dp(n_kv);
        for (std::size_t row = 0; row < q.rows(); ++row)
            for (std::size_t h = 0; h < s.n_heads; ++h) {
                const std::size_t i = row % n_q, keys = row / n_q * n_kv, at_q = h * d, at_kv = h * s.n_kv_heads / s.n_heads * d;
                const std::size_t end = s.causal ? s.q_pos + i + 1 : n_kv, begin = s.causal && s.window && end > s.window ? end - s.window : 0;
                double            top = -INFINITY, total = 0, own = 0, score_error = 0, dp_magnitude = 0;
                for (std::size_t j = begin; j < end; ++j) {
                    double score = 0, slope = 0, q_magnitude = 0, v_magnitude = 0;
                    for (std::size_t c = 0; c < d; ++c) {
                        const double of_score = at(q, row, at_q + c) * at(k, keys + j, at_kv + c), of_slope = at(dy, row, at_q + c) * at(v, keys + j, at_kv + c);
                        score += of_score, slope += of_slope, q_magnitude += std::abs(of_score), v_magnitude += std::abs(of_slope);
                    }
                    p[j] = score * scale, dp[j] = slope;
                    top = std::max(top, p[j]);
                    score_error = std::max(score_error, scale * sum_bound(d, q_magnitude, 4)), dp_magnitude = std::max(dp_magnitude, v_magnitude);
                }
                for (std::size_t j = begin; j < end; ++j) total += p[j] = std::exp(p[j] - top);
                for (std::size_t j = begin; j < end; ++j) own += (p[j] /= total) * dp[j];
                // A score's error is the relative error of its weight, above and below the fraction bar; sums over keys and rows follow.
                const double relative = 2 * score_error + 2 * (static_cast<double>(end - begin) + static_cast<double>(n_q * s.n_heads / s.n_kv_heads) + static_cast<double>(d) + 24) * u;
                for (std::size_t j = begin; j < end; ++j) {
                    const double slope = scale * p[j] * (dp[j] - own), slope_magnitude = scale * p[j] * 2 * dp_magnitude;
                    for (std::size_t c = 0; c < d; ++c) {
                        dq[row * q.cols() + at_q + c] += slope * at(k, keys + j, at_kv + c);
                        dk[(keys + j) * k.cols() + at_kv + c] += slope * at(q, row, at_q + c);
                        dv[(keys + j) * k.cols() + at_kv + c] += p[j] * at(dy, row, at_q + c);
                        q_bound[row * q.cols() + at_q + c] += relative * slope_magnitude * std::abs(at(k, keys + j, at_kv + c));
                        k_bound[(keys + j) * k.cols() + at_kv + c] += relative * slope_magnitude * std::abs(at(q, row, at_q + c));
                        v_bound[(keys + j) * k.cols() + at_kv + c] += relative * p[j] * std::abs(at(dy, row, at_q + c));
                    }
                }
            }
    }
};

Heads random_heads(std::size_t n_q, std::size_t n_kv, const AttentionShape& s, std::size_t more) {
    const std::size_t wide = s.n_heads * s.head_dim, narrow = s.n_kv_heads * s.head_dim;
    n_q *= s.n_sequences, n_kv *= s.n_sequences;
    return {Array::random(n_q, wide, 1, wide + more), Array::random(n_kv, narrow, 2, narrow + more), Array::random(n_kv, narrow, 3, narrow + more), Array{n_q, wide, wide + 1},
            Array::random(n_q, wide, 4, wide + more), Array{n_q, wide, wide + 2}, Array{n_kv, narrow, narrow + 3}, Array{n_kv, narrow, narrow + 1}};
}

void run(Cpu& be, Heads& h, const AttentionShape& s) {
    ops::attention<Cpu>(be, h.q.in(), h.k.in(), h.v.in(), s, h.y.mat());
    ops::attention_backward<Cpu>(be, h.q.in(), h.k.in(), h.v.in(), h.y.in(), s, h.dy.in(), h.dq.mat(), h.dk.mat(), h.dv.mat());
}

void check_attention(std::size_t n_q, std::size_t n_kv, const AttentionShape& s, std::size_t more = 3) {
    Heads                    h = random_heads(n_q, n_kv, s, more);
    const AttentionReference r{h.q, h.k, h.v, h.dy, s};
    for (Isa isa : isas()) {
        Cpu be{{.threads = 2, .isa = isa}};
        run(be, h, s);
        const auto error = [](const Array& found, const std::vector<double>& expected, const std::vector<double>& bound) {
            return worst(found, [&](std::size_t i, std::size_t j) { return expected[i * found.cols() + j]; }, [&](std::size_t i, std::size_t j) { return bound[i * found.cols() + j]; });
        };
        const double q = error(h.dq, r.dq, r.q_bound), k = error(h.dk, r.dk, r.k_bound), v = error(h.dv, r.dv, r.v_bound);
        if (!(q <= 1 && k <= 1 && v <= 1) || !h.dq.kept_to_its_rows() || !h.dk.kept_to_its_rows() || !h.dv.kept_to_its_rows())
            FAIL_CHECK(to_string(isa) << ": " << n_q << " queries, " << n_kv << " keys, heads " << s.n_heads << "/" << s.n_kv_heads << " of " << s.head_dim << ", causal " << s.causal
                                      << ", q_pos " << s.q_pos << ", window " << s.window << ": " << q << " " << k << " " << v);
    }
}

}  // namespace

TEST_CASE("ops/backward: attention, every head size, number of rows and mask is within its rounding") {
    for (std::size_t head_dim : {1, 8, 24, 64, 72, 80, 96, 128, 256})
        for (std::size_t n_q : {1, 2, 17, 63, 65, 97, 130}) {
            if (head_dim > 100 && n_q > 97) continue;
            check_attention(n_q, n_q, {.head_dim = head_dim, .scale = scale_of(head_dim)});
            check_attention(n_q, n_q + 41, {.head_dim = head_dim, .scale = scale_of(head_dim)});
            check_attention(n_q, n_q, {.head_dim = head_dim, .causal = true, .scale = scale_of(head_dim)});
            if (head_dim == 8 || head_dim == 72)
                for (std::size_t window : {1, 7, 64}) check_attention(n_q, n_q + 41, {.head_dim = head_dim, .causal = true, .q_pos = 35, .window = window, .scale = scale_of(head_dim)});
        }
}

TEST_CASE("ops/backward: attention of grouped heads, several sequences and rows of a wider matrix") {
    for (std::size_t n_kv_heads : {1, 2, 3, 6})
        for (std::size_t n_sequences : {1, 2, 5})
            for (std::size_t n_q : {1, 5, 70}) {
                AttentionShape s{.n_heads = 6, .n_kv_heads = n_kv_heads, .head_dim = 24, .n_sequences = n_sequences, .scale = scale_of(24)};
                check_attention(n_q, n_q + 20, s, 512 - 6 * 24);
                s.causal = true, s.q_pos = 11;  // nine keys are not there yet for anybody
                check_attention(n_q, n_q + 20, s);
            }
}

TEST_CASE("ops/backward: attention over more keys than one stretch of sums") {
    check_attention(31, 700, {.head_dim = 16, .scale = scale_of(16)});
    check_attention(300, 300, {.n_heads = 2, .head_dim = 40, .causal = true, .scale = scale_of(40)});
    check_attention(300, 300, {.n_heads = 2, .n_kv_heads = 1, .head_dim = 40, .causal = true, .window = 50, .scale = scale_of(40)});
}

TEST_CASE("ops/backward: scores of hundreds neither overflow nor vanish") {
    AttentionShape s{.head_dim = 16, .scale = 1};
    Heads          h = random_heads(9, 100, s, 0);
    h.q = Array::random(9, 16, 1, 0, 20), h.k = Array::random(100, 16, 2, 0, 20);
    for (Isa isa : isas()) {
        Cpu be{{.threads = 1, .isa = isa}};
        run(be, h, s);
        for (const Array* a : {&h.dq, &h.dk, &h.dv}) CHECK(worst(*a, [](std::size_t, std::size_t) { return 0; }, [](std::size_t, std::size_t) { return 1e4; }) <= 1);
    }
}

namespace {

/// Loss in f64 of parameters that are moved one at a time; found: their gradients in f32.
void check_differences(const char* name, std::vector<double> parameters, const std::function<double(const std::vector<double>&)>& loss, const std::vector<float>& found) {
    REQUIRE(parameters.size() == found.size());
    const double        h = 1e-4;
    double              largest = 0, difference = 0;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
        const double value = parameters[i];
        const auto   moved = [&](double by) {
            parameters[i] = value + by;
            return loss(parameters);
        };
        const double expected = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h);
        parameters[i] = value;
        largest = std::max(largest, std::abs(expected)), difference = std::max(difference, std::abs(expected - static_cast<double>(found[i])));
    }
    CHECK_MESSAGE(difference <= 200 * u * largest, name << ": " << difference << " of " << largest);
}
std::vector<double> in_f64(std::initializer_list<const Array*> arrays) {
    std::vector<double> all;
    for (const Array* a : arrays)
        for (std::size_t i = 0; i < a->rows(); ++i)
            for (std::size_t j = 0; j < a->cols(); ++j) all.push_back(at(*a, i, j));
    return all;
}
std::vector<float> in_f32(std::initializer_list<const Array*> arrays) {
    std::vector<float> all;
    for (double x : in_f64(arrays)) all.push_back(static_cast<float>(x));
    return all;
}
Array zeros(std::size_t rows, std::size_t cols) {
    Array a{rows, cols};
    for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t j = 0; j < cols; ++j) a.mat()(i, j) = 0;
    return a;
}

}  // namespace

TEST_CASE("ops/backward: gradients are the differences of losses") {
    const std::size_t n = 5, d = 7;
    const Array       x = Array::random(n, d, 1), g = Array::random(n, d, 2), w = Array::random(1, d, 3), b = Array::random(1, d, 4), h = Array::random(n, d, 5);
    const auto        weighed = [&](std::size_t i, std::size_t j, double y) { return at(g, i, j) * y; };
    for (Isa isa : isas()) {
        Cpu be{{.threads = 2, .isa = isa}};
        for (const bool centred : {true, false}) {
            Array dx = zeros(n, d), dw = zeros(1, d), db = zeros(1, d);
            if (centred) ops::layer_norm_backward<Cpu>(be, x.in(), w.row(), 1e-5f, g.in(), dx.mat(), first_row(dw), first_row(db));
            else ops::rms_norm_backward<Cpu>(be, x.in(), w.row(), 1e-5f, g.in(), dx.mat(), first_row(dw));
            check_differences(centred ? "layer_norm" : "rms_norm", in_f64({&x, &w, &b}), [&](const std::vector<double>& p) {
                double loss = 0;
                for (std::size_t i = 0; i < n; ++i) {
                    double mean = 0, variance = 0;
                    for (std::size_t j = 0; j < d && centred; ++j) mean += p[i * d + j] / static_cast<double>(d);
                    for (std::size_t j = 0; j < d; ++j) variance += (p[i * d + j] - mean) * (p[i * d + j] - mean) / static_cast<double>(d);
                    for (std::size_t j = 0; j < d; ++j)
                        loss += weighed(i, j, (p[i * d + j] - mean) / std::sqrt(variance + 1e-5) * p[n * d + j] + (centred ? p[n * d + d + j] : 0));
                }
                return loss;
            }, in_f32({&dx, &dw, &db}));
        }
        {
            Array dgate{n, d}, dup{n, d};
            ops::silu_mul_backward<Cpu>(be, x.in(), h.in(), g.in(), dgate.mat(), dup.mat());
            check_differences("silu_mul", in_f64({&x, &h}), [&](const std::vector<double>& p) {
                double loss = 0;
                for (std::size_t i = 0; i < n * d; ++i) loss += weighed(i / d, i % d, activation(Activation::silu, p[i]) * p[n * d + i]);
                return loss;
            }, in_f32({&dgate, &dup}));
        }
        {
            Array dh{n, d}, dgamma = zeros(1, d);
            ops::scaled_backward<Cpu>(be, h.in(), w.row(), g.in(), dh.mat(), first_row(dgamma));
            check_differences("scaled", in_f64({&h, &w}), [&](const std::vector<double>& p) {
                double loss = 0;
                for (std::size_t i = 0; i < n * d; ++i) loss += weighed(i / d, i % d, p[i] * p[n * d + i % d]);
                return loss;
            }, in_f32({&dh, &dgamma}));
        }
        {
            const Array weight = Array::random(d, 3, 6), rows = Array::random(n, 3, 7);
            Array       dx{n, 3}, dw = zeros(d, 3);
            ops::linear_dx<Cpu>(be, g.in(), Packed<f32, host>{weight.values().data(), d, 3, 3}, dx.mat());
            ops::linear_dw<Cpu>(be, g.in(), rows.in(), dw.mat());
            check_differences("linear", in_f64({&rows, &weight}), [&](const std::vector<double>& p) {
                double loss = 0;
                for (std::size_t i = 0; i < n; ++i)
                    for (std::size_t j = 0; j < d; ++j)
                        for (std::size_t c = 0; c < 3; ++c) loss += weighed(i, j, p[i * 3 + c] * p[n * 3 + j * 3 + c]);
                return loss;
            }, in_f32({&dx, &dw}));
        }
        {
            const std::size_t n_angles = 2;  // of heads of 5: one value of each is not rotated
            const Array       angle = Array::random(n, n_angles, 8), values = Array::random(n, 10, 9), of = Array::random(n, 10, 10);
            Array             cos{n, n_angles}, sin{n, n_angles}, dx = of;
            for (std::size_t i = 0; i < n; ++i)
                for (std::size_t j = 0; j < n_angles; ++j) cos.mat()(i, j) = std::cos(angle(i, j)), sin.mat()(i, j) = std::sin(angle(i, j));
            ops::rope_half_backward<Cpu>(be, cos.in(), sin.in(), 2, dx.mat());
            check_differences("rope_half", in_f64({&values}), [&](const std::vector<double>& p) {
                double loss = 0;
                for (std::size_t i = 0; i < n; ++i)
                    for (std::size_t c = 0; c < 10; ++c) {
                        const std::size_t head = c / 5 * 5, j = c % 5;
                        const double*     row = p.data() + i * 10 + head;
                        const double      y = j < 2 ? row[j] * at(cos, i, j) - row[j + 2] * at(sin, i, j) : j < 4 ? row[j] * at(cos, i, j - 2) + row[j - 2] * at(sin, i, j - 2) : row[j];
                        loss += at(of, i, c) * y;
                    }
                return loss;
            }, in_f32({&dx}));
        }
        for (const bool causal : {false, true}) {
            const AttentionShape s{.n_heads = 2, .n_kv_heads = 1, .head_dim = 3, .causal = causal, .scale = 0.7f};
            Heads                a = random_heads(n, n, s, 0);
            run(be, a, s);
            check_differences("attention", in_f64({&a.q, &a.k, &a.v}), [&](const std::vector<double>& p) {
                const double *q = p.data(), *k = q + n * 6, *v = k + n * 3;
                double        loss = 0;
                for (std::size_t i = 0; i < n; ++i)
                    for (std::size_t head = 0; head < 2; ++head) {
                        double total = 0, sum = 0;
                        for (std::size_t j = 0; j < (causal ? i + 1 : n); ++j) {
                            double score = 0, value = 0;
                            for (std::size_t c = 0; c < 3; ++c) score += q[i * 6 + head * 3 + c] * k[j * 3 + c], value += at(a.dy, i, head * 3 + c) * v[j * 3 + c];
                            const double e = std::exp(static_cast<double>(s.scale) * score);
                            total += e, sum += e * value;
                        }
                        loss += sum / total;
                    }
                return loss;
            }, in_f32({&a.dq, &a.dk, &a.dv}));
        }
        {
            const std::int32_t labels[]{3, 0, ignored_label, 6, 3};
            Array              dlogits = x;
            ops::cross_entropy<Cpu>(be, dlogits.mat(), labels, 1);
            check_differences("cross_entropy", in_f64({&x}), [&](const std::vector<double>& p) {
                double loss = 0;
                for (std::size_t i = 0; i < n; ++i) {
                    double total = 0;
                    for (std::size_t j = 0; j < d; ++j) total += std::exp(p[i * d + j]);
                    if (labels[i] >= 0) loss += std::log(total) - p[i * d + static_cast<std::size_t>(labels[i])];
                }
                return loss;
            }, in_f32({&dlogits}));
        }
    }
}

TEST_CASE("ops/backward: cross_entropy of many classes, far logits and ignored rows") {
    for (Isa isa : isas())
        for (std::size_t vocab : {1, 2, 17, 1000, 3001}) {
            Cpu         be{{.threads = 2, .isa = isa}};
            const Array logits = Array::random(9, vocab, 1, vocab + 3, 10, 300);
            std::vector<std::int32_t> labels;
            for (std::size_t i = 0; i < 9; ++i) labels.push_back(i % 4 == 1 ? ignored_label : static_cast<std::int32_t>((i * 577 + vocab - 1) % vocab));
            Array        gradient = logits;
            const float  scale = 0.25f;
            const double loss = ops::cross_entropy<Cpu>(be, gradient.mat(), labels, scale);
            double       expected = 0;
            std::vector<double> tops(9, -INFINITY), totals(9);
            for (std::size_t i = 0; i < 9; ++i) {
                for (std::size_t j = 0; j < vocab; ++j) tops[i] = std::max(tops[i], at(logits, i, j));
                for (std::size_t j = 0; j < vocab; ++j) totals[i] += std::exp(at(logits, i, j) - tops[i]);
                if (labels[i] >= 0) expected += tops[i] + std::log(totals[i]) - at(logits, i, static_cast<std::size_t>(labels[i]));
            }
            CHECK(std::abs(loss - expected) <= 8 * 16 * u * (1 + std::abs(expected)));
            const auto p = [&](std::size_t i, std::size_t j) { return std::exp(at(logits, i, j) - tops[i]) / totals[i]; };
            const double error = worst(gradient, [&](std::size_t i, std::size_t j) {
                return labels[i] < 0 ? 0 : static_cast<double>(scale) * (p(i, j) - (static_cast<std::size_t>(labels[i]) == j ? 1 : 0));
            }, [&](std::size_t i, std::size_t j) { return labels[i] < 0 ? 0 : 64 * u * p(i, j) + (static_cast<std::size_t>(labels[i]) == j ? 2 * u : 1e-37); });
            if (!(error <= 1) || !gradient.kept_to_its_rows()) FAIL_CHECK(to_string(isa) << ", " << vocab << " classes: " << error);
        }
}

TEST_CASE("ops/backward: squared_norm and adamw against their formulas in f64") {
    for (Isa isa : isas())
        for (std::size_t n : {1, 15, 17, 1000, 16384, 50001}) {
            Cpu         be{{.threads = 3, .isa = isa}};
            const Array theta = Array::random(1, n, 1), grad = Array::random(1, n, 2), m0 = Array::random(1, n, 3, 0, 0.1f);
            Array       v0 = Array::random(1, n, 4, 0, 0.1f), t = theta, m = m0;
            double      squares = 0;
            for (std::size_t i = 0; i < n; ++i) v0.mat()(0, i) *= v0(0, i), squares += at(grad, 0, i) * at(grad, 0, i);
            Array v = v0;
            CHECK(std::abs(ops::squared_norm<Cpu>(be, grad.row()) - squares) <= 64 * u * squares);
            const AdamWStep step{.lr = 1e-2, .decay = 0.1, .step = 7, .clip = 0.5f};
            ops::adamw<Cpu>(be, first_row(t), grad.row(), first_row(m), first_row(v), step);
            const auto g = [&](std::size_t i) { return 0.5 * at(grad, 0, i); };
            const auto m1 = [&](std::size_t i) { return at(m0, 0, i) + (g(i) - at(m0, 0, i)) * (1 - 0.9); };
            const auto v1 = [&](std::size_t i) { return 0.999 * at(v0, 0, i) + (1 - 0.999) * g(i) * g(i); };
            const auto moved = [&](std::size_t i) { return 1e-2 / (1 - std::pow(0.9, 7)) * m1(i) / (std::sqrt(v1(i)) / std::sqrt(1 - std::pow(0.999, 7)) + 1e-8); };
            const auto m_bound = [&](std::size_t i) { return 3 * u * (std::abs(at(m0, 0, i)) + std::abs(g(i))); };
            CHECK(worst(m, [&](std::size_t, std::size_t i) { return m1(i); }, [&](std::size_t, std::size_t i) { return m_bound(i); }) <= 1);
            CHECK(worst(v, [&](std::size_t, std::size_t i) { return v1(i); }, [&](std::size_t, std::size_t i) { return 4 * u * v1(i); }) <= 1);
            CHECK(worst(t, [&](std::size_t, std::size_t i) { return at(theta, 0, i) * (1 - 1e-3) - moved(i); },
                        [&](std::size_t, std::size_t i) { return 3 * u * std::abs(at(theta, 0, i)) + std::abs(moved(i)) * (12 * u + m_bound(i) / std::abs(m1(i))); }) <= 1);
        }
}

TEST_CASE("ops/backward: every gradient has the same bits at 1, 2, 3 and 8 threads") {
    constexpr std::size_t  n = 390, d = 192;
    const Array            x = Array::random(n, d, 1), v = Array::random(1, d, 2), dy = Array::random(n, d, 3), w = Array::random(300, d, 4), wide = Array::random(n, 300, 5);
    const AttentionShape   heads{.n_heads = 3, .n_kv_heads = 1, .head_dim = 64, .n_sequences = 2, .causal = true, .scale = 0.125f};
    const Packed<f32, host> matrix{w.values().data(), 300, d, d};
    std::vector<std::int32_t> ids(n);
    for (std::size_t i = 0; i < n; ++i) ids[i] = static_cast<std::int32_t>(i * i % 190);
    struct Op {
        std::string                         name;
        std::function<void(Cpu&, Mat<Cpu>)> run;
    };
    const auto last = [&](Mat<Cpu> y) { return Vec<Cpu>{y.row(n - 1).data(), {d}}; };
    const Op   all[]{
        {"linear_dx", [&](Cpu& be, Mat<Cpu> y) { ops::linear_dx<Cpu>(be, wide.in(), matrix, y, true); }},
        {"linear_dw", [&](Cpu& be, Mat<Cpu> y) { ops::linear_dw<Cpu>(be, dy.in(), x.in(), y.rows(0, d)), ops::linear_dw<Cpu>(be, v.in(), v.in(), y.rows(d, d)); }},
        {"column_sums", [&](Cpu& be, Mat<Cpu> y) { ops::column_sums<Cpu>(be, dy.in(), last(y)); }},
        {"norms", [&](Cpu& be, Mat<Cpu> y) {
             ops::layer_norm_backward<Cpu>(be, x.in().rows(0, n - 3), v.row(), 1e-6f, dy.in().rows(0, n - 3), y.rows(0, n - 3), last(y), last(y.rows(0, n - 1)));
             ops::rms_norm_backward<Cpu>(be, x.in().rows(0, n - 3), v.row(), 1e-6f, dy.in().rows(0, n - 3), y.rows(0, n - 3), last(y.rows(0, n - 2)));
         }},
        {"scaled", [&](Cpu& be, Mat<Cpu> y) { ops::scaled_backward<Cpu>(be, x.in().rows(0, n - 1), v.row(), dy.in().rows(0, n - 1), y.rows(0, n - 1), last(y)); }},
        {"attention", [&](Cpu& be, Mat<Cpu> y) {
             Array dk{n, 64}, dv{n, 64};
             ops::attention_backward<Cpu>(be, x.in(), x.in().cols(0, 64), x.in().cols(64, 64), dy.in(), heads, dy.in(), y, dk.mat(), dv.mat());
             ops::add<Cpu>(be, dk.in(), y.cols(0, 64)), ops::add<Cpu>(be, dv.in(), y.cols(64, 64));
         }},
        {"scatter_add, add_table", [&](Cpu& be, Mat<Cpu> y) { ops::scatter_add<Cpu>(be, ids, dy.in(), y), ops::add_table_backward<Cpu>(be, dy.in(), y.rows(0, 13)); }},
        {"cross_entropy, squared_norm", [&](Cpu& be, Mat<Cpu> y) {
             std::vector<std::int32_t> labels(n, 7);
             const double loss = ops::cross_entropy<Cpu>(be, y, labels, 1);
             y(0, 0) = static_cast<float>(loss), y(0, 1) = static_cast<float>(ops::squared_norm<Cpu>(be, {x.values().data(), {n * d}}));
         }},
    };
    for (Isa isa : isas())
        for (const Op& op : all) {
            std::vector<float> one;
            for (std::size_t threads : {1, 2, 3, 8}) {
                Cpu   be{{.threads = threads, .isa = isa}};
                Array y = Array::random(n, d, 9);
                op.run(be, y.mat());
                if (threads == 1) one = y.values();
                CHECK_MESSAGE(y.values() == one, op.name << ", " << to_string(isa) << ", " << threads << " threads");
            }
        }
}

TEST_CASE("ops/backward: wrong shapes, ids and labels are refused") {
    Cpu                be;
    Array              a{4, 6}, b{4, 5}, square{6, 6};
    const std::int32_t ids[]{0, 1, 2, 6}, labels[]{0, -1, 2, 3};
    CHECK_THROWS_AS(ops::linear_dx<Cpu>(be, a.in(), Packed<f32, host>{nullptr, 6, 3, 3}, b.mat()), ShapeError);
    CHECK_THROWS_AS(ops::linear_dw<Cpu>(be, a.in(), b.in(), square.mat()), ShapeError);
    CHECK_THROWS_AS(ops::layer_norm_backward<Cpu>(be, a.in(), b.row(), 1e-6f, a.in(), a.mat(), none, none), ShapeError);
    CHECK_THROWS_AS(ops::scatter_add<Cpu>(be, ids, a.in(), square.mat()), ShapeError);
    CHECK_THROWS_AS(ops::cross_entropy<Cpu>(be, a.mat(), labels, 1), ShapeError);
    CHECK_THROWS_AS(ops::add_table_backward<Cpu>(be, a.in(), square.mat()), ShapeError);
    CHECK_THROWS_AS(ops::attention_backward<Cpu>(be, a.in(), a.in(), a.in(), a.in(), {.n_heads = 4, .head_dim = 2}, a.in(), a.mat(), a.mat(), a.mat()), ShapeError);
}

TEST_CASE("ops/backward: a dry run counts two products of a linear's size and attention two and a half times its forward, and so does a run") {
    const std::size_t    n = 10, d = 16, wide = 30;
    const AttentionShape s{.n_heads = 2, .n_kv_heads = 1, .head_dim = 8, .causal = true, .scale = 1};
    const auto           pass = [&]<class B>(B& be, Mat<B> x, Mat<B> y, Mat<B> w, const Packed<f32, typename B::space>& matrix) {
        ops::linear_dx<B>(be, y, matrix, x);
        ops::linear_dw<B>(be, y, x, w);
        ops::attention_backward<B>(be, x, y.cols(0, 8), y.cols(8, 8), x, s, x, w.rows(0, n), w.rows(n, n).cols(0, 8), w.rows(2 * n, n).cols(0, 8));
    };
    const std::uint64_t expected = 2 * 2 * n * d * wide + s.flops(n, n) / 2 * 5;
    CHECK(dry_run([&](Dry& be, Workspace<Dry>&) { pass(be, Mat<Dry>{nullptr, {n, d}}, Mat<Dry>{nullptr, {n, wide}}, Mat<Dry>{nullptr, {wide, d}}, Packed<f32, nowhere>{nullptr, wide, d, d}); }).flops == expected);
    Cpu         be;
    const Array matrix = Array::random(wide, d, 1);
    Array       x = Array::random(n, d, 2), y = Array::random(n, wide, 3), w{wide, d};
    pass(be, x.mat(), y.mat(), w.mat(), Packed<f32, host>{matrix.values().data(), wide, d, d});
    CHECK(be.flops_done() == expected);
}
