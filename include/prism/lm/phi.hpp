// Phi: the decoder of Phi-2, whose attention and feed-forward halves run side by side on one norm.
#pragma once

#include "prism/lm/decoder.hpp"
#include "prism/nn/mlp.hpp"
#include "prism/nn/norm.hpp"

#include <vector>

namespace prism {

/// As in the model's config.json, by our names.
struct PhiConfig {
    std::size_t vocab_size = 51200, d_model = 2560, d_ff = 10240, n_layers = 32, n_heads = 32, n_kv_heads = 32, head_dim = 80;
    std::size_t rotary_dim = 32;  // leading values of a head that rotate; the rest pass through
    std::size_t max_positions = 2048;
    float       norm_eps = 1e-5f, rope_theta = 1e4f;
    Activation  act = Activation::gelu_tanh;
    bool        tied_embeddings = false;
};

/// x += attn(norm x) + mlp(norm x). x [n, d_model] is the residual stream, updated in place.
/// Source: transformers 4.40, models/phi/modeling_phi.py, class PhiDecoderLayer.
template <Backend B>
struct PhiBlock {
    LayerNorm<B>                input_layernorm;
    CachedAttention<B, "dense"> self_attn;
    Mlp<B>                      mlp;

    static constexpr auto params = fields(field("self_attn", &PhiBlock::self_attn), field("mlp", &PhiBlock::mlp),
                                          field("input_layernorm", &PhiBlock::input_layernorm));

    PhiBlock() = default;
    explicit PhiBlock(const PhiConfig& c)
        : input_layernorm(c.d_model, c.norm_eps),
          self_attn({.d_model = c.d_model, .n_heads = c.n_heads, .n_kv_heads = c.n_kv_heads, .head_dim = c.head_dim,
                     .qkv_bias = true, .out_bias = true}),
          mlp(c.d_model, c.d_ff, c.act) {}

    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, std::size_t layer, const RopeTable<B>& rope, std::span<const Segment<B>> batch, Mat<B> x,
                 K keep = {}) const {
        auto   scope = keep.scope(ws);
        Mat<B> h = ws.like(x);
        keep.copy(be, ws, "x", x);
        input_layernorm.forward(be, x, h);
        if constexpr (K::trains) {
            if (keep.drops()) {  // each branch loses some of its values before it is added
                Mat<B> branch = ws.like(x);
                self_attn.forward(be, ws, layer, rope, batch, h, branch, keep.at("self_attn"));
                keep.at("self_attn").drop(be, branch);
                ops::add<B>(be, branch, x);
                mlp.forward(be, ws, h, branch, keep.at("mlp"));
                keep.at("mlp").drop(be, branch);
                return ops::add<B>(be, branch, x);
            }
        }
        self_attn.forward_add(be, ws, layer, rope, batch, h, x, keep.at("self_attn"));
        mlp.forward_add(be, ws, h, {}, x, keep.at("mlp"));
    }
};

/// Source: transformers 4.40, models/phi/modeling_phi.py, class PhiForCausalLM; names are those of its files.
template <Backend B>
struct Phi {
    PhiConfig                config;
    Embedding<B>             embed_tokens;  // [vocab_size, d_model]
    std::vector<PhiBlock<B>> layers;
    LayerNorm<B>             final_layernorm;
    Linear<B>                lm_head;       // [vocab_size, d_model] and a bias; absent when tied

    static constexpr auto params = fields(field("model.embed_tokens", &Phi::embed_tokens), field("model.layers", &Phi::layers),
                                          field("model.final_layernorm", &Phi::final_layernorm), field("lm_head", &Phi::lm_head));

    explicit Phi(const PhiConfig& c) : config(c), embed_tokens(c.vocab_size, c.d_model, c.tied_embeddings), final_layernorm(c.d_model, c.norm_eps) {
        lm_head = Linear<B>(c.d_model, c.vocab_size);
        if (c.tied_embeddings) lm_head.weight = Weight<B>{};
        layers.reserve(c.n_layers);
        for (std::size_t i = 0; i < c.n_layers; ++i) layers.emplace_back(c);
    }

    std::size_t d_model() const { return config.d_model; }
    std::size_t vocab_size() const { return config.vocab_size; }
    KvCache<B>  make_cache(B& be, std::size_t capacity, Dtype dtype = Dtype::f32) const {
        return {be, config.n_layers, config.n_kv_heads, config.head_dim, capacity, dtype};
    }

    /// x [n, d_model] = the embeddings of these ids.
    void embed(B& be, std::span<const std::int32_t> ids, Mat<B> x) const { embed_tokens.forward(be, ids, x); }

    /// x [n, d_model]: embeddings in, final-norm hidden states out. See run_layers for the batch.
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, std::span<const Segment<B>> batch, Mat<B> x, K keep = {}) const {
        run_layers(be, ws, layers, config.rotary_dim / 2, config.rope_theta, batch, x, keep);
        keep.copy(be, ws, "hidden", x);
        final_layernorm.forward(be, x, x);
    }

    /// logits [n, vocab_size] of hidden states [n, d_model].
    void logits(B& be, In<B> hidden, Mat<B> out) const { logits(be, hidden, 0, vocab_size(), out); }
    /// The same for `count` entries of the vocabulary from `first` on: out [n, count].
    void logits(B& be, In<B> hidden, std::size_t first, std::size_t count, Mat<B> out) const {
        score_vocabulary(be, lm_head, embed_tokens, hidden, first, count, out);
    }
};

}  // namespace prism
