// Language models as Hugging Face stores them: config.json to our configuration, and the weights beside it.
#pragma once

#include "prism/io/config.hpp"
#include "prism/lm/known.hpp"
#include "prism/model/load.hpp"

#include <cmath>
#include <string>
#include <string_view>

namespace prism {

namespace detail {

template <class = void>
std::size_t multiple_heads(const ConfigReader& c, std::size_t d_model, std::size_t n_heads) {
    if (d_model % n_heads != 0) c.refuse("num_attention_heads", "a divisor of hidden_size " + std::to_string(d_model));
    return d_model / n_heads;
}

/// A key that is null says as many as heads; one that is absent, the class default.
template <class = void>
std::size_t grouped_heads(const ConfigReader& c, std::size_t n_heads, std::size_t fallback) {
    const std::size_t n = c.count("num_key_value_heads", c.json().contains("num_key_value_heads") ? n_heads : fallback);
    if (n_heads % n != 0) c.refuse("num_key_value_heads", "a divisor of num_attention_heads " + std::to_string(n_heads));
    return n;
}

template <class = void>
std::size_t even_head_dim(const ConfigReader& c, const char* key, std::size_t head_dim) {
    if (head_dim % 2 != 0 || head_dim > 256) c.refuse(key, "one that gives an even head size of at most 256");
    return head_dim;
}

/// A number over 0 that f32 has.
template <class = void>
float positive(const ConfigReader& c, const char* key, double fallback) {
    const auto x = static_cast<float>(c.real(key, fallback));
    if (!(x > 0) || std::isinf(x)) c.refuse(key, "a number over 0 that fits a float");
    return x;
}

/// Where the settings of rotary positions stand: transformers 5 writes them into an object of their own.
template <class = void>
ConfigReader rope_of(const ConfigReader& c) {
    if (!c.has("rope_parameters")) return c;
    ConfigReader rope = c.object("rope_parameters");
    rope.choice("rope_type", {"default"}, "default");
    return rope;
}

/// Llama, Mistral or Qwen2: keys that are missing take the defaults of transformers' class for `type`.
template <class J = Json>
LlamaConfig llama_config(const ConfigReader& c, const std::string& type) {
    const bool  mistral = type == "mistral", qwen2 = type == "qwen2";
    LlamaConfig m;
    m.vocab_size = c.count("vocab_size", qwen2 ? 151936 : 32000);
    m.d_model = c.count("hidden_size", 4096);
    m.d_ff = c.count("intermediate_size", mistral ? 14336 : qwen2 ? 22016 : 11008);
    m.n_layers = c.count("num_hidden_layers", 32, 4096);
    m.n_heads = c.count("num_attention_heads", 32);
    m.n_kv_heads = grouped_heads(c, m.n_heads, mistral ? 8 : qwen2 ? 32 : m.n_heads);
    m.head_dim = c.has("head_dim") ? even_head_dim(c, "head_dim", c.count("head_dim"))
                                   : even_head_dim(c, "num_attention_heads", multiple_heads(c, m.d_model, m.n_heads));
    m.max_positions = c.count("max_position_embeddings", mistral ? 131072 : qwen2 ? 32768 : 2048);
    m.norm_eps = positive(c, "rms_norm_eps", 1e-6);
    m.rope_theta = positive(rope_of(c), "rope_theta", 1e4);
    m.tied_embeddings = c.flag("tie_word_embeddings", false);
    m.qkv_bias = qwen2;
    // A key that is null means no window; one that is absent, the class default. transformers 4.40's mask lets a token
    // see one key more than the key says.
    const J&   json = c.json();
    const bool none = json.contains("sliding_window") && !c.has("sliding_window");
    if (mistral && !none) m.window = c.count("sliding_window", 4096) + 1;
    if (qwen2 && c.flag("use_sliding_window", false)) c.refuse("use_sliding_window", "false");
    if (c.flag("attention_bias", false)) c.refuse("attention_bias", "false");
    c.choice("hidden_act", {"silu", "swish"}, "silu");
    if (c.has("rope_scaling")) c.refuse("rope_scaling", "null");
    return m;
}

template <class = void>
PhiConfig phi_config(const ConfigReader& c) {
    PhiConfig m;
    m.vocab_size = c.count("vocab_size", 51200);
    m.d_model = c.count("hidden_size", 2048);
    m.d_ff = c.count("intermediate_size", 8192);
    m.n_layers = c.count("num_hidden_layers", 24, 4096);
    m.n_heads = c.count("num_attention_heads", 32);
    m.n_kv_heads = grouped_heads(c, m.n_heads, m.n_heads);
    m.head_dim = even_head_dim(c, "num_attention_heads", multiple_heads(c, m.d_model, m.n_heads));
    const ConfigReader rope = rope_of(c), &at = rope.has("partial_rotary_factor") ? rope : c;
    const double       factor = at.real("partial_rotary_factor", 0.5);
    m.rotary_dim = factor > 0 && factor <= 1 ? static_cast<std::size_t>(factor * static_cast<double>(m.head_dim)) : 0;
    if (m.rotary_dim == 0 || m.rotary_dim % 2 != 0) at.refuse("partial_rotary_factor", "one over 0, at most 1, that gives an even number of values");
    m.max_positions = c.count("max_position_embeddings", 2048);
    m.norm_eps = positive(c, "layer_norm_eps", 1e-5);
    m.rope_theta = positive(rope, "rope_theta", 1e4);
    m.tied_embeddings = c.flag("tie_word_embeddings", false);
    const std::string act = c.choice("hidden_act", {"gelu_new", "gelu_pytorch_tanh", "gelu", "quick_gelu"}, "gelu_new");
    m.act = act == "gelu" ? Activation::gelu_erf : act == "quick_gelu" ? Activation::quick_gelu : Activation::gelu_tanh;
    if (c.flag("qk_layernorm", false)) c.refuse("qk_layernorm", "false");
    if (c.has("rope_scaling")) c.refuse("rope_scaling", "null");
    return m;
}

}  // namespace detail

/// The decoder that a config.json describes: model_type llama, mistral, qwen2 or phi. Missing keys take transformers'
/// class defaults. Throws ConfigError. Source: transformers 4.40.1, models/*/configuration_*.py.
template <class = void>
LanguageModelConfig language_model_config(const ConfigReader& c) {
    const std::string type = c.choice("model_type", {"llama", "mistral", "qwen2", "phi"});
    if (type == "phi") return detail::phi_config(c);
    return detail::llama_config(c, type);
}

/// Buffers that old files carry along with their weights.
inline bool ignored_language_tensor(std::string_view name) {
    return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn.masked_bias");
}

/// Has a decoder filled from tensors named as in Hugging Face's files. A tied head that is stored all the same is passed
/// over.
template <Backend B>
void add_language_model(Loading<B>& loading, LanguageModel<B>& llm, Checkpoint file) {
    const bool tied = std::visit([](const auto& c) { return c.tied_embeddings; }, llm.config());
    loading.add(llm, std::move(file), {}, [tied](std::string_view name) {
        return ignored_language_tensor(name) || (tied && name == "lm_head.weight");
    });
}

/// The same at once. Throws LoadError.
template <Backend B>
void load_language_model(B& be, LanguageModel<B>& llm, const Checkpoint& file, const LoadOptions& options = {}) {
    Loading<B> loading{be, options};
    add_language_model(loading, llm, file);
    loading.finish();
}

}  // namespace prism
