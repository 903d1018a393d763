// Parameters: where their values lie, in which type, and what modules do without them.
#include "prism/backend/dry/dry.hpp"
#include "prism/nn/attention.hpp"
#include "prism/nn/linear.hpp"
#include "prism/nn/mlp.hpp"
#include "prism/nn/norm.hpp"
#include "support/random_weights.hpp"

#include <doctest/doctest.h>

#include <cstring>

using namespace prism;
using namespace prism::test;

namespace {

/// y = x w^T + b in f64, rounded to f32 at the end.
bool linear_is(const Linear<Cpu>& linear, Cpu& be, const std::vector<float>& w, const std::vector<float>& b) {
    const Array x = Array::random(3, linear.d_in(), 5);
    Array       y{3, linear.d_out()};
    linear.forward(be, x.in(), y.mat());
    return worst(
               y,
               [&](std::size_t i, std::size_t j) {
                   double s = b.empty() ? 0 : static_cast<double>(b[j]);
                   for (std::size_t p = 0; p < x.cols(); ++p) s += static_cast<double>(x(i, p)) * static_cast<double>(w[j * x.cols() + p]);
                   return s;
               },
               [&](std::size_t, std::size_t) { return 100 * u + 0x1p-16 * 16; }) <= 1;  // rows may be pairs of bf16; sums of magnitudes stay below 16
}

}  // namespace

TEST_CASE("nn/param: values are used where they lie; what is unaligned, strided or of another type is copied") {
    Cpu         be{{.threads = 1}};
    const auto  values = normal(12, 1);
    const auto  stored = tensor("w", {3, 4}, values);
    Param<Cpu>  param{{3, 4}};
    CHECK_FALSE(param.bound());
    param.bind(be, stored);
    CHECK(param.bound());
    CHECK(static_cast<const void*>(param.view().data()) == stored.data);
    CHECK((param.mat().rows() == 3 && param.mat().cols() == 4));

    // One byte further: no longer where an f32 may lie.
    auto bytes = std::make_shared<std::vector<std::byte>>(12 * sizeof(float) + 1);
    std::memcpy(bytes->data() + 1, values.data(), 12 * sizeof(float));
    TensorInfo unaligned = stored;
    unaligned.data = bytes->data() + 1, unaligned.owner = bytes;
    Param<Cpu> moved{{3, 4}};
    moved.bind(be, unaligned);
    CHECK(static_cast<const void*>(moved.view().data()) != unaligned.data);
    CHECK(std::ranges::equal(moved.view().span(), values));

    TensorInfo transposed = stored;  // [4, 3] with strides {1, 4}
    transposed.shape = {4, 3}, transposed.stride = {1, 4};
    Param<Cpu> turned{{4, 3}};
    turned.bind(be, transposed);
    for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t j = 0; j < 3; ++j) CHECK(turned.mat()(i, j) == values[j * 4 + i]);

    Param<Cpu> widened{{12}};
    const auto half = tensor("h", {12}, values, Dtype::f16);
    widened.bind(be, half);
    for (std::size_t i = 0; i < 12; ++i) CHECK(widened.view()(i) == static_cast<float>(fp16_t{values[i]}));
}

TEST_CASE("nn/param: the owner of the values lives as long as the parameter, through moves") {
    Cpu                                 be{{.threads = 1}};
    std::weak_ptr<const void>           owner;
    std::vector<Param<Cpu>>             kept;
    {
        const auto t = tensor("w", {2}, {1, 2});
        owner = t.owner;
        Param<Cpu> p{{2}};
        p.bind(be, t);
        kept.push_back(std::move(p));
    }
    CHECK_FALSE(owner.expired());
    CHECK(kept[0].view()(1) == 2);
    kept.clear();
    CHECK(owner.expired());
}

TEST_CASE("nn/linear: weights keep their type where it is among the formats, and become f32 where not") {
    Cpu         be{{.threads = 1}};
    const auto  b = normal(5, 2);
    for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
        const auto  stored = tensor("weight", {5, 7}, normal(35, 1), dtype);
        const auto  values = to_floats(stored);
        Linear<Cpu> linear{7, 5};
        linear.weight.bind(be, stored), linear.bias.bind(be, tensor("bias", {5}, b));
        CHECK(linear.weight.dtype() == dtype);
        CHECK(linear_is(linear, be, values, b));
        Linear<Cpu> plain{7, 5, false};
        plain.weight.bind(be, stored);
        CHECK(plain.bias.shape().empty());
        CHECK(linear_is(plain, be, values, {}));

        Weight<Cpu, format_list<f32>> trimmed{{5, 7}};
        trimmed.bind(be, stored);
        CHECK(trimmed.dtype() == Dtype::f32);
        trimmed.visit([&]<class F>(const Packed<F, host>& w) {
            std::vector<typename F::block> row(7);
            for (std::size_t i = 0; i < 5; ++i) {
                copy_row(w, i, row.data());
                for (std::size_t j = 0; j < 7; ++j) CHECK(static_cast<float>(row[j]) == values[i * 7 + j]);
            }
        });
    }
    const double     twice[]{0.5, -3, 1e-30, 8, 2, 1};
    const TensorInfo f64{"w", Dtype::f64, {2, 3}, {}, reinterpret_cast<const std::byte*>(twice), nullptr, "file"};
    Weight<Cpu>      narrowed{{2, 3}};
    narrowed.bind(be, f64);
    CHECK(narrowed.dtype() == Dtype::f32);
}

TEST_CASE("nn/linear: rows of a weight are views, and rows that are not there are refused") {
    Cpu         be{{.threads = 1}};
    Weight<Cpu> w{{5, 2, 3}};  // a convolution's weight is a matrix [5, 6]
    CHECK((w.rows() == 5 && w.cols() == 6));
    w.bind(be, tensor("w", {5, 2, 3}, normal(30, 1)));
    const std::byte* panels = nullptr;
    w.visit([&](const auto& m) { panels = m.panels; });
    CHECK(panels != nullptr);
    w.visit_rows(2, 3, [&](const auto& m) { CHECK((m.panels == panels && m.first == 2 && m.rows == 3)); });
    Weight<Cpu> table{{5, 2, 3}, WeightUse::lookups};
    const auto  stored = tensor("w", {5, 2, 3}, normal(30, 1));
    table.bind(be, stored);
    table.visit_rows(2, 3, [&](const auto& m) { CHECK((static_cast<const void*>(m.data) == stored.data + 12 * sizeof(float) && m.rows == 3)); });  // in place
    CHECK_NOTHROW(w.visit_rows(5, 0, [](const auto&) {}));
    CHECK_THROWS_WITH_AS(w.visit_rows(3, 3, [](const auto&) {}), "Weight: rows: expected at most 5, found 6", ShapeError);
}

TEST_CASE("nn: modules without values say so instead of computing with nothing; the dry backend needs none") {
    Cpu         be{{.threads = 1}};
    Linear<Cpu> linear{4, 3};
    const Array x = Array::random(2, 4, 1);
    Array       y{2, 3};
    CHECK_THROWS_WITH_AS(linear.forward(be, x.in(), y.mat()), "a parameter [3, 4] has no values yet: load the model first", Error);
    Dry              dry;
    const Linear<Dry> counted{4, 3};
    CHECK_NOTHROW(counted.forward(dry, {nullptr, {2, 4}}, {nullptr, {2, 3}}));
    CHECK(dry.cost().flops == 2 * 2 * 4 * 3);
}

TEST_CASE("nn/mlp: what is added is what is computed, and the gate is silu times up") {
    Cpu           be{{.threads = 2}};
    GatedMlp<Cpu> gated{6, 10};
    Mlp<Cpu>      mlp{6, 10, Activation::quick_gelu};
    randomise(be, gated, 1), randomise(be, mlp, 2);
    Workspace<Cpu> ws{be, 1 << 16};
    const Array    x = Array::random(4, 6, 3);
    Array          added{4, 6}, gate{4, 10}, up{4, 10}, by_hand{4, 6};
    for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t j = 0; j < 6; ++j) added.mat()(i, j) = 0;
    gated.forward_add(be, ws, x.in(), added.mat());
    Array same = x;
    gated.forward(be, ws, same.in(), same.mat());
    CHECK(same.values() == added.values());
    gated.gate_proj.forward(be, x.in(), gate.mat(), Activation::silu), gated.up_proj.forward(be, x.in(), up.mat());
    for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t j = 0; j < 10; ++j) gate.mat()(i, j) *= up(i, j);
    gated.down_proj.forward(be, gate.in(), by_hand.mat());
    CHECK(worst(added, [&](std::size_t i, std::size_t j) { return static_cast<double>(by_hand(i, j)); }, [](std::size_t, std::size_t) { return 20 * u; }) <= 1);

    Array plain{4, 6}, in_place = x, onto = x;
    mlp.forward(be, ws, x.in(), plain.mat());
    mlp.forward(be, ws, in_place.in(), in_place.mat());
    CHECK(plain.values() == in_place.values());
    const std::vector<float> gamma{1, 2, 3, 4, 5, 6};
    mlp.forward_add(be, ws, x.in(), {gamma.data(), {6}}, onto.mat());
    Array steps = x;
    ops::add_scaled<Cpu>(be, plain.in(), {gamma.data(), {6}}, steps.mat());
    CHECK(worst(onto, [&](std::size_t i, std::size_t j) { return static_cast<double>(steps(i, j)); }, [](std::size_t, std::size_t) { return 100 * u; }) <= 1);
}

TEST_CASE("nn/attention: pictures of a batch do not see each other") {
    Cpu                be{{.threads = 2}};
    SelfAttention<Cpu> attention{24, 3};
    randomise(be, attention, 1);
    Workspace<Cpu> ws{be, 1 << 18};
    const Array    x = Array::random(3 * 10, 24, 3);
    Array          together{30, 24}, apart{30, 24};
    attention.forward(be, ws, 3, x.in(), together.mat());
    for (std::size_t i = 0; i < 3; ++i) attention.forward(be, ws, 1, x.in().rows(i * 10, 10), apart.mat().rows(i * 10, 10));
    CHECK(worst(together, [&](std::size_t i, std::size_t j) { return static_cast<double>(apart(i, j)); }, [](std::size_t, std::size_t) { return 40 * u; }) <= 1);
    CHECK_THROWS_AS(attention.forward(be, ws, 4, x.in(), together.mat()), ShapeError);
}
