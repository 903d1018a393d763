// The backward passes of towers. See nn_backward.hpp for what the arguments are.
#pragma once

#include "prism/train/nn_backward.hpp"
#include "prism/vision/vit.hpp"

namespace prism {

/// d [n_sequences n_tokens, d_model]: the gradient of the residual stream after the block in, before it out.
template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const VitBlock<B>& m, Keep<B> kept, std::size_t n_sequences, Mat<B> d, VitBlock<B>* grads) {
    auto   scope = ws.scope();
    Mat<B> dh = ws.like(d);
    {
        auto        inner = ws.scope();
        const In<B> branch = backward(be, ws, m.ls2, kept.at("mlp"), d, part(grads, &VitBlock<B>::ls2));
        backward(be, ws, m.mlp, kept.at("mlp"), branch, dh, part(grads, &VitBlock<B>::mlp));
        backward(be, m.norm2, kept["x2"], dh, d, part(grads, &VitBlock<B>::norm2));
    }
    const In<B> branch = backward(be, ws, m.ls1, kept.at("attn"), d, part(grads, &VitBlock<B>::ls1));
    backward(be, ws, m.attn, kept.at("attn"), n_sequences, branch, dh, part(grads, &VitBlock<B>::attn));
    backward(be, m.norm1, kept["x1"], dh, d, part(grads, &VitBlock<B>::norm1));
}

/// The parameters of Vit::embed, from the gradient of its tokens. d is used up.
template <TrainingBackend B>
void embed_backward(B& be, Workspace<B>& ws, const Vit<B>& m, Keep<B> kept, PixelView<B> pixels, Mat<B> d, Vit<B>* grads) {
    if (!grads) return;
    auto              scope = ws.scope();
    const std::size_t n = pixels.extent(0), n_tokens = m.config.n_tokens(), n_prefix = m.config.n_prefix(), n_patches = m.n_patches();
    if (m.config.norm_pre) {
        Mat<B> before = ws.like(d);
        ops::clear<B>(be, before);
        backward(be, m.norm_pre, kept["embedded"], d, before, &grads->norm_pre);
        d = before;
    }
    Mat<B>            patches = ws.mat(n * n_patches, m.patch_embed.proj.d_in()), dense = ws.mat(n * n_patches, m.d_model());
    const std::size_t first = m.config.pos_embed_prefix ? 0 : n_prefix;
    const Mat<B>      positions = gradient_rows(grads->pos_embed), classes = gradient_rows(grads->cls_token), registers = gradient_rows(grads->reg_token);
    for (std::size_t i = 0; i < n; ++i) {
        const Mat<B> tokens = d.rows(i * n_tokens, n_tokens);
        if (!positions.empty()) ops::add_table_backward<B>(be, tokens.rows(first, n_tokens - first), positions);
        if (!classes.empty()) ops::add_table_backward<B>(be, tokens.rows(0, 1), classes);
        if (!registers.empty()) ops::add_table_backward<B>(be, tokens.rows(n_prefix - m.config.n_registers, m.config.n_registers), registers);
        ops::copy<B>(be, tokens.rows(n_prefix, n_patches), dense.rows(i * n_patches, n_patches));
    }
    ops::patchify<B>(be, pixels, m.patch_embed.patch_size, patches);
    backward(be, m.patch_embed.proj, patches, dense, {}, &grads->patch_embed.proj);
}

/// dout [n_sequences, d]; dtokens [n_sequences n, d] is written, or left out where it is empty.
template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const AttentionPool<B>& m, Keep<B> kept, std::size_t n_sequences, In<B> dout, Mat<B> dtokens, AttentionPool<B>* grads) {
    using M = AttentionPool<B>;
    auto              scope = ws.scope();
    const std::size_t d = m.q.d_in();
    const In<B>       query = kept["query"], keys = kept["keys"], y = kept["y"];
    Mat<B>            d_out = ws.like(dout), dh = ws.like(dout), d_query = ws.like(query), d_keys = ws.like(keys), sum = ws.mat(1, d);
    ops::copy<B>(be, dout, d_out);
    backward(be, ws, m.mlp, kept.at("mlp"), dout, dh, part(grads, &M::mlp));
    backward(be, m.norm, kept["out"], dh, d_out, part(grads, &M::norm));
    backward(be, ws, m.proj, kept, "y", d_out, dh, part(grads, &M::proj));
    ops::attention_backward<B>(be, query, keys.cols(0, d), keys.cols(d, d), y, m.shape(n_sequences), dh, d_query, d_keys.cols(0, d), d_keys.cols(d, d));
    backward(be, ws, m.kv, kept, "x", d_keys, dtokens, part(grads, &M::kv));
    ops::clear<B>(be, sum);
    ops::column_sums<B>(be, d_query, {sum.data(), {d}});  // all sequences have the same query
    backward(be, m.q, m.latent.mat(), sum, grads ? gradient_rows(grads->latent) : Mat<B>{}, part(grads, &M::q), true);
}

/// Of the first `n_blocks` blocks and of what lies before them. d [n n_tokens, d_model]: the gradient of the residual stream
/// behind them in; it is used up.
template <TrainingBackend B>
void stream_backward(B& be, Workspace<B>& ws, const Vit<B>& m, Keep<B> kept, PixelView<B> pixels, std::size_t n_blocks, Mat<B> d, Vit<B>* grads) {
    const std::size_t n = pixels.extent(0);
    for (std::size_t i = n_blocks; i-- > 0;)
        kept.unwind(
            be, ws, "blocks", i, [&](Mat<B> x, Keep<B> inside) { m.blocks[i].forward(be, ws, n, x, inside); },
            [&](Keep<B> inside) { backward(be, ws, m.blocks[i], inside, n, d, &grads->blocks[i]); });
    embed_backward(be, ws, m, kept, pixels, d, grads);
}

/// Of Vit::forward: dout [n n_patches, d_model]. What does not reach the features (the last block, the last norm, the pooling
/// head) gets no gradient, and neither do the pixels.
template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const Vit<B>& m, Keep<B> kept, PixelView<B> pixels, In<B> dout, Vit<B>* grads) {
    if (!grads) return;
    auto              scope = ws.scope();
    const std::size_t n = pixels.extent(0), n_tokens = m.config.n_tokens(), n_patches = m.n_patches();
    Mat<B>            d = ws.mat(n * n_tokens, m.d_model());
    ops::clear<B>(be, d);
    for (std::size_t i = 0; i < n; ++i)
        ops::copy<B>(be, dout.rows(i * n_patches, n_patches), d.rows(i * n_tokens + m.config.n_prefix(), n_patches));
    stream_backward(be, ws, m, kept, pixels, m.config.n_layers - 1, d, grads);
}

/// Of Vit::tokens: dout [n n_tokens, d_model].
template <TrainingBackend B>
void tokens_backward(B& be, Workspace<B>& ws, const Vit<B>& m, Keep<B> kept, PixelView<B> pixels, In<B> dout, Vit<B>* grads) {
    if (!grads) return;
    auto   scope = ws.scope();
    Mat<B> d = ws.like(dout);
    ops::clear<B>(be, d);
    backward(be, m.norm, kept["stream"], dout, d, &grads->norm);
    stream_backward(be, ws, m, kept, pixels, m.blocks.size(), d, grads);
}

/// Of Vit::pooled: dout [n, d_model].
template <TrainingBackend B>
void pooled_backward(B& be, Workspace<B>& ws, const Vit<B>& m, Keep<B> kept, PixelView<B> pixels, In<B> dout, Vit<B>* grads) {
    if (!grads) return;
    auto              scope = ws.scope();
    const std::size_t n = pixels.extent(0), n_tokens = m.config.n_tokens();
    Mat<B>            d = ws.mat(n * n_tokens, m.d_model());
    if (m.pools()) {
        backward(be, ws, m.attn_pool, kept.at("attn_pool"), n, dout, d, &grads->attn_pool);
    } else {
        ops::clear<B>(be, d);
        for (std::size_t i = 0; i < n; ++i) ops::copy<B>(be, dout.rows(i, 1), d.rows(i * n_tokens, 1));
    }
    tokens_backward(be, ws, m, kept, pixels, In<B>(d), grads);
}

}  // namespace prism
