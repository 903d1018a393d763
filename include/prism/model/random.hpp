// Random weights: models of any published size without their files, to measure and to test with.
//
//     prism::randomise(cpu, vit, {.seed = 1, .matrices = prism::Dtype::bf16});
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/fields.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace prism {

struct RandomWeights {
    std::uint64_t seed = 0;
    Dtype         matrices = Dtype::f32;  // the format of weights of products; the rest is f32
    float         spread = 0.02f;         // standard deviation of the matrices
    std::size_t   distinct_rows = 0;      // of a matrix; further ones repeat them, which is quicker to make. 0: all
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

        const std::size_t cols = param.shape().size() < 2 ? param.size() : param.size() / param.shape()[0], rows = param.size() / cols;
        auto              bytes = std::make_shared<std::vector<std::byte>>();
        with_format(dtype, all_formats{}, [&]<class F>(F) {
            const std::size_t stride = blocks_per_row<F>(cols);
            bytes->resize(rows * stride * sizeof(typename F::block));
            const std::span blocks(reinterpret_cast<typename F::block*>(bytes->data()), rows * stride);
            const std::size_t distinct = options.distinct_rows && options.distinct_rows < rows ? options.distinct_rows : rows;
            const auto        copies = [&](std::size_t begin, std::size_t end) {
                for (std::size_t i = std::max(begin, distinct); i < end; ++i) std::copy_n(&blocks[i % distinct * stride], stride, &blocks[i * stride]);
            };
            const auto fill = [&](std::size_t begin, std::size_t end) {
                std::vector<float> row(stride * F::values_per_block);
                for (std::size_t i = begin; i < end; ++i) {
                    for (std::size_t j = 0; j < cols; ++j)
                        row[j] = options.spread * detail::random_normal(seed, i * cols + j) + (scale ? 1.0f : 0.0f);
                    F::encode(row, blocks.subspan(i * stride, stride));
                }
            };
            const std::size_t piece = std::max<std::size_t>(1, 65536 / cols);
            in_pieces(be, distinct, piece, fill);
            in_pieces(be, rows, piece, copies);
        });
        TensorInfo tensor{path, dtype, param.shape(), {}, bytes->data(), nullptr, "random weights"};
        tensor.owner = std::move(bytes);
        param.bind(be, tensor);
    });
}

}  // namespace prism
