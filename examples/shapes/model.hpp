// The small model of the shapes world: two towers side by side, a projector and a decoder, composed here and trained from
// nothing.
//
//     auto model = shapes::fresh_model(cpu, 7);                       // random numbers of seed 7
//     ... train it; store_as(cpu, model.model, Dtype::bf16); pack("model.prism", model);
#pragma once

#include "vocabulary.hpp"

#include "prism/model/pretrained.hpp"
#include "prism/backend/cpu/training.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/image/image.hpp"
#include "prism/model/random.hpp"
#include "prism/train/arena.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace prism::shapes {

struct Profile {
    std::size_t image_size = 96, patch_size = 8;                       // px: 144 patches
    std::size_t tower_width = 128, tower_layers = 6, tower_heads = 4;  // the last block of a tower is never used, as everywhere in Prismatic
    std::size_t width = 192, layers = 5, heads = 6;                    // of the decoder
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

/// Attention that begins by looking for what resembles a token, and by adding it: keys as queries, and back out of a head the
/// way that led in. Words then find the patches that they name without having to learn so first.
/// Source: Trockman, Kolter, "Mimetic initialization of self-attention layers", ICML 2023, simplified.
inline void begin_with_likeness(Cpu& be, LanguageModel<Cpu>& llm) {
    const Arena<Cpu> weights{be, arena_layout(llm, [](std::string_view name) { return name.ends_with("_proj.weight") && name.find("self_attn") != name.npos; })};
    weights.adopt(be, llm);
    for (const Slot& to : weights.layout().slots) {
        const auto of = [&](const char* name) { return weights.values(*weights.layout().find(to.name.substr(0, to.name.size() - std::string_view("q_proj.weight").size()) + name)); };
        const auto values = weights.values(to);
        const auto d = to.shape[0];
        if (to.name.ends_with("k_proj.weight"))
            for (std::size_t i = 0; i < values.size(); ++i) values(i) = of("q_proj.weight")(i);
        if (to.name.ends_with("o_proj.weight"))
            for (std::size_t i = 0; i < values.size(); ++i) values(i) = of("v_proj.weight")(i % d * d + i / d);
    }
}

inline Pretrained<Cpu> fresh_model(Cpu& be, std::uint64_t seed, const Profile& profile = {}) {
    Pretrained<Cpu> p{.layout = Layout::prismatic_run, .model = Prismatic<Cpu>{composition(profile)}, .tokenizer = tokenizer(), .prompt_style = prompt_style};
    randomise(be, p.model, {.seed = seed, .spread = 0.06f});
    begin_with_likeness(be, p.model.llm);
    return p;
}

/// Behind which blocks, in order, a deeper model has a copy of them.
struct Growth {
    std::vector<std::size_t> first_tower{}, decoder{};
};

/// The same model with more blocks. What follows a block is a copy of it which adds nothing yet, because what it writes back is 0:
/// the model answers as before until it is trained.
inline Pretrained<Cpu> deeper(Cpu& be, Pretrained<Cpu> p, const Growth& behind) {
    struct Stack {
        std::string_view         prefix;  // of its blocks' parameters
        std::vector<std::size_t> from;    // the block that each one copies
    };
    const auto grow = [](std::size_t& n_layers, std::span<const std::size_t> after) {
        std::vector<std::size_t> from;
        for (std::size_t i = 0; i < n_layers; ++i) from.insert(from.end(), 1 + static_cast<std::size_t>(std::ranges::count(after, i)), i);
        n_layers = from.size();
        return from;
    };
    PrismaticConfig  c = p.model.config;
    const Stack      stacks[]{{"vision_backbone.0.blocks.", grow(c.towers[0].vit.n_layers, behind.first_tower)},
                              {"llm_backbone.llm.model.layers.", grow(std::get<LlamaConfig>(c.llm).n_layers, behind.decoder)}};
    Prismatic<Cpu>   grown{c};
    const auto       all = [](std::string_view) { return true; };
    const Arena<Cpu> old{be, arena_layout(p.model, all)}, values{be, arena_layout(grown, all)};
    old.copy(be, p.model), values.bind(grown);
    for (const Slot& to : values.layout().slots) {
        std::string name = to.name;
        bool        silent = false;
        for (const auto& [prefix, from] : stacks) {
            if (!name.starts_with(prefix)) continue;
            const std::size_t end = name.find('.', prefix.size()), i = std::stoul(name.substr(prefix.size(), end - prefix.size()));
            name.replace(prefix.size(), end - prefix.size(), std::to_string(from[i]));
            if (i > 0 && from[i] == from[i - 1])
                for (const std::string_view back : {"o_proj.", "down_proj.", "attn.proj.", "mlp.fc2."}) silent |= name.find(back) != name.npos;
        }
        if (!silent) std::ranges::copy(old.values(*old.layout().find(name)).span(), values.values(to).data());
    }
    p.model = std::move(grown);
    return p;
}

/// The features of one picture at a time. The tower has to stay where it is.
class PictureFeatures {
public:
    PictureFeatures(Cpu& be, const Prismatic<Cpu>& vlm, std::size_t tower)
        : be_(&be), tower_(&vlm.towers[tower]), transform_(vlm.config.towers[tower].transform), pixels_(3 * transform_.size * transform_.size),
          ws_(be, dry_run([&, twin = dry_twin(*tower_)](Dry& dry, Workspace<Dry>& ws) { twin.forward(dry, ws, {nullptr, shape()}, {nullptr, {twin.n_patches(), twin.d_model()}}); }).workspace_bytes) {}

    /// out [n_patches d_model]
    void operator()(const Image& picture, std::span<float> out) {
        transform_.apply(picture, {pixels_.data(), {3, transform_.size, transform_.size}});
        tower_->forward(*be_, ws_, {pixels_.data(), shape()}, {out.data(), {tower_->n_patches(), tower_->d_model()}});
    }

private:
    std::array<std::size_t, 4> shape() const { return {1, 3, transform_.size, transform_.size}; }

    Cpu*               be_;
    const Vit<Cpu>*    tower_;
    ImageTransform     transform_;
    std::vector<float> pixels_;
    Workspace<Cpu>     ws_;
};

/// Takes from the features of each tower what all patches of these pictures have in common: it goes into the bias of the last
/// layer before them. Fresh projectors would pass little else on, and every step of theirs would move all soft tokens together.
inline void centre_features(Cpu& be, Prismatic<Cpu>& vlm, std::span<const Image> pictures) {
    for (std::size_t t = 0; t < vlm.towers.size(); ++t) {
        Vit<Cpu>&           tower = vlm.towers[t];
        PictureFeatures     features{be, vlm, t};
        std::vector<float>  values(tower.n_patches() * tower.d_model());
        std::vector<double> sums(tower.d_model());
        for (const Image& picture : pictures) {
            features(picture, values);
            for (std::size_t i = 0; i < values.size(); ++i) sums[i % sums.size()] += static_cast<double>(values[i]);
        }
        const std::string name = "blocks." + std::to_string(tower.blocks.size() - 2) + ".mlp.fc2.bias";
        const Arena<Cpu>  last{be, arena_layout(tower, [&](std::string_view n) { return n == name; })};
        last.adopt(be, tower);
        for (std::size_t j = 0; j < sums.size(); ++j) last.values()(j) -= static_cast<float>(sums[j] / static_cast<double>(pictures.size() * tower.n_patches()));
    }
}

}  // namespace prism::shapes
