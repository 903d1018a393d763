// Products with weights, and the rows of a weight as embeddings.
#pragma once

#include "prism/ops/rows.hpp"

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace prism::ops {

/// y [n, d_out] = act(x [n, d_in] * w^T + bias)          w is [d_out, d_in]; an empty bias is none. y must not be x.
/// Throws ShapeError naming op, argument, expected and found.
template <Backend B, Format F>
void linear(B& be, In<B> x, const Packed<F, typename B::space>& w, Vec<B, const float> bias, Mat<B> y,
            Activation act = Activation::none) {
    expect("linear", "x", {any, w.cols}, x);
    expect("linear", "y", {x.rows(), w.rows}, y);
    if (!bias.empty()) expect("linear", "bias", {w.rows}, bias);
    be.gemm(x, w, {.bias = bias, .act = act}, y);  // backends receive checked arguments and check nothing
}

/// y [n, d_out] += gamma (x [n, d_in] * w^T + bias): a residual branch that ends in a product. An empty gamma is one. y must
/// not be x. Throws ShapeError.
template <Backend B, Format F>
void linear_add(B& be, In<B> x, const Packed<F, typename B::space>& w, Vec<B, const float> bias, Vec<B, const float> gamma, Mat<B> y) {
    expect("linear_add", "x", {any, w.cols}, x);
    expect("linear_add", "y", {x.rows(), w.rows}, y);
    if (!bias.empty()) expect("linear_add", "bias", {w.rows}, bias);
    if (!gamma.empty()) expect("linear_add", "gamma", {w.rows}, gamma);
    be.gemm(x, w, {.bias = bias, .act = Activation::none, .add = true, .gamma = gamma}, y);
}

/// Several products with the same rows: y = x w^T + bias for each part. Throws ShapeError.
template <Backend B>
void linear_each(B& be, const NormedRows<B>& x, std::span<const ProductPart<typename B::space>> parts) {
    for (const auto& part : parts) {
        expect("linear_each", "x", {any, part.w.cols}, x.x());
        expect("linear_each", "y", {x.n_rows(), part.w.rows}, part.y);
        if (!part.bias.empty()) expect("linear_each", "bias", {part.w.rows}, part.bias);
    }
    if constexpr (requires { { be.rms_gemm_each(x.x(), x.weight(), x.eps(), parts) } -> std::same_as<bool>; })
        if (!x.normed() && be.rms_gemm_each(x.x(), x.weight(), x.eps(), parts)) return;
    be.gemm_each(x.in_room(be), parts);
}

/// y [n, d_ff] = silu(x gate^T) (x up^T), element by element; gate and up are [d_ff, d_in] in one format. Throws ShapeError.
template <Backend B>
void gated_linear(B& be, const NormedRows<B>& x, const AnyPacked<typename B::space>& gate, const AnyPacked<typename B::space>& up, Mat<B> y) {
    expect("gated_linear", "x", {any, gate.cols}, x.x());
    expect("gated_linear", "y", {x.n_rows(), gate.rows}, y);
    if (up.rows != gate.rows || up.cols != gate.cols || up.dtype != gate.dtype || (up.panels == nullptr) != (gate.panels == nullptr))
        throw ShapeError{"gated_linear", "up", to_string(std::vector{gate.rows, gate.cols}) + " in " + std::string(to_string(gate.dtype)),
                         to_string(std::vector{up.rows, up.cols}) + " in " + std::string(to_string(up.dtype))};
    if constexpr (requires { { be.rms_gemm_gated(x.x(), x.weight(), x.eps(), gate, up, y) } -> std::same_as<bool>; })
        if (!x.normed() && be.rms_gemm_gated(x.x(), x.weight(), x.eps(), gate, up, y)) return;
    be.gemm_gated(x.in_room(be), gate, up, y);
}

/// y [n, d] = the rows `ids` of w [vocab, d], as f32. Throws ShapeError when an id is no row.
template <Backend B, Format F>
void gather(B& be, const Packed<F, typename B::space>& w, std::span<const std::int32_t> ids, Mat<B> y) {
    expect("gather", "y", {ids.size(), w.cols}, y);
    for (std::int32_t id : ids)
        if (id < 0 || static_cast<std::size_t>(id) >= w.rows)
            throw ShapeError{"gather", "ids", "0 ... " + std::to_string(w.rows - 1), std::to_string(id)};
    be.gather(w, ids, y);
}

}  // namespace prism::ops
