// Panels: the bytes of a matrix in another order, and products that do not tell the difference.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/nn/linear.hpp"
#include "prism/ops/linear.hpp"
#include "prism/ops/rows.hpp"
#include "support/arrays.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

using namespace prism;
using namespace prism::test;

namespace {

template <Format F>
std::vector<typename F::block> encoded(std::size_t rows, std::size_t cols, unsigned seed) {
    const auto                     values = normal(rows * cols, seed, 0.5f);
    const std::size_t              stride = blocks_per_row<F>(cols);
    std::vector<typename F::block> blocks(rows * stride);
    for (std::size_t i = 0; i < rows; ++i) {
        std::vector<float> row(stride * F::values_per_block, 0.0f);
        std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(i * cols), cols, row.begin());
        F::encode(std::span<const float>(row), std::span(blocks).subspan(i * stride, stride));
    }
    return blocks;
}

/// A matrix in rows, and the same in panels.
template <Format F>
struct Both {
    std::vector<typename F::block> blocks;
    std::size_t                    rows, cols;
    Buffer<host>                   memory;

    Both(Cpu& be, std::size_t n, std::size_t k, unsigned seed) : blocks(encoded<F>(n, k, seed)), rows(n), cols(k), memory(be.allocate(panels_bytes<F>(n, k))) {
        interleave<F>(in_rows(), static_cast<std::byte*>(memory.data()), 0, (n + panel_width - 1) / panel_width);
    }
    Packed<F, host> in_rows() const { return {blocks.data(), rows, cols, blocks_per_row<F>(cols)}; }
    Packed<F, host> in_panels() const { return {nullptr, rows, cols, 0, static_cast<const std::byte*>(memory.data()), 0}; }
};

struct Setting {
    Isa   isa;
    Compute compute;
};

/// Every way to multiply on this processor.
std::vector<Setting> settings() {
    std::vector<Setting> all;
    for (Isa isa : isas())
        for (Compute compute : {Compute::exact, Compute::fast}) all.push_back({isa, compute});
    return all;
}

template <class W>
std::vector<float> product(Cpu& be, const std::vector<float>& x, std::size_t k, const W& w) {
    const std::size_t  m = x.size() / k;
    std::vector<float> y(m * w.rows);
    ops::linear<Cpu>(be, {x.data(), {m, k}}, w, {}, {y.data(), {m, w.rows}});
    return y;
}

}  // namespace

TEST_CASE_TEMPLATE("quant/panels: every row comes back as it was, whatever the size", F, f32, bf16, f16, q8, q4, q4m) {
    Cpu be{{.threads = 1}};
    for (std::size_t n : {1, 15, 16, 17, 37})
        for (std::size_t k : {1, 31, 32, 33, 65, 129}) {
            const Both<F>                  both{be, n, k, 1};
            std::vector<typename F::block> row(blocks_per_row<F>(k));
            for (std::size_t i = 0; i < n; ++i) {
                copy_row(both.in_panels(), i, row.data());
                CHECK(std::memcmp(row.data(), both.blocks.data() + i * row.size(), row.size() * sizeof(typename F::block)) == 0);
            }
        }
}

TEST_CASE_TEMPLATE("quant/panels: products of rows, of panels and of some rows of panels have the same bits", F, f32, bf16, f16, q8, q4, q4m) {
    for (const Setting& setting : settings()) {
        const Isa     isa = setting.isa;  // a binding could not be captured
        const Compute compute = setting.compute;
        CAPTURE(to_string(isa));
        Cpu be{{.threads = 2, .isa = isa, .compute = compute}};
        for (const auto& size : {std::pair<std::size_t, std::size_t>{1, 1}, {33, 31}, {100, 300}, {70, 1056}, {131, 588}}) {
            const std::size_t n = size.first, k = size.second;
            const Both<F>     both{be, n, k, 2};
            for (std::size_t m : {1, 7, 8, 9, 17, 40}) {
                const auto x = normal(m * k, 3), y = product(be, x, k, both.in_rows());
                CHECK(y == product(be, x, k, both.in_panels()));
                auto some = both.in_panels();
                some.first = n / 3, some.rows = n - n / 3;
                const auto part = product(be, x, k, some);
                for (std::size_t i = 0; i < m; ++i)
                    for (std::size_t j = 0; j < some.rows; ++j) REQUIRE(part[i * some.rows + j] == y[i * n + some.first + j]);
            }
        }
    }
}

TEST_CASE_TEMPLATE("quant/panels: a row gives the same bits alone and among others", F, f32, bf16, f16, q8, q4, q4m) {
    for (const Setting& setting : settings()) {
        const Isa     isa = setting.isa;  // a binding could not be captured
        const Compute compute = setting.compute;
        CAPTURE(to_string(isa));
        Cpu               be{{.threads = 2, .isa = isa, .compute = compute}};
        const std::size_t n = 83, k = 1700, m = 400;  // past stretches of 1024 and 1536 columns, and no multiple of 32
        const Both<F>     w{be, n, k, 4};
        const auto        x = normal(m * k, 5), y = product(be, x, k, w.in_panels());
        const auto        part = [&](std::size_t i, std::size_t count) {
            return product(be, {x.begin() + static_cast<std::ptrdiff_t>(i * k), x.begin() + static_cast<std::ptrdiff_t>((i + count) * k)}, k, w.in_panels());
        };
        const bool two_ways = be.form_of(F::dtype, 1) != be.form_of(F::dtype, m);  // few rows take another form than many
        CHECK((!two_ways || compute == Compute::fast));
        for (std::size_t i : {0, 13, 16, 31, 383, 384, 399})
            for (std::size_t count : {1, 5, 16, 40})
                if (i + count <= m) {
                    const auto some = part(i, count), all = two_ways && count <= cpu::few_rows ? part(i / 32 * 32, std::min<std::size_t>(32, m - i / 32 * 32)) : y;
                    const auto first = all.size() == y.size() ? i : i % 32;
                    if ((first + count) * n > all.size()) continue;
                    CHECK(std::memcmp(some.data(), all.data() + first * n, some.size() * sizeof(float)) == 0);
                }
    }
}

TEST_CASE_TEMPLATE("quant/panels: products in int8 have the bits of one another in AVX-512, VNNI and AMX", F, q8, q4, q4m) {
    if (!runs(Isa::avx512_vnni)) return;
    for (Compute compute : {Compute::exact, Compute::fast}) {
        Cpu           plain{{.threads = 1, .isa = Isa::avx512, .compute = compute}};
        const std::size_t k = 1700;
        const Both<F> w{plain, 50, k, 6};
        const auto    x = normal(32 * k, 7), expected = product(plain, x, k, w.in_panels());
        for (Isa isa : {Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx}) {
            if (!runs(isa)) continue;
            Cpu be{{.threads = 1, .isa = isa, .compute = compute}};
            CHECK(product(be, x, k, w.in_panels()) == expected);
        }
    }
}

TEST_CASE("quant/panels: bf16 weights give what f32 arithmetic gives, and half its digits where rows may be rounded") {
    for (const Setting& setting : settings()) {
        const Isa     isa = setting.isa;  // a binding could not be captured
        const Compute compute = setting.compute;
        CAPTURE(to_string(isa));
        Cpu               be{{.threads = 2, .isa = isa, .compute = compute}};
        const std::size_t n = 40, k = 1000, m = 20;
        const Both<bf16>  w{be, n, k, 8};
        const auto        x = normal(m * k, 9), y = product(be, x, k, w.in_panels());
        // f32: sums of k terms in f32, and rows exact to 2^-17 at least. bf16: rows to 2^-9.
        const bool rounded = compute == Compute::fast && isa >= Isa::avx512_bf16;
        for (std::size_t i = 0; i < m; ++i)
            for (std::size_t j = 0; j < n; ++j) {
                double sum = 0, magnitudes = 0;
                for (std::size_t p = 0; p < k; ++p) {
                    const double term = static_cast<double>(x[i * k + p]) * static_cast<double>(static_cast<float>(w.blocks[j * k + p]));
                    sum += term, magnitudes += std::fabs(term);
                }
                REQUIRE(std::fabs(static_cast<double>(y[i * n + j]) - sum) <= magnitudes * ((rounded ? 0x1p-9 : 0x1p-17) + 0x1p-24 * static_cast<double>(k)));
            }
    }
}

TEST_CASE_TEMPLATE("quant/panels: products with blocks are those of their values, and rounded rows err by half a step", F, q8, q4, q4m) {
    for (const Setting& setting : settings()) {
        const Isa     isa = setting.isa;  // a binding could not be captured
        const Compute compute = setting.compute;
        CAPTURE(to_string(isa));
        Cpu               be{{.threads = 2, .isa = isa, .compute = compute}};
        for (const std::size_t m : {std::size_t{20}, std::size_t{50}}) {
            const std::size_t n = 40, k = 1000, stride = blocks_per_row<F>(k);
            const Both<F>     w{be, n, k, 8};
            const auto        x = normal(m * k, 9), y = product(be, x, k, w.in_panels());
            std::vector<float> values(stride * F::values_per_block);
            for (std::size_t j = 0; j < n; ++j) {
                F::decode(std::span(w.blocks).subspan(j * stride, stride), values);
                for (std::size_t i = 0; i < m; ++i) {
                    double sum = 0, magnitudes = 0, steps = 0;
                    const std::size_t width = 32 * (compute == Compute::fast ? cpu::Activations::groups_per_scale : 1);  // of x, with one scale
                    for (std::size_t g = 0; g < k; g += width) {
                        double most = 0, weights = 0;
                        for (std::size_t p = g; p < std::min(g + width, k); ++p) {
                            const double term = static_cast<double>(x[i * k + p]) * static_cast<double>(values[p]);
                            sum += term, magnitudes += std::fabs(term), weights += std::fabs(static_cast<double>(values[p]));
                            most = std::max(most, std::fabs(static_cast<double>(x[i * k + p])));
                        }
                        steps += most / 127 * weights;
                    }
                    const double rounding = be.form_of(F::dtype, m) == cpu::Form::bf16 ? magnitudes * 0x1p-8 : steps * (compute == Compute::fast ? 0.5 : 1.0 / 256);
                    REQUIRE(std::fabs(static_cast<double>(y[i * n + j]) - sum) <= 1.001 * rounding + magnitudes * 0x1p-23 * 40);
                }
            }
        }
    }
}

TEST_CASE("ops/linear_add, linear_each, gated_linear: what follows a product gives the bits of single steps") {
    for (Isa isa : isas()) {
        CAPTURE(to_string(isa));
        Cpu be{{.threads = 2, .isa = isa}};
        for (std::size_t m : {1, 5, 37}) {
            const std::size_t n = 45, k = 70;
            const Both<q8>    w{be, n, k, 10}, up{be, n, k, 11};
            const Both<bf16>  other{be, 33, k, 12};
            const auto        x = normal(m * k, 13), bias = normal(n, 14), gamma = normal(n, 15), before = normal(m * n, 16);
            const In<Cpu>     rows{x.data(), {m, k}};
            const auto        plain = [&](const auto& weights) { return product(be, x, k, weights); };

            auto               y = before, steps = before;
            std::vector<float> h(m * n);
            ops::linear_add<Cpu>(be, rows, w.in_panels(), {bias.data(), {n}}, {gamma.data(), {n}}, {y.data(), {m, n}});
            ops::linear<Cpu>(be, rows, w.in_panels(), {bias.data(), {n}}, {h.data(), {m, n}});
            ops::add_scaled<Cpu>(be, {h.data(), {m, n}}, {gamma.data(), {n}}, {steps.data(), {m, n}});
            for (std::size_t i = 0; i < m * n; ++i) CHECK(std::fabs(y[i] - steps[i]) <= 0x1p-22f * (std::fabs(before[i]) + std::fabs(h[i] * gamma[i % n])));  // fused or not

            std::vector<float> first(m * n), second(m * 33), third(m * n);
            ops::linear_each<Cpu>(be, rows, std::array<ProductPart<host>, 3>{{{w.in_panels(), {}, {first.data(), {m, n}}}, {other.in_panels(), {}, {second.data(), {m, 33}}}, {up.in_rows(), {}, {third.data(), {m, n}}}}});
            CHECK(first == plain(w.in_panels()));
            CHECK(second == plain(other.in_panels()));
            CHECK(third == plain(up.in_panels()));

            std::vector<float> gated(m * n);
            ops::gated_linear<Cpu>(be, rows, w.in_panels(), up.in_panels(), {gated.data(), {m, n}});
            ops::silu_mul<Cpu>(be, {first.data(), {m, n}}, {third.data(), {m, n}}, {first.data(), {m, n}});
            CHECK(gated == first);
            CHECK_THROWS_AS(ops::gated_linear<Cpu>(be, rows, w.in_panels(), other.in_panels(), {gated.data(), {m, n}}), ShapeError);
        }
    }
}
