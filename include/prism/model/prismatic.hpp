// Prismatic: towers, a projector and a language model, composed at run time from a configuration.
//
//     prism::Prismatic<B> vlm{prism::composition_of("prism-dinosiglip-224px+7b")};
//     vlm.see(be, ws, pixels, soft_tokens);
#pragma once

#include "prism/fusion/projector.hpp"
#include "prism/fusion/splice.hpp"
#include "prism/image/transform.hpp"
#include "prism/lm/known.hpp"
#include "prism/model/registry.hpp"
#include "prism/vision/towers.hpp"

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace prism {

/// One tower of a model and how pictures are prepared for it.
struct TowerConfig {
    std::string    key;  // "dino", "siglip", "clip" or "in1k"
    VitConfig      vit;
    ImageTransform transform;
};

/// What a Prismatic model is made of.
struct PrismaticConfig {
    std::string              model_id, vision_backbone_id, llm_backbone_id;
    std::vector<TowerConfig> towers;
    ProjectorKind            projector = ProjectorKind::gelu_mlp;
    LanguageModelConfig      llm;
    std::size_t              llm_max_length = 2048;  // tokens of text that a prompt may have

    std::size_t n_patches() const { return towers.at(0).vit.n_patches(); }
    std::size_t d_vision() const {
        std::size_t d = 0;
        for (const auto& t : towers) d += t.vit.d_model;
        return d;
    }
    std::size_t d_model() const {
        return std::visit([](const auto& c) { return c.d_model; }, llm);
    }
};

/// The statistics that a tower of this key was trained with.
inline Statistics tower_statistics(std::string_view key) {
    return key == "dino" ? statistics::imagenet : key == "clip" ? statistics::clip : statistics::half;
}

/// The transform of one tower of a backbone. CLIP B/16 alone keeps timm's crop fraction of 0.9.
inline ImageTransform tower_transform(const BackboneSpec& backbone, std::size_t tower, Resize strategy, std::size_t image_size) {
    ImageTransform t{.stats = tower_statistics(backbone.towers[tower].key), .strategy = strategy, .size = image_size};
    if (backbone.id == "clip-vit-b") t.resize_to = image_size * 10 / 9;
    return t;
}

/// The composition of a published model, by id or paper name. Throws ConfigError.
inline PrismaticConfig composition_of(std::string_view model) {
    const RegisteredModel& m = registered_model(model);
    const BackboneSpec&    backbone = backbone_from_id(m.vision_backbone_id);
    PrismaticConfig        c{.model_id = std::string(m.id), .vision_backbone_id = std::string(m.vision_backbone_id),
                             .llm_backbone_id = std::string(m.llm_backbone_id), .towers = {}, .projector = projector_from_arch(m.arch_specifier),
                             .llm = published_config(language_backbone_from_id(m.llm_backbone_id))};
    for (std::size_t i = 0; i < backbone.n_towers; ++i)
        c.towers.push_back({std::string(backbone.towers[i].key), tower_config(backbone, i),
                            tower_transform(backbone, i, m.image_resize_strategy, backbone.image_size)});
    return c;
}

/// A vision-language model of the Prismatic family. Immutable once loaded; may be used from several threads, each with
/// its own workspace and cache. Source: TRI-ML/prismatic-vlms, models/vlms/prismatic.py.
template <Backend B>
struct Prismatic {
    PrismaticConfig     config;
    std::vector<Vit<B>> towers;
    Projector<B>        projector;
    LanguageModel<B>    llm;

    static constexpr auto params = fields(field("vision_backbone", &Prismatic::towers), field("projector.projector", &Prismatic::projector),
                                          field("llm_backbone.llm", &Prismatic::llm));

    /// Throws ConfigError when the towers have different grids.
    explicit Prismatic(PrismaticConfig c)
        : config(std::move(c)), projector(config.projector, {config.d_vision(), config.d_model()}), llm(config.llm) {
        for (const auto& t : config.towers) {
            if (t.vit.n_patches() != config.n_patches())
                throw ConfigError{"vision_backbone_id", config.vision_backbone_id + " with " + std::to_string(t.vit.n_patches()) + " patches in '" + t.key + "'",
                                  "towers of one grid: " + std::to_string(config.n_patches()) + " patches"};
            towers.emplace_back(t.vit);
        }
    }

    /// How a picture is prepared for each tower.
    std::vector<ImageTransform> transforms() const {
        std::vector<ImageTransform> all;
        for (const TowerConfig& t : config.towers) all.push_back(t.transform);
        return all;
    }
    /// Rows that a picture takes in the language model's input.
    std::size_t n_soft_tokens() const { return config.n_patches(); }

    /// features [n n_patches, d_vision] of pixels[tower] [n, 3, S, S].
    void features(B& be, Workspace<B>& ws, std::span<const PixelView<B>> pixels, Mat<B> out) const {
        fuse_towers<B>(be, ws, towers, pixels, out);
    }

    /// soft [n n_patches, d_model] = what the language model reads of n pictures.
    void see(B& be, Workspace<B>& ws, std::span<const PixelView<B>> pixels, Mat<B> soft) const {
        auto   scope = ws.scope();
        Mat<B> seen = ws.mat(soft.rows(), projector.d_vision());
        features(be, ws, pixels, seen);
        projector.forward(be, ws, seen, soft);
    }
};

}  // namespace prism
