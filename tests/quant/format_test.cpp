// Weight formats: what a block stands for, how well values survive it, and products with it.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/io/gguf.hpp"
#include "prism/model/random.hpp"
#include "prism/model/store_as.hpp"
#include "prism/nn/linear.hpp"
#include "prism/ops/linear.hpp"
#include "support/arrays.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

using namespace prism;
using namespace prism::test;

namespace {

/// Rows of `cols` values in blocks, and the values that the blocks stand for.
template <class F>
struct Stored {
    std::size_t                    stride;
    std::vector<typename F::block> blocks;
    std::vector<float>             values;

    Stored(std::span<const float> w, std::size_t rows, std::size_t cols)
        : stride(blocks_per_row<F>(cols)), blocks(rows * stride), values(rows * cols) {
        for (std::size_t i = 0; i < rows; ++i) {
            std::vector<float> row(stride * F::values_per_block);
            std::copy_n(w.data() + i * cols, cols, row.data());
            const auto to = std::span(blocks).subspan(i * stride, stride);
            F::encode(row, to);
            F::decode(to, row);
            std::copy_n(row.data(), cols, values.data() + i * cols);
        }
    }
};

template <class F>
void expect_gguf_layout(GgmlType type) {
    std::vector<typename F::block> blocks(3);
    std::vector<std::byte>         bytes(blocks.size() * sizeof(typename F::block));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>((37 * i + 11) % 251);
    for (std::size_t b = 0; b < blocks.size(); ++b) {  // scales that are numbers
        const std::uint16_t quarter = 0x3400;
        for (std::size_t at = 0; at < sizeof(typename F::block) - F::values_per_block * (F::dtype == Dtype::q8 ? 8 : 4) / 8; at += 2)
            std::memcpy(bytes.data() + b * sizeof(typename F::block) + at, &quarter, 2);
    }
    std::memcpy(blocks.data(), bytes.data(), bytes.size());
    std::vector<float> ours(blocks.size() * F::values_per_block), theirs(ours.size());
    F::decode(std::span<const typename F::block>(blocks), ours);
    dequantise(type, bytes, theirs);
    CHECK(ours == theirs);
}

}  // namespace

TEST_CASE("quant/format: q8, q4 and q4m are GGUF's Q8_0, Q4_0 and Q4_1 byte for byte") {
    expect_gguf_layout<q8>(GgmlType::q8_0);
    expect_gguf_layout<q4>(GgmlType::q4_0);
    expect_gguf_layout<q4m>(GgmlType::q4_1);
}

TEST_CASE_TEMPLATE("quant/format: no value is off by more than half a step of its block", F, q8, q4, q4m) {
    const std::size_t        n = 32 * 500;
    const std::vector<float> x = normal(n, 3);
    const Stored<F>          stored(x, 1, n);
    for (std::size_t b = 0; b < n / 32; ++b) {
        const auto block = std::span(x).subspan(b * 32, 32);
        const auto [low, high] = std::minmax_element(block.begin(), block.end());
        const float most = std::max(std::fabs(*low), std::fabs(*high));
        // q4 has 15 steps for a range that need not lie evenly around 0: up to a whole step at its far end
        const float step = F::dtype == Dtype::q8 ? most / 127 : F::dtype == Dtype::q4 ? most / 7 : (*high - *low) / 15;
        const float rounding = most * 0x1p-10f;  // of the f16 scale and minimum
        const float bound = (F::dtype == Dtype::q4 ? step : step / 2) + 16 * rounding;
        for (std::size_t i = 0; i < 32; ++i) CHECK(std::fabs(stored.values[b * 32 + i] - block[i]) <= bound);
    }
}

TEST_CASE_TEMPLATE("quant/format: blocks of zeros and of one value come back as they were", F, q8, q4, q4m) {
    std::vector<float> zeros(32), halves(32, 0.5f);
    CHECK(Stored<F>(zeros, 1, 32).values == zeros);
    for (float v : Stored<F>(halves, 1, 32).values) CHECK(std::fabs(v - 0.5f) <= 0.5f * 0x1p-10f);
}

TEST_CASE_TEMPLATE("quant/format: a block with a value that is no finite number is none", F, q8, q4, q4m) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
        std::vector<float> values = normal(64, 3);
        values[40] = bad;
        const auto stored = Stored<F>(values, 1, 64).values;
        for (std::size_t i = 0; i < 64; ++i) CHECK(std::isnan(stored[i]) == (i >= 32));
    }
}

TEST_CASE_TEMPLATE("quant/linear: products with blocks agree with the values that they stand for", F, q8, q4, q4m) {
    for (Isa isa : all_isas) {
        if (!runs(isa)) continue;
        CAPTURE(to_string(isa));
        for (std::size_t rows : {1, 2, 3, 4, 5, 20, 385})
            for (const auto& size : {std::pair<std::size_t, std::size_t>{32, 1}, {31, 5}, {300, 33}, {1000, 130}}) {
                const std::size_t d_in = size.first, d_out = size.second;
                if (rows == 385 && d_in == 1000) continue;
                const auto         x = normal(rows * d_in, 5), bias = normal(d_out, 6);
                const Stored<F>    w(normal(d_out * d_in, 7), d_out, d_in);
                std::vector<float> one(rows * d_out), three(rows * d_out);
                const auto         product = [&](std::size_t threads, std::vector<float>& y) {
                    Cpu be{{.threads = threads, .isa = isa}};
                    ops::linear<Cpu>(be, {x.data(), {rows, d_in}}, Packed<F, host>{w.blocks.data(), d_out, d_in, w.stride}, {bias.data(), {d_out}},
                                     {y.data(), {rows, d_out}});
                };
                product(1, one), product(3, three);
                CHECK(one == three);
                for (std::size_t i = 0; i < rows; ++i)
                    for (std::size_t j = 0; j < d_out; ++j) {
                        double sum = static_cast<double>(bias[j]), magnitudes = std::fabs(sum), inexact = 0;
                        for (std::size_t k = 0; k < d_in; ++k) {
                            const double term = static_cast<double>(x[i * d_in + k]) * static_cast<double>(w.values[j * d_in + k]);
                            sum += term, magnitudes += std::fabs(term);
                        }
                        // Rows are pairs: 256 steps to each of the 127 steps of the largest value of their group.
                        for (std::size_t g = 0; g < d_in; g += 32) {
                            double most = 0, weights = 0;
                            for (std::size_t k = g; k < std::min(g + 32, d_in); ++k)
                                most = std::max(most, std::fabs(static_cast<double>(x[i * d_in + k]))), weights += std::fabs(static_cast<double>(w.values[j * d_in + k]));
                            inexact += most / 127 / 256 * weights;
                        }
                        const double bound = inexact * 1.0001 + magnitudes * 0x1p-23 * (8 + std::sqrt(static_cast<double>(d_in)));
                        CHECK(std::fabs(static_cast<double>(one[i * d_out + j]) - sum) <= bound);
                    }
            }
    }
}

TEST_CASE_TEMPLATE("quant/store_as: a layer in blocks gives the rows of its values and takes their memory", F, q8, q4, q4m) {
    Cpu         be{{.threads = 2}};
    Linear<Cpu> layer(100, 37);
    randomise(be, layer, {.seed = 4});  // f32
    std::vector<float> dense(37 * 100);
    layer.weight.visit([&]<class G>(const Packed<G, host>& w) {
        std::vector<typename G::block> row(100);
        for (std::size_t i = 0; i < 37; ++i) copy_row(w, i, row.data()), G::decode(std::span<const typename G::block>(row), std::span(dense).subspan(i * 100, 100));
    });
    store_as(be, layer, F::dtype);
    CHECK(layer.weight.dtype() == F::dtype);
    CHECK(layer.bias.dtype() == Dtype::f32);
    const Stored<F> expected(dense, 37, 100);
    layer.weight.visit_rows(3, 30, [&](const auto& w) {
        using G = typename std::remove_cvref_t<decltype(w)>::format;
        REQUIRE(G::dtype == F::dtype);
        std::vector<typename G::block> row(blocks_per_row<G>(100));
        for (std::size_t i = 0; i < 30; ++i) {
            copy_row(w, i, row.data());
            CHECK(std::memcmp(row.data(), expected.blocks.data() + (3 + i) * 4, row.size() * sizeof(row[0])) == 0);
        }
    });
    std::vector<float>        rows(2 * 100);
    const std::int32_t        ids[]{36, 0};
    layer.weight.visit([&](const auto& w) { ops::gather<Cpu>(be, w, ids, {rows.data(), {2, 100}}); });
    for (std::size_t k = 0; k < 100; ++k) CHECK(rows[k] == expected.values[36 * 100 + k]);
}
