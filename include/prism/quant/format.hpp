// Weight formats: how a file or a packed matrix stores the values of a weight. A format is a block layout, its decoder
// and its encoder; sums over it are kept in f32 (products of int8 in i32) whatever it is.
//
//     bf16::decode(blocks, values);    q4::encode(values, blocks);    Packed<bf16, host> w{data, d_out, d_in, d_in};
#pragma once

#include "prism/core/dtype.hpp"
#include "prism/core/error.hpp"
#include "prism/core/view.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

namespace prism {

namespace detail {

/// One value a block: the plain formats.
template <class T>
struct PlainFormat {
    static constexpr std::size_t values_per_block = 1;
    using block = T;
    static void decode(std::span<const block> packed, std::span<float> values) {
        for (std::size_t i = 0; i < packed.size(); ++i) values[i] = static_cast<float>(packed[i]);
    }
    /// Rounds to nearest, ties to even.
    static void encode(std::span<const float> values, std::span<block> packed) {
        for (std::size_t i = 0; i < packed.size(); ++i) packed[i] = block(values[i]);
    }
};

/// The scale of a block with a value that is no finite number: all of them become NaN, so that they are found.
inline constexpr fp16_t no_number{std::numeric_limits<float>::quiet_NaN()};
inline bool all_finite(std::span<const float> values) {
    return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

inline float largest_magnitude(std::span<const float> values) {
    float most = 0;
    for (float x : values) most = std::max(most, std::fabs(x));
    return most;
}

}  // namespace detail

struct f32 : detail::PlainFormat<float> {
    static constexpr std::string_view name = "f32";
    static constexpr Dtype            dtype = Dtype::f32;
};

struct bf16 : detail::PlainFormat<bf16_t> {
    static constexpr std::string_view name = "bf16";
    static constexpr Dtype            dtype = Dtype::bf16;
};

struct f16 : detail::PlainFormat<fp16_t> {
    static constexpr std::string_view name = "f16";
    static constexpr Dtype            dtype = Dtype::f16;
};

/// Eight bits a value, one f16 scale for 32 of them: value = scale q. The layout of GGUF's Q8_0.
struct q8 {
    static constexpr std::string_view name = "q8";
    static constexpr Dtype            dtype = Dtype::q8;
    static constexpr std::size_t      values_per_block = 32;
    struct block { fp16_t scale; std::int8_t q[values_per_block]; };
    static_assert(sizeof(block) == 34);

    static void decode(std::span<const block> packed, std::span<float> values) {
        for (std::size_t b = 0; b < packed.size(); ++b)
            for (std::size_t i = 0; i < values_per_block; ++i)
                values[b * values_per_block + i] = static_cast<float>(packed[b].scale) * static_cast<float>(packed[b].q[i]);
    }
    static void encode(std::span<const float> values, std::span<block> packed) {
        for (std::size_t b = 0; b < packed.size(); ++b) {
            const auto   x = values.subspan(b * values_per_block, values_per_block);
            if (!detail::all_finite(x)) {
                packed[b] = {detail::no_number, {}};
                continue;
            }
            const fp16_t scale{detail::largest_magnitude(x) / 127};
            const float  inverse = static_cast<float>(scale) > 0 ? 1 / static_cast<float>(scale) : 0;
            packed[b].scale = scale;
            for (std::size_t i = 0; i < values_per_block; ++i)
                packed[b].q[i] = static_cast<std::int8_t>(std::clamp(std::nearbyint(x[i] * inverse), -127.0f, 127.0f));
        }
    }
};

/// Four bits a value, one f16 scale for 32 of them: value = scale (q - 8). The layout of GGUF's Q4_0: byte j holds value j
/// in its low half and value j + 16 in its high one.
struct q4 {
    static constexpr std::string_view name = "q4";
    static constexpr Dtype            dtype = Dtype::q4;
    static constexpr std::size_t      values_per_block = 32;
    struct block { fp16_t scale; std::uint8_t q[values_per_block / 2]; };
    static_assert(sizeof(block) == 18);

    static void decode(std::span<const block> packed, std::span<float> values) {
        for (std::size_t b = 0; b < packed.size(); ++b)
            for (std::size_t j = 0; j < 16; ++j) {
                const auto scale = static_cast<float>(packed[b].scale);
                values[b * 32 + j] = scale * static_cast<float>((packed[b].q[j] & 15) - 8);
                values[b * 32 + j + 16] = scale * static_cast<float>((packed[b].q[j] >> 4) - 8);
            }
    }
    /// The value of largest magnitude is met exactly, at -8 or close to it at 7, whichever scale errs less on the block.
    static void encode(std::span<const float> values, std::span<block> packed) {
        for (std::size_t b = 0; b < packed.size(); ++b) {
            const auto  x = values.subspan(b * values_per_block, values_per_block);
            if (!detail::all_finite(x)) {
                packed[b] = {detail::no_number, {}};
                continue;
            }
            const float most = *std::max_element(x.begin(), x.end(), [](float a, float c) { return std::fabs(a) < std::fabs(c); });
            block       best{};
            double      least = INFINITY;
            for (float steps : {-8.0f, -7.5f, 7.0f, -7.0f, 8.0f}) {
                block        tried{fp16_t{most / steps}, {}};
                const float  scale = tried.scale, inverse = scale != 0 ? 1 / scale : 0;
                const auto   level = [&](float v) { return static_cast<unsigned>(std::clamp(std::nearbyint(v * inverse) + 8, 0.0f, 15.0f)); };
                double       error = 0;
                for (std::size_t j = 0; j < 16; ++j) {
                    const unsigned low = level(x[j]), high = level(x[j + 16]);
                    tried.q[j] = static_cast<std::uint8_t>(low | high << 4);
                    for (const auto& [v, q] : {std::pair{x[j], low}, std::pair{x[j + 16], high}}) {
                        const double d = static_cast<double>(v) - static_cast<double>(scale) * (static_cast<double>(q) - 8);
                        error += d * d;
                    }
                }
                if (error < least) least = error, best = tried;
            }
            packed[b] = best;
        }
    }
};

/// Four bits a value, one f16 scale and one f16 minimum for 32 of them: value = scale q + minimum. GGUF's Q4_1.
struct q4m {
    static constexpr std::string_view name = "q4m";
    static constexpr Dtype            dtype = Dtype::q4m;
    static constexpr std::size_t      values_per_block = 32;
    struct block { fp16_t scale, minimum; std::uint8_t q[values_per_block / 2]; };
    static_assert(sizeof(block) == 20);

    static void decode(std::span<const block> packed, std::span<float> values) {
        for (std::size_t b = 0; b < packed.size(); ++b)
            for (std::size_t j = 0; j < 16; ++j) {
                const float scale = packed[b].scale, minimum = packed[b].minimum;
                values[b * 32 + j] = scale * static_cast<float>(packed[b].q[j] & 15) + minimum;
                values[b * 32 + j + 16] = scale * static_cast<float>(packed[b].q[j] >> 4) + minimum;
            }
    }
    static void encode(std::span<const float> values, std::span<block> packed) {
        for (std::size_t b = 0; b < packed.size(); ++b) {
            const auto x = values.subspan(b * values_per_block, values_per_block);
            block&     to = packed[b];
            if (!detail::all_finite(x)) {
                to = {detail::no_number, detail::no_number, {}};
                continue;
            }
            const auto [low, high] = std::minmax_element(x.begin(), x.end());
            to.minimum = fp16_t{*low};
            to.scale = fp16_t{(*high - static_cast<float>(to.minimum)) / 15};
            const float inverse = static_cast<float>(to.scale) > 0 ? 1 / static_cast<float>(to.scale) : 0;
            const auto  level = [&](float v) {
                return static_cast<unsigned>(std::clamp(std::nearbyint((v - static_cast<float>(to.minimum)) * inverse), 0.0f, 15.0f));
            };
            for (std::size_t j = 0; j < 16; ++j) to.q[j] = static_cast<std::uint8_t>(level(x[j]) | level(x[j + 16]) << 4);
        }
    }
};

template <class F>
concept Format = requires(std::span<const typename F::block> packed, std::span<float> values, std::span<const float> numbers,
                          std::span<typename F::block> blocks) {
    { F::name } -> std::convertible_to<std::string_view>;
    { F::dtype } -> std::convertible_to<Dtype>;
    { F::values_per_block } -> std::convertible_to<std::size_t>;
    F::decode(packed, values);
    F::encode(numbers, blocks);
};

/// A list of formats; a shorter one trims what is compiled.
template <Format... F>
struct format_list {};

/// Every format that a weight may have.
using all_formats = format_list<f32, bf16, f16, q8, q4, q4m>;

/// Blocks of one row of so many values; the last block may be partly unused.
template <Format F>
constexpr std::size_t blocks_per_row(std::size_t cols) {
    return (cols + F::values_per_block - 1) / F::values_per_block;
}

/// Calls f(Format) for the format that stores this type. Throws ConfigError that lists the formats where there is none.
template <class Fn, Format... F>
void with_format(Dtype dtype, format_list<F...>, Fn&& f) {
    if (((dtype == F::dtype ? (f(F{}), true) : false) || ...)) return;
    std::string names;
    ((names += (names.empty() ? "" : ", ") + std::string(F::name)), ...);
    throw ConfigError{"weights", std::string(to_string(dtype)), names};
}

/// The type of the format of that name ("q4"). Throws ConfigError that lists the names.
template <Format... F>
Dtype format_from_name(std::string_view name, format_list<F...>) {
    Dtype found = Dtype::other;
    ((name == F::name ? static_cast<void>(found = F::dtype) : void()), ...);
    if (found != Dtype::other) return found;
    std::string names;
    ((names += (names.empty() ? "" : ", ") + std::string(F::name)), ...);
    throw ConfigError{"weights", std::string(name), names};
}

/// Bytes that n values take in the format of this type, in rows without loose ends; 0 for types that are no format.
inline std::uint64_t stored_bytes(Dtype dtype, std::uint64_t n) {
    std::uint64_t bytes = 0;
    const auto    of = [&]<Format... F>(format_list<F...>) {
        ((dtype == F::dtype ? static_cast<void>(bytes = (n + F::values_per_block - 1) / F::values_per_block * sizeof(typename F::block)) : void()), ...);
    };
    of(all_formats{});
    return bytes;
}

/// A weight matrix [rows, cols] = [d_out, d_in] in format `F`: row after row, or in panels (quant/panels.hpp). Owns nothing.
template <Format F, class Space>
struct Packed {
    using format = F;
    const typename F::block* data = nullptr;
    std::size_t              rows = 0, cols = 0;
    std::size_t              stride = 0;        // blocks between the starts of two rows
    const std::byte*         panels = nullptr;  // panel 0 of the matrix, where it lies in panels; data is null then
    std::size_t              first = 0;         // row of the panels that is row 0 here
    bool                     partial = false;   // some columns of a matrix: what other ranks make of theirs is to be added
};

}  // namespace prism
