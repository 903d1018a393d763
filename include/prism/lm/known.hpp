// The known language models: published sizes by name, and Prismatic's language backbones that are made of them.
#pragma once

#include "prism/lm/language_model.hpp"

#include <array>
#include <string_view>

namespace prism {

namespace llama {

/// Prismatic's checkpoints have 32064 rows of vocabulary, Meta's 32000.
inline LlamaConfig llama2_7b(std::size_t vocab_size = 32000) { return {.vocab_size = vocab_size}; }
inline LlamaConfig llama2_13b(std::size_t vocab_size = 32000) {
    return {.vocab_size = vocab_size, .d_model = 5120, .d_ff = 13824, .n_layers = 40, .n_heads = 40, .n_kv_heads = 40};
}
/// Vicuna v1.5 is Llama-2, trained on.
inline LlamaConfig vicuna_7b(std::size_t vocab_size = 32000) { return llama2_7b(vocab_size); }
inline LlamaConfig vicuna_13b(std::size_t vocab_size = 32000) { return llama2_13b(vocab_size); }
inline LlamaConfig mistral_7b() { return {.d_ff = 14336, .n_kv_heads = 8, .max_positions = 32768, .window = 4097}; }
/// The shape of TinyLlama.
inline LlamaConfig llama_1b() { return {.d_model = 2048, .d_ff = 5632, .n_layers = 22, .n_heads = 32, .n_kv_heads = 4, .head_dim = 64, .max_positions = 2048}; }

inline LlamaConfig qwen2(std::size_t vocab, std::size_t d, std::size_t d_ff, std::size_t n_layers, std::size_t n_heads, std::size_t n_kv, bool tied) {
    return {.vocab_size = vocab, .d_model = d, .d_ff = d_ff, .n_layers = n_layers, .n_heads = n_heads, .n_kv_heads = n_kv,
            .head_dim = d / n_heads, .max_positions = 32768, .norm_eps = 1e-6f, .rope_theta = 1e6f, .qkv_bias = true, .tied_embeddings = tied};
}
inline LlamaConfig qwen25_0_5b() { return qwen2(151936, 896, 4864, 24, 14, 2, true); }
inline LlamaConfig qwen25_1_5b() { return qwen2(151936, 1536, 8960, 28, 12, 2, true); }
inline LlamaConfig qwen25_3b() { return qwen2(151936, 2048, 11008, 36, 16, 2, true); }
inline LlamaConfig qwen25_7b() { return qwen2(152064, 3584, 18944, 28, 28, 4, false); }

}  // namespace llama

namespace phi {

inline PhiConfig phi2() { return {}; }

}  // namespace phi

/// A language backbone of Prismatic, with the vocabulary as its trainer leaves it: one pad token more, then rounded up
/// to a multiple of 64 (which cuts Phi-2's).
struct LanguageBackboneSpec {
    std::string_view id;
    LanguageModelConfig (*config)();
    std::size_t      vocab_size;
    std::string_view hugging_face_id;
};

inline constexpr std::array<LanguageBackboneSpec, 13> language_backbones{{
    {"llama2-7b-pure", [] { return LanguageModelConfig{llama::llama2_7b()}; }, 32064, "meta-llama/Llama-2-7b-hf"},
    {"llama2-13b-pure", [] { return LanguageModelConfig{llama::llama2_13b()}; }, 32064, "meta-llama/Llama-2-13b-hf"},
    {"llama2-7b-chat", [] { return LanguageModelConfig{llama::llama2_7b()}; }, 32064, "meta-llama/Llama-2-7b-chat-hf"},
    {"llama2-13b-chat", [] { return LanguageModelConfig{llama::llama2_13b()}; }, 32064, "meta-llama/Llama-2-13b-chat-hf"},
    {"vicuna-v15-7b", [] { return LanguageModelConfig{llama::vicuna_7b()}; }, 32064, "lmsys/vicuna-7b-v1.5"},
    {"vicuna-v15-13b", [] { return LanguageModelConfig{llama::vicuna_13b()}; }, 32064, "lmsys/vicuna-13b-v1.5"},
    {"mistral-v0.1-7b-pure", [] { return LanguageModelConfig{llama::mistral_7b()}; }, 32064, "mistralai/Mistral-7B-v0.1"},
    {"mistral-v0.1-7b-instruct", [] { return LanguageModelConfig{llama::mistral_7b()}; }, 32064, "mistralai/Mistral-7B-Instruct-v0.1"},
    {"phi-2-3b", [] { return LanguageModelConfig{phi::phi2()}; }, 50304, "microsoft/phi-2"},
    {"qwen25-0_5b-pure", [] { return LanguageModelConfig{llama::qwen25_0_5b()}; }, 151680, "Qwen/Qwen2.5-0.5B"},
    {"qwen25-0_5b-extra", [] { return LanguageModelConfig{llama::qwen25_0_5b()}; }, 151936, "Qwen/Qwen2.5-0.5B"},
    {"qwen25-1_5b-pure", [] { return LanguageModelConfig{llama::qwen25_1_5b()}; }, 151680, "Qwen/Qwen2.5-1.5B"},
    {"qwen25-7b-pure", [] { return LanguageModelConfig{llama::qwen25_7b()}; }, 151680, "Qwen/Qwen2.5-7B"},
}};

/// The backbone of that id. Throws ConfigError that lists the ids.
inline const LanguageBackboneSpec& language_backbone_from_id(std::string_view id) {
    std::string allowed;
    for (const auto& b : language_backbones) {
        if (b.id == id) return b;
        allowed += (allowed.empty() ? "" : ", ") + std::string(b.id);
    }
    throw ConfigError{"llm_backbone_id", std::string(id), allowed};
}

/// The published configuration of a language backbone after Prismatic's resizing.
inline LanguageModelConfig published_config(const LanguageBackboneSpec& spec) {
    LanguageModelConfig config = spec.config();
    std::visit([&](auto& c) { c.vocab_size = spec.vocab_size; }, config);
    return config;
}

}  // namespace prism
