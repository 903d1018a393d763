// ReferenceRandom: the random numbers of the reference's CPU generator, bit for bit, so that orders, fresh projectors and new rows
// of tables are the same in every run of a seed.
//
//     prism::ReferenceRandom random{7};
//     random.permutation(5);                         // 0 1 3 2 4
// Source: pytorch/pytorch, ATen/CPUGeneratorImpl.cpp, aten/src/ATen/native/cpu/DistributionTemplates.h,
// torch/nn/modules/linear.py.
#pragma once

#include "prism/core/error.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace prism {

/// A Mersenne Twister of 32 bits; of a seed the low 32 bits count.
class ReferenceRandom {
public:
    explicit ReferenceRandom(std::uint64_t seed) : engine_(static_cast<std::uint32_t>(seed)) {}

    std::uint32_t next() { return static_cast<std::uint32_t>(engine_()); }

    /// One number of [from, to).
    float uniform(float from, float to) {
        const float x = static_cast<float>(next() & 0xffffffU) * 0x1p-24f;
        return std::fma(x, to - from, from);  // one rounding, as the vectorised original has it
    }

    /// The numbers below n in random order. Throws Error for 2^32 of them or more, which the original draws otherwise.
    std::vector<std::size_t> permutation(std::size_t n) {
        if (n > std::numeric_limits<std::uint32_t>::max()) throw Error("a permutation of " + std::to_string(n) + " numbers; the limit is 2^32 - 1");
        std::vector<std::size_t> order(n);
        std::iota(order.begin(), order.end(), std::size_t{0});
        for (std::size_t i = 0; i + 1 < n; ++i) std::swap(order[i], order[i + next() % (n - i)]);
        return order;
    }

    /// What a fresh linear layer holds: weight [d_out, d_in], row-major, and then bias [d_out].
    void linear(std::size_t d_in, std::span<float> weight, std::span<float> bias) {
        const double n = static_cast<double>(d_in), slope = std::sqrt(5.0);
        const auto   within = [&](double bound, std::span<float> values) {
            for (float& x : values) x = uniform(static_cast<float>(-bound), static_cast<float>(bound));
        };
        within(std::sqrt(3.0) * (std::sqrt(2.0 / (1.0 + slope * slope)) / std::sqrt(n)), weight);
        within(1.0 / std::sqrt(n), bias);
    }

private:
    std::mt19937 engine_;
};

}  // namespace prism
