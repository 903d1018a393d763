// Comparing what prism computes with what a reference file holds.
#pragma once

#include "prism/io/checkpoint.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace prism::test {

/// The values of one tensor of a reference file.
inline std::vector<float> floats(const Checkpoint& file, const std::string& name) {
    const TensorInfo* t = file.find(name);
    REQUIRE_MESSAGE(t, file.file() << " has no tensor " << name);
    return to_floats(*t);
}

/// The largest difference over the largest expected value; infinite for NaN or different sizes.
inline double relative_error(std::span<const float> found, std::span<const float> expected) {
    if (found.size() != expected.size()) return std::numeric_limits<double>::infinity();
    double difference = 0, largest = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        const double d = std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
        if (!(d <= difference)) difference = std::isnan(d) ? std::numeric_limits<double>::infinity() : d;
        largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    }
    return difference / std::max(largest, 1e-30);
}

}  // namespace prism::test
