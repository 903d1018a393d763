// Operations on the rows of a matrix, one row at a time: norms, activations, sums, copies.
#pragma once

#include "prism/backend/concept.hpp"

namespace prism::ops {

/// y = (x - mean) / sqrt(var + eps) * weight + bias per row of x [n, d]; biased variance. y may be x.
template <Backend B>
void layer_norm(B& be, In<B> x, Vec<B, const float> weight, Vec<B, const float> bias, float eps, Mat<B> y) {
    expect("layer_norm", "weight", {x.cols()}, weight);
    expect("layer_norm", "bias", {x.cols()}, bias);
    expect("layer_norm", "y", x.shape(), y);
    be.layer_norm(x, weight, bias, eps, y);
}

/// y = x / sqrt(mean(x^2) + eps) * weight per row of x [n, d]. y may be x.
template <Backend B>
void rms_norm(B& be, In<B> x, Vec<B, const float> weight, float eps, Mat<B> y) {
    expect("rms_norm", "weight", {x.cols()}, weight);
    expect("rms_norm", "y", x.shape(), y);
    be.rms_norm(x, weight, eps, y);
}

/// Rows on their way through a norm: x as it is, or with a weight what rms_norm makes of x [n, d]. Some backends' products norm
/// their rows as they read them; for all other readers there is room, a matrix like x.
template <Backend B>
class NormedRows {
public:
    NormedRows(In<B> x) : x_(x) {}
    NormedRows(Mat<B> x) : x_(x) {}
    /// room must not be x, which stays. Throws ShapeError.
    NormedRows(In<B> x, Vec<B, const float> weight, float eps, Mat<B> room) : x_(x), weight_(weight), eps_(eps), room_(room), normed_(false) {
        expect("rms_norm", "weight", {x.cols()}, weight);
        expect("rms_norm", "y", x.shape(), room);
    }

    bool                normed() const { return normed_; }
    In<B>               x() const { return x_; }
    Vec<B, const float> weight() const { return weight_; }
    float               eps() const { return eps_; }
    std::size_t         n_rows() const { return x_.rows(); }
    /// The rows normed, by a step of its own where that has not been done.
    In<B> in_room(B& be) const {
        if (normed_) return x_;
        rms_norm<B>(be, x_, weight_, eps_, room_);
        return room_;
    }

private:
    In<B>               x_;
    Vec<B, const float> weight_{};
    float               eps_ = 0;
    Mat<B>              room_{};
    bool                normed_ = true;
};

/// x = act(x), element by element.
template <Backend B>
void activate(B& be, Activation act, Mat<B> x) {
    if (act != Activation::none) be.activate(act, x);
}

/// y = silu(gate) * up, element by element. y may be either.
template <Backend B>
void silu_mul(B& be, In<B> gate, In<B> up, Mat<B> y) {
    expect("silu_mul", "up", gate.shape(), up);
    expect("silu_mul", "y", gate.shape(), y);
    be.silu_mul(gate, up, y);
}

/// x += gamma * h with one gamma per column; plain x += h where gamma is empty.
template <Backend B>
void add_scaled(B& be, In<B> h, Vec<B, const float> gamma, Mat<B> x) {
    expect("add_scaled", "x", h.shape(), x);
    if (!gamma.empty()) expect("add_scaled", "gamma", {h.cols()}, gamma);
    be.add_scaled(h, gamma, x);
}

/// x += h
template <Backend B>
void add(B& be, In<B> h, Mat<B> x) {
    add_scaled<B>(be, h, {}, x);
}

/// x [n m, d] += table [m, d], repeated n times.
template <Backend B>
void add_table(B& be, In<B> table, Mat<B> x) {
    expect("add_table", "x", {any, table.cols()}, x);
    if (table.rows() == 0 || x.rows() % table.rows() != 0)
        throw ShapeError{"add_table", "x", "a multiple of " + std::to_string(table.rows()) + " rows", std::to_string(x.rows())};
    be.add_table(table, x);
}

/// y = x
template <Backend B>
void copy(B& be, In<B> x, Mat<B> y) {
    expect("copy", "y", x.shape(), y);
    be.copy(x, y);
}

}  // namespace prism::ops
