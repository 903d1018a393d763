// What nvcc wants in front of a function that runs on a device. Kernels are ordinary C++ for every other compiler: that
// is how they run on the processor in tests (host_block.hpp). For the headers of this folder only.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define PRISM_DEVICE __device__
#define PRISM_HOST_DEVICE __host__ __device__
#else
#define PRISM_DEVICE
#define PRISM_HOST_DEVICE
#endif
#if defined(__CUDA_ARCH__)  // not where nvcc's host compiler would read it
#define PRISM_UNROLL _Pragma("unroll")
#define PRISM_NO_UNROLL _Pragma("unroll 1")  // where the compiler's own choice would cost registers that others need
#else
#define PRISM_UNROLL
#define PRISM_NO_UNROLL
#endif

namespace prism::cuda {

// The standard's own are not for devices, without a flag that users would have to give.
template <class T>
PRISM_HOST_DEVICE constexpr T smaller(T a, T b) {
    return b < a ? b : a;
}
template <class T>
PRISM_HOST_DEVICE constexpr T larger(T a, T b) {
    return a < b ? b : a;
}
template <class T>
PRISM_HOST_DEVICE constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

/// Rows of a matrix as kernels get them: a plain value. `ld` counts elements between the starts of two rows.
template <class T>
struct Rows {
    T*            data = nullptr;
    std::int32_t  rows = 0, cols = 0;
    std::int64_t  ld = 0;

    PRISM_HOST_DEVICE T* row(std::int64_t i) const { return data + i * ld; }
};

}  // namespace prism::cuda
