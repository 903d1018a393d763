// The backward passes of nn: found by overload, so that a module's backward reads like its forward, last line first.
//
//     backward(be, ws, m, kept, dy, dx, grads)
//
// `kept` is the keeper that forward was given (modules that keep no more than their input take that input instead). `dy` is the
// gradient of what forward wrote; `dx`, that of its input, is written, or left out where it is empty. `grads` is a module of
// the same type whose leaves are places in an arena (arena.hpp); gradients are added there. Null: the module is frozen, and no
// work is done for it.
#pragma once

#include "prism/nn/attention.hpp"
#include "prism/nn/mlp.hpp"
#include "prism/nn/norm.hpp"
#include "prism/train/arena.hpp"
#include "prism/train/tape.hpp"

namespace prism {

/// dx += with `add`.
template <TrainingBackend B, class F>
void backward(B& be, const Linear<B, F>& m, In<B> x, In<B> dy, Mat<B> dx, Linear<B, F>* grads, bool add = false) {
    if (!dx.empty()) m.weight.visit([&](const auto& w) { ops::linear_dx<B>(be, dy, w, dx, add); });
    if (!grads) return;
    if (const Mat<B> dw = gradient(grads->weight); !dw.empty()) ops::linear_dw<B>(be, dy, x, dw);
    if (const Vec<B> db = gradient(grads->bias); !db.empty()) ops::column_sums<B>(be, dy, db);
}

/// The same where adapters may stand in for the weight; its input was kept under `name`.
template <TrainingBackend B, class F>
void backward(B& be, Workspace<B>& ws, const Linear<B, F>& m, Keep<B> kept, const char* name, In<B> dy, Mat<B> dx, Linear<B, F>* grads, bool add = false) {
    const In<B> x = kept[name];
    backward(be, m, x, dy, dx, grads, add);
    const LowRank<B>* const low = kept.adapter(&m.weight);
    if (!low) return;
    auto         scope = ws.scope();
    const bool   drops = low->dropout > 0;
    const Mat<B> inner = ws.mat(x.rows(), low->a.rows()), scaled = ws.like(inner);
    In<B>        seen = x;  // what the adapter saw of it
    if (drops) {
        const Mat<B> d = ws.like(x);
        ops::copy<B>(be, x, d);
        kept.drop(be, *low, d);
        seen = d;
    }
    const auto scale = [&](Vec<B> factor) {
        ops::clear<B>(be, scaled);
        ops::add_scaled<B>(be, inner, factor, scaled);
    };
    ops::linear<B>(be, seen, detail::as_weight<B>(low->a), {}, inner);
    scale(low->factor);
    ops::linear_dw<B>(be, dy, scaled, low->db);
    ops::linear_dx<B>(be, dy, detail::as_weight<B>(low->b), inner);
    if (drops && !dx.empty()) {  // dx holds the gradient through all of x: less that of the adapter, and that through what it saw
        const Mat<B> d = ws.like(dx);
        scale(low->opposite);
        ops::linear_dx<B>(be, scaled, detail::as_weight<B>(low->a), dx, true);
        scale(low->factor);
        ops::linear_dx<B>(be, scaled, detail::as_weight<B>(low->a), d);
        kept.drop(be, *low, d);
        ops::add<B>(be, d, dx);
    } else {
        scale(low->factor);
    }
    ops::linear_dw<B>(be, scaled, seen, low->da);
}

template <TrainingBackend B, class F>
void backward(B& be, const Embedding<B, F>&, std::span<const std::int32_t> ids, In<B> dy, Embedding<B, F>* grads) {
    if (!grads) return;
    if (const Mat<B> dw = gradient(grads->weight); !dw.empty()) ops::scatter_add<B>(be, ids, dy, dw);
}

/// dx += its gradient: norms read a residual stream.
template <TrainingBackend B>
void backward(B& be, const LayerNorm<B>& m, In<B> x, In<B> dy, Mat<B> dx, LayerNorm<B>* grads) {
    ops::layer_norm_backward<B>(be, x, m.weight.view(), m.eps, dy, dx, grads ? gradient(grads->weight) : Vec<B>{}, grads ? gradient(grads->bias) : Vec<B>{});
}
template <TrainingBackend B>
void backward(B& be, const RmsNorm<B>& m, In<B> x, In<B> dy, Mat<B> dx, RmsNorm<B>* grads) {
    ops::rms_norm_backward<B>(be, x, m.weight.view(), m.eps, dy, dx, grads ? gradient(grads->weight) : Vec<B>{});
}

/// Of x += gamma branch: the gradient of the branch, in scratch of the caller's scope where gamma is present.
template <TrainingBackend B>
In<B> backward(B& be, Workspace<B>& ws, const LayerScale<B>& m, Keep<B> kept, In<B> dy, LayerScale<B>* grads) {
    if (m.gamma.shape().empty()) return dy;
    Mat<B> d = ws.like(dy);
    ops::scaled_backward<B>(be, kept["branch"], m.gamma.view(), dy, d, grads ? gradient(grads->gamma) : Vec<B>{});
    return d;
}

/// Of `activated`. dy becomes the gradient before the activation.
template <TrainingBackend B>
void activated_backward(B& be, Workspace<B>& ws, const Linear<B>& fc, Activation act, Keep<B> kept, Mat<B> dy, Mat<B> dx, Linear<B>* grads, bool add = false) {
    ops::activate_backward<B>(be, act, kept["z"], dy);
    backward(be, ws, fc, kept, "x", dy, dx, grads, add);
}

/// dx += with `add`.
template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const Mlp<B>& m, Keep<B> kept, In<B> dy, Mat<B> dx, Mlp<B>* grads, bool add = false) {
    auto   scope = ws.scope();
    Mat<B> d = ws.mat(dy.rows(), m.fc2.d_in());
    backward(be, ws, m.fc2, kept, "y", dy, d, part(grads, &Mlp<B>::fc2));
    activated_backward(be, ws, m.fc1, m.act, kept, d, dx, part(grads, &Mlp<B>::fc1), add);
}

template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const GatedMlp<B>& m, Keep<B> kept, In<B> dy, Mat<B> dx, GatedMlp<B>* grads) {
    auto   scope = ws.scope();
    Mat<B> d_gate = ws.mat(dy.rows(), m.down_proj.d_in()), d_up = ws.like(d_gate);
    backward(be, ws, m.down_proj, kept, "y", dy, d_up, part(grads, &GatedMlp<B>::down_proj));
    ops::silu_mul_backward<B>(be, kept["gate"], kept["up"], d_up, d_gate, d_up);
    backward(be, ws, m.gate_proj, kept, "x", d_gate, dx, part(grads, &GatedMlp<B>::gate_proj));
    backward(be, ws, m.up_proj, kept, "x", d_up, dx, part(grads, &GatedMlp<B>::up_proj), true);
}

template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const SelfAttention<B>& m, Keep<B> kept, std::size_t n_sequences, In<B> dy, Mat<B> dx, SelfAttention<B>* grads) {
    auto              scope = ws.scope();
    const std::size_t d = m.qkv.d_in();
    const In<B>       all = kept["qkv"], y = kept["y"];
    Mat<B>            d_all = ws.mat(dy.rows(), 3 * d), d_y = ws.like(y);
    backward(be, ws, m.proj, kept, "y", dy, d_y, part(grads, &SelfAttention<B>::proj));
    ops::attention_backward<B>(be, all.cols(0, d), all.cols(d, d), all.cols(2 * d, d), y, m.shape(n_sequences), d_y, d_all.cols(0, d),
                               d_all.cols(d, d), d_all.cols(2 * d, d));
    backward(be, ws, m.qkv, kept, "x", d_all, dx, part(grads, &SelfAttention<B>::qkv));
}

/// The segments have no caches: every sequence begins in this batch.
template <TrainingBackend B, Name Out>
void backward(B& be, Workspace<B>& ws, const CachedAttention<B, Out>& m, Keep<B> kept, const RopeTable<B>& rope, std::span<const Segment<B>> batch,
              In<B> dy, Mat<B> dx, CachedAttention<B, Out>* grads) {
    using M = CachedAttention<B, Out>;
    auto        scope = ws.scope();
    const In<B> q = kept["q"], k = kept["k"], v = kept["v"], y = kept["y"];
    Mat<B>      d_y = ws.like(y), dq = ws.like(q), dk = ws.like(k), dv = ws.like(v);
    backward(be, ws, m.o_proj, kept, "y", dy, d_y, part(grads, &M::o_proj));
    for (std::size_t i = 0, row = 0; i < batch.size();) {
        const std::size_t n = alike(batch, i), rows = n * batch[i].n_tokens;
        ops::attention_backward<B>(be, q.rows(row, rows), k.rows(row, rows), v.rows(row, rows), y.rows(row, rows), m.shape(batch[i], n),
                                   d_y.rows(row, rows), dq.rows(row, rows), dk.rows(row, rows), dv.rows(row, rows));
        row += rows, i += n;
    }
    ops::rope_half_backward<B>(be, rope.cos, rope.sin, m.config.n_heads, dq);
    ops::rope_half_backward<B>(be, rope.cos, rope.sin, m.config.n_kv_heads, dk);
    backward(be, ws, m.q_proj, kept, "x", dq, dx, part(grads, &M::q_proj));
    backward(be, ws, m.k_proj, kept, "x", dk, dx, part(grads, &M::k_proj), true);
    backward(be, ws, m.v_proj, kept, "x", dv, dx, part(grads, &M::v_proj), true);
}

}  // namespace prism
