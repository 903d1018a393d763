// Projectors, splicing, towers side by side.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/dry.hpp"
#include "prism/fusion/projector.hpp"
#include "prism/fusion/splice.hpp"
#include "prism/vision/vit.hpp"
#include "support/random_weights.hpp"

#include <doctest/doctest.h>

using namespace prism;
using namespace prism::test;

namespace {

/// act(x w^T + b) in f64, from the first tensors of a list.
std::vector<double> layer(const std::vector<double>& x, const std::vector<TensorInfo>& tensors, std::size_t i, Activation act) {
    const auto          w = to_floats(tensors[2 * i]), b = to_floats(tensors[2 * i + 1]);
    std::vector<double> y(b.begin(), b.end());
    for (std::size_t j = 0; j < y.size(); ++j) {
        for (std::size_t p = 0; p < x.size(); ++p) y[j] += x[p] * static_cast<double>(w[j * x.size() + p]);
        y[j] = activation(act, y[j]);
    }
    return y;
}

std::vector<std::string> names(const auto& module) {
    std::vector<std::string> all;
    visit(module, [&](const std::string& path, const auto&) { all.push_back(path); });
    return all;
}

}  // namespace

TEST_CASE("fusion/projector: each kind has the layers, widths and names of the original") {
    using Names = std::vector<std::string>;
    struct Case { ProjectorKind kind; std::size_t n_layers; Names expected; };
    for (const Case& c : {Case{ProjectorKind::linear, 1, {"weight", "bias"}}, Case{ProjectorKind::gelu_mlp, 2, {"0.weight", "0.bias", "2.weight", "2.bias"}},
                          Case{ProjectorKind::fused_gelu_mlp, 3, {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"}}}) {
        Cpu            be{{.threads = 2}};
        Projector<Cpu> projector{c.kind, {.d_vision = 10, .d_model = 7}};
        CHECK(names(projector) == c.expected);
        CHECK(projector.d_vision() == 10);
        const auto tensors = random_tensors(projector, 1);
        bind_all(be, projector, tensors);
        Workspace<Cpu> ws{be, 1 << 14};
        const Array    x = Array::random(5, 10, 2);
        Array          y{5, 7};
        projector.forward(be, ws, x.in(), y.mat());
        for (std::size_t i = 0; i < 5; ++i) {
            std::vector<double> h;
            for (std::size_t p = 0; p < 10; ++p) h.push_back(static_cast<double>(x(i, p)));
            for (std::size_t l = 0; l < c.n_layers; ++l) h = layer(h, tensors, l, l + 1 < c.n_layers ? Activation::gelu_erf : Activation::none);
            for (std::size_t j = 0; j < 7; ++j) CHECK(std::abs(static_cast<double>(y(i, j)) - h[j]) < 100 * u);  // three sums of 40 terms of order one
        }
        CHECK_THROWS_AS(projector.forward(be, ws, x.in().cols(0, 9), y.mat()), ShapeError);
        CHECK_THROWS_AS(projector.forward(be, ws, x.in(), y.mat().rows(0, 4)), ShapeError);
    }
}

TEST_CASE("fusion/projector: arch_specifier names the kind, whatever it says of training") {
    CHECK(projector_from_arch("linear") == ProjectorKind::linear);
    for (const char* arch : {"gelu-mlp", "no-align+gelu-mlp"}) CHECK(projector_from_arch(arch) == ProjectorKind::gelu_mlp);
    for (const char* arch : {"fused-gelu-mlp", "no-align+fused-gelu-mlp"}) CHECK(projector_from_arch(arch) == ProjectorKind::fused_gelu_mlp);
    for (const char* arch : {"", "mlp", "relu-mlp", "gelu-mlp+x", "no-align+linear"}) {
        try {
            projector_from_arch(arch);
            FAIL_CHECK(std::string(arch) << " was taken");
        } catch (const ConfigError& e) {
            CHECK((e.key == "arch_specifier" && e.value == arch && e.allowed.find("fused-gelu-mlp") != e.allowed.npos));
        }
    }
}

TEST_CASE("fusion/splice: soft tokens stand before the place asked for, and a place behind the end is refused") {
    using Ids = std::vector<std::int32_t>;
    const Ids ids{1, 5, 6};
    CHECK(splice(ids, 1, 2) == Ids{1, soft_token, soft_token, 5, 6});
    CHECK(splice(ids, 0, 1) == Ids{soft_token, 1, 5, 6});
    CHECK(splice(ids, 3, 1) == Ids{1, 5, 6, soft_token});
    CHECK(splice(ids, 1, 0) == ids);
    CHECK(splice({}, 0, 2) == Ids{soft_token, soft_token});
    CHECK_THROWS_WITH_AS(splice(ids, 4, 1), "splice: ids: expected at least 4, found 3", ShapeError);
}

TEST_CASE("fusion/splice: a stretch of a sequence gets rows of the table for ids and rows of the picture for soft tokens") {
    struct Table {
        Embedding<Cpu> weight{10, 3};
        void           embed(Cpu& be, std::span<const std::int32_t> ids, Mat<Cpu> x) const { weight.forward(be, ids, x); }
    };
    Cpu    be{{.threads = 2}};
    Table  table;
    std::vector<float> values(30);
    for (std::size_t i = 0; i < 30; ++i) values[i] = static_cast<float>(i / 3);
    table.weight.weight.bind(be, tensor("weight", {10, 3}, values));
    Array soft{4, 3, 8};
    for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t j = 0; j < 3; ++j) soft.mat()(i, j) = 100 + static_cast<float>(i);
    const auto embedded = [&](std::vector<std::int32_t> sequence, std::size_t first_soft) {
        Array x{sequence.size(), 3, 5};
        embed_sequence<Cpu>(be, table, sequence, soft.in(), first_soft, x.mat());
        CHECK(x.kept_to_its_rows());
        std::vector<float> column;
        for (std::size_t i = 0; i < sequence.size(); ++i) column.push_back(x(i, 0));
        return column;
    };
    CHECK(embedded({1, -1, -1, -1, -1, 7}, 0) == std::vector<float>{1, 100, 101, 102, 103, 7});
    CHECK(embedded({-1, 9, 9}, 3) == std::vector<float>{103, 9, 9});           // the stretch begins inside the picture
    CHECK(embedded({-1, 2, -1, -1}, 0) == std::vector<float>{100, 2, 101, 102});  // two runs
    CHECK(embedded({}, 0).empty());
    CHECK_THROWS_AS(embedded({-1, -1}, 3), ShapeError);
    CHECK_THROWS_WITH_AS(embedded({10}, 0), "gather: ids: expected 0 ... 9, found 10", ShapeError);
}

TEST_CASE("fusion/splice: towers write their own columns, for any number of towers and pictures") {
    const VitConfig narrow{.image_size = 12, .patch_size = 4, .d_model = 8, .n_layers = 2, .n_heads = 2, .d_ff = 12};
    VitConfig       wide = narrow;
    wide.d_model = 20, wide.image_size = 18, wide.patch_size = 6, wide.class_token = false;
    Cpu                   be{{.threads = 2}};
    std::vector<Vit<Cpu>> towers;
    for (const auto& c : {narrow, wide, narrow}) towers.emplace_back(c);
    for (unsigned i = 0; i < 3; ++i) randomise(be, towers[i], 10 * i);
    Workspace<Cpu>              ws{be, 1 << 20};
    const auto                  small = normal(2 * 3 * 12 * 12, 1), large = normal(2 * 3 * 18 * 18, 2);
    const PixelView<Cpu>        a{small.data(), {2, 3, 12, 12}}, b{large.data(), {2, 3, 18, 18}};
    const std::vector<PixelView<Cpu>> pixels{a, b, a};
    Array                       fused{2 * 9, 36}, alone{2 * 9, 20};
    fuse_towers<Cpu>(be, ws, towers, std::span(pixels), fused.mat());
    for (std::size_t t = 0, column = 0; t < 3; column += towers[t++].d_model()) {
        towers[t].forward(be, ws, pixels[t], alone.mat().cols(0, towers[t].d_model()));
        bool same = true;
        for (std::size_t i = 0; i < 18; ++i)
            for (std::size_t j = 0; j < towers[t].d_model(); ++j) same = same && fused(i, column + j) == alone(i, j);
        CHECK(same);
    }
    CHECK_THROWS_WITH_AS(fuse_towers<Cpu>(be, ws, towers, std::span(pixels).first(2), fused.mat()), "fuse_towers: pixels: expected 3 towers' pictures, found 2", ShapeError);
    Array too_narrow{18, 35}, too_wide{18, 37}, too_short{17, 36};
    for (Array* out : {&too_narrow, &too_wide, &too_short}) CHECK_THROWS_AS(fuse_towers<Cpu>(be, ws, towers, std::span(pixels), out->mat()), ShapeError);
    const std::vector<PixelView<Cpu>> swapped{b, a, a};
    CHECK_THROWS_WITH_AS(fuse_towers<Cpu>(be, ws, towers, std::span(swapped), fused.mat()), "Vit: pixels: expected [any, 3, 12, 12], found [2, 3, 18, 18]", ShapeError);
}
