// Random weights: models of any published size without their files, to measure and to test with.
//
//     prism::randomise(cpu, vit, {.seed = 1, .matrices = prism::Dtype::bf16});
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/fields.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace prism {

struct RandomWeights {
    std::uint64_t seed = 0;
    Dtype         matrices = Dtype::f32;  // how weights of products are stored: f32, bf16 or f16; the rest is f32
    float         spread = 0.02f;         // standard deviation of the matrices
};

namespace detail {

/// A counter-based generator (SplitMix64): value i of a seed needs none before it.
inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t i) {
    std::uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/// About N(0, 1): a sum of four uniform values, scaled.
inline float random_normal(std::uint64_t seed, std::uint64_t i) {
    const std::uint64_t b = random_bits(seed, i);
    const auto          sum = static_cast<float>((b & 0xffff) + (b >> 16 & 0xffff) + (b >> 32 & 0xffff) + (b >> 48));
    return (sum - 131070.0f) * (1.7320508f / 65536.0f);
}

}  // namespace detail

/// Gives every parameter values that depend on the seed and its name alone: matrices N(0, spread), other weights about 1,
/// biases and tables about 0.
template <Backend B, class M>
void randomise(B& be, M& module, const RandomWeights& options = {}) {
    visit(module, [&](const std::string& path, auto& param) {
        if (param.shape().empty()) return;
        const bool  matrix = requires { param.rows(); };
        const bool  scale = !matrix && (path.ends_with("weight") || path.ends_with("gamma"));
        const Dtype dtype = matrix ? options.matrices : Dtype::f32;
        std::uint64_t seed = options.seed;
        for (char c : path) seed = detail::random_bits(seed, static_cast<unsigned char>(c));

        const std::size_t n = param.size();
        auto              bytes = std::make_shared<std::vector<std::byte>>(n * item_bytes(dtype));
        const auto        fill = [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i) {
                const float x = options.spread * detail::random_normal(seed, i) + (scale ? 1.0f : 0.0f);
                std::byte*  to = bytes->data() + i * item_bytes(dtype);
                if (dtype == Dtype::bf16) { const bf16_t h{x}; std::memcpy(to, &h, sizeof h); }
                else if (dtype == Dtype::f16) { const fp16_t h{x}; std::memcpy(to, &h, sizeof h); }
                else std::memcpy(to, &x, sizeof x);
            }
        };
        if constexpr (requires { be.parallel_for(n, n, fill); }) be.parallel_for(n, std::size_t{1} << 18, fill);
        else fill(0, n);
        TensorInfo tensor{path, dtype, param.shape(), {}, bytes->data(), nullptr, "random weights"};
        tensor.owner = std::move(bytes);
        param.bind(be, tensor);
    });
}

}  // namespace prism
