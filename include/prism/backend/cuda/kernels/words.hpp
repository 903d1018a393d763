// Registers of 32 bits that come and go 8 or 16 bytes at a time, and what floats they hold.
#pragma once

#include "prism/backend/cuda/annotate.hpp"
#include "prism/backend/cuda/numbers.hpp"

#include <type_traits>

namespace prism::cuda {

template <int n>
struct Words {
    std::uint32_t at[n];
};

/// 4 n bytes, n 1, 2 or 4, from an address that is a multiple of them.
template <int n>
PRISM_DEVICE Words<n> load_words(const void* from) {
    Words<n> w;
#if defined(__CUDA_ARCH__)
    if constexpr (n == 4) {
        const uint4 u = *static_cast<const uint4*>(from);
        w.at[0] = u.x, w.at[1] = u.y, w.at[2] = u.z, w.at[3] = u.w;
    } else if constexpr (n == 2) {
        const uint2 u = *static_cast<const uint2*>(from);
        w.at[0] = u.x, w.at[1] = u.y;
    } else {
        w.at[0] = *static_cast<const std::uint32_t*>(from);
    }
#else
    memcpy(&w, from, sizeof w);
#endif
    return w;
}
template <int n>
PRISM_DEVICE void store_words(void* to, const Words<n>& w) {
#if defined(__CUDA_ARCH__)
    if constexpr (n == 4) *static_cast<uint4*>(to) = make_uint4(w.at[0], w.at[1], w.at[2], w.at[3]);
    else if constexpr (n == 2) *static_cast<uint2*>(to) = make_uint2(w.at[0], w.at[1]);
    else *static_cast<std::uint32_t*>(to) = w.at[0];
#else
    memcpy(to, &w, sizeof w);
#endif
}

template <int n>
struct Floats {
    float at[n];
};

/// n neighbours as f32, from an address that is a multiple of n elements' bytes; so many that they are whole registers.
template <int n, class T>
PRISM_DEVICE Floats<n> load_floats(const T* from) {
    constexpr int  bytes = n * static_cast<int>(sizeof(T)), words = bytes < 16 ? bytes / 4 : 4;
    constexpr int  each = 4 / static_cast<int>(sizeof(T));
    Floats<n>      x;
    PRISM_UNROLL
    for (int i = 0; i < bytes / 4 / words; ++i) {
        const Words<words> w = load_words<words>(from + i * words * each);
        PRISM_UNROLL
        for (int j = 0; j < words; ++j) {
            if constexpr (std::is_same_v<T, float>) {
                x.at[i * words + j] = float_of(w.at[j]);
            } else {
                x.at[2 * (i * words + j)] = from_bf16(w.at[j] & 0xffffU);
                x.at[2 * (i * words + j) + 1] = float_of(w.at[j] & 0xffff0000U);
            }
        }
    }
    return x;
}
template <int n>
PRISM_DEVICE void store_floats(float* to, const Floats<n>& x) {
    constexpr int words = n < 4 ? n : 4;
    PRISM_UNROLL
    for (int i = 0; i < n / words; ++i) {
        Words<words> w;
        PRISM_UNROLL
        for (int j = 0; j < words; ++j) w.at[j] = bits_of(x.at[i * words + j]);
        store_words<words>(to + i * words, w);
    }
}
/// The same rounded to bf16; n is 2, 4 or 8, or 1, anywhere.
template <int n>
PRISM_DEVICE void store_floats(bf16_t* to, const Floats<n>& x) {
    if constexpr (n == 1) {
        store(to, x.at[0]);
    } else {
        Words<n / 2> w;
        PRISM_UNROLL
        for (int i = 0; i < n / 2; ++i) w.at[i] = pack_bf16(x.at[2 * i], x.at[2 * i + 1]);
        store_words<n / 2>(to, w);
    }
}

}  // namespace prism::cuda
