// Weight formats: how a file or a packed matrix stores the values of a weight. A format is a block layout and its
// decoder; sums over it are kept in f32 whatever it is.
//
//     bf16::decode(blocks, values);    Packed<bf16, host> w{data, d_out, d_in, d_in};
#pragma once

#include "prism/core/dtype.hpp"
#include "prism/core/view.hpp"

#include <concepts>
#include <cstddef>
#include <span>
#include <string_view>

namespace prism {

struct f32 {
    static constexpr std::string_view name = "f32";
    static constexpr Dtype            dtype = Dtype::f32;
    static constexpr std::size_t      values_per_block = 1;
    using block = float;
    static void decode(std::span<const block> packed, std::span<float> values) {
        for (std::size_t i = 0; i < packed.size(); ++i) values[i] = packed[i];
    }
};

struct bf16 {
    static constexpr std::string_view name = "bf16";
    static constexpr Dtype            dtype = Dtype::bf16;
    static constexpr std::size_t      values_per_block = 1;
    using block = bf16_t;
    static void decode(std::span<const block> packed, std::span<float> values) {
        for (std::size_t i = 0; i < packed.size(); ++i) values[i] = packed[i];
    }
};

struct f16 {
    static constexpr std::string_view name = "f16";
    static constexpr Dtype            dtype = Dtype::f16;
    static constexpr std::size_t      values_per_block = 1;
    using block = fp16_t;
    static void decode(std::span<const block> packed, std::span<float> values) {
        for (std::size_t i = 0; i < packed.size(); ++i) values[i] = packed[i];
    }
};

template <class F>
concept Format = requires(std::span<const typename F::block> packed, std::span<float> values) {
    { F::name } -> std::convertible_to<std::string_view>;
    { F::values_per_block } -> std::convertible_to<std::size_t>;
    F::decode(packed, values);
};

/// A list of formats; a shorter one trims what is compiled.
template <Format... F>
struct format_list {};

/// Every format that a file may store a weight in.
using all_formats = format_list<f32, bf16, f16>;

/// A weight matrix [rows, cols] = [d_out, d_in] in format `F`. Owns nothing.
template <Format F, class Space>
struct Packed {
    using format = F;
    const typename F::block* data = nullptr;
    std::size_t              rows = 0, cols = 0;
    std::size_t              stride = 0;  // blocks between the starts of two rows
};

}  // namespace prism
