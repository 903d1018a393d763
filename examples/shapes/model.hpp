// The small model of the shapes world: two towers side by side, a projector and a decoder, composed here and trained from
// nothing.
//
//     auto model = shapes::fresh_model(cpu, 7);                       // random numbers of seed 7
//     ... train it; store_as(cpu, model.model, Dtype::bf16); pack("model.prism", model);
#pragma once

#include "vocabulary.hpp"

#include "prism/model/pretrained.hpp"
#include "prism/model/random.hpp"

#include <cstddef>
#include <cstdint>

namespace prism::shapes {

struct Profile {
    std::size_t image_size = 48, patch_size = 8;                      // px: 36 patches
    std::size_t tower_width = 96, tower_layers = 5, tower_heads = 3;  // the last block of a tower is never used, as everywhere in Prismatic
    std::size_t width = 128, layers = 4, heads = 4;                   // of the decoder
};

/// Whose prompts the model reads: a base model's, "In: ...\nOut: ...".
inline constexpr const char* prompt_style = "llama2-7b-pure";

inline PrismaticConfig composition(const Profile& p = {}) {
    const VitConfig tower{.image_size = p.image_size, .patch_size = p.patch_size, .d_model = p.tower_width, .n_layers = p.tower_layers,
                          .n_heads = p.tower_heads, .d_ff = 4 * p.tower_width, .class_token = false};
    PrismaticConfig c{.model_id = "shapes", .vision_backbone_id = "shapes", .llm_backbone_id = prompt_style, .towers = {}, .projector = ProjectorKind::fused_gelu_mlp,
                      .llm = LlamaConfig{.vocab_size = (tokenizer().size() + 63) / 64 * 64, .d_model = p.width, .d_ff = p.width * 11 / 4, .n_layers = p.layers,
                                         .n_heads = p.heads, .n_kv_heads = p.heads, .head_dim = p.width / p.heads, .tied_embeddings = true},
                      .llm_max_length = 512};
    for (const char* key : {"dino", "siglip"}) c.towers.push_back({key, tower, {.stats = tower_statistics(key), .strategy = Resize::naive, .size = p.image_size}});
    return c;
}

template <Backend B>
Pretrained<B> fresh_model(B& be, std::uint64_t seed, const Profile& profile = {}) {
    Pretrained<B> p{.layout = Layout::prismatic_run, .model = Prismatic<B>{composition(profile)}, .tokenizer = tokenizer(), .prompt_style = prompt_style};
    randomise(be, p.model, {.seed = seed, .spread = 0.06f});
    return p;
}

}  // namespace prism::shapes
