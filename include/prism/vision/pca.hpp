// Principal components: the few directions in which features differ most. What the pictures of patch features show.
//
//     const auto pca = prism::principal_components(features, 3);    // features [n, d]
//     pca.scores;                                                   // [n, 3]: where each row lies along them
#pragma once

#include "prism/core/view.hpp"

#include <cstddef>
#include <vector>

namespace prism {

struct PrincipalComponents {
    std::size_t         n = 0;       // rows
    std::vector<double> directions{};  // [k, d], of length 1; the largest entry of each is positive
    std::vector<double> variances{};   // [k], along each, largest first
    std::vector<double> scores{};      // [n, k], of the centred rows
    double              total_variance = 0;

    std::size_t k() const { return variances.size(); }
    double      score(std::size_t row, std::size_t component) const { return scores[row * k() + component]; }
};

/// The first k principal components of the rows of x [n, d], by block power iteration with Rayleigh and Ritz's step and a
/// few directions more than asked for, so that close variances do not hold it up. Deterministic. Components that the rows
/// do not have are zero. Throws ShapeError when there are no rows or k is not within [1, d].
template <class = void>
PrincipalComponents principal_components(View<const float, host, dyn, dyn> x, std::size_t k);

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/vision/pca.inl"
#endif
