// Element types: what a file can hold, and the two 16-bit floats with their conversions.
//
//     prism::bf16_t b{1.5f};   float x = b;            // rounds to nearest, ties to even
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace prism {

/// The element types that weight files use. Names are those of safetensors.
enum class Dtype : std::uint8_t {
    f32, f16, bf16, f64, i64, i32, i16, i8, u64, u32, u16, u8, boolean, f8_e4m3, f8_e5m2,
    q8, q4, q4m,  // blocks of 32 values, see quant/format.hpp
    other         // listed, with its bytes, but not readable
};

constexpr std::string_view to_string(Dtype t) {
    constexpr std::array<std::string_view, 19> names{"F32", "F16", "BF16", "F64",     "I64",     "I32", "I16", "I8",  "U64",  "U32",
                                                     "U16", "U8",  "BOOL", "F8_E4M3", "F8_E5M2", "Q8",  "Q4",  "Q4M", "other"};
    return names[static_cast<std::size_t>(t)];
}

/// Bytes of one element; 0 for types without single elements: blocks of several, and Dtype::other.
constexpr std::size_t item_bytes(Dtype t) {
    constexpr std::array<std::size_t, 19> sizes{4, 2, 2, 8, 8, 4, 2, 1, 8, 4, 2, 1, 1, 1, 1, 0, 0, 0, 0};
    return sizes[static_cast<std::size_t>(t)];
}

/// bfloat16: the upper half of an IEEE binary32.
struct bf16_t {
    std::uint16_t bits = 0;

    bf16_t() = default;
    constexpr explicit bf16_t(float x) {
        const auto u = std::bit_cast<std::uint32_t>(x);
        if ((u & 0x7fffffffU) > 0x7f800000U) bits = static_cast<std::uint16_t>((u >> 16) | 0x40U);  // NaN stays NaN
        else bits = static_cast<std::uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
    }
    constexpr operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

/// IEEE binary16.
struct fp16_t {
    std::uint16_t bits = 0;

    fp16_t() = default;
    constexpr explicit fp16_t(float x) {
        const auto          u = std::bit_cast<std::uint32_t>(x);
        const std::uint32_t sign = (u >> 16) & 0x8000U, magnitude = u & 0x7fffffffU;
        if (magnitude > 0x7f800000U) bits = static_cast<std::uint16_t>(sign | 0x7e00U);        // NaN
        else if (magnitude >= 0x477ff000U) bits = static_cast<std::uint16_t>(sign | 0x7c00U);  // rounds to infinity
        else if (magnitude < 0x38800000U) {  // subnormal: adding 0.5 leaves the value in units of 2^-24, rounded to even
            const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
            bits = static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U));
        } else {
            const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
            bits = static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
        }
    }
    constexpr operator float() const {
        const std::uint32_t sign = (bits & 0x8000U) << 16, exponent = (bits >> 10) & 0x1fU, mantissa = bits & 0x3ffU;
        if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
        if (exponent == 0) {
            const float m = static_cast<float>(mantissa) * 0x1p-24f;
            return sign ? -m : m;
        }
        return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
    }
};

/// One element of type `t` at `p` (which need not be aligned), as a number.
inline double read_element(Dtype t, const std::byte* p) {
    const auto as = [p]<class T>(T value) {
        std::memcpy(&value, p, sizeof value);
        return static_cast<double>(value);
    };
    switch (t) {
        case Dtype::f32: return as(float{});
        case Dtype::f64: return as(double{});
        case Dtype::f16: { fp16_t h; std::memcpy(&h, p, 2); return static_cast<float>(h); }
        case Dtype::bf16: { bf16_t h; std::memcpy(&h, p, 2); return static_cast<float>(h); }
        case Dtype::i64: return as(std::int64_t{});
        case Dtype::i32: return as(std::int32_t{});
        case Dtype::i16: return as(std::int16_t{});
        case Dtype::i8: return as(std::int8_t{});
        case Dtype::u64: return as(std::uint64_t{});
        case Dtype::u32: return as(std::uint32_t{});
        case Dtype::u16: return as(std::uint16_t{});
        case Dtype::u8:
        case Dtype::boolean: return as(std::uint8_t{});
        case Dtype::f8_e5m2: {
            fp16_t h;
            h.bits = static_cast<std::uint16_t>(static_cast<unsigned>(*p) << 8);
            return static_cast<float>(h);
        }
        case Dtype::f8_e4m3: {
            const auto     b = static_cast<unsigned>(*p);
            const unsigned exponent = (b >> 3) & 15U, mantissa = b & 7U;
            if (exponent == 15 && mantissa == 7) return std::bit_cast<float>(0x7fc00000U);
            const float m = exponent ? static_cast<float>(8 + mantissa) * static_cast<float>(1U << exponent) * 0x1p-10f
                                     : static_cast<float>(mantissa) * 0x1p-9f;
            return b & 0x80U ? -m : m;
        }
        case Dtype::q8:
        case Dtype::q4:
        case Dtype::q4m:
        case Dtype::other: break;
    }
    return 0;
}

}  // namespace prism
