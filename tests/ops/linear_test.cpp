// Products with weights and rows of weights, against sums in f64.
#include "prism/ops/linear.hpp"
#include "support/arrays.hpp"

#include <doctest/doctest.h>

#include <array>

using namespace prism;
using namespace prism::test;

namespace {

/// Random weights [rows, cols] in a format, and the values that they have there.
template <Format F>
struct Weights {
    std::vector<typename F::block> blocks;
    Array                          values;
    std::size_t                    ld;

    Weights(std::size_t rows, std::size_t cols, unsigned seed, std::size_t stride) : blocks(rows * stride), values(rows, cols), ld(stride) {
        const auto drawn = normal(rows * cols, seed);
        for (std::size_t i = 0; i < rows; ++i)
            for (std::size_t j = 0; j < cols; ++j) {
                blocks[i * ld + j] = typename F::block(drawn[i * cols + j]);
                values.mat()(i, j) = static_cast<float>(blocks[i * ld + j]);
            }
    }
    Packed<F, host> packed(std::size_t rows, std::size_t cols) const { return {blocks.data(), rows, cols, ld}; }
};

constexpr std::array<std::size_t, 17> row_counts{1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 15, 16, 31, 64, 383, 384, 385};
constexpr std::array<std::size_t, 11> col_counts{1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 300};
constexpr std::array<std::size_t, 6>  depths{1, 15, 255, 256, 257, 1000};

/// x w^T and the same of magnitudes, for every depth: entry [depth][row, column].
struct Sums {
    std::vector<std::vector<double>> sum, magnitude;
    std::size_t                      cols;

    Sums(const Array& x, const Array& w) : sum(depths.size(), std::vector<double>(x.rows() * w.rows())), magnitude(sum), cols(w.rows()) {
        for (std::size_t i = 0; i < x.rows(); ++i)
            for (std::size_t j = 0; j < w.rows(); ++j) {
                double s = 0, m = 0;
                for (std::size_t p = 0, d = 0; d < depths.size(); ++d) {
                    for (; p < depths[d]; ++p) {
                        const double product = static_cast<double>(x(i, p)) * static_cast<double>(w(j, p));
                        s += product, m += std::abs(product);
                    }
                    sum[d][i * cols + j] = s, magnitude[d][i * cols + j] = m;
                }
            }
    }
};

}  // namespace

TEST_CASE_TEMPLATE("ops/linear: every size around the tiles is within the rounding of its sum", F, f32, bf16, f16) {
    const auto        bias = Array::random(1, col_counts.back(), 3);
    const Weights<F>  w{col_counts.back(), depths.back(), 2, depths.back() + 3};
    const Array       x = Array::random(row_counts.back(), depths.back(), 1, depths.back() + 5);
    const Sums        reference{x, w.values};
    for (Isa isa : isas()) {
        CAPTURE(to_string(isa));
        Cpu be{{.threads = 2, .isa = isa}};
        for (std::size_t m : row_counts)
            for (std::size_t n : col_counts)
                for (std::size_t d = 0; d < depths.size(); ++d) {
                    const std::size_t k = depths[d];
                    const bool        biased = (m + n + d) % 2 != 0;
                    Array             y{m, n, n + 7};
                    ops::linear<Cpu>(be, x.in().rows(0, m).cols(0, k), w.packed(n, k),
                                     biased ? Vec<Cpu, const float>{bias.row().data(), {n}} : Vec<Cpu, const float>{}, y.mat());
                    const auto b = [&](std::size_t j) { return biased ? static_cast<double>(bias(0, j)) : 0.0; };
                    const double error = worst(
                        y, [&](std::size_t i, std::size_t j) { return reference.sum[d][i * reference.cols + j] + b(j); },
                        [&](std::size_t i, std::size_t j) {
                            const double magnitude = reference.magnitude[d][i * reference.cols + j] + std::abs(b(j));
                            return sum_bound(k, magnitude) + (F::dtype == Dtype::bf16 && isa == Isa::amx ? 0x1p-17 * magnitude : 0);  // rows are pairs of bf16 there
                        });
                    if (!(error <= 1) || !y.kept_to_its_rows()) FAIL_CHECK(m << " x " << n << " x " << k << ": " << error);
                }
    }
}

TEST_CASE("ops/linear: rows at multiples of 2 KiB and odd distances give the bits of dense ones") {
    const std::size_t  k = 300, n = 33;
    const Weights<f32> w{n, k, 2, k};
    for (Isa isa : isas())
        for (std::size_t m : {3, 5, 70, 385}) {
            Cpu         be{{.threads = 2, .isa = isa}};
            Array       dense{m, n};
            const Array x = Array::random(m, k, 1);
            ops::linear<Cpu>(be, x.in(), w.packed(n, k), {}, dense.mat());
            for (std::size_t ld : {512, 1024, 1536, 513, 301}) {
                Array apart{m, n, ld};
                ops::linear<Cpu>(be, Array::random(m, k, 1, ld).in(), w.packed(n, k), {}, apart.mat());
                bool same = apart.kept_to_its_rows();
                for (std::size_t i = 0; i < m; ++i)
                    for (std::size_t j = 0; j < n; ++j) same = same && apart(i, j) == dense(i, j);
                CHECK_MESSAGE(same, to_string(isa) << ", " << m << " rows, " << ld << " apart");
            }
        }
}

TEST_CASE("ops/linear: the activation that follows is that of the biased sum") {
    const std::size_t   k = 40, n = 37;
    const Weights<bf16> w{n, k, 2, k};
    const Array         bias = Array::random(1, n, 3);
    for (Isa isa : isas())
        for (std::size_t m : {1, 4, 5, 16})
            for (Activation act : activations) {
                Cpu         be{{.threads = 1, .isa = isa}};
                const Array x = Array::random(m, k, 1, 0, 0.2f);
                Array       y{m, n};
                ops::linear<Cpu>(be, x.in(), w.packed(n, k), bias.row(), y.mat(), act);
                const auto z = [&](std::size_t i, std::size_t j, bool magnitude) {
                    double s = magnitude ? std::abs(static_cast<double>(bias(0, j))) : static_cast<double>(bias(0, j));
                    for (std::size_t p = 0; p < k; ++p) {
                        const double product = static_cast<double>(x(i, p)) * static_cast<double>(w.values(j, p));
                        s += magnitude ? std::abs(product) : product;
                    }
                    return s;
                };
                const double error = worst(y, [&](std::size_t i, std::size_t j) { return activation(act, z(i, j, false)); },
                                           [&](std::size_t i, std::size_t j) {
                                               return activation_slope * sum_bound(k, z(i, j, true)) + activation_bound(z(i, j, false));
                                           });
                CHECK_MESSAGE(error <= 1, to_string(isa) << ", " << to_string(act) << ", " << m << " rows: " << error);
            }
}

TEST_CASE("ops/linear: an empty product is the bias, no rows or columns are nothing") {
    Cpu         be{{.threads = 2}};
    const float bias[]{1.5f, -2};
    Array       y{5, 2};
    ops::linear<Cpu>(be, In<Cpu>{nullptr, {5, 0}}, Packed<f32, host>{nullptr, 2, 0, 0}, Vec<Cpu, const float>{bias, {2}}, y.mat());
    for (std::size_t i = 0; i < 5; ++i) CHECK((y(i, 0) == 1.5f && y(i, 1) == -2));
    ops::linear<Cpu>(be, In<Cpu>{nullptr, {0, 4}}, Packed<f32, host>{nullptr, 3, 4, 4}, {}, Mat<Cpu>{nullptr, {0, 3}});
    ops::linear<Cpu>(be, In<Cpu>{nullptr, {2, 4}}, Packed<f32, host>{nullptr, 0, 4, 4}, {}, Mat<Cpu>{nullptr, {2, 0}});
}

TEST_CASE_TEMPLATE("ops/linear: gather copies rows of any format exactly", F, f32, bf16, f16) {
    for (Isa isa : isas())
        for (std::size_t d : {1, 7, 8, 15, 16, 17, 33, 100}) {
            Cpu                             be{{.threads = 2, .isa = isa}};
            const Weights<F>                w{11, d, 5, d + 2};
            const std::vector<std::int32_t> ids{10, 0, 3, 3, 7};
            Array                           y{ids.size(), d, d + 3};
            ops::gather<Cpu>(be, w.packed(11, d), ids, y.mat());
            bool same = y.kept_to_its_rows();
            for (std::size_t i = 0; i < ids.size(); ++i)
                for (std::size_t j = 0; j < d; ++j) same = same && y(i, j) == w.values(static_cast<std::size_t>(ids[i]), j);
            CHECK_MESSAGE(same, to_string(isa) << ", " << d << " columns");
        }
}
