// Linear and Embedding: a weight applied to rows, and the rows of a weight.
#pragma once

#include "prism/core/fields.hpp"
#include "prism/nn/keeper.hpp"
#include "prism/nn/param.hpp"
#include "prism/ops/linear.hpp"
#include "prism/ops/rows.hpp"

#include <cstdint>
#include <span>

namespace prism {

/// y = x W^T + b. x [n, d_in], y [n, d_out].
template <Backend B, class Formats = all_formats>
struct Linear {
    Weight<B, Formats> weight;  // [d_out, d_in], in whatever format the file stores
    Param<B>           bias;    // [d_out]; absent when the configuration says so

    static constexpr auto params = fields(field("weight", &Linear::weight), field("bias", &Linear::bias));

    Linear() = default;
    Linear(std::size_t d_in, std::size_t d_out, bool has_bias = true)
        : weight({d_out, d_in}), bias(has_bias ? Param<B>({d_out}) : Param<B>{}) {}

    std::size_t d_in() const { return weight.cols(); }
    std::size_t d_out() const { return weight.rows(); }

    void forward(B& be, In<B> x, Mat<B> y, Activation act = Activation::none) const {  // one branch per call, none per element
        weight.visit([&](const auto& w) { ops::linear<B>(be, x, w, bias.view(), y, act); });
    }
    /// The same, and what a keeper adds to it.
    template <Keeper K>
    void forward(B& be, Workspace<B>& ws, In<B> x, Mat<B> y, K keep) const {
        forward(be, x, y);
        keep.product(be, ws, &weight, x, y);
    }
    /// y += gamma (x W^T + b); an empty gamma is one.
    void forward_add(B& be, In<B> x, Vec<B, const float> gamma, Mat<B> y) const {
        weight.visit([&](const auto& w) { ops::linear_add<B>(be, x, w, bias.view(), gamma, y); });
    }
    /// The same as the end of a branch, which a keeper keeps where gamma needs it.
    template <Keeper K>
    void forward_add(B& be, Workspace<B>& ws, In<B> x, Vec<B, const float> gamma, Mat<B> y, K keep) const {
        if constexpr (K::keeps) {
            if (!gamma.empty()) {
                Mat<B> branch = ws.like(y);
                forward(be, ws, x, branch, keep);
                keep("branch", branch);
                return ops::add_scaled<B>(be, branch, gamma, y);
            }
        }
        forward_add(be, x, gamma, y);
        keep.product(be, ws, &weight, x, y);
    }
};

/// Rows as products are to read them: normed beforehand where a keeper wants to see what they read.
template <Backend B, Keeper K>
ops::NormedRows<B> rows_for(B& be, const K& keep, const ops::NormedRows<B>& x) {
    if (K::keeps || keep.adds()) return x.in_room(be);
    return x;
}

/// Rows of a table by their index. weight [n_rows, d]; with `in_products` it is the matrix of a product as well.
template <Backend B, class Formats = all_formats>
struct Embedding {
    Weight<B, Formats> weight;

    static constexpr auto params = fields(field("weight", &Embedding::weight));

    Embedding() = default;
    Embedding(std::size_t n_rows, std::size_t d, bool in_products = false) : weight({n_rows, d}, in_products ? WeightUse::products : WeightUse::lookups) {}

    /// y [n, d] = the rows of these ids. Throws ShapeError for an id that is no row.
    void forward(B& be, std::span<const std::int32_t> ids, Mat<B> y) const {
        weight.visit([&](const auto& w) { ops::gather<B>(be, w, ids, y); });
    }
};

}  // namespace prism
