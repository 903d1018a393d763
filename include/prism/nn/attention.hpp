// SelfAttention (towers: one product for q, k and v) and CachedAttention (decoders: separate, rotary, with a cache).
#pragma once

#include "prism/core/workspace.hpp"
#include "prism/nn/kv_cache.hpp"
#include "prism/nn/linear.hpp"
#include "prism/ops/attention.hpp"
#include "prism/ops/rows.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace prism {

/// Attention of every token to every token of its sequence. x [n_sequences n, d], out the same.
/// qkv's rows are q, k, v, each head by head. Source: timm, models/vision_transformer.py, class Attention.
template <Backend B>
struct SelfAttention {
    Linear<B>   qkv, proj;
    std::size_t n_heads = 1;

    static constexpr auto params = fields(field("qkv", &SelfAttention::qkv), field("proj", &SelfAttention::proj));

    SelfAttention() = default;
    SelfAttention(std::size_t d, std::size_t heads, bool qkv_bias = true) : qkv(d, 3 * d, qkv_bias), proj(d, d), n_heads(heads) {}

    /// out = attention(x); out may be x.
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, std::size_t n_sequences, In<B> x, Mat<B> out, K keep = {}) const {
        auto scope = keep.scope(ws);
        proj.forward(be, mixed(be, ws, n_sequences, x, keep), out);
    }
    /// out += gamma attention(x); an empty gamma is one.
    template <Keeper K = Forget>
    void forward_add(B& be, Workspace<B>& ws, std::size_t n_sequences, In<B> x, Vec<B, const float> gamma, Mat<B> out, K keep = {}) const {
        auto scope = keep.scope(ws);
        proj.forward_add(be, ws, mixed(be, ws, n_sequences, x, keep), gamma, out, keep);
    }
    AttentionShape shape(std::size_t n_sequences) const {
        const std::size_t head_dim = qkv.d_in() / n_heads;
        return {.n_heads = n_heads, .n_kv_heads = n_heads, .head_dim = head_dim, .n_sequences = n_sequences,
                .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
    }

private:
    template <Keeper K>
    Mat<B> mixed(B& be, Workspace<B>& ws, std::size_t n_sequences, In<B> x, K keep) const {
        const std::size_t d = qkv.d_in();
        Mat<B>            all = ws.mat(x.rows(), 3 * d), y = ws.mat(x.rows(), d);
        qkv.forward(be, x, all);
        ops::attention<B>(be, all.cols(0, d), all.cols(d, d), all.cols(2 * d, d), shape(n_sequences), y);
        keep("x", x), keep("qkv", all), keep("y", y);
        return y;
    }
};

/// Consecutive rows of a batch that belong to one sequence, and the cache of what it has read before. Without a cache the
/// sequence begins here, and nothing will follow.
template <Backend B>
struct Segment {
    KvCache<B>* cache;
    std::size_t n_tokens;

    /// Tokens before these.
    std::size_t before() const { return cache ? cache->length() : 0; }
};

/// How many segments from the `i`th on have no cache and the same length: they attend in one call.
template <Backend B>
std::size_t alike(std::span<const Segment<B>> batch, std::size_t i) {
    std::size_t n = 1;
    while (i + n < batch.size() && !batch[i + n].cache && batch[i + n].n_tokens == batch[i].n_tokens) ++n;
    return n;
}

/// Cosines and sines for the rows of a batch, [n, n_angles] each: the same for all layers.
template <Backend B>
struct RopeTable {
    Mat<B> cos, sin;

    RopeTable(B& be, Workspace<B>& ws, std::size_t n_angles, float theta, std::span<const Segment<B>> batch) {
        std::size_t n = 0;
        for (const auto& s : batch) n += s.n_tokens;
        cos = ws.mat(n, n_angles), sin = ws.mat(n, n_angles);
        Vec<B> frequencies = ws.vec(n_angles);
        n = 0;
        for (const auto& s : batch) {
            ops::rope_table<B>(be, s.before(), theta, frequencies, cos.rows(n, s.n_tokens), sin.rows(n, s.n_tokens));
            n += s.n_tokens;
        }
    }
};

/// A name as a template argument.
template <std::size_t N>
struct Name {
    char text[N]{};
    constexpr Name(const char (&s)[N]) { std::copy_n(s, N, text); }
};

struct CachedAttentionConfig {
    std::size_t d_model, n_heads, n_kv_heads, head_dim;
    bool        qkv_bias = false, out_bias = false;
    std::size_t window = 0;  // a token sees this many keys, itself included; 0 is all
};

/// Causal attention with grouped heads, rotary positions and a cache. x [n, d_model], rows of the batch's segments one
/// after another; out += what it gives; out must not be x, but may be what x is normed from. `Out` is what files call the last
/// projection.
/// Source: transformers, models/llama/modeling_llama.py, class LlamaAttention.
template <Backend B, Name Out = "o_proj">
struct CachedAttention {
    Linear<B>             q_proj, k_proj, v_proj, o_proj;
    CachedAttentionConfig config{};

    static constexpr auto params = fields(field("q_proj", &CachedAttention::q_proj), field("k_proj", &CachedAttention::k_proj),
                                          field("v_proj", &CachedAttention::v_proj), field(Out.text, &CachedAttention::o_proj));

    CachedAttention() = default;
    explicit CachedAttention(const CachedAttentionConfig& c)
        : q_proj(c.d_model, c.n_heads * c.head_dim, c.qkv_bias), k_proj(c.d_model, c.n_kv_heads * c.head_dim, c.qkv_bias),
          v_proj(c.d_model, c.n_kv_heads * c.head_dim, c.qkv_bias), o_proj(c.n_heads * c.head_dim, c.d_model, c.out_bias), config(c) {}

    template <Keeper K = Forget>
    void forward_add(B& be, Workspace<B>& ws, std::size_t layer, const RopeTable<B>& rope, std::span<const Segment<B>> batch,
                     const ops::NormedRows<B>& x, Mat<B> out, K keep = {}) const {
        auto scope = keep.scope(ws);
        o_proj.forward_add(be, ws, mixed(be, ws, layer, rope, batch, x, keep), {}, out, keep);
    }
    /// The same, but out = what it gives.
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, std::size_t layer, const RopeTable<B>& rope, std::span<const Segment<B>> batch,
                 const ops::NormedRows<B>& x, Mat<B> out, K keep = {}) const {
        auto scope = keep.scope(ws);
        o_proj.forward(be, ws, mixed(be, ws, layer, rope, batch, x, keep), out, keep);
    }
    /// How `n` alike segments attend, with the heads of their keys so far apart (0: side by side in a row).
    AttentionShape shape(const Segment<B>& s, std::size_t n = 1, std::size_t kv_head_stride = 0) const {
        return {.n_heads = config.n_heads, .n_kv_heads = config.n_kv_heads, .head_dim = config.head_dim, .n_sequences = n, .causal = true,
                .q_pos = s.before(), .window = config.window, .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
                .kv_head_stride = kv_head_stride};
    }

private:
    template <Keeper K>
    Mat<B> mixed(B& be, Workspace<B>& ws, std::size_t layer, const RopeTable<B>& rope, std::span<const Segment<B>> batch, const ops::NormedRows<B>& rows,
                 K keep) const {
        const auto  read = rows_for(be, keep, rows);
        const In<B> x = read.x();
        Mat<B>      q = ws.mat(x.rows(), q_proj.d_out()), y = ws.like(q);
        Mat<B>      k = ws.mat(x.rows(), k_proj.d_out()), v = ws.like(k);
        ops::linear_each<B>(be, read, std::array<ProductPart<typename B::space>, 3>{{{q_proj.weight.any(), q_proj.bias.view(), q},
                                                                                  {k_proj.weight.any(), k_proj.bias.view(), k},
                                                                                  {v_proj.weight.any(), v_proj.bias.view(), v}}});
        keep.product(be, ws, &q_proj.weight, x, q), keep.product(be, ws, &k_proj.weight, x, k), keep.product(be, ws, &v_proj.weight, x, v);
        std::size_t row = 0;
        for (std::size_t i = 0; i < batch.size(); ++i) {
            const Segment<B>& s = batch[i];
            if (!s.cache) {
                const std::size_t n = alike(batch, i), n_rows = n * s.n_tokens;
                ops::rope_half<B>(be, rope.cos.rows(row, n_rows), rope.sin.rows(row, n_rows), config.n_heads, q.rows(row, n_rows));
                ops::rope_half<B>(be, rope.cos.rows(row, n_rows), rope.sin.rows(row, n_rows), config.n_kv_heads, k.rows(row, n_rows));
                ops::attention<B>(be, q.rows(row, n_rows), k.rows(row, n_rows), v.rows(row, n_rows), shape(s, n), y.rows(row, n_rows));
                row += n_rows, i += n - 1;
                continue;
            }
            s.cache->visit(layer, 0, s.before() + s.n_tokens, [&](auto keys, auto values) {
                ops::append_and_attend<B>(be, rope.cos.rows(row, s.n_tokens), rope.sin.rows(row, s.n_tokens), q.rows(row, s.n_tokens), k.rows(row, s.n_tokens),
                                          In<B>(v.rows(row, s.n_tokens)), shape(s, 1, s.cache->head_stride()), keys, values, y.rows(row, s.n_tokens));
            });
            row += s.n_tokens;
        }
        keep("x", x), keep("q", q), keep("k", k), keep("v", v), keep("y", y);
        return y;
    }
};

}  // namespace prism
