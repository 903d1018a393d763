#include "prism/core/buffer.hpp"
#include "prism/core/dtype.hpp"
#include "prism/core/fields.hpp"
#include "prism/core/tensor.hpp"
#include "prism/core/view.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

using namespace prism;

TEST_CASE("core/view: slices share memory and keep the row stride") {
    std::vector<float>          data(12);
    View<float, host, dyn, dyn> x{data.data(), {3, 4}};
    auto                        right = x.cols(2, 2);
    right(1, 0) = 7;
    CHECK(data[6] == 7);
    CHECK(right.ld() == 4);
    CHECK_FALSE(right.dense());
    CHECK(x.rows(1, 2)(0, 2) == 7);
    CHECK(x.row(1)(2) == 7);
    CHECK(x[1](2) == 7);
    View<const float, host, dyn, dyn> read = x;
    CHECK(read(1, 2) == 7);
}

TEST_CASE("core/view: a slice that leaves the matrix throws in release builds too") {
    std::vector<float>          data(12);
    View<float, host, dyn, dyn> x{data.data(), {3, 4}};
    CHECK_THROWS_AS(x.cols(3, 2), ShapeError);
    CHECK_THROWS_AS(x.rows(0, 4), ShapeError);
    CHECK_THROWS_WITH(expect("linear", "x", {any, 5}, x), "linear: x: expected [any, 5], found [3, 4]");
}

TEST_CASE("core/dtype: f16 and bf16 agree with their definitions on every bit pattern") {
    for (std::uint32_t u = 0; u < 65536; ++u) {
        fp16_t h;
        h.bits = static_cast<std::uint16_t>(u);
        const int    e = (u >> 10) & 31, m = u & 1023;
        const double sign = u & 0x8000 ? -1 : 1;
        const double value = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? std::ldexp(m, -24) : std::ldexp(1024 + m, e - 25);
        if (std::isnan(value)) {
            CHECK(std::isnan(float(h)));
            CHECK(std::isnan(float(fp16_t{float(h)})));
        } else {
            CHECK(double(float(h)) == sign * value);
            CHECK(fp16_t{float(h)}.bits == h.bits);
        }
        bf16_t b;
        b.bits = static_cast<std::uint16_t>(u);
        if (std::isnan(float(b))) CHECK(std::isnan(float(bf16_t{float(b)})));
        else CHECK(bf16_t{float(b)}.bits == b.bits);
    }
}

TEST_CASE("core/dtype: rounding is to nearest, ties to even") {
    CHECK(bf16_t{1.0f + 0x1p-8f}.bits == bf16_t{1.0f}.bits);
    CHECK(bf16_t{1.0f + 0x1p-7f + 0x1p-8f}.bits == bf16_t{1.0f + 0x1p-6f}.bits);
    CHECK(fp16_t{1.0f + 0x1p-11f}.bits == fp16_t{1.0f}.bits);
    CHECK(fp16_t{65519.0f}.bits == fp16_t{65504.0f}.bits);
    CHECK(std::isinf(float(fp16_t{65520.0f})));
    CHECK(fp16_t{0x1p-25f}.bits == 0);
    CHECK(fp16_t{0x1.8p-25f}.bits == 1);
}

TEST_CASE("core/tensor: a transposed tensor is gathered into dense rows") {
    std::vector<float> data{0, 1, 2, 3, 4, 5};  // [2, 3]
    TensorInfo         t{"t", Dtype::f32, {3, 2}, {1, 3}, reinterpret_cast<const std::byte*>(data.data()), nullptr, "f"};
    CHECK(to_floats(t) == std::vector<float>{0, 3, 1, 4, 2, 5});
}

namespace {
struct Leaf { int value = 0; };
struct Inner {
    Leaf                  a;
    std::vector<Leaf>     list{3};
    std::optional<Leaf>   absent;
    static constexpr auto params = fields(field("a", &Inner::a), field("list", &Inner::list), field("absent", &Inner::absent));
};
struct Outer {
    Inner                 inner, plain;
    static constexpr auto params = fields(field("inner", &Outer::inner), field("", &Outer::plain));
};
}  // namespace

TEST_CASE("core/fields: visit walks depth first and names every leaf") {
    Outer       m;
    std::string paths;
    visit(m, [&](const std::string& path, Leaf& leaf) {
        paths += path + " ";
        leaf.value = 1;
    });
    CHECK(paths == "inner.a inner.list.0 inner.list.1 inner.list.2 a list.0 list.1 list.2 ");
    CHECK(m.plain.list[2].value == 1);
}
