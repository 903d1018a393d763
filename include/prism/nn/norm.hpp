// LayerNorm, RmsNorm, LayerScale.
#pragma once

#include "prism/core/fields.hpp"
#include "prism/nn/param.hpp"
#include "prism/ops/rows.hpp"

namespace prism {

/// y = (x - mean) / sqrt(var + eps) * weight + bias, per row.
template <Backend B>
struct LayerNorm {
    Param<B> weight, bias;  // [d]
    float    eps = 1e-5f;

    static constexpr auto params = fields(field("weight", &LayerNorm::weight), field("bias", &LayerNorm::bias));

    LayerNorm() = default;
    LayerNorm(std::size_t d, float epsilon) : weight({d}), bias({d}), eps(epsilon) {}

    void forward(B& be, In<B> x, Mat<B> y) const { ops::layer_norm<B>(be, x, weight.view(), bias.view(), eps, y); }
};

/// y = x / sqrt(mean(x^2) + eps) * weight, per row.
template <Backend B>
struct RmsNorm {
    Param<B> weight;  // [d]
    float    eps = 1e-5f;

    static constexpr auto params = fields(field("weight", &RmsNorm::weight));

    RmsNorm() = default;
    RmsNorm(std::size_t d, float epsilon) : weight({d}), eps(epsilon) {}

    void forward(B& be, In<B> x, Mat<B> y) const { ops::rms_norm<B>(be, x, weight.view(), eps, y); }
    /// The same for a branch of a block, whose products may norm their rows as they read them: x, and room for when they do not.
    ops::NormedRows<B> of(In<B> x, Mat<B> room) const { return {x, weight.view(), eps, room}; }
};

/// One factor per column of a residual branch; absent in most towers.
template <Backend B>
struct LayerScale {
    Param<B> gamma;  // [d]

    static constexpr auto params = fields(field("gamma", &LayerScale::gamma));

    LayerScale() = default;
    explicit LayerScale(std::size_t d) : gamma({d}) {}
};

}  // namespace prism
