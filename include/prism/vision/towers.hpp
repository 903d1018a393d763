// The known towers: configurations by timm's names, and Prismatic's vision backbones that are made of them.
#pragma once

#include "prism/vision/vit.hpp"

#include <array>
#include <optional>
#include <span>
#include <string_view>

namespace prism {

namespace vit {

/// CLIP B/16 and L/14 as OpenAI trained them.
inline VitConfig clip_b16(std::size_t image_size = 224) {
    return {.image_size = image_size, .patch_size = 16, .d_model = 768, .n_layers = 12, .n_heads = 12, .d_ff = 3072,
            .norm_pre = true, .norm_eps = 1e-5f, .act = Activation::quick_gelu};
}
inline VitConfig clip_l14(std::size_t image_size = 224) {
    return {.image_size = image_size, .patch_size = 14, .d_model = 1024, .n_layers = 24, .n_heads = 16, .d_ff = 4096,
            .norm_pre = true, .norm_eps = 1e-5f, .act = Activation::quick_gelu};
}
inline VitConfig siglip_b16(std::size_t image_size = 224) {
    return {.image_size = image_size, .patch_size = 16, .d_model = 768, .n_layers = 12, .n_heads = 12, .d_ff = 3072,
            .class_token = false, .attention_pool = true};
}
/// The shape-optimised SigLIP of 400 M parameters.
inline VitConfig siglip_so400m14(std::size_t image_size = 224) {
    return {.image_size = image_size, .patch_size = 14, .d_model = 1152, .n_layers = 27, .n_heads = 16, .d_ff = 4304,
            .class_token = false, .attention_pool = true};
}
/// DINOv2 L/14 with four registers. Its file holds the positions of a 37 x 37 grid; loading resamples them.
inline VitConfig dinov2_l14_reg4(std::size_t image_size = 224) {
    return {.image_size = image_size, .patch_size = 14, .d_model = 1024, .n_layers = 24, .n_heads = 16, .d_ff = 4096,
            .n_registers = 4, .pos_embed_prefix = false, .layer_scale = true};
}
inline VitConfig in1k_l16(std::size_t image_size = 224) {
    return {.image_size = image_size, .patch_size = 16, .d_model = 1024, .n_layers = 24, .n_heads = 16, .d_ff = 4096};
}

/// The configuration of a timm architecture, tags ignored ("vit_large_patch14_reg4_dinov2.lvd142m"); nothing for others.
/// timm's own activations: CLIP's is the erf GELU there, and quick_gelu only where it is overridden.
inline std::optional<VitConfig> from_timm_name(std::string_view name) {
    name = name.substr(0, name.find('.'));
    const auto plain = [](VitConfig c) {
        c.act = Activation::gelu_erf;
        return c;
    };
    if (name == "vit_base_patch16_clip_224") return plain(clip_b16(224));
    if (name == "vit_large_patch14_clip_224") return plain(clip_l14(224));
    if (name == "vit_large_patch14_clip_336") return plain(clip_l14(336));
    if (name == "vit_base_patch16_siglip_224") return siglip_b16(224);
    if (name == "vit_base_patch16_siglip_256") return siglip_b16(256);
    if (name == "vit_base_patch16_siglip_384") return siglip_b16(384);
    if (name == "vit_so400m_patch14_siglip_224") return siglip_so400m14(224);
    if (name == "vit_so400m_patch14_siglip_384") return siglip_so400m14(384);
    if (name == "vit_large_patch14_reg4_dinov2") return dinov2_l14_reg4(518);
    if (name == "vit_large_patch16_224") return in1k_l16(224);
    return std::nullopt;
}

}  // namespace vit

/// One tower of a backbone: the key under which Prismatic keeps its pixels, its timm model, and what differs from timm.
struct TowerSpec {
    std::string_view key{};       // "dino", "siglip", "clip", "in1k"
    std::string_view timm_model{};
    bool             quick_gelu = false;  // Prismatic overrides CLIP's activation, except inside dinoclip
};

/// A vision backbone of Prismatic: one or two towers on pictures of one size.
struct BackboneSpec {
    std::string_view         id;
    std::size_t              image_size;
    std::array<TowerSpec, 2> towers;
    std::size_t              n_towers;

    bool fused() const { return n_towers > 1; }
};

/// All vision backbones that Prismatic knows, by its ids. Source: TRI-ML/prismatic-vlms, models/materialize.py.
inline constexpr std::array<BackboneSpec, 13> backbones{{
    {"clip-vit-b", 224, {{{"clip", "vit_base_patch16_clip_224.openai", true}}}, 1},
    {"clip-vit-l", 224, {{{"clip", "vit_large_patch14_clip_224.openai", true}}}, 1},
    {"clip-vit-l-336px", 336, {{{"clip", "vit_large_patch14_clip_336.openai", true}}}, 1},
    {"siglip-vit-b16-224px", 224, {{{"siglip", "vit_base_patch16_siglip_224", false}}}, 1},
    {"siglip-vit-b16-256px", 256, {{{"siglip", "vit_base_patch16_siglip_256", false}}}, 1},
    {"siglip-vit-b16-384px", 384, {{{"siglip", "vit_base_patch16_siglip_384", false}}}, 1},
    {"siglip-vit-so400m", 224, {{{"siglip", "vit_so400m_patch14_siglip_224", false}}}, 1},
    {"siglip-vit-so400m-384px", 384, {{{"siglip", "vit_so400m_patch14_siglip_384", false}}}, 1},
    {"dinov2-vit-l", 224, {{{"dino", "vit_large_patch14_reg4_dinov2.lvd142m", false}}}, 1},
    {"in1k-vit-l", 224, {{{"in1k", "vit_large_patch16_224.augreg_in21k_ft_in1k", false}}}, 1},
    {"dinoclip-vit-l-336px", 336,
     {{{"dino", "vit_large_patch14_reg4_dinov2.lvd142m", false}, {"clip", "vit_large_patch14_clip_336.openai", false}}}, 2},
    {"dinosiglip-vit-so-224px", 224,
     {{{"dino", "vit_large_patch14_reg4_dinov2.lvd142m", false}, {"siglip", "vit_so400m_patch14_siglip_224", false}}}, 2},
    {"dinosiglip-vit-so-384px", 384,
     {{{"dino", "vit_large_patch14_reg4_dinov2.lvd142m", false}, {"siglip", "vit_so400m_patch14_siglip_384", false}}}, 2},
}};

/// The backbone of that id. Throws ConfigError that lists the ids.
inline const BackboneSpec& backbone_from_id(std::string_view id) {
    std::string allowed;
    for (const auto& b : backbones) {
        if (b.id == id) return b;
        allowed += (allowed.empty() ? "" : ", ") + std::string(b.id);
    }
    throw ConfigError{"vision_backbone_id", std::string(id), allowed};
}

/// The published configuration of one tower of a backbone.
inline VitConfig tower_config(const BackboneSpec& backbone, std::size_t tower) {
    VitConfig c = *vit::from_timm_name(backbone.towers[tower].timm_model);
    c.image_size = backbone.image_size;
    if (backbone.towers[tower].quick_gelu) c.act = Activation::quick_gelu;
    return c;
}

}  // namespace prism
