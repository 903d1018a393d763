// The backward passes of decoders, and the loss of a language model: cross-entropy over the rows that have a label, fused with
// the head. See nn_backward.hpp for what the arguments are.
#pragma once

#include "prism/lm/language_model.hpp"
#include "prism/train/nn_backward.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <variant>

namespace prism {

/// d [n, d_model]: the gradient of the residual stream after the block in, before it out.
template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const LlamaBlock<B>& m, Keep<B> kept, const RopeTable<B>& rope, std::span<const Segment<B>> batch, Mat<B> d,
              LlamaBlock<B>* grads) {
    using M = LlamaBlock<B>;
    auto   scope = ws.scope();
    Mat<B> dh = ws.like(d);
    backward(be, ws, m.mlp, kept.at("mlp"), d, dh, part(grads, &M::mlp));
    backward(be, m.post_attention_layernorm, kept["x2"], dh, d, part(grads, &M::post_attention_layernorm));
    backward(be, ws, m.self_attn, kept.at("self_attn"), rope, batch, d, dh, part(grads, &M::self_attn));
    backward(be, m.input_layernorm, kept["x1"], dh, d, part(grads, &M::input_layernorm));
}

template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const PhiBlock<B>& m, Keep<B> kept, const RopeTable<B>& rope, std::span<const Segment<B>> batch, Mat<B> d,
              PhiBlock<B>* grads) {
    using M = PhiBlock<B>;
    auto       scope = ws.scope();
    Mat<B>     dh = ws.like(d);
    Mat<B>     branch = kept.drops() ? ws.like(d) : d;
    const auto dropped = [&](const char* part) {  // the gradient of a branch
        if (!kept.drops()) return;
        ops::copy<B>(be, d, branch);
        kept.at(part).drop(be, branch);
    };
    dropped("self_attn");
    backward(be, ws, m.self_attn, kept.at("self_attn"), rope, batch, branch, dh, part(grads, &M::self_attn));
    dropped("mlp");
    backward(be, ws, m.mlp, kept.at("mlp"), branch, dh, part(grads, &M::mlp), true);
    backward(be, m.input_layernorm, kept["x"], dh, d, part(grads, &M::input_layernorm));
}

/// What differs between the decoders in the words of their files.
template <Backend B> const RmsNorm<B>&   final_norm(const Llama<B>& m) { return m.norm; }
template <Backend B> const LayerNorm<B>& final_norm(const Phi<B>& m) { return m.final_layernorm; }
template <Backend B> std::size_t n_angles(const Llama<B>& m) { return m.config.head_dim / 2; }
template <Backend B> std::size_t n_angles(const Phi<B>& m) { return m.config.rotary_dim / 2; }

/// Llama or Phi, up to the final norm. d [n, d_model]: the gradient of the last block's output in, that of the embeddings out.
/// The segments have no caches.
template <TrainingBackend B, template <class> class Decoder>
    requires requires(const Decoder<B>& m) { final_norm(m); }
void backward(B& be, Workspace<B>& ws, const Decoder<B>& m, Keep<B> kept, std::span<const Segment<B>> batch, Mat<B> d, Decoder<B>* grads) {
    auto               scope = ws.scope();
    const RopeTable<B> rope(be, ws, n_angles(m), m.config.rope_theta, batch);
    for (std::size_t i = m.layers.size(); i-- > 0;)
        kept.unwind(
            be, ws, "layers", i, [&](Mat<B> x, Keep<B> inside) { m.layers[i].forward(be, ws, i, rope, batch, x, inside); },
            [&](Keep<B> inside) { backward(be, ws, m.layers[i], inside, rope, batch, d, grads ? &grads->layers[i] : nullptr); });
}
template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const LanguageModel<B>& m, Keep<B> kept, std::span<const Segment<B>> batch, Mat<B> d, LanguageModel<B>* grads) {
    std::visit([&](const auto& decoder) { backward(be, ws, decoder, kept, batch, d, grads ? std::get_if<std::remove_cvref_t<decltype(decoder)>>(&grads->decoder) : nullptr); },
               m.decoder);
}

/// Rows of a batch that predict something, and what.
struct Supervision {
    std::span<const std::int32_t> rows, labels;  // labels[i] is the id that row rows[i] predicts
};

/// Rows whose logits are in memory at a time.
inline std::size_t loss_rows(std::size_t n_rows, std::size_t vocab_size) {
    constexpr std::size_t most = std::size_t{1} << 24;  // values: 64 MiB
    return std::clamp<std::size_t>(most / std::max<std::size_t>(1, vocab_size), 16, std::max<std::size_t>(16, n_rows));
}

/// The sum of -log p(label) over the supervised rows of hidden [n, d_model], which is what forward of the decoder wrote; the
/// gradient of `scale` times that sum is added to d [n, d_model] (before the final norm) and to `grads`. An empty d: the loss
/// alone. Logits are made for some rows at a time.
template <TrainingBackend B, template <class> class Decoder>
    requires requires(const Decoder<B>& m) { final_norm(m); }
double head_loss(B& be, Workspace<B>& ws, const Decoder<B>& m, Keep<B> kept, In<B> hidden, const Supervision& supervised, float scale, Mat<B> d,
                 Decoder<B>* grads) {
    auto              scope = ws.scope();
    const std::size_t n = supervised.rows.size(), width = hidden.cols(), most = std::min(n, loss_rows(n, m.vocab_size()));
    const bool        tied = m.lm_head.weight.shape().empty();
    const auto&       weight = tied ? m.embed_tokens.weight : m.lm_head.weight;
    Mat<B>            h = ws.mat(most, width), x = ws.mat(most, width), dh = ws.mat(most, width), dx = ws.mat(most, width), logits = ws.mat(most, m.vocab_size());
    double            loss = 0;
    for (std::size_t first = 0; first < n; first += most) {
        const std::size_t count = std::min(most, n - first);
        const auto        ids = supervised.rows.subspan(first, count);
        const Mat<B>      scores = logits.rows(0, count), top = h.rows(0, count), d_top = dh.rows(0, count), below = x.rows(0, count), d_below = dx.rows(0, count);
        ops::gather<B>(be, detail::as_weight<B>(hidden), ids, top);
        m.logits(be, top, scores);
        loss += ops::cross_entropy<B>(be, scores, supervised.labels.subspan(first, count), scale);
        if (d.empty()) continue;
        weight.visit([&](const auto& w) { ops::linear_dx<B>(be, scores, w, d_top); });
        if (grads) {
            if (const Mat<B> dw = gradient(tied ? grads->embed_tokens.weight : grads->lm_head.weight); !dw.empty()) ops::linear_dw<B>(be, scores, top, dw);
            if (const Vec<B> db = gradient(grads->lm_head.bias); !db.empty()) ops::column_sums<B>(be, scores, db);
        }
        ops::gather<B>(be, detail::as_weight<B>(kept["hidden"]), ids, below);
        ops::clear<B>(be, d_below);
        backward(be, final_norm(m), below, d_top, d_below, grads ? &const_cast<std::remove_cvref_t<decltype(final_norm(m))>&>(final_norm(*grads)) : nullptr);
        ops::scatter_add<B>(be, ids, d_below, d);
    }
    return loss;
}
template <TrainingBackend B>
double head_loss(B& be, Workspace<B>& ws, const LanguageModel<B>& m, Keep<B> kept, In<B> hidden, const Supervision& supervised, float scale, Mat<B> d,
                 LanguageModel<B>* grads) {
    return std::visit(
        [&](const auto& decoder) {
            return head_loss(be, ws, decoder, kept, hidden, supervised, scale, d, grads ? std::get_if<std::remove_cvref_t<decltype(decoder)>>(&grads->decoder) : nullptr);
        },
        m.decoder);
}

}  // namespace prism
