// TrainConfig: the configuration of a training run, in the form of Prismatic's own config.json.
//
//     const auto config = prism::TrainConfig::open("config.json");
//     for (const prism::Stage stage : config.stages) ...
//
// A key that is not known is an error that names the nearest one that is. train/README.md lists them all.
// Source: TRI-ML/prismatic-vlms, prismatic/conf/models.py, prismatic/conf/datasets.py, scripts/pretrain.py.
#pragma once

#include "prism/core/error.hpp"
#include "prism/fusion/projector.hpp"
#include "prism/io/config.hpp"
#include "prism/io/name_map.hpp"
#include "prism/model/registry.hpp"
#include "prism/train/data/conversations.hpp"
#include "prism/train/schedule.hpp"
#include "prism/train/stage.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

/// How a stage is optimised. Full fine-tuning has the settings of fine-tuning.
struct StageSettings {
    std::size_t                epochs = 1;
    std::optional<std::size_t> max_steps{};  // then the run ends there, however many epochs that takes; more than 100 are refused
    std::size_t                global_batch_size, per_device_batch_size = 16;
    double                     learning_rate, weight_decay = 0, max_grad_norm = 1, warmup_ratio = 0.03;
    bool                       cosine = true;  // linear-warmup+cosine-decay; otherwise constant
};

/// The learning rate of optimiser step 0, 1, ... of `total` steps.
inline double learning_rate(const StageSettings& s, std::size_t step, std::size_t total) {
    return s.cosine ? warmup_cosine(s.learning_rate, s.warmup_ratio, step, total) : s.learning_rate;
}

struct TrainConfig {
    Json json;  // as it was read, for the run folder

    // model
    std::string   model_id, vision_backbone_id, llm_backbone_id, arch_specifier;
    Resize        image_resize_strategy = Resize::letterbox;
    std::size_t   llm_max_length = 2048;
    StageSettings align{.global_batch_size = 256, .learning_rate = 1e-3}, finetune{.global_batch_size = 128, .learning_rate = 2e-5, .weight_decay = 0.1};

    // dataset
    std::string                          dataset_id;
    std::array<std::filesystem::path, 2> align_data, finetune_data;  // annotations, and the folder of pictures

    // the run
    std::vector<Stage>                   stages;  // one, or a chain: each starts from the checkpoint of the one before
    std::optional<std::filesystem::path> pretrained_checkpoint;
    std::optional<std::string>           run_id;
    std::filesystem::path                run_root_dir = "runs";
    std::uint64_t                        seed = 7;

    // prism's own
    std::filesystem::path vision_dir, llm_dir;            // where the towers and the language model come from
    LoraOptions           lora{};                         // adapters, in the stages that train the language model
    bool                  recompute = true;               // blocks run again in backward: less memory, the same bits
    bool                  decay_by_shape = true;          // matrices decay; otherwise nothing does
    std::size_t           checkpoint_every = 0;           // optimiser steps; 0: at the end of epochs only
    std::size_t           keep_checkpoints = 0;           // the last ones; 0: all
    std::size_t           loader_threads = 2, batches_ahead = 3;
    BadExamples           bad_examples = BadExamples::refuse;
    FeatureCacheOptions   cache{};                        // of what frozen towers see, in the stages that do not train them

    const StageSettings& settings(Stage stage) const { return stage == Stage::align ? align : finetune; }
    LoraOptions          adapters(Stage stage) const { return stage == Stage::align ? LoraOptions{} : lora; }
    FeatureCacheOptions  feature_cache(Stage stage) const { return parts_of(stage).towers ? FeatureCacheOptions{} : cache; }
    const auto&          data(Stage stage) const { return stage == Stage::align ? align_data : finetune_data; }
    /// "llava-lrv+prism-clip+7b+stage-finetune+x7", "...+stage-finetune+lora-r32+x7"; LLaVA-1.5's own mixture is not named.
    std::string id_of(Stage stage) const {
        if (run_id) return *run_id;
        return (dataset_id == "llava-v15" || dataset_id.empty() ? "" : dataset_id + "+") + model_id + "+stage-" + std::string(to_string(stage)) +
               (adapters(stage).rank ? "+lora-r" + std::to_string(lora.rank) : "") + "+x" + std::to_string(seed);
    }

    /// The alignment run that a run of the first stage goes with: its id with another stage, and without adapters. None where the
    /// id is a given one that does not name the stage.
    std::optional<std::string> alignment_id() const {
        if (!run_id) return id_of(Stage::align);
        const std::string name = "+stage-" + std::string(to_string(stages[0])), adapters = "+lora-r";
        const auto        part = [&](const std::string& id, std::size_t at) { return std::min(id.find('+', at + 1), id.size()) - at; };
        std::string       id = *run_id;
        const std::size_t at = id.find(name);
        if (stages[0] == Stage::align || at == id.npos || part(id, at) != name.size()) return std::nullopt;
        if (const std::size_t next = at + name.size(); id.substr(next).starts_with(adapters)) id.erase(next, part(id, next));
        return id.replace(at, name.size(), "+stage-" + std::string(to_string(Stage::align)));
    }

    /// The whole configuration of one stage, as its run folder keeps it. Paths of data are whole, so that it can be read again, for
    /// this stage and for the other.
    Json json_of(Stage stage) const {
        Json        all = json;
        Json&       model = all["model"];
        const auto& s = settings(stage);
        const std::string name = stage == Stage::align ? "align_" : "finetune_";
        model["vision_backbone_id"] = vision_backbone_id, model["llm_backbone_id"] = llm_backbone_id, model["arch_specifier"] = arch_specifier;
        model["image_resize_strategy"] = to_string(image_resize_strategy), model["llm_max_length"] = llm_max_length;
        model[name + "epochs"] = s.epochs, model[name + "max_steps"] = s.max_steps ? Json(*s.max_steps) : Json();
        model[name + "global_batch_size"] = s.global_batch_size, model[name + "per_device_batch_size"] = s.per_device_batch_size;
        model[name + "learning_rate"] = s.learning_rate, model[name + "weight_decay"] = s.weight_decay, model[name + "max_grad_norm"] = s.max_grad_norm;
        model[name + "warmup_ratio"] = s.warmup_ratio, model[name + "lr_scheduler_type"] = s.cosine ? "linear-warmup+cosine-decay" : "constant";
        for (const Stage of : {Stage::align, Stage::finetune})
            if (const auto& [annotations, pictures] = data(of); !annotations.empty()) all["dataset"][components_key(of)] = {annotations.string(), pictures.string()};
        all["dataset"]["dataset_root_dir"] = "";
        if (all.contains("prism"))
            for (const char* key : {"lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"}) all["prism"].erase(key);
        if (adapters(stage).rank) all["prism"].update({{"lora_rank", lora.rank}, {"lora_alpha", lora.alpha}, {"lora_target_modules", lora.targets.empty() ? Json("all-linear") : Json(lora.targets)}});
        if (adapters(stage).dropout > 0) all["prism"]["lora_dropout"] = lora.dropout;
        all["stage"] = to_string(stage), all["run_id"] = id_of(stage), all["seed"] = seed;
        return all;
    }
    /// What of it decides the outcome: a run that goes on has to have the same.
    Json identity_of(Stage stage) const {
        Json all = json_of(stage);
        all["dataset"].erase(components_key(stage == Stage::align ? Stage::finetune : Stage::align));
        for (const char* key : {"run_root_dir", "hf_token", "trackers", "wandb_project", "wandb_entity"}) all.erase(key);
        all["model"].erase("enable_gradient_checkpointing");
        if (all.contains("prism"))
            for (const char* key : {"checkpoint_every", "keep_checkpoints", "loader_threads", "batches_ahead", "feature_cache_bytes", "feature_cache_format"}) all["prism"].erase(key);
        if (feature_cache(stage).bytes && cache.dtype != Dtype::f32) all["prism"]["feature_cache_format"] = "bf16";
        return all;
    }

    /// Throws LoadError, and ConfigError for a value that cannot be used or a key that is not known. Relative paths of
    /// data, runs and weights are relative to where the program runs.
    static TrainConfig open(const std::filesystem::path& path) { return from(ConfigReader::open(path)); }
    static TrainConfig from(const ConfigReader& c);

private:
    static const char*   components_key(Stage stage) { return stage == Stage::align ? "align_stage_components" : "finetune_stage_components"; }
    static void          expect_keys(const ConfigReader& c, std::string_view where, std::initializer_list<std::string_view> known);
    static StageSettings read_stage(const ConfigReader& c, const std::string& stage, StageSettings s);
};

inline void TrainConfig::expect_keys(const ConfigReader& c, std::string_view where, std::initializer_list<std::string_view> known) {
    for (const auto& [key, unused] : c.json().items()) {
        if (std::ranges::count(known, key)) continue;
        const auto  near = nearest_name(key, known);
        std::string all;
        for (const std::string_view k : known) all.append(all.empty() ? "" : ", ").append(k);
        throw ConfigError{c.file(), (where.empty() ? "" : std::string(where) + ".") + key, "no known key", near ? "perhaps '" + *near + "'" : all};
    }
}

inline StageSettings TrainConfig::read_stage(const ConfigReader& c, const std::string& stage, StageSettings s) {
    const auto key = [&](const char* name) { return stage + "_" + name; };
    const auto number = [&](const char* name, double& x, double most) {
        x = c.real(key(name), x);
        if (!(x >= 0 && x <= most)) c.refuse(key(name), "a number from 0 to " + std::to_string(most));
    };
    constexpr std::size_t most = std::size_t{1} << 40;
    s.epochs = c.count(key("epochs"), s.epochs, 10000);
    if (c.has(key("max_steps"))) s.max_steps = c.count(key("max_steps"), {}, most);
    s.global_batch_size = c.count(key("global_batch_size"), s.global_batch_size);
    s.per_device_batch_size = c.count(key("per_device_batch_size"), std::min(s.per_device_batch_size, s.global_batch_size));
    if (s.global_batch_size % s.per_device_batch_size != 0) c.refuse(key("global_batch_size"), "a multiple of " + key("per_device_batch_size") + " " + std::to_string(s.per_device_batch_size));
    number("learning_rate", s.learning_rate, 1e3), number("weight_decay", s.weight_decay, 1e3), number("max_grad_norm", s.max_grad_norm, 1e9), number("warmup_ratio", s.warmup_ratio, 1);
    s.cosine = c.choice(key("lr_scheduler_type"), {"linear-warmup+cosine-decay", "constant"}, "linear-warmup+cosine-decay") != "constant";
    return s;
}

inline TrainConfig TrainConfig::from(const ConfigReader& c) {
    expect_keys(c, "", {"model", "dataset", "stage", "pretrained_checkpoint", "run_id", "run_root_dir", "seed", "prism", "hf_token", "trackers", "wandb_project", "wandb_entity"});
    const ConfigReader none{Json::object(), c.file()}, model = c.object("model"), data = c.object("dataset"), own = c.has("prism") ? c.object("prism") : none;
    expect_keys(model, "model", {"type", "model_id", "arch_specifier", "vision_backbone_id", "llm_backbone_id", "image_resize_strategy", "llm_max_length",
                                 "align_epochs", "align_max_steps", "align_global_batch_size", "align_per_device_batch_size", "align_learning_rate", "align_weight_decay",
                                 "align_max_grad_norm", "align_lr_scheduler_type", "align_warmup_ratio", "align_train_strategy", "finetune_epochs", "finetune_max_steps",
                                 "finetune_global_batch_size", "finetune_per_device_batch_size", "finetune_learning_rate", "finetune_weight_decay", "finetune_max_grad_norm",
                                 "finetune_lr_scheduler_type", "finetune_warmup_ratio", "finetune_train_strategy", "enable_gradient_checkpointing",
                                 "enable_mixed_precision_training", "reduce_in_full_precision"});
    expect_keys(data, "dataset", {"type", "dataset_id", "align_stage_components", "finetune_stage_components", "dataset_root_dir"});
    expect_keys(own, "prism", {"vision_dir", "llm_dir", "decay", "checkpoint_every", "keep_checkpoints", "loader_threads", "batches_ahead", "bad_examples", "lora_rank", "lora_alpha", "lora_dropout",
                             "lora_target_modules", "feature_cache_bytes", "feature_cache_format"});

    TrainConfig t;
    t.json = c.json();
    if (!c.has("prism")) t.json.erase("prism");  // it may be null
    t.model_id = model.text("model_id");
    const auto known = std::ranges::find(registry, t.model_id, &RegisteredModel::id);
    const auto of_model = [&](const char* key, std::string_view registered) {
        return model.text(key, known != registry.end() ? std::optional(std::string(registered)) : std::nullopt);
    };
    const RegisteredModel fallback = known != registry.end() ? *known : RegisteredModel{};
    t.vision_backbone_id = of_model("vision_backbone_id", fallback.vision_backbone_id);
    t.llm_backbone_id = of_model("llm_backbone_id", fallback.llm_backbone_id);
    t.arch_specifier = of_model("arch_specifier", fallback.arch_specifier);
    projector_from_arch(t.arch_specifier);
    t.image_resize_strategy = resize_from_name(of_model("image_resize_strategy", to_string(fallback.image_resize_strategy)));
    t.llm_max_length = model.count("llm_max_length", 2048);
    t.recompute = model.flag("enable_gradient_checkpointing", true);
    if (known != registry.end()) {
        t.finetune.epochs = known->finetune_epochs;
        if (known->finetune_max_steps > 0) t.finetune.max_steps = known->finetune_max_steps;
    }
    t.align = read_stage(model, "align", t.align), t.finetune = read_stage(model, "finetune", t.finetune);

    t.dataset_id = data.text("dataset_id", data.text("type", ""));
    const std::filesystem::path root = data.text("dataset_root_dir", "data");
    // The published mixtures: what is fine-tuned on differs, the pictures and the captions do not.
    constexpr std::array<std::array<std::string_view, 2>, 5> mixtures{{{"llava-v15", "llava_v1_5_mix665k"}, {"llava-multimodal", "llava_v1_5_stripped625k"}, {"llava-lvis4v", "llava_v1_5_lvis4v_mix888k"},
                                                                       {"llava-lrv", "llava_v1_5_lrv_mix1008k"}, {"llava-lvis4v-lrv", "llava_v1_5_lvis4v_lrv_mix1231k"}}};
    const auto mixture = std::ranges::find(mixtures, t.dataset_id, [](const auto& row) { return row[0]; });
    const auto components = [&](const char* key, const std::string& folder, const std::string& file) -> std::array<std::filesystem::path, 2> {
        if (mixture != mixtures.end() && !data.has(key)) return {root / folder / file, root / folder};
        if (!data.has(key)) return {};
        const auto parts = data.texts(key);
        if (parts.size() != 2) data.refuse(key, "two paths: the annotations, and the folder of pictures");
        return {root / parts[0], root / parts[1]};
    };
    t.align_data = components("align_stage_components", "download/llava-laion-cc-sbu-558k", "chat.json");
    t.finetune_data = components("finetune_stage_components", "download/llava-v1.5-instruct", mixture != mixtures.end() ? std::string((*mixture)[1]) + ".json" : "");

    const auto stage_of = [&](const std::string& name) {
        for (const Stage stage : {Stage::align, Stage::finetune, Stage::full_finetune})
            if (name == to_string(stage)) return stage;
        c.refuse("stage", "'align', 'finetune', 'full-finetune', or a list of these");
    };
    if (c.json().contains("stage") && c.json().at("stage").is_array())
        for (const std::string& name : c.texts("stage")) t.stages.push_back(stage_of(name));
    else t.stages.push_back(stage_of(c.text("stage", "finetune")));
    if (t.stages.empty()) c.refuse("stage", "at least one stage");
    for (const Stage stage : t.stages)
        if (t.data(stage)[0].empty())
            throw ConfigError{data.file(), stage == Stage::align ? "dataset.align_stage_components" : "dataset.finetune_stage_components", "", "the annotations and the folder of pictures"};

    if (c.has("pretrained_checkpoint")) t.pretrained_checkpoint = c.text("pretrained_checkpoint");
    if (c.has("run_id")) t.run_id = c.text("run_id");
    if (t.run_id && t.stages.size() > 1) c.refuse("run_id", "none, because each of several stages has its own");
    for (const Stage stage : t.stages)
        if (const std::string id = t.id_of(stage); id.find('/') != id.npos || id.find('\0') != id.npos || id == ".." || id == ".") c.refuse(t.run_id ? "run_id" : "model", "names without '/'");
    t.run_root_dir = c.text("run_root_dir", "runs");
    t.seed = static_cast<std::uint64_t>(c.integer("seed", 0, 0xffffffff, 7));

    t.vision_dir = own.text("vision_dir", ""), t.llm_dir = own.text("llm_dir", "");
    t.lora.rank = static_cast<std::size_t>(own.integer("lora_rank", 0, 1 << 16, 0)), t.lora.seed = t.seed;
    for (const char* key : {"lora_alpha", "lora_dropout", "lora_target_modules"})
        if (t.lora.rank == 0 && own.has(key)) own.refuse(key, "nothing without a lora_rank");
    if (t.lora.rank > 0 && std::ranges::count(t.stages, Stage::align) == std::ssize(t.stages)) own.refuse("lora_rank", "0 for align, which trains no language model");
    t.lora.alpha = own.real("lora_alpha", static_cast<double>(std::min<std::size_t>(t.lora.rank, 16)));
    if (t.lora.rank > 0 && !(t.lora.alpha > 0)) own.refuse("lora_alpha", "a number above 0");
    t.lora.dropout = own.real("lora_dropout", 0);
    if (!(t.lora.dropout >= 0 && t.lora.dropout < 1)) own.refuse("lora_dropout", "a number from 0 to below 1");
    if (own.has("lora_target_modules") && own.json().at("lora_target_modules") != "all-linear") {
        t.lora.targets = own.texts("lora_target_modules");
        if (t.lora.targets.empty()) own.refuse("lora_target_modules", "'all-linear', or at least one name");
    }
    t.decay_by_shape = own.choice("decay", {"by-shape", "none"}, "by-shape") == "by-shape";
    const auto size = [&](const char* key, std::size_t least, std::size_t value, std::size_t most) {
        return static_cast<std::size_t>(own.integer(key, static_cast<std::int64_t>(least), static_cast<std::int64_t>(most), static_cast<std::int64_t>(value)));
    };
    t.checkpoint_every = size("checkpoint_every", 0, 0, 1 << 30), t.keep_checkpoints = size("keep_checkpoints", 0, 0, 1 << 20);
    t.loader_threads = size("loader_threads", 1, 2, 256), t.batches_ahead = size("batches_ahead", 2, 3, 1024);
    t.cache.bytes = size("feature_cache_bytes", 0, 0, std::size_t{1} << 50);
    if (own.has("feature_cache_format") && t.cache.bytes == 0) own.refuse("feature_cache_format", "nothing without feature_cache_bytes");
    if (t.cache.bytes && std::ranges::count(t.stages, Stage::full_finetune) == std::ssize(t.stages)) own.refuse("feature_cache_bytes", "0 for full-finetune, which trains the towers");
    t.cache.dtype = own.choice("feature_cache_format", {"f32", "bf16"}, "f32") == "bf16" ? Dtype::bf16 : Dtype::f32;
    t.bad_examples = own.choice("bad_examples", {"refuse", "skip"}, "refuse") == "skip" ? BadExamples::skip : BadExamples::refuse;
    return t;
}

}  // namespace prism
