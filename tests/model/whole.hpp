// Whole models for tests: a small LLaVA made of parts, and what a model answers.
#pragma once

#include "model/support.hpp"
#include "prism/generate/chat.hpp"
#include "support/random_weights.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace prism::test {

using Tensors = std::vector<TensorInfo>;

inline Tensors prefixed(const std::string& prefix, const Tensors& tensors) {
    Tensors out = tensors;
    for (auto& t : out) t.name = prefix + t.name;
    return out;
}
inline void append(Tensors& to, const Tensors& tensors) { to.insert(to.end(), tensors.begin(), tensors.end()); }

/// Soft tokens of one picture of noise, and greedy ids after a prompt.
struct Run {
    std::vector<float>        soft;
    std::vector<std::int32_t> ids;
    bool                      operator==(const Run&) const = default;
};
inline Run run(Cpu& be, const Prismatic<Cpu>& model) {
    Pixels<Cpu> pixels;
    for (unsigned i = 0; i < model.towers.size(); ++i) {
        const std::size_t side = model.config.towers[i].vit.image_size;
        pixels.add(be, normal(3 * side * side, i), {1, 3, side, side});
    }
    Session<Cpu, Prismatic<Cpu>> session{be, model, {.max_tokens = 64}};
    session.show(pixels.views());
    Run                             r{std::vector<float>(model.n_soft_tokens() * model.config.d_model()), {}};
    const std::vector<std::int32_t> prompt{1, 5, 17, 200};
    const auto                      bytes = seeing_cost(model, pixels.views()).workspace_bytes;
    Workspace<Cpu>                  ws{be, bytes};
    model.see(be, ws, pixels.views(), {r.soft.data(), {model.n_soft_tokens(), model.config.d_model()}});
    r.ids = session.generate(prompt, {.max_new_tokens = 10}).ids;
    return r;
}

/// The parts of a small LLaVA: the reference's CLIP and Llama, and a random projector between them.
struct LlavaParts {
    Json    config;
    Tensors tower, projector, llm;

    LlavaParts() {
        const Json text = read_json(reference("lm/llama-bf16-sharded") / "config.json");
        config = {{"model_type", "llava"},
                  {"image_token_index", 32},
                  {"vision_feature_layer", -2},
                  {"vision_config",
                   {{"model_type", "clip_vision_model"}, {"hidden_size", 32}, {"intermediate_size", 128}, {"num_hidden_layers", 3}, {"num_attention_heads", 2}, {"image_size", 42}, {"patch_size", 14}, {"hidden_act", "gelu"}}},
                  {"text_config", text}};
        llm = Checkpoint::open(reference("lm/llama-bf16-sharded")).tensors();
        projector = {tensor("linear_1.weight", {64, 32}, normal(64 * 32, 1, 0.2f)), tensor("linear_1.bias", {64}, normal(64, 2)), tensor("linear_2.weight", {64, 64}, normal(64 * 64, 3, 0.2f)),
                     tensor("linear_2.bias", {64}, normal(64, 4))};
        const Tensors timm = Checkpoint::open(reference("vision/clip-gelu")).tensors();
        const std::vector<std::pair<std::string, std::string>> rules{
            {"norm1.", "layer_norm1."}, {"norm2.", "layer_norm2."}, {"attn.proj.", "self_attn.out_proj."}, {"mlp.", "mlp."}};
        for (TensorInfo t : timm) {
            if (t.name == "cls_token") t.name = "embeddings.class_embedding", t.shape = {32};
            else if (t.name == "pos_embed") t.name = "embeddings.position_embedding.weight", t.shape = {10, 32};
            else if (t.name == "patch_embed.proj.weight") t.name = "embeddings.patch_embedding.weight";
            else if (t.name.starts_with("norm_pre.")) t.name = "pre_layrnorm." + t.name.substr(9);
            else if (t.name.starts_with("norm.")) t.name = "post_layernorm." + t.name.substr(5);
            else {
                const std::size_t dot = t.name.find('.', 7);
                const std::string layer = "encoder.layers." + t.name.substr(7, dot - 7) + ".", rest = t.name.substr(dot + 1);
                if (rest.starts_with("attn.qkv.")) {
                    t.shape[0] /= 3;
                    for (const char* which : {"q", "k", "v"}) {
                        t.name = layer + "self_attn." + which + "_proj." + rest.substr(9);
                        tower.push_back(t);
                        t.data += t.bytes();
                    }
                    continue;
                }
                const auto rule = std::ranges::find_if(rules, [&](const auto& r) { return rest.starts_with(r.first); });
                REQUIRE(rule != rules.end());
                t.name = layer + rule->second + rest.substr(rule->first.size());
            }
            tower.push_back(t);
        }
    }
    Tensors older() const {
        Tensors all = prefixed("vision_tower.vision_model.", tower);
        append(all, prefixed("multi_modal_projector.", projector));
        append(all, prefixed("language_model.", llm));
        return all;
    }
    Tensors newer() const {
        Tensors all = prefixed("model.vision_tower.vision_model.", tower);
        append(all, prefixed("model.multi_modal_projector.", projector));
        for (TensorInfo t : llm) {
            t.name = t.name == "lm_head.weight" ? t.name : "model.language_model." + t.name.substr(6);
            all.push_back(t);
        }
        return all;
    }
};

}  // namespace prism::test
