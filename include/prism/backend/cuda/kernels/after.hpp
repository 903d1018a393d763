// What follows a product, element by element, where its sums are written.
#pragma once

#include "prism/backend/cuda/annotate.hpp"
#include "prism/backend/types.hpp"

#include <cmath>

namespace prism::cuda {

PRISM_DEVICE inline float silu(float z) { return z / (1 + ::expf(-z)); }
/// The functions of Activation in f32.
PRISM_DEVICE inline float activated(Activation act, float z) {
    switch (act) {
        case Activation::gelu_erf: return 0.5f * z * (1 + ::erff(z * 0.70710678118654752f));
        case Activation::gelu_tanh: return 0.5f * z * (1 + ::tanhf(0.79788456080286536f * (z + 0.044715f * z * z * z)));
        case Activation::quick_gelu: return z / (1 + ::expf(-1.702f * z));
        case Activation::silu: return silu(z);
        case Activation::none: break;
    }
    return z;
}

/// An Epilogue as kernels take it: y = act(z + bias), with `add` y += gamma act(z + bias). Null: no bias, a gamma of one.
struct After {
    const float* bias = nullptr;
    const float* gamma = nullptr;
    Activation   act = Activation::none;
    bool         add = false;

    /// What the sum z of one column makes of the old y.
    PRISM_DEVICE float value(float z, std::int64_t column, float y) const {
        z = activated(act, bias ? z + bias[column] : z);
        return add ? gamma ? ::fmaf(gamma[column], z, y) : y + z : z;  // fused, or not, in every kernel alike
    }
    /// The sum z of one column, into y; of two products, silu(z) up.
    PRISM_DEVICE void write(float z, std::int64_t column, float* y) const { *y = value(z, column, add ? *y : 0); }
    PRISM_DEVICE void write_gated(float z, float up, std::int64_t column, float* y) const { write(silu(z) * up, column, y); }
};

/// One of several products of a launch with the same x: n outputs. `up`: y = silu(x w^T) (x up^T).
struct KernelJob {
    const std::byte* w = nullptr;
    const std::byte* up = nullptr;
    float*           y = nullptr;
    std::int64_t     ldy = 0;
    After            after{};
    std::int32_t     n = 0;
    std::int32_t     first_block = 0;  // of the launch
};

}  // namespace prism::cuda
