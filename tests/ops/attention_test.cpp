// Attention against softmax(scale q k^T) v in f64.
#include "prism/ops/attention.hpp"
#include "support/arrays.hpp"

#include <doctest/doctest.h>

#include <algorithm>

using namespace prism;
using namespace prism::test;

namespace {

/// y and a bound of its error, element by element.
struct Reference {
    std::vector<double> y, bound;
    std::size_t         cols;

    Reference(const Array& q, const Array& k, const Array& v, const AttentionShape& s) : y(q.rows() * q.cols()), bound(y), cols(q.cols()) {
        const std::size_t   n_q = q.rows() / s.n_sequences, n_kv = k.rows() / s.n_sequences;
        std::vector<double> p(n_kv);
        for (std::size_t row = 0; row < q.rows(); ++row)
            for (std::size_t h = 0; h < s.n_heads; ++h) {
                const std::size_t i = row % n_q, keys = row / n_q * n_kv, at = h * s.head_dim, at_kv = h * s.n_kv_heads / s.n_heads * s.head_dim;
                const std::size_t end = s.causal ? s.q_pos + i + 1 : n_kv, begin = s.causal && s.window && end > s.window ? end - s.window : 0;
                double            top = -INFINITY, score_error = 0, total = 0;
                for (std::size_t j = begin; j < end; ++j) {
                    double score = 0, magnitude = 0;
                    for (std::size_t d = 0; d < s.head_dim; ++d) {
                        const double product = static_cast<double>(q(row, at + d)) * static_cast<double>(k(keys + j, at_kv + d));
                        score += product, magnitude += std::abs(product);
                    }
                    p[j] = score * static_cast<double>(s.scale);
                    top = std::max(top, p[j]);
                    score_error = std::max(score_error, static_cast<double>(s.scale) * sum_bound(s.head_dim, magnitude, 4));
                }
                for (std::size_t j = begin; j < end; ++j) total += p[j] = std::exp(p[j] - top);
                double* const sums = y.data() + row * cols + at;
                double* const magnitudes = bound.data() + row * cols + at;
                for (std::size_t j = begin; j < end; ++j) {
                    const double weight = p[j] / total;
                    const float* values = v.row(keys + j).data() + at_kv;
                    for (std::size_t d = 0; d < s.head_dim; ++d) {
                        const double product = weight * static_cast<double>(values[d]);
                        sums[d] += product, magnitudes[d] += std::abs(product);
                    }
                }
                // A score's error is the relative error of its weight, above and below the fraction bar; the weights'
                // exponentials and the two sums over the keys come on top.
                for (std::size_t d = 0; d < s.head_dim; ++d) magnitudes[d] *= 2 * score_error + 2 * (static_cast<double>(end - begin) + 16) * u;
            }
    }
};

void check(const Array& q, const Array& k, const Array& v, const AttentionShape& s, std::size_t threads = 2) {
    const Reference r{q, k, v, s};
    for (Isa isa : isas()) {
        Cpu   be{{.threads = threads, .isa = isa}};
        Array y{q.rows(), q.cols(), q.cols() + 5};
        ops::attention<Cpu>(be, q.in(), k.in(), v.in(), s, y.mat());
        const double error = worst(y, [&](std::size_t i, std::size_t j) { return r.y[i * r.cols + j]; }, [&](std::size_t i, std::size_t j) { return r.bound[i * r.cols + j]; });
        if (!(error <= 1) || !y.kept_to_its_rows())
            FAIL_CHECK(to_string(isa) << ": " << q.rows() << " queries, " << k.rows() << " keys, heads " << s.n_heads << "/" << s.n_kv_heads << " of " << s.head_dim
                                      << ", causal " << s.causal << ", q_pos " << s.q_pos << ", window " << s.window << ": " << error);
    }
}

}  // namespace

TEST_CASE("ops/attention: every head size, number of queries and mask is within its rounding") {
    for (std::size_t head_dim : {1, 8, 64, 72, 80, 96, 128, 256})
        for (std::size_t n_q : {1, 2, 3, 4, 5, 63, 64, 65, 129}) {
            const Array q = Array::random(n_q, head_dim, 1, head_dim + 3);
            for (std::size_t before : {0, 1, 100}) {
                const std::size_t n_kv = n_q + before;
                const Array       k = Array::random(n_kv, head_dim, 2, head_dim + 1), v = Array::random(n_kv, head_dim, 3, head_dim + 1);
                check(q, k, v, {.head_dim = head_dim, .scale = scale_of(head_dim)});
                check(q, k, v, {.head_dim = head_dim, .causal = true, .q_pos = before, .scale = scale_of(head_dim)});
                for (std::size_t window : {1, 7, 64, 90})
                    if (head_dim == 8 || head_dim == 72) check(q, k, v, {.head_dim = head_dim, .causal = true, .q_pos = before, .window = window, .scale = scale_of(head_dim)});
            }
        }
}

TEST_CASE("ops/attention: grouped heads, several sequences, packed rows and keys behind the queries") {
    for (std::size_t n_kv_heads : {1, 2, 3, 6})
        for (std::size_t n_sequences : {1, 2, 5})
            for (std::size_t n_q : {1, 4, 5, 33}) {
                const std::size_t n_heads = 6, head_dim = 24, n_kv = n_q + 20;
                const Array       q = Array::random(n_sequences * n_q, n_heads * head_dim, 1, 512);
                const Array       k = Array::random(n_sequences * n_kv, n_kv_heads * head_dim, 2, 512), v = Array::random(n_sequences * n_kv, n_kv_heads * head_dim, 3, 512);
                AttentionShape    s{.n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim, .n_sequences = n_sequences, .scale = scale_of(head_dim)};
                check(q, k, v, s);
                s.causal = true, s.q_pos = 11;  // nine keys are not there yet for anybody
                check(q, k, v, s);
            }
}

TEST_CASE("ops/attention: long caches, read by one row and by a block of rows") {
    const std::size_t head_dim = 64;
    for (std::size_t n_kv : {511, 512, 2047, 4099})
        for (std::size_t n_q : {1, 4, 7}) {
            const Array q = Array::random(n_q, 2 * head_dim, 1), k = Array::random(n_kv, head_dim, 2), v = Array::random(n_kv, head_dim, 3);
            check(q, k, v, {.n_heads = 2, .head_dim = head_dim, .causal = true, .q_pos = n_kv - n_q, .scale = scale_of(head_dim)});
            check(q, k, v, {.n_heads = 2, .head_dim = head_dim, .causal = true, .q_pos = n_kv - n_q, .window = 1000, .scale = scale_of(head_dim)});
        }
}

TEST_CASE("ops/attention: a cache in bf16, head by head, gives the bits of its values in f32, side by side") {
    const std::size_t n_heads = 6, n_kv_heads = 2, head_dim = 40, n_kv = 2100, capacity = n_kv + 3;
    for (Isa isa : isas())
        for (std::size_t n_q : {1, 3, 70}) {
            Cpu                 be{{.threads = 3, .isa = isa}};
            const Array         q = Array::random(n_q, n_heads * head_dim, 1);
            Array               k = Array::random(n_kv, n_kv_heads * head_dim, 2), v = Array::random(n_kv, n_kv_heads * head_dim, 3), side{n_q, n_heads * head_dim}, apart{n_q, n_heads * head_dim};
            std::vector<bf16_t> keys(n_kv_heads * capacity * head_dim), values = keys;
            using Rows = View<bf16_t, host, dyn, dyn>;
            ops::split_heads<Cpu>(be, k.in(), n_kv_heads, capacity * head_dim, Rows{keys.data(), {n_kv, head_dim}});
            ops::split_heads<Cpu>(be, v.in(), n_kv_heads, capacity * head_dim, Rows{values.data(), {n_kv, head_dim}});
            for (Array* a : {&k, &v})
                for (std::size_t i = 0; i < n_kv; ++i)
                    for (std::size_t j = 0; j < n_kv_heads * head_dim; ++j) a->mat()(i, j) = static_cast<float>(bf16_t((*a)(i, j)));
            AttentionShape s{.n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim, .causal = true, .q_pos = n_kv - n_q, .scale = scale_of(head_dim)};
            ops::attention<Cpu>(be, q.in(), k.in(), v.in(), s, side.mat());
            s.kv_head_stride = capacity * head_dim;
            ops::attention<Cpu>(be, q.in(), Rows{keys.data(), {n_kv, head_dim}}, Rows{values.data(), {n_kv, head_dim}}, s, apart.mat());
            CHECK(side.values() == apart.values());
        }
}

TEST_CASE("ops/attention: rows that may be rounded are within the rounding of bf16, for every mask") {
    for (Isa isa : isas())
        for (std::size_t head_dim : {8, 64, 72, 80, 128, 256})
            for (std::size_t n_q : {1, 5, 16, 31, 64, 129}) {
                const std::size_t before = 70, n_kv = n_q + before;
                Cpu               exact{{.threads = 2, .isa = isa}}, rounded{{.threads = 2, .isa = isa, .compute = Compute::fast}};
                const Array       q = Array::random(n_q, 2 * head_dim, 1), k = Array::random(n_kv, head_dim, 2), v = Array::random(n_kv, head_dim, 3);
                for (const auto& mask : {std::pair{false, std::size_t{0}}, std::pair{true, std::size_t{0}}, std::pair{true, std::size_t{40}}}) {
                    const AttentionShape s{.n_heads = 2, .head_dim = head_dim, .causal = mask.first, .q_pos = before, .window = mask.second, .scale = scale_of(head_dim)};
                    Array                a{n_q, 2 * head_dim}, b{n_q, 2 * head_dim, 2 * head_dim + 5};
                    ops::attention<Cpu>(exact, q.in(), k.in(), v.in(), s, a.mat());
                    ops::attention<Cpu>(rounded, q.in(), k.in(), v.in(), s, b.mat());
                    // Scores of about 1 err by some 2^-8, and so do the weights; values of about 1 to 4 by 2^-9 of themselves.
                    float most = 0;
                    for (std::size_t i = 0; i < n_q; ++i)
                        for (std::size_t j = 0; j < 2 * head_dim; ++j) most = std::max(most, std::fabs(a(i, j) - b(i, j)));
                    CHECK(most <= 8 * 0x1p-8f);
                    CHECK(b.kept_to_its_rows());
                }
            }
}

TEST_CASE("ops/attention: scores of hundreds neither overflow nor vanish") {
    for (std::size_t n_q : {2, 9}) {
        const Array q = Array::random(n_q, 16, 1, 0, 20), k = Array::random(100, 16, 2, 0, 20), v = Array::random(100, 16, 3);
        check(q, k, v, {.head_dim = 16, .scale = 1});
    }
}

TEST_CASE("ops/attention: a key that is no number spoils exactly the rows that see it") {
    for (Isa isa : isas())
        for (std::size_t n_q : {4, 6}) {
            Cpu         be{{.threads = 1, .isa = isa}};
            const Array q = Array::random(n_q, 8, 1), v = Array::random(n_q, 8, 3);
            Array       k = Array::random(n_q, 8, 2), y{n_q, 8};
            k.mat()(2, 5) = std::numeric_limits<float>::quiet_NaN();
            ops::attention<Cpu>(be, q.in(), k.in(), v.in(), {.head_dim = 8, .causal = true, .scale = 1}, y.mat());
            for (std::size_t i = 0; i < n_q; ++i)
                for (std::size_t d = 0; d < 8; ++d) CHECK_MESSAGE(std::isnan(y(i, d)) == (i >= 2), to_string(isa) << ", row " << i << " of " << n_q);
        }
}
