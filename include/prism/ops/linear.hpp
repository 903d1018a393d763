// Products with weights, and the rows of a weight as embeddings.
#pragma once

#include "prism/backend/concept.hpp"

#include <cstdint>
#include <span>
#include <string>

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
