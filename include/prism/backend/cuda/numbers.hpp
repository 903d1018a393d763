// The 16-bit floats in registers of 32: conversions that give the same bits on device and processor.
#pragma once

#include "prism/backend/cuda/annotate.hpp"
#include "prism/core/dtype.hpp"

#include <cmath>
#include <cstring>
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace prism::cuda {

PRISM_HOST_DEVICE inline std::uint32_t bits_of(float x) {
    std::uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
PRISM_HOST_DEVICE inline float float_of(std::uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/// The bits of x as bfloat16, to nearest, ties to even; NaN stays NaN.
PRISM_HOST_DEVICE inline std::uint32_t bf16_bits(float x) {
#if defined(__CUDA_ARCH__)
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
    return bf16_t{x}.bits;
#endif
}
PRISM_HOST_DEVICE inline float from_bf16(std::uint32_t bits) { return float_of(bits << 16); }

/// The bits of x as IEEE binary16, to nearest, ties to even.
PRISM_HOST_DEVICE inline std::uint32_t f16_bits(float x) {
#if defined(__CUDA_ARCH__)
    return __half_as_ushort(__float2half_rn(x));
#else
    return fp16_t{x}.bits;
#endif
}
PRISM_HOST_DEVICE inline float from_f16(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#else
    fp16_t h;
    h.bits = static_cast<std::uint16_t>(bits);
    return h;
#endif
}

/// Two numbers as bfloat16 (or binary16) in one register, `low` in its lower half: what tensor cores read.
PRISM_HOST_DEVICE inline std::uint32_t pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);  // one instruction
    std::uint32_t        u;
    memcpy(&u, &both, sizeof u);
    return u;
#else
    return bf16_bits(low) | bf16_bits(high) << 16;
#endif
}
PRISM_HOST_DEVICE inline std::uint32_t pack_f16(float low, float high) {
#if defined(__CUDA_ARCH__)
    const __half2 both = __floats2half2_rn(low, high);
    std::uint32_t u;
    memcpy(&u, &both, sizeof u);
    return u;
#else
    return f16_bits(low) | f16_bits(high) << 16;
#endif
}

/// a b and a + b, each rounded: where an fma of the two would give other bits than the processor's.
PRISM_HOST_DEVICE inline float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
PRISM_HOST_DEVICE inline float rounded_sum(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}
PRISM_HOST_DEVICE inline double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}
PRISM_HOST_DEVICE inline double rounded_sum(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dadd_rn(a, b);
#else
    return a + b;
#endif
}

/// An element of the type that memory holds, as f32, and back.
PRISM_HOST_DEVICE inline float load(const float* p) { return *p; }
PRISM_HOST_DEVICE inline float load(const bf16_t* p) { return from_bf16(p->bits); }
PRISM_HOST_DEVICE inline float load(const fp16_t* p) { return from_f16(p->bits); }
PRISM_HOST_DEVICE inline void  store(float* p, float x) { *p = x; }
PRISM_HOST_DEVICE inline void  store(bf16_t* p, float x) { p->bits = static_cast<std::uint16_t>(bf16_bits(x)); }
PRISM_HOST_DEVICE inline void  store(fp16_t* p, float x) { p->bits = static_cast<std::uint16_t>(f16_bits(x)); }

}  // namespace prism::cuda
