// Llama: the decoder of Llama-2, Vicuna, Mistral and Qwen2.
//
//     prism::Llama<B> llm{prism::llama::llama2_7b()};
//     llm.embed(be, ids, x);   llm.forward(be, ws, batch, x);   llm.logits(be, x, logits);
#pragma once

#include "prism/lm/decoder.hpp"
#include "prism/nn/mlp.hpp"
#include "prism/nn/norm.hpp"

#include <vector>

namespace prism {

/// As in the model's config.json, by our names.
struct LlamaConfig {
    std::size_t vocab_size = 32000, d_model = 4096, d_ff = 11008, n_layers = 32, n_heads = 32, n_kv_heads = 32, head_dim = 128;
    std::size_t max_positions = 4096;
    std::size_t window = 0;               // keys that a token sees, itself included (Mistral); 0 is all
    float       norm_eps = 1e-5f, rope_theta = 1e4f;
    bool        qkv_bias = false;         // Qwen2
    bool        tied_embeddings = false;  // lm_head is the embedding
};

/// One pre-norm decoder block. x [n, d_model] is the residual stream, updated in place.
/// Source: transformers 4.40, models/llama/modeling_llama.py, class LlamaDecoderLayer.
template <Backend B>
struct LlamaBlock {
    RmsNorm<B>         input_layernorm, post_attention_layernorm;
    CachedAttention<B> self_attn;
    GatedMlp<B>        mlp;

    static constexpr auto params =
        fields(field("self_attn", &LlamaBlock::self_attn), field("mlp", &LlamaBlock::mlp),
               field("input_layernorm", &LlamaBlock::input_layernorm), field("post_attention_layernorm", &LlamaBlock::post_attention_layernorm));

    LlamaBlock() = default;
    explicit LlamaBlock(const LlamaConfig& c)
        : input_layernorm(c.d_model, c.norm_eps), post_attention_layernorm(c.d_model, c.norm_eps),
          self_attn({.d_model = c.d_model, .n_heads = c.n_heads, .n_kv_heads = c.n_kv_heads, .head_dim = c.head_dim,
                     .qkv_bias = c.qkv_bias, .window = c.window}),
          mlp(c.d_model, c.d_ff) {}

    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, std::size_t layer, const RopeTable<B>& rope, std::span<const Segment<B>> batch, Mat<B> x,
                 K keep = {}) const {
        auto   scope = keep.scope(ws);
        Mat<B> h = ws.like(x);

        keep.copy(be, ws, "x1", x);
        self_attn.forward_add(be, ws, layer, rope, batch, input_layernorm.of(x, h), x, keep.at("self_attn"));

        keep.copy(be, ws, "x2", x);
        h = keep.another(ws, h);
        mlp.forward_add(be, ws, post_attention_layernorm.of(x, h), x, keep.at("mlp"));
    }
};

/// Source: transformers 4.40, models/llama/modeling_llama.py, class LlamaForCausalLM; names are those of its files.
template <Backend B>
struct Llama {
    LlamaConfig                config;
    Embedding<B>               embed_tokens;  // [vocab_size, d_model]
    std::vector<LlamaBlock<B>> layers;
    RmsNorm<B>                 norm;
    Linear<B>                  lm_head;       // [vocab_size, d_model]; absent when tied

    static constexpr auto params = fields(field("model.embed_tokens", &Llama::embed_tokens), field("model.layers", &Llama::layers),
                                          field("model.norm", &Llama::norm), field("lm_head", &Llama::lm_head));

    explicit Llama(const LlamaConfig& c) : config(c), embed_tokens(c.vocab_size, c.d_model, c.tied_embeddings), norm(c.d_model, c.norm_eps) {
        if (!c.tied_embeddings) lm_head = Linear<B>(c.d_model, c.vocab_size, false);
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
        run_layers(be, ws, layers, config.head_dim / 2, config.rope_theta, batch, x, keep);
        keep.copy(be, ws, "hidden", x);
        norm.forward(be, x, x);
    }

    /// logits [n, vocab_size] of hidden states [n, d_model].
    void logits(B& be, In<B> hidden, Mat<B> out) const { logits(be, hidden, 0, vocab_size(), out); }
    /// The same for `count` entries of the vocabulary from `first` on: out [n, count].
    void logits(B& be, In<B> hidden, std::size_t first, std::size_t count, Mat<B> out) const {
        score_vocabulary(be, lm_head, embed_tokens, hidden, first, count, out);
    }
};

}  // namespace prism
