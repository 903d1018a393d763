// Mlp and GatedMlp: the feed-forward halves of blocks.
#pragma once

#include "prism/core/workspace.hpp"
#include "prism/nn/linear.hpp"
#include "prism/ops/rows.hpp"

namespace prism {

/// fc2(act(fc1(x))). x [n, d], out [n, d]; out may be x.
template <Backend B>
struct Mlp {
    Linear<B>  fc1, fc2;
    Activation act = Activation::gelu_erf;

    static constexpr auto params = fields(field("fc1", &Mlp::fc1), field("fc2", &Mlp::fc2));

    Mlp() = default;
    Mlp(std::size_t d, std::size_t d_ff, Activation activation) : fc1(d, d_ff), fc2(d_ff, d), act(activation) {}

    void forward(B& be, Workspace<B>& ws, In<B> x, Mat<B> out) const {
        auto   scope = ws.scope();
        Mat<B> h = ws.mat(x.rows(), fc1.d_out());
        fc1.forward(be, x, h, act);
        fc2.forward(be, h, out);
    }
    /// out += gamma fc2(act(fc1(x))); an empty gamma is one. out must not be x.
    void forward_add(B& be, Workspace<B>& ws, In<B> x, Vec<B, const float> gamma, Mat<B> out) const {
        auto   scope = ws.scope();
        Mat<B> h = ws.mat(x.rows(), fc1.d_out());
        fc1.forward(be, x, h, act);
        fc2.forward_add(be, h, gamma, out);
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
    void forward(B& be, Workspace<B>& ws, In<B> x, Mat<B> out) const {
        auto scope = ws.scope();
        down_proj.forward(be, gated(be, ws, x), out);
    }
    /// out += mlp(x)
    void forward_add(B& be, Workspace<B>& ws, In<B> x, Mat<B> out) const {
        auto scope = ws.scope();
        down_proj.forward_add(be, gated(be, ws, x), {}, out);
    }

private:
    Mat<B> gated(B& be, Workspace<B>& ws, In<B> x) const {
        Mat<B> h = ws.mat(x.rows(), gate_proj.d_out());
        if (gate_proj.weight.dtype() == up_proj.weight.dtype()) {
            ops::gated_linear<B>(be, x, gate_proj.weight.any(), up_proj.weight.any(), h);
        } else {
            Mat<B> up = ws.like(h);
            gate_proj.forward(be, x, h);
            up_proj.forward(be, x, up);
            ops::silu_mul<B>(be, h, up, h);
        }
        return h;
    }
};

}  // namespace prism
