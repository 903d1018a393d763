#include "prism/vision/pca.hpp"

#include <doctest/doctest.h>

#include <random>

using namespace prism;

TEST_CASE("vision/pca: directions that rows were made along come back, in order, orthonormal and with their variances") {
    constexpr std::size_t        n = 211, d = 37, k = 3;
    const std::vector<double>    spread{5, 4.9, 2, 0.01};  // the first two are close: plain power iteration would crawl
    std::mt19937                 random{7};
    std::normal_distribution<double> normal;
    std::vector<float>           x(n * d, 3.0f);
    // Basis vectors are columns 4, 11, 20 and 33, so the truth is known.
    const std::vector<std::size_t> axis{4, 11, 20, 33};
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < axis.size(); ++j) x[i * d + axis[j]] += static_cast<float>(spread[j] * normal(random));
    const auto pca = principal_components({x.data(), {n, d}}, k);
    REQUIRE(pca.k() == k);
    double explained = 0;
    for (std::size_t j = 0; j < k; ++j) {
        double variance = 0, mean = 0;
        for (std::size_t i = 0; i < n; ++i) mean += pca.score(i, j) / n;
        for (std::size_t i = 0; i < n; ++i) variance += (pca.score(i, j) - mean) * (pca.score(i, j) - mean) / n;
        CHECK(std::abs(mean) < 1e-9);
        CHECK(variance == doctest::Approx(pca.variances[j]).epsilon(1e-9));
        if (j) CHECK(pca.variances[j] <= pca.variances[j - 1]);
        explained += pca.variances[j];
        for (std::size_t l = 0; l < k; ++l) {
            double dot = 0;
            for (std::size_t c = 0; c < d; ++c) dot += pca.directions[j * d + c] * pca.directions[l * d + c];
            CHECK(std::abs(dot - (j == l)) < 1e-9);
        }
    }
    CHECK(std::abs(pca.directions[2 * d + 20]) > 0.99);
    CHECK(explained > 0.9999 * pca.total_variance);
    // A principal direction is an eigenvector: the covariance only stretches it.
    for (std::size_t j = 0; j < k; ++j)
        for (std::size_t c = 0; c < d; ++c) {
            double product = 0;
            for (std::size_t i = 0; i < n; ++i) product += pca.score(i, j) * static_cast<double>(x[i * d + c]) / n;
            CHECK(std::abs(product - pca.variances[j] * pca.directions[j * d + c]) < 1e-6 * pca.variances[0]);
        }
}

TEST_CASE("vision/pca: fewer rows than components, equal rows, and shapes that cannot be used") {
    const std::vector<float> x{1, 2, 3, 4, 5, 7};
    const auto               two = principal_components({x.data(), {2, 3}}, 3);
    CHECK(two.variances[0] == doctest::Approx(two.total_variance));
    CHECK(std::abs(two.variances[1]) < 1e-12);
    const std::vector<float> same(12, 0.1f);
    for (double s : principal_components({same.data(), {4, 3}}, 2).scores) CHECK(s == 0);
    CHECK_THROWS_AS(principal_components({x.data(), {2, 3}}, 4), ShapeError);
    CHECK_THROWS_AS(principal_components({x.data(), {0, 3}}, 1), ShapeError);
}
