// Mlp and GatedMlp: the feed-forward halves of blocks.
#pragma once

#include "prism/core/workspace.hpp"
#include "prism/nn/linear.hpp"
#include "prism/ops/rows.hpp"

#include <array>

namespace prism {

/// act(fc(x)) in scratch that lives as long as the caller's scope.
template <Backend B, Keeper K>
Mat<B> activated(B& be, Workspace<B>& ws, const Linear<B>& fc, Activation act, In<B> x, K keep) {
    Mat<B> y = ws.mat(x.rows(), fc.d_out());
    if constexpr (K::keeps) {
        Mat<B> z = ws.like(y);
        fc.forward(be, ws, x, z, keep);
        ops::copy<B>(be, z, y);
        ops::activate<B>(be, act, y);
        keep("x", x), keep("z", z), keep("y", y);
    } else if (keep.adds()) {
        fc.forward(be, ws, x, y, keep);
        ops::activate<B>(be, act, y);
    } else {
        fc.forward(be, x, y, act);
    }
    return y;
}

/// fc2(act(fc1(x))). x [n, d], out [n, d]; out may be x.
template <Backend B>
struct Mlp {
    Linear<B>  fc1, fc2;
    Activation act = Activation::gelu_erf;

    static constexpr auto params = fields(field("fc1", &Mlp::fc1), field("fc2", &Mlp::fc2));

    Mlp() = default;
    Mlp(std::size_t d, std::size_t d_ff, Activation activation) : fc1(d, d_ff), fc2(d_ff, d), act(activation) {}

    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, In<B> x, Mat<B> out, K keep = {}) const {
        auto scope = keep.scope(ws);
        fc2.forward(be, ws, activated(be, ws, fc1, act, x, keep), out, keep);
    }
    /// out += gamma fc2(act(fc1(x))); an empty gamma is one. out must not be x.
    template <Keeper K = Forget>
    void forward_add(B& be, Workspace<B>& ws, In<B> x, Vec<B, const float> gamma, Mat<B> out, K keep = {}) const {
        auto scope = keep.scope(ws);
        fc2.forward_add(be, ws, activated(be, ws, fc1, act, x, keep), gamma, out, keep);
    }
};

/// down_proj(silu(gate_proj(x)) * up_proj(x)), without biases. x [n, d], out [n, d].
/// Source: transformers, models/llama/modeling_llama.py, class LlamaMLP.
template <Backend B>
struct GatedMlp {
    Linear<B> gate_proj, up_proj, down_proj;

    static constexpr auto params = fields(field("gate_proj", &GatedMlp::gate_proj), field("up_proj", &GatedMlp::up_proj),
                                          field("down_proj", &GatedMlp::down_proj));

    GatedMlp() = default;
    GatedMlp(std::size_t d, std::size_t d_ff) : gate_proj(d, d_ff, false), up_proj(d, d_ff, false), down_proj(d_ff, d, false) {}

    /// out = mlp(x); out may be x.
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, const ops::NormedRows<B>& x, Mat<B> out, K keep = {}) const {
        auto scope = keep.scope(ws);
        down_proj.forward(be, ws, gated(be, ws, x, keep), out, keep);
    }
    /// out += mlp(x); out may be what x is normed from.
    template <Keeper K = Forget>
    void forward_add(B& be, Workspace<B>& ws, const ops::NormedRows<B>& x, Mat<B> out, K keep = {}) const {
        auto scope = keep.scope(ws);
        down_proj.forward_add(be, ws, gated(be, ws, x, keep), {}, out, keep);
    }

private:
    template <Keeper K>
    Mat<B> gated(B& be, Workspace<B>& ws, const ops::NormedRows<B>& rows, K keep) const {
        Mat<B> h = ws.mat(rows.n_rows(), gate_proj.d_out());
        if (!K::keeps && !keep.adds() && gate_proj.weight.dtype() == up_proj.weight.dtype()) {
            ops::gated_linear<B>(be, rows, gate_proj.weight.any(), up_proj.weight.any(), h);
        } else {
            Mat<B>      up = ws.like(h), gate = keep.another(ws, h);
            const auto  read = rows_for(be, keep, rows);
            const In<B> x = read.x();
            ops::linear_each<B>(be, read, std::array<ProductPart<typename B::space>, 2>{{{gate_proj.weight.any(), {}, gate}, {up_proj.weight.any(), {}, up}}});
            keep.product(be, ws, &gate_proj.weight, x, gate), keep.product(be, ws, &up_proj.weight, x, up);
            ops::silu_mul<B>(be, gate, up, h);
            keep("x", x), keep("gate", gate), keep("up", up), keep("y", h);
        }
        return h;
    }
};

}  // namespace prism
