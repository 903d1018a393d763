// SigLIP's loss against its definition and finite differences.
#include "shapes/contrastive.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

using namespace prism;
using namespace prism::shapes;

namespace {

std::vector<float> numbers(std::size_t n, double phase) {
    std::vector<float> x(n);
    for (std::size_t i = 0; i < n; ++i) x[i] = static_cast<float>(std::sin(phase + 1.7 * static_cast<double>(i * i % 31)) * 2);
    return x;
}

}  // namespace

TEST_CASE("shapes/contrastive: the loss of two pairs, by hand") {
    // Lengths do not count; the first pair agrees, the second is at right angles.
    const std::vector<float> pictures{2, 0, 0, 3}, captions{5, 0, -1, 0};
    const SigmoidScale       scale{.log_scale = std::log(2.0), .bias = -1};
    const auto               cost = [](double score) { return std::log(1 + std::exp(-score)); };
    // scores: (1, 1) 2 - 1; (1, 2) -2 - 1; (2, 1) 0 - 1; (2, 2) 0 - 1
    const double want = (cost(1) + cost(3) + cost(1) + cost(-1)) / 2;
    CHECK(sigmoid_loss(pictures, captions, 2, scale) == doctest::Approx(want).epsilon(1e-12));
    CHECK(retrieval(pictures, captions, 2) == 0.5);
}

TEST_CASE("shapes/contrastive: with the first scale, a batch of strangers costs what its authors say") {
    // t = 10, b = -10: at right angles each pair costs log(1 + e^10), each other one log(1 + e^-10).
    constexpr std::size_t n = 8;
    std::vector<float>    pictures(n * 2 * n), captions(n * 2 * n);
    for (std::size_t i = 0; i < n; ++i) pictures[i * 2 * n + i] = 1, captions[i * 2 * n + n + i] = 1;
    CHECK(sigmoid_loss(pictures, captions, 2 * n, {}) == doctest::Approx(std::log1p(std::exp(10.0)) + 7 * std::log1p(std::exp(-10.0))));
}

TEST_CASE("shapes/contrastive: gradients are those of finite differences") {
    constexpr std::size_t n = 5, d = 7;
    auto                  pictures = numbers(n * d, 0.3), captions = numbers(n * d, 1.1);
    const SigmoidScale    scale{.log_scale = 0.7, .bias = -0.4};
    SigmoidGradients      g;
    CHECK(sigmoid_loss(pictures, captions, d, scale, &g) == sigmoid_loss(pictures, captions, d, scale));
    for (auto [x, dx] : {std::pair{&pictures, &g.pictures}, std::pair{&captions, &g.captions}})
        for (std::size_t i = 0; i < x->size(); ++i) {
            const float here = (*x)[i], step = 1.0F / 512;
            (*x)[i] = here + step;
            const double more = sigmoid_loss(pictures, captions, d, scale);
            (*x)[i] = here - step;
            const double less = sigmoid_loss(pictures, captions, d, scale), width = static_cast<double>(here + step) - static_cast<double>(here - step);
            (*x)[i] = here;
            // The third derivative times step^2 / 6 is below 1e-5 for rows of length over one; f32 rounds the gradient.
            CHECK(std::abs((more - less) / width - static_cast<double>((*dx)[i])) < 1e-5);
        }
    const double h = 1e-5;
    const auto   at = [&](double log_scale, double bias) { return sigmoid_loss(pictures, captions, d, {.log_scale = log_scale, .bias = bias}); };
    CHECK((at(0.7 + h, -0.4) - at(0.7 - h, -0.4)) / (2 * h) == doctest::Approx(g.log_scale).epsilon(1e-7));
    CHECK((at(0.7, -0.4 + h) - at(0.7, -0.4 - h)) / (2 * h) == doctest::Approx(g.bias).epsilon(1e-7));
}

TEST_CASE("shapes/contrastive: following the gradients, captions find their pictures; far scores stay finite") {
    constexpr std::size_t n = 16, d = 8;
    auto                  pictures = numbers(n * d, 0.3), captions = numbers(n * d, 1.1);
    SigmoidScale          scale;
    SigmoidGradients      g;
    const double          before = sigmoid_loss(pictures, captions, d, scale);
    for (int step = 0; step < 300; ++step) {
        sigmoid_loss(pictures, captions, d, scale, &g);
        for (std::size_t i = 0; i < pictures.size(); ++i) pictures[i] -= g.pictures[i], captions[i] -= g.captions[i];
        scale.log_scale -= 0.01 * g.log_scale, scale.bias -= 0.01 * g.bias;
    }
    CHECK(sigmoid_loss(pictures, captions, d, scale) < before / 4);
    CHECK(retrieval(pictures, captions, d) == 1);
    CHECK(std::isfinite(sigmoid_loss(pictures, captions, d, {.log_scale = 8, .bias = 1000}, &g)));
    CHECK(std::all_of(g.pictures.begin(), g.pictures.end(), [](float v) { return std::isfinite(v); }));
    captions.pop_back();
    CHECK_THROWS_AS(sigmoid_loss(pictures, captions, d, scale), ShapeError);
}
