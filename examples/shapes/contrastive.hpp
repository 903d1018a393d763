// SigLIP's loss over a batch of pictures and their captions, with its gradients, and retrieval within the batch.
//
//     SigmoidScale scale;                                           // learnt along with the towers
//     SigmoidGradients gradients;
//     const double loss = sigmoid_loss(pictures, captions, d, scale, &gradients);   // both [n, d], row i with row i
//     backward(tower, gradients.pictures); ...; scale.log_scale -= rate * gradients.log_scale;
// Source: Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid loss for language image pre-training", ICCV 2023, algorithm 1.
#pragma once

#include "prism/core/error.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace prism::shapes {

/// The two numbers that the loss learns: similarities are multiplied by exp(log_scale), then bias is added.
struct SigmoidScale {
    double log_scale = 2.302585092994046;  // log 10
    double bias = -10;
};

/// Of the loss with respect to the features as they came in, and to the scale.
struct SigmoidGradients {
    std::vector<float> pictures{}, captions{};  // [n, d]
    double             log_scale = 0, bias = 0;
};

namespace detail {

/// Rows of length one, and the lengths that they had.
struct UnitRows {
    std::vector<double> rows, lengths;

    UnitRows(std::span<const float> x, std::size_t d) : rows(x.begin(), x.end()), lengths(x.size() / d) {
        for (std::size_t i = 0; i < lengths.size(); ++i) {
            double squares = 0;
            for (std::size_t j = 0; j < d; ++j) squares += rows[i * d + j] * rows[i * d + j];
            lengths[i] = std::max(std::sqrt(squares), 1e-12);
            for (std::size_t j = 0; j < d; ++j) rows[i * d + j] /= lengths[i];
        }
    }
    double dot(std::size_t i, const UnitRows& other, std::size_t k, std::size_t d) const {
        double sum = 0;
        for (std::size_t j = 0; j < d; ++j) sum += rows[i * d + j] * other.rows[k * d + j];
        return sum;
    }
    /// Gradients with respect to the unit rows become those with respect to the rows: what points along a row is lost.
    std::vector<float> before(std::vector<double> unit_gradients, std::size_t d) const {
        std::vector<float> gradients(unit_gradients.size());
        for (std::size_t i = 0; i < lengths.size(); ++i) {
            double along = 0;
            for (std::size_t j = 0; j < d; ++j) along += unit_gradients[i * d + j] * rows[i * d + j];
            for (std::size_t j = 0; j < d; ++j) gradients[i * d + j] = static_cast<float>((unit_gradients[i * d + j] - along * rows[i * d + j]) / lengths[i]);
        }
        return gradients;
    }
};

inline void expect_pairs(std::span<const float> pictures, std::span<const float> captions, std::size_t d) {
    if (d == 0 || pictures.empty() || pictures.size() % d != 0 || pictures.size() != captions.size())
        throw ShapeError{"sigmoid_loss", "captions", "as many rows of " + std::to_string(d) + " as pictures, at least one",
                         std::to_string(captions.size()) + " numbers for " + std::to_string(pictures.size())};
}

}  // namespace detail

/// The mean over pictures of what all captions cost each: -log sigmoid(z (t x.y + b)), z = 1 for its own caption, -1 for
/// the others; x and y are the rows scaled to length one. Sums are f64 in one order. Throws ShapeError unless both are
/// [n, d] with n > 0.
inline double sigmoid_loss(std::span<const float> pictures, std::span<const float> captions, std::size_t d, const SigmoidScale& scale,
                           SigmoidGradients* gradients = nullptr) {
    detail::expect_pairs(pictures, captions, d);
    const std::size_t      n = pictures.size() / d;
    const detail::UnitRows x{pictures, d}, y{captions, d};
    const double           t = std::exp(scale.log_scale), share = 1 / static_cast<double>(n);
    std::vector<double>    dx(gradients ? pictures.size() : 0), dy(dx.size());
    double                 loss = 0, d_log_scale = 0, d_bias = 0;
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t k = 0; k < n; ++k) {
            const double z = i == k ? 1 : -1, product = x.dot(i, y, k, d), score = z * (t * product + scale.bias);
            loss += share * (score > 0 ? std::log1p(std::exp(-score)) : std::log1p(std::exp(score)) - score);
            if (!gradients) continue;
            const double g = -z * share / (1 + std::exp(score));  // with respect to t x.y + b
            d_log_scale += g * t * product, d_bias += g;
            for (std::size_t j = 0; j < d; ++j) dx[i * d + j] += g * t * y.rows[k * d + j], dy[k * d + j] += g * t * x.rows[i * d + j];
        }
    if (gradients) *gradients = {.pictures = x.before(std::move(dx), d), .captions = y.before(std::move(dy), d), .log_scale = d_log_scale, .bias = d_bias};
    return loss;
}

/// The share of pictures whose own caption is the nearest of the batch. A caption that is as near counts as a miss.
inline double retrieval(std::span<const float> pictures, std::span<const float> captions, std::size_t d) {
    detail::expect_pairs(pictures, captions, d);
    const std::size_t      n = pictures.size() / d;
    const detail::UnitRows x{pictures, d}, y{captions, d};
    std::size_t            right = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const double own = x.dot(i, y, i, d);
        bool         nearest = true;
        for (std::size_t k = 0; k < n && nearest; ++k) nearest = k == i || x.dot(i, y, k, d) < own;
        right += nearest;
    }
    return static_cast<double>(right) / static_cast<double>(n);
}

}  // namespace prism::shapes
