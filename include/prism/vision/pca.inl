// What pca.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/core/error.hpp"
#include "prism/vision/pca.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <string>

namespace prism {

namespace detail {

/// Makes the rows of q [k, d] orthonormal, one after another. A row that the ones before span becomes zero.
template <class = void>
void orthonormalise(std::vector<double>& q, std::size_t k, std::size_t d) {
    for (std::size_t i = 0; i < k; ++i) {
        double* const row = &q[i * d];
        double        before = 0, after = 0;
        for (std::size_t c = 0; c < d; ++c) before += row[c] * row[c];
        for (int pass = 0; pass < 2; ++pass)  // twice: once leaves the rounding of a nearly dependent row
            for (std::size_t j = 0; j < i; ++j) {
                double dot = 0;
                for (std::size_t c = 0; c < d; ++c) dot += row[c] * q[j * d + c];
                for (std::size_t c = 0; c < d; ++c) row[c] -= dot * q[j * d + c];
            }
        for (std::size_t c = 0; c < d; ++c) after += row[c] * row[c];
        const double scale = after > 1e-20 * before && after > 0 ? 1 / std::sqrt(after) : 0;
        for (std::size_t c = 0; c < d; ++c) row[c] *= scale;
    }
}

/// Diagonalises a symmetric matrix a [m, m] by Jacobi's rotations. On return the diagonal of `a` has the eigenvalues and
/// the columns of the result [m, m] the vectors, in no order.
template <class = void>
std::vector<double> eigenvectors(std::vector<double>& a, std::size_t m) {
    std::vector<double> v(m * m);
    for (std::size_t i = 0; i < m; ++i) v[i * m + i] = 1;
    constexpr int max_sweeps = 50;
    for (int sweep = 0; sweep < max_sweeps; ++sweep) {
        double off = 0, trace = 0;
        for (std::size_t i = 0; i < m; ++i)
            for (std::size_t j = 0; j < m; ++j) (i == j ? trace : off) += std::abs(a[i * m + j]);
        if (off <= 1e-14 * trace) break;
        for (std::size_t p = 0; p < m; ++p)
            for (std::size_t q = p + 1; q < m; ++q) {
                if (a[p * m + q] == 0) continue;
                const double theta = (a[q * m + q] - a[p * m + p]) / (2 * a[p * m + q]);
                const double t = (theta < 0 ? -1 : 1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
                const double cos = 1 / std::sqrt(t * t + 1), sin = t * cos;
                const auto   rotate = [&](double& x, double& y) {
                    const double before = x;
                    x = cos * x - sin * y, y = sin * before + cos * y;
                };
                for (std::size_t i = 0; i < m; ++i) rotate(a[i * m + p], a[i * m + q]);
                for (std::size_t i = 0; i < m; ++i) rotate(a[p * m + i], a[q * m + i]);
                for (std::size_t i = 0; i < m; ++i) rotate(v[i * m + p], v[i * m + q]);
            }
    }
    return v;
}

/// rows [n, m] becomes rows * v, its columns in the order given.
template <class = void>
void rotate_columns(std::vector<double>& rows, std::size_t stride_row, std::size_t stride_column, std::size_t n,
                           const std::vector<double>& v, const std::vector<std::size_t>& order) {
    const std::size_t   m = order.size();
    std::vector<double> row(m);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < m; ++j) {
            row[j] = 0;
            for (std::size_t l = 0; l < m; ++l) row[j] += rows[i * stride_row + l * stride_column] * v[l * m + order[j]];
        }
        for (std::size_t j = 0; j < m; ++j) rows[i * stride_row + j * stride_column] = row[j];
    }
}

}  // namespace detail

template <class>
PrincipalComponents principal_components(View<const float, host, dyn, dyn> x, std::size_t k) {
    const std::size_t n = x.rows(), d = x.cols();
    if (n == 0 || k == 0 || k > d)
        throw ShapeError{"principal_components", "x", "rows, of at least " + std::to_string(std::max<std::size_t>(k, 1)) + " columns", to_string(x.shape())};
    std::vector<double> mean(d), centred(n * d);
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t c = 0; c < d; ++c) mean[c] += static_cast<double>(x(i, c)) / static_cast<double>(n);
    PrincipalComponents result{.n = n};
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t c = 0; c < d; ++c) {
            const double v = static_cast<double>(x(i, c)) - mean[c];
            centred[i * d + c] = v;
            result.total_variance += v * v / static_cast<double>(n);
        }

    const std::size_t   m = std::min(d, k + 5);
    std::mt19937        random{1};  // any start will do that is not orthogonal to what is looked for
    std::vector<double> q(m * d), along(n * m), last(k);
    for (double& v : q) v = static_cast<double>(random()) * 0x1p-32 - 0.5;
    detail::orthonormalise(q, m, d);
    constexpr int max_rounds = 300;
    for (int round = 0;; ++round) {
        std::vector<double> covariance(m * m);
        for (std::size_t i = 0; i < n; ++i) {
            for (std::size_t j = 0; j < m; ++j) {
                double dot = 0;
                for (std::size_t c = 0; c < d; ++c) dot += centred[i * d + c] * q[j * d + c];
                along[i * m + j] = dot;
            }
            for (std::size_t j = 0; j < m; ++j)
                for (std::size_t l = 0; l < m; ++l) covariance[j * m + l] += along[i * m + j] * along[i * m + l] / static_cast<double>(n);
        }
        const std::vector<double> v = detail::eigenvectors(covariance, m);
        std::vector<std::size_t>  order(m);
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::ranges::sort(order, std::greater{}, [&](std::size_t j) { return covariance[j * m + j]; });
        detail::rotate_columns(along, m, 1, n, v, order);
        detail::rotate_columns(q, 1, d, d, v, order);
        double change = 0;
        for (std::size_t j = 0; j < k; ++j) {
            const double variance = std::max(0.0, covariance[order[j] * m + order[j]]);
            change = std::max(change, std::abs(variance - last[j]));
            last[j] = variance;
        }
        if (change <= 1e-12 * result.total_variance || round == max_rounds) break;
        std::fill(q.begin(), q.end(), 0.0);
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t j = 0; j < m; ++j)
                for (std::size_t c = 0; c < d; ++c) q[j * d + c] += along[i * m + j] * centred[i * d + c];
        detail::orthonormalise(q, m, d);
    }

    result.variances = last;
    result.directions.assign(q.begin(), q.begin() + static_cast<std::ptrdiff_t>(k * d));
    result.scores.resize(n * k);
    for (std::size_t j = 0; j < k; ++j) {
        double* const direction = &result.directions[j * d];
        const double  sign = *std::max_element(direction, direction + d, [](double a, double b) { return std::abs(a) < std::abs(b); }) < 0 ? -1 : 1;
        for (std::size_t c = 0; c < d; ++c) direction[c] *= sign;
        for (std::size_t i = 0; i < n; ++i) result.scores[i * k + j] = sign * along[i * m + j];
    }
    return result;
}

}  // namespace prism
