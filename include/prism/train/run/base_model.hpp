// base_model: what a run starts from, before any training: towers and a language model from their own folders, a fresh
// projector between them, and room in the vocabulary for the padding.
//
//     prism::Pretrained<B> base = prism::base_model(be, config);
// Source: TRI-ML/prismatic-vlms, prismatic/models/materialize.py, models/backbones/llm/base_llm.py.
#pragma once

#include "prism/model/adapters.hpp"
#include "prism/model/language_files.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/model/pretrained.inl"  // where the towers and the language model of a folder are
#include "prism/model/tower_files.hpp"
#include "prism/train/data/reference_random.hpp"
#include "prism/train/run/train_config.hpp"

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace prism {

/// Opens the parts that a configuration names. The tables of words get a row for the padding token and are rounded up to a
/// multiple of 64 rows, as in the reference, whose new rows are other random numbers. Throws LoadError, FormatError,
/// ConfigError.
template <Backend B>
Pretrained<B> base_model(B& be, const TrainConfig& config) {
    if (config.vision_dir.empty()) throw ConfigError{"prism.vision_dir", "", "the folder that holds a folder for each vision tower"};
    if (config.llm_dir.empty()) throw ConfigError{"prism.llm_dir", "", "the folder of the language model, with its tokenizer"};
    const BackboneSpec&     backbone = backbone_from_id(config.vision_backbone_id);
    PrismaticConfig         c{.model_id = config.model_id, .vision_backbone_id = config.vision_backbone_id, .llm_backbone_id = config.llm_backbone_id, .towers = {},
                              .projector = projector_from_arch(config.arch_specifier), .llm = language_model_config(ConfigReader::open(config.llm_dir / "config.json")),
                              .llm_max_length = config.llm_max_length};
    std::vector<Checkpoint> towers;
    for (std::size_t i = 0; i < backbone.n_towers; ++i) {
        const auto folder = detail::tower_folder(config.vision_dir, backbone.towers[i].key);
        c.towers.push_back(detail::tower_of_backbone(backbone, i, folder, config.image_resize_strategy));
        towers.push_back(Checkpoint::open(folder));
    }

    auto tokenizer = detail::open_tokenizer(config.llm_dir);
    if (!tokenizer) throw LoadError{config.llm_dir.string(), "holds no tokenizer"};
    detail::add_pad_token(*tokenizer, config.llm_backbone_id);
    const std::size_t n_rows = n_word_rows(*tokenizer);
    const Checkpoint  llm = with_words(Checkpoint::open(config.llm_dir), n_rows, config.seed);
    std::visit([&](auto& settings) { settings.vocab_size = n_rows; }, c.llm);

    Pretrained<B> base{.layout = Layout::prismatic_run, .model = Prismatic<B>{c}, .tokenizer = std::move(tokenizer), .prompt_style = c.llm_backbone_id};
    Loading<B>    loading{be};
    for (std::size_t i = 0; i < towers.size(); ++i) add_tower(loading, base.model.towers[i], towers[i]);
    add_language_model(loading, base.model.llm, llm);
    loading.finish();
    initialise(be, base.model.projector);
    return base;
}

/// Gives a model the parts that a checkpoint of Prismatic has: the projector of an alignment, or all of a run. Throws
/// LoadError for one that has no part of the model, or another's, or adapters without their base; the model is then unchanged.
template <Backend B>
void start_from(B& be, Prismatic<B>& model, const std::filesystem::path& checkpoint) {
    const Checkpoint file = Checkpoint::open(checkpoint).below("model");
    if (holds_adapters(file.below("llm_backbone.llm")))
        throw LoadError{checkpoint.string(), "holds adapters without the language model they belong to: it is of a run that has not ended, which 'prism train' with that run's config.json ends"};
    Loading<B> loading{be};
    bool       found = false;
    const auto       give = [&](const std::string& name, auto&& add) {
        if (const Checkpoint tensors = file.below(name); !tensors.tensors().empty()) add(tensors), found = true;
    };
    for (std::size_t i = 0; i < model.towers.size(); ++i)
        give("vision_backbone." + (model.towers.size() > 1 ? model.config.towers[i].key + "_" : "") + "featurizer",
             [&](const Checkpoint& tensors) { add_tower(loading, model.towers[i], tensors); });
    give("projector.projector", [&](const Checkpoint& tensors) { loading.add(model.projector, tensors); });
    give("llm_backbone.llm", [&](const Checkpoint& tensors) { add_language_model(loading, model.llm, tensors); });
    if (!found) throw LoadError{checkpoint.string(), "is no checkpoint of this model: it has none of its parts"};
    loading.finish();
}

/// Where the language model comes from that a stage begins with: the folder of the configuration, or the checkpoint that the stage
/// starts from, where that has one.
inline std::filesystem::path first_language_model(const TrainConfig& config, const std::optional<std::filesystem::path>& first) {
    return first && !Checkpoint::open(*first).below("model").below("llm_backbone").tensors().empty() ? *first : config.llm_dir;
}

/// Links in a run's folder to the parts that its checkpoints lack, so that from_pretrained opens it as it stands: vision/ and llm/,
/// and start.pt where `first`, the checkpoint that the run began with, has towers or a language model in place of those.
inline void link_parts(const std::filesystem::path& run, const TrainConfig& config, const std::optional<std::filesystem::path>& first = {}) {
    const auto link = [&](const char* name, const std::filesystem::path& target, bool folder) {
        std::error_code problem;  // a convenience: vision/ and llm/ can be named when the folder is opened
        if (std::filesystem::exists(std::filesystem::symlink_status(run / name))) return;
        if (folder) std::filesystem::create_directory_symlink(std::filesystem::absolute(target), run / name, problem);
        else std::filesystem::create_symlink(std::filesystem::absolute(target), run / name, problem);
    };
    link("vision", config.vision_dir, true), link("llm", config.llm_dir, true);
    if (!first) return;
    const Checkpoint file = Checkpoint::open(*first).below("model");
    if (!file.below("vision_backbone").tensors().empty() || !file.below("llm_backbone").tensors().empty()) link("start.pt", *first, false);
}

}  // namespace prism
