// Matrices of weights for tests of the CUDA backend: in any format, as a file has them, as the device's rows, and as the
// numbers that they stand for. Written without the kernels.
#pragma once

#include "prism/backend/cuda/driver.hpp"
#include "prism/backend/cuda/weights.hpp"
#include "prism/quant/format.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

namespace prism::test {

/// Normal numbers; every seventh row has a heavy tail.
inline std::vector<float> normal_rows(std::size_t rows, std::size_t cols, unsigned seed, float scale = 1) {
    std::mt19937                    random(seed);
    std::normal_distribution<float> normal;
    std::vector<float>              v(rows * cols);
    for (std::size_t i = 0; i < v.size(); ++i) {
        const float x = normal(random);
        v[i] = scale * (i / cols % 7 == 3 ? x * std::exp(2 * std::fabs(normal(random))) : x);
    }
    return v;
}

/// [rows, cols] in blocks of F, each row filled up with zeros.
template <Format F>
std::vector<typename F::block> encoded(std::span<const float> values, std::size_t rows, std::size_t cols) {
    const std::size_t              stride = blocks_per_row<F>(cols);
    std::vector<typename F::block> blocks(rows * stride);
    std::vector<float>             row(stride * F::values_per_block);
    for (std::size_t i = 0; i < rows; ++i) {
        std::fill(row.begin(), row.end(), 0.0f);
        std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(i * cols), cols, row.begin());
        F::encode(row, std::span(blocks).subspan(i * stride, stride));
    }
    return blocks;
}

/// The numbers of those blocks, [rows, cols].
template <Format F>
std::vector<float> decoded(std::span<const typename F::block> blocks, std::size_t rows, std::size_t cols) {
    const std::size_t  stride = blocks_per_row<F>(cols);
    std::vector<float> values(rows * cols), row(stride * F::values_per_block);
    for (std::size_t i = 0; i < rows; ++i) {
        F::decode(blocks.subspan(i * stride, stride), row);
        std::copy_n(row.begin(), cols, values.begin() + static_cast<std::ptrdiff_t>(i * cols));
    }
    return values;
}

/// The rows of weights.hpp, from blocks.
template <Format F>
std::vector<std::byte> device_rows(std::span<const typename F::block> blocks, std::size_t rows, std::size_t cols) {
    using R = cuda::WeightRow<F>;
    const std::size_t      stride = blocks_per_row<F>(cols), bytes = static_cast<std::size_t>(R::bytes(static_cast<std::int64_t>(cols)));
    std::vector<std::byte> to(rows * bytes);
    for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t s = 0; s < stride; ++s) {
            const auto&      block = blocks[i * stride + s];
            std::byte* const row = to.data() + i * bytes;
            if constexpr (F::values_per_block == 1) {
                std::memcpy(row + s * sizeof block, &block, sizeof block);
            } else {
                const auto scale = static_cast<std::size_t>(R::scale_bytes_of_group);
                std::memcpy(row + s * scale, &block, scale);
                std::memcpy(row + static_cast<std::size_t>(R::values_at(static_cast<std::int64_t>(cols))) + s * sizeof block.q, block.q, sizeof block.q);
            }
        }
    return to;
}

/// A copy of host memory in memory of the driver, `offset` bytes behind a multiple of 256.
template <class D, class T>
Buffer<device> on_device(D& driver, const std::vector<T>& values, std::size_t offset = 0) {
    Buffer<device> b = driver.allocate(values.size() * sizeof(T) + offset + 64);
    driver.to_device(b.template as<std::byte>() + offset, values.data(), values.size() * sizeof(T));
    return b;
}
/// Memory of the driver that holds ones, so that what is not written shows.
template <class D>
Buffer<device> poisoned(D& driver, std::size_t bytes) {
    return on_device(driver, std::vector<std::byte>(bytes, std::byte{0xff}));
}
template <class T, class D>
std::vector<T> from_device(D& driver, const void* from, std::size_t n) {
    std::vector<T> v(n);
    driver.to_host(v.data(), from, n * sizeof(T));
    return v;
}

}  // namespace prism::test
