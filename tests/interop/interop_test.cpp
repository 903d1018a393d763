#include "prism/interop/eigen.hpp"
#include "prism/interop/mdspan.hpp"
#include "prism/interop/xtensor.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace prism;

TEST_CASE("interop/eigen: a strided view and its map share elements") {
    std::vector<float>          data(12);
    View<float, host, dyn, dyn> x{data.data(), {3, 4}};
    auto                        m = as_eigen(x.cols(1, 2));
    m(2, 1) = 5;
    CHECK(x(2, 2) == 5);
    CHECK(m.rows() == 3);
    CHECK(m.cols() == 2);
    EigenRows<float> e = m * 2;
    CHECK(as_view(e)(2, 1) == 10);
    const View<const float, host, dyn, dyn> read = x;
    CHECK(as_eigen(read)(2, 2) == 5);
}

TEST_CASE("interop/xtensor: dense views adapt, strided ones are refused") {
    std::vector<float>          data(12);
    View<float, host, dyn, dyn> x{data.data(), {3, 4}};
    auto                        a = as_xtensor(x);
    a(1, 3) = 7;
    CHECK(x(1, 3) == 7);
    CHECK_THROWS_AS(as_xtensor(x.cols(0, 2)), ShapeError);
    xt::xtensor<float, 3> t = xt::zeros<float>({2, 3, 4});
    as_view(t)(1, 2, 3) = 9;
    CHECK(t(1, 2, 3) == 9);
}
