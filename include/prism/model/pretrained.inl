// What pretrained.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/io/config.hpp"
#include "prism/model/adapters.hpp"
#include "prism/model/gguf_files.hpp"
#include "prism/model/language_files.hpp"
#include "prism/model/packed.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/model/settings.hpp"
#include "prism/model/tower_files.hpp"

#include <algorithm>
#include <set>
#include <utility>

namespace prism {

template <class>
Layout layout_of(const PackedModel& packed) {
    if (packed.layout == packed_module) throw LoadError{packed.weights.file(), "holds a model of somebody's own, which only the program that has it can open (PackedModel)"};
    for (const Layout layout : {Layout::prismatic_run, Layout::openvla, Layout::llava, Layout::language_model, Layout::tower})
        if (packed.layout == to_string(layout)) return layout;
    throw FormatError{packed.weights.file(), detail::bundle_header_at, "the layout '" + packed.layout + "' is none that is known here"};
}

template <class>
Layout layout_of(const std::filesystem::path& folder, const std::filesystem::path& vision) {
    if (!std::filesystem::exists(folder)) throw LoadError{folder.string(), "does not exist"};
    if (is_packed(folder)) return layout_of(PackedModel::open(folder));
    if (const auto gguf = gguf_model(folder, vision)) return gguf->vision.empty() ? Layout::language_model : Layout::llava;
    if (!std::filesystem::is_directory(folder)) throw LoadError{folder.string(), "is no folder, no packed file and no GGUF; a model is a folder with a config.json, or one file of those"};
    if (!std::filesystem::exists(folder / "config.json")) throw LoadError{folder.string(), "holds no config.json"};
    const auto c = ConfigReader::open(folder / "config.json");
    if (c.has("architecture")) return Layout::tower;
    if (!c.has("model_type") && (c.has("model") || c.has("vla"))) return Layout::prismatic_run;
    const std::string type = c.choice("model_type", {"openvla", "prismatic", "llava", "llama", "mistral", "qwen2", "phi"});
    return type == "openvla" || type == "prismatic" ? Layout::openvla : type == "llava" ? Layout::llava : Layout::language_model;
}

template <class T>
std::map<std::string, ActionStatistics> read_action_statistics(const ConfigReader& c) {
    std::map<std::string, ActionStatistics> all;
    using J = detail::Late<Json, T>;
    const J& datasets = c.json();
    for (const auto& [dataset, unused] : datasets.items()) {
        const auto       action = c.object(dataset).object("action");
        ActionStatistics s{.q01 = action.reals("q01"), .q99 = action.reals("q99"), .mask = {}};
        if (s.q99.size() != s.q01.size()) action.refuse("q99", "as many numbers as q01: " + std::to_string(s.q01.size()));
        s.mask.assign(s.q01.size(), true);
        if (action.has("mask")) {
            const J& mask = action.json().at("mask");
            if (!mask.is_array() || mask.size() != s.q01.size()) action.refuse("mask", "a list as long as q01");
            for (std::size_t i = 0; i < mask.size(); ++i) {
                if (!mask[i].is_boolean()) action.refuse("mask", "a list of true and false");
                s.mask[i] = mask[i].template get<bool>();
            }
        }
        all.emplace(dataset, std::move(s));
    }
    return all;
}

namespace detail {

template <class = void>
std::optional<Tokenizer> open_tokenizer(const std::filesystem::path& folder) {
    for (const char* name : {"tokenizer.json", "tokenizer.model", "vocab.json"})
        if (std::filesystem::exists(folder / name)) return Tokenizer::open(folder);
    return std::nullopt;
}

/// Prismatic adds a pad token to every tokenizer; folders of base models do not have it yet.
template <class = void>
void add_pad_token(Tokenizer& tokenizer, std::string_view llm_backbone_id) {
    if (llm_backbone_id.starts_with("qwen")) return;
    tokenizer.add_special(llm_backbone_id.starts_with("phi") && tokenizer.id("<|endoftext|>") && !tokenizer.id("<PAD>") ? "<|pad|>" : "<PAD>", SpecialRole::pad);
}

/// Rows of the token table: checkpoints were resized after their base model's config.json was written.
template <class = void>
void take_vocabulary(LanguageModelConfig& config, const Checkpoint& llm) {
    if (const TensorInfo* table = llm.find("model.embed_tokens.weight"); table && table->shape.size() == 2)
        std::visit([&](auto& c) { c.vocab_size = table->shape[0]; }, config);
}

/// A model with a rank's share of the decoder.
template <Backend B>
PrismaticConfig sharded(const B& be, PrismaticConfig config) {
    config.llm = shard_config(config.llm, rank_of(be));
    return config;
}

/// The folder of one tower below `root`: named by its key, or the only one whose name begins so ("clip-gelu").
template <class = void>
std::filesystem::path tower_folder(const std::filesystem::path& root, std::string_view key) {
    if (std::filesystem::is_directory(root / key)) return root / key;
    std::vector<std::filesystem::path> similar;
    if (std::filesystem::is_directory(root))
        for (const auto& entry : std::filesystem::directory_iterator(root))
            if (entry.is_directory() && entry.path().filename().string().starts_with(std::string(key) + "-")) similar.push_back(entry.path());
    if (similar.size() == 1) return similar[0];
    throw LoadError{root.string(), "holds no folder '" + std::string(key) + "' for that vision tower"};
}

/// What `look_up` finds under the name at `key`. Where it knows none, the error names the file, too.
template <class LookUp>
decltype(auto) known(const ConfigReader& config, std::string_view key, LookUp&& look_up) {
    const std::string name = config.text(key);
    try {
        return look_up(name);
    } catch (const ConfigError& e) { config.refuse(key, e.allowed); }
}

/// A tower of a backbone as its folder describes it, or as published where that has no config.json.
template <class = void>
TowerConfig tower_of_backbone(const BackboneSpec& backbone, std::size_t i, const std::filesystem::path& folder, Resize strategy) {
    const TowerSpec& spec = backbone.towers[i];
    VitConfig        vit = tower_config(backbone, i);
    Statistics       stats = tower_statistics(spec.key);
    // A config.json of timm's says what its tower is; one of Hugging Face's says less, and that tower is as published.
    std::optional<ConfigReader> found;
    if (!folder.empty() && std::filesystem::exists(folder / "config.json")) found = ConfigReader::open(folder / "config.json");
    if (found && found->has("architecture")) {
        const ConfigReader& json = *found;
        const bool args = json.has("model_args");
        vit = timm_config(json);
        if (!args || !json.object("model_args").has("img_size")) vit.image_size = backbone.image_size;
        if (spec.quick_gelu && !(args && json.object("model_args").has("act_layer"))) vit.act = Activation::quick_gelu;
        if (json.has("pretrained_cfg") && json.object("pretrained_cfg").has("mean")) stats = read_statistics(json.object("pretrained_cfg"), "mean", "std");
    }
    ImageTransform transform = tower_transform(backbone, i, strategy, vit.image_size);
    transform.stats = stats;
    return {std::string(spec.key), vit, transform};
}

/// The language model of a run with adapters that has not ended: what it began with, the adapters of its last checkpoint merged.
template <Backend B>
Checkpoint adapted_run(B& be, const ConfigReader& config, const Checkpoint& adapters, const Checkpoint& start, const std::filesystem::path& llm_dir,
                       const std::optional<Tokenizer>& tokenizer, const PretrainedOptions& options) {
    if (!config.has("prism") || !config.object("prism").has("lora_alpha")) throw LoadError{adapters.file(), "holds adapters, and " + config.file() + " names no prism.lora_alpha"};
    const double alpha = config.object("prism").real("lora_alpha");
    if (!start.tensors().empty()) return with_adapters(be, start, adapters, alpha);
    if (!tokenizer) throw LoadError{llm_dir.string(), "holds no tokenizer, and so no language model that the adapters of " + adapters.file() + " belong to"};
    return with_adapters(be, with_words(Checkpoint::open(llm_dir, options.mode), n_word_rows(*tokenizer), static_cast<std::uint64_t>(config.integer("seed", 0, 0xffffffff, 7))), adapters, alpha);
}

template <Backend B>
Pretrained<B> open_prismatic_run(B& be, const std::filesystem::path& folder, const PretrainedOptions& options) {
    const auto         config = ConfigReader::open(folder / "config.json");
    const bool         vla = !config.has("model");
    const auto         settings = vla ? config.object("vla") : config.object("model");
    PrismaticConfig    c;
    std::string        strategy, arch;
    if (vla) {  // an OpenVLA run names the model that it started from
        const RegisteredModel& base = known(settings, "base_vlm", registered_model);
        c.model_id = base.id, c.vision_backbone_id = base.vision_backbone_id, c.llm_backbone_id = base.llm_backbone_id;
        strategy = to_string(base.image_resize_strategy), arch = base.arch_specifier;
    } else {
        c.model_id = settings.text("model_id");
        c.vision_backbone_id = known(settings, "vision_backbone_id", backbone_from_id).id;
        c.llm_backbone_id = known(settings, "llm_backbone_id", language_backbone_from_id).id;
        c.llm_max_length = settings.count("llm_max_length", 2048);
        strategy = settings.choice("image_resize_strategy", {"letterbox", "resize-naive", "resize-crop"});
        known(settings, "arch_specifier", projector_from_arch), arch = settings.text("arch_specifier");
    }
    c.projector = projector_from_arch(arch);
    const BackboneSpec& backbone = backbone_from_id(c.vision_backbone_id);
    const auto&         language = language_backbone_from_id(c.llm_backbone_id);

    const Checkpoint run = Checkpoint::open(folder / "checkpoints" / "latest-checkpoint.pt", options.mode);
    Checkpoint       llm = run.below("model.llm_backbone.llm");
    const Checkpoint projector = run.below("model.projector.projector");
    // What a run of prism's began with, where parts of that have been trained before; parts of the run itself go before.
    const Checkpoint start = std::filesystem::exists(std::filesystem::symlink_status(folder / "start.pt")) ? Checkpoint::open(folder / "start.pt", options.mode) : Checkpoint{run.file(), {}};
    const Checkpoint own_towers = run.below("model.vision_backbone"), tuned_towers = own_towers.tensors().empty() ? start.below("model.vision_backbone") : own_towers;
    const auto       featurizer = [&](std::size_t i) { return backbone.fused() ? std::string(backbone.towers[i].key) + "_featurizer" : "featurizer"; };

    const std::filesystem::path vision_dir = options.vision_dir.empty() ? folder / "vision" : options.vision_dir;
    std::vector<Checkpoint>     tower_files;
    for (std::size_t i = 0; i < backbone.n_towers; ++i) {
        const Checkpoint tuned = tuned_towers.below(featurizer(i));
        const bool       trained = !tuned.tensors().empty();
        const auto       tower = !trained || std::filesystem::is_directory(vision_dir) ? tower_folder(vision_dir, backbone.towers[i].key) : std::filesystem::path{};
        c.towers.push_back(tower_of_backbone(backbone, i, tower, resize_from_name(strategy)));
        tower_files.push_back(trained ? tuned : Checkpoint::open(tower, options.mode));
    }

    const std::filesystem::path llm_dir = options.llm_dir.empty() ? folder / "llm" : options.llm_dir;
    c.llm = std::filesystem::exists(llm_dir / "config.json") ? language_model_config(ConfigReader::open(llm_dir / "config.json"))
                                                             : published_config(language);
    auto tokenizer = open_tokenizer(llm_dir);
    if (tokenizer) add_pad_token(*tokenizer, c.llm_backbone_id);
    if (holds_adapters(llm)) llm = adapted_run(be, config, llm, start.below("model.llm_backbone.llm"), llm_dir, tokenizer, options);
    take_vocabulary(c.llm, llm);

    const std::size_t vocab = std::visit([](const auto& m) { return m.vocab_size; }, c.llm);
    Pretrained<B> p{.layout = Layout::prismatic_run, .model = Prismatic<B>{sharded(be, c)}, .tokenizer = std::move(tokenizer), .prompt_style = c.llm_backbone_id};
    p.tokenizer_folder = llm_dir;
    // Actions are the last words of the tokenizer without those that were added to it; the table has room for 64 more, Phi's for others.
    if (vla) p.action_vocabulary.size = c.llm_backbone_id.starts_with("phi") ? std::min<std::size_t>(vocab, 50257) : vocab > 64 ? vocab - 64 : vocab;
    Loading<B> loading{be, options.load};
    for (std::size_t i = 0; i < tower_files.size(); ++i) add_tower(loading, p.model.towers[i], tower_files[i]);
    loading.add(p.model.projector, projector);
    add_language_model(loading, p.model.llm, llm);
    loading.expect_only(run, {"model.projector.projector.", "model.llm_backbone.llm.", "model.vision_backbone.", "optimizer."});
    loading.expect_only(tuned_towers, {featurizer(0) + ".", featurizer(backbone.n_towers - 1) + "."});
    loading.finish();
    if (std::filesystem::exists(folder / "dataset_statistics.json"))
        p.action_statistics = read_action_statistics(ConfigReader::open(folder / "dataset_statistics.json"));
    return p;
}

/// The transforms that a preprocessor_config.json describes: its tvf_* values win over means and stds, as they do in the
/// reference. A fused letterbox is made once, with the last tower's colour.
template <class J = Json>
void read_preprocessor(const std::filesystem::path& folder, PrismaticConfig& c) {
    if (c.towers.size() > 1 && c.towers[0].transform.strategy == Resize::letterbox) {
        Rgb last;
        for (std::size_t i = 0; i < 3; ++i) last[i] = static_cast<std::uint8_t>(255.0 * static_cast<double>(c.towers.back().transform.stats.mean[i]));
        for (auto& t : c.towers) t.transform.fill = last;
    }
    if (!std::filesystem::exists(folder / "preprocessor_config.json")) return;
    const auto p = ConfigReader::open(folder / "preprocessor_config.json");
    const J&   json = p.json();
    if (p.has("tvf_normalize_params")) {
        const auto params = p.objects("tvf_normalize_params");
        if (params.size() != c.towers.size()) p.refuse("tvf_normalize_params", "one entry a tower: " + std::to_string(c.towers.size()));
        for (std::size_t i = 0; i < params.size(); ++i) c.towers[i].transform.stats = read_statistics(params[i], "mean", "std");
    } else if (p.has("means") && p.has("stds")) {
        for (const char* key : {"means", "stds"})
            if (!json.at(key).is_array() || json.at(key).size() != c.towers.size()) p.refuse(key, "one entry a tower: " + std::to_string(c.towers.size()));
        for (std::size_t i = 0; i < c.towers.size(); ++i) {
            const ConfigReader one{J{{"means", json.at("means")[i]}, {"stds", json.at("stds")[i]}}, p.file()};
            c.towers[i].transform.stats = read_statistics(one, "means", "stds");
        }
    }
    if (p.flag("tvf_do_letterbox", false) && p.has("tvf_letterbox_fill")) {
        const auto fill = p.reals("tvf_letterbox_fill");
        if (fill.size() != 3 || std::ranges::any_of(fill, [](double x) { return !(x >= 0 && x <= 255); })) p.refuse("tvf_letterbox_fill", "three numbers from 0 to 255");
        for (auto& t : c.towers) t.transform.fill = Rgb{static_cast<std::uint8_t>(fill[0]), static_cast<std::uint8_t>(fill[1]), static_cast<std::uint8_t>(fill[2])};
    }
}

template <Backend B>
Pretrained<B> open_openvla(B& be, const std::filesystem::path& folder, const PretrainedOptions& options) {
    const auto      config = ConfigReader::open(folder / "config.json");
    PrismaticConfig c;
    c.vision_backbone_id = config.text("vision_backbone_id");
    c.llm_backbone_id = known(config, "llm_backbone_id", language_backbone_from_id).id;
    c.model_id = config.text("model_type");
    c.projector = known(config, "arch_specifier", projector_from_arch);
    c.llm_max_length = config.count("llm_max_length", 2048);
    const BackboneSpec& backbone = known(config, "vision_backbone_id", backbone_from_id);
    const Resize        strategy = resize_from_name(config.choice("image_resize_strategy", {"letterbox", "resize-naive", "resize-crop"}));
    const auto          sizes = config.counts("image_sizes", std::vector<std::size_t>(backbone.n_towers, backbone.image_size), 1 << 16);
    if (sizes.size() != backbone.n_towers) config.refuse("image_sizes", "one size a tower: " + std::to_string(backbone.n_towers));
    using J = Late<Json, B>;
    const J overrides = config.has("timm_override_act_layers") ? config.json().at("timm_override_act_layers") : J::array();
    if (!overrides.is_array() || std::ranges::any_of(overrides, [](const J& act) { return !act.is_null() && !(act.is_string() && act.template get_ref<const std::string&>() == "quick_gelu"); }))
        config.refuse("timm_override_act_layers", "a list of null and \"quick_gelu\"");
    const auto args = config.has("timm_model_args") ? config.objects("timm_model_args") : std::vector<ConfigReader>{};
    for (std::size_t i = 0; i < backbone.n_towers; ++i) {
        VitConfig vit = *vit::from_timm_name(backbone.towers[i].timm_model);
        vit.image_size = sizes[i];
        if (i < args.size()) vit = with_timm_args(vit, args[i]);
        // The export names the activation of each tower; without the list, Prismatic's own choice holds.
        if (i < overrides.size() ? !overrides[i].is_null() : backbone.towers[i].quick_gelu) vit.act = Activation::quick_gelu;
        expect_tower(vit, config, {.image_size = "image_sizes"});
        c.towers.push_back({std::string(backbone.towers[i].key), vit, tower_transform(backbone, i, strategy, vit.image_size)});
    }
    read_preprocessor(folder, c);

    // text_config holds only what differs from the class defaults, and may leave out even its type.
    J text = config.has("text_config") ? config.object("text_config").json() : J::object();
    if (!text.contains("model_type"))
        text["model_type"] = c.llm_backbone_id.starts_with("phi") ? "phi" : c.llm_backbone_id.starts_with("mistral") ? "mistral"
                             : c.llm_backbone_id.starts_with("qwen") ? "qwen2" : "llama";
    c.llm = language_model_config(ConfigReader{std::move(text), config.file() + ": text_config"});

    const Checkpoint all = Checkpoint::open(folder, options.mode);
    const Checkpoint llm = all.below("language_model");
    take_vocabulary(c.llm, llm);
    const std::size_t vocab = std::visit([](const auto& m) { return m.vocab_size; }, c.llm), padding = config.count("pad_to_multiple_of", 64);

    Pretrained<B> p{.layout = Layout::openvla, .model = Prismatic<B>{sharded(be, c)}, .tokenizer = open_tokenizer(folder), .prompt_style = c.llm_backbone_id};
    p.tokenizer_folder = folder;
    p.action_vocabulary = {.size = vocab > padding ? vocab - padding : vocab, .n_bins = config.count("n_action_bins", 256, 1 << 16)};
    if (p.tokenizer) add_pad_token(*p.tokenizer, c.llm_backbone_id);

    Loading<B>                       loading{be, options.load};
    const std::array<std::string, 2> tower_names{"vision_backbone.featurizer", "vision_backbone.fused_featurizer"};
    for (std::size_t i = 0; i < backbone.n_towers; ++i) {
        std::vector<TensorInfo> tensors = all.below(tower_names[i]).tensors();
        for (auto& t : tensors)
            if (t.name.ends_with(".scale_factor")) t.name.replace(t.name.size() - 12, 12, "gamma");
        add_tower(loading, p.model.towers[i], Checkpoint{all.file(), std::move(tensors)});
    }
    loading.add(p.model.projector, all.below("projector"), NameMap{}.prefix("0", "fc1").prefix("2", "fc2").prefix("4", "fc3"));
    add_language_model(loading, p.model.llm, llm);
    loading.expect_only(all, {"language_model.", "projector.", "vision_backbone.featurizer.", backbone.fused() ? "vision_backbone.fused_featurizer." : "projector."});
    loading.finish();
    if (std::filesystem::exists(folder / "dataset_statistics.json"))
        p.action_statistics = read_action_statistics(ConfigReader::open(folder / "dataset_statistics.json"));
    else if (config.has("norm_stats")) p.action_statistics = read_action_statistics(config.object("norm_stats"));
    return p;
}

template <Backend B>
Pretrained<B> open_llava(B& be, const std::filesystem::path& folder, const PretrainedOptions& options) {
    const auto config = ConfigReader::open(folder / "config.json");
    const auto vision = config.object("vision_config");
    vision.choice("model_type", {"clip_vision_model"});
    config.choice("projector_hidden_act", {"gelu"}, "gelu");
    config.choice("vision_feature_select_strategy", {"default"}, "default");
    config.integer("vision_feature_layer", -2, -2, -2);
    VitConfig vit = vit::clip_l14(vision.count("image_size", 336, 1 << 16));
    vit.patch_size = vision.count("patch_size", 14, 1 << 12);
    vit.d_model = vision.count("hidden_size", 1024);
    vit.n_layers = vision.count("num_hidden_layers", 24, 4096);
    vit.n_heads = vision.count("num_attention_heads", 16);
    vit.d_ff = vision.count("intermediate_size", 4096);
    vit.norm_eps = positive(vision, "layer_norm_eps", 1e-5);
    expect_tower(vit, vision, {"hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"});
    const std::string act = vision.choice("hidden_act", {"quick_gelu", "gelu"}, "quick_gelu");
    vit.act = act == "gelu" ? Activation::gelu_erf : Activation::quick_gelu;

    PrismaticConfig c{.model_id = "llava-1.5", .vision_backbone_id = "clip-vit-l-336px", .llm_backbone_id = "llava-1.5-7b-hf", .towers = {}, .projector = ProjectorKind::gelu_mlp, .llm = {}};
    c.towers.push_back({"clip", vit, {.stats = statistics::clip, .strategy = Resize::crop, .size = vit.image_size, .margin = Margin::floor}});
    Late<Json, B> text = config.object("text_config").json();
    if (!text.contains("model_type")) text["model_type"] = "llama";
    c.llm = language_model_config(ConfigReader{std::move(text), config.file() + ": text_config"});

    Checkpoint all = Checkpoint::open(folder, options.mode);
    // Newer writers put "model." in front of every part and the head outside of it.
    const bool       newer = all.find("model.multi_modal_projector.linear_1.weight") != nullptr;
    const Checkpoint parts = newer ? all.below("model") : all;
    Checkpoint       llm = parts.below("language_model");
    if (newer) {
        std::vector<TensorInfo> tensors;
        for (TensorInfo t : llm.tensors()) t.name = "model." + t.name, tensors.push_back(std::move(t));
        if (const TensorInfo* head = all.find("lm_head.weight")) tensors.push_back(*head);
        llm = Checkpoint{all.file(), std::move(tensors)};
    }
    take_vocabulary(c.llm, llm);

    Pretrained<B> p{.layout = Layout::llava, .model = Prismatic<B>{sharded(be, c)}, .tokenizer = open_tokenizer(folder), .prompt_style = c.llm_backbone_id};
    p.tokenizer_folder = folder;
    p.image_token = static_cast<std::int32_t>(config.integer("image_token_index", 0, 1 << 24, 32000));
    Loading<B> loading{be, options.load};
    add_tower(loading, p.model.towers[0], parts.below("vision_tower"));
    loading.add(p.model.projector, parts.below("multi_modal_projector"), NameMap{}.prefix("0", "linear_1").prefix("2", "linear_2"));
    add_language_model(loading, p.model.llm, llm);
    if (newer) loading.expect_only(all, {"model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "lm_head.weight"});
    else loading.expect_only(all, {"vision_tower.", "multi_modal_projector.", "language_model."});
    loading.finish();
    return p;
}

/// The tokenizer of a decoder in GGUF; of one that sees pictures, with the token that a picture replaces. (llama.cpp has the
/// picture between two texts instead.)
template <class = void>
std::optional<Tokenizer> gguf_tokenizer(const Gguf& language, bool sees) {
    if (!language.has("tokenizer.ggml.model")) return std::nullopt;
    Tokenizer tokenizer = Tokenizer::open(language.file());
    if (sees && !tokenizer.id("<image>")) tokenizer.add_special("<image>");
    return tokenizer;
}

/// LLaVA-1.5 in GGUF: its decoder and the file of its tower and projector.
template <Backend B>
Pretrained<B> open_gguf_llava(B& be, const GgufModel& files, const PretrainedOptions& options) {
    const Gguf      language = Gguf::open(files.language, options.mode), vision = Gguf::open(files.vision, options.mode);
    PrismaticConfig c{.model_id = "llava-1.5", .vision_backbone_id = "clip-vit-l-336px", .llm_backbone_id = "llava-1.5-7b-hf", .towers = {}, .projector = ProjectorKind::gelu_mlp, .llm = gguf_language_config(language)};
    const VitConfig vit = gguf_tower_config(vision);
    c.towers.push_back({"clip", vit, {.stats = gguf_statistics(vision), .strategy = Resize::crop, .size = vit.image_size, .margin = Margin::floor}});

    Pretrained<B> p{.layout = Layout::llava, .model = Prismatic<B>{sharded(be, c)}, .tokenizer = gguf_tokenizer(language, true), .prompt_style = c.llm_backbone_id};
    p.tokenizer_folder = files.language;
    if (p.tokenizer) p.image_token = p.tokenizer->id("<image>");
    const Checkpoint all = gguf_tower_tensors(vision, vit);
    std::vector<TensorInfo> tower, projector;
    for (const TensorInfo& t : all.tensors()) (t.name.starts_with("vision_model.") ? tower : projector).push_back(t);
    Loading<B> loading{be, options.load};
    add_tower(loading, p.model.towers[0], Checkpoint{all.file(), std::move(tower)});
    loading.add(p.model.projector, Checkpoint{all.file(), std::move(projector)}, NameMap{}.prefix("0", "linear_1").prefix("2", "linear_2"));
    add_language_model(loading, p.model.llm, gguf_language_tensors(language, c.llm));
    loading.finish();
    return p;
}

template <class = void>
std::optional<Tokenizer> packed_tokenizer_of(const PackedModel& packed) {
    if (!packed.tokenizer) return std::nullopt;
    return Tokenizer::from(*packed.tokenizer);
}

/// A packed file, where the caller wants another part of a model than it may hold.
template <class = void>
PackedModel open_packed_as(Layout wanted, const std::filesystem::path& file, const PretrainedOptions& options) {
    PackedModel packed = PackedModel::open(file, options.mode);
    packed.expect_as_stored(options.load.kept ? "to be converted" : "");
    if (layout_of(packed) != wanted) throw LoadError{file.string(), "is a packed " + packed.layout + ", and no " + std::string(to_string(wanted))};
    return packed;
}

template <Backend B>
Pretrained<B> open_packed(B& be, Layout layout, const std::filesystem::path& file, const PretrainedOptions& options) {
    const PackedModel   packed = open_packed_as(layout, file, options);
    const ConfigReader& c = packed.settings;
    Pretrained<B> p{.layout = layout, .model = Prismatic<B>{sharded(be, prismatic_settings(c.object("model")))}, .tokenizer = packed_tokenizer_of(packed),
                    .prompt_style = c.text("prompt_style"), .picture_at = static_cast<std::size_t>(c.integer("picture_at", 0, 1 << 24))};
    if (c.has("image_token")) p.image_token = static_cast<std::int32_t>(c.integer("image_token", 0, 1 << 24));
    p.action_statistics = read_action_statistics(c.object("action_statistics"));
    p.tokenizer_folder = file;
    p.action_vocabulary = {.size = c.object("action_vocabulary").count("size"), .n_bins = c.object("action_vocabulary").count("n_bins")};
    prism::load(be, p.model, packed.weights, {}, {}, options.load);
    return p;
}

}  // namespace detail

template <Backend B>
Pretrained<B> from_pretrained(B& be, const std::filesystem::path& folder, const PretrainedOptions& options) {
    const Layout layout = layout_of(folder, options.vision_dir);
    if (layout != Layout::language_model && layout != Layout::tower && is_packed(folder)) return detail::open_packed(be, layout, folder, options);
    if (const auto gguf = gguf_model(folder, options.vision_dir)) {
        if (gguf->vision.empty()) throw LoadError{folder.string(), "is a decoder alone: its vision tower is in a file of its own (mmproj), which vision_dir names; or open it with language_model_from_pretrained"};
        return detail::open_gguf_llava(be, *gguf, options);
    }
    switch (layout) {
        case Layout::prismatic_run: return detail::open_prismatic_run(be, folder, options);
        case Layout::openvla: return detail::open_openvla(be, folder, options);
        case Layout::llava: return detail::open_llava(be, folder, options);
        case Layout::language_model: throw LoadError{folder.string(), "is a language model alone: open it with language_model_from_pretrained"};
        case Layout::tower: break;
    }
    throw LoadError{folder.string(), "is a vision tower alone: open it with tower_from_pretrained"};
}

template <class>
Tokenizer tokenizer_from_pretrained(const std::filesystem::path& path, const PretrainedOptions& options) {
    if (is_packed(path)) {
        if (auto tokenizer = detail::packed_tokenizer_of(PackedModel::open(path))) return *std::move(tokenizer);
        throw LoadError{path.string(), "was packed without a tokenizer"};
    }
    if (const auto files = gguf_model(path, options.vision_dir))
        if (const Gguf gguf = Gguf::open(files->language); !gguf.tensors().empty()) {  // else a vocabulary alone
            if (auto tokenizer = detail::gguf_tokenizer(gguf, !files->vision.empty())) return *std::move(tokenizer);
            throw LoadError{gguf.file(), "holds no tokenizer"};
        }
    if (!std::filesystem::is_directory(path) || !std::filesystem::exists(path / "config.json")) {
        Tokenizer tokenizer = Tokenizer::open(path);
        if (!tokenizer.pad_id()) tokenizer.add_special("<PAD>", SpecialRole::pad);
        return tokenizer;
    }
    const auto   config = ConfigReader::open(path / "config.json");
    const Layout layout = layout_of(path);
    std::string  added_by;  // the language backbone of a model that Prismatic made
    if (layout == Layout::openvla) added_by = config.text("llm_backbone_id");
    if (layout == Layout::prismatic_run)
        added_by = config.has("model") ? config.object("model").text("llm_backbone_id")
                                       : std::string(detail::known(config.object("vla"), "base_vlm", registered_model).llm_backbone_id);
    Tokenizer tokenizer = Tokenizer::open(layout != Layout::prismatic_run ? path : options.llm_dir.empty() ? path / "llm" : options.llm_dir);
    if (!added_by.empty()) detail::add_pad_token(tokenizer, added_by);
    return tokenizer;
}

template <Backend B>
PretrainedLanguageModel<B> language_model_from_pretrained(B& be, const std::filesystem::path& folder, const PretrainedOptions& options) {
    if (is_packed(folder)) {
        const PackedModel          packed = detail::open_packed_as(Layout::language_model, folder, options);
        PretrainedLanguageModel<B> p{LanguageModel<B>{shard_config(language_model_settings(packed.settings), rank_of(be))}, detail::packed_tokenizer_of(packed)};
        load_language_model(be, p.llm, packed.weights, options.load);
        return p;
    }
    if (const auto gguf = gguf_model(folder)) {
        const Gguf                 file = Gguf::open(gguf->language, options.mode);
        const LanguageModelConfig  config = gguf_language_config(file);
        PretrainedLanguageModel<B> p{LanguageModel<B>{shard_config(config, rank_of(be))}, detail::gguf_tokenizer(file, false)};
        load_language_model(be, p.llm, gguf_language_tensors(file, config), options.load);
        return p;
    }
    LanguageModelConfig config = language_model_config(ConfigReader::open(folder / "config.json"));
    const Checkpoint    file = Checkpoint::open(folder, options.mode);
    detail::take_vocabulary(config, file);
    PretrainedLanguageModel<B> p{LanguageModel<B>{shard_config(config, rank_of(be))}, detail::open_tokenizer(folder)};
    load_language_model(be, p.llm, file, options.load);
    return p;
}

template <Backend B>
PretrainedTower<B> tower_from_pretrained(B& be, const std::filesystem::path& folder, std::size_t image_size, const PretrainedOptions& options) {
    const auto of_size = [&](VitConfig c) {
        if (image_size) c.image_size = image_size;
        if (c.n_patches() == 0 || c.n_patches() > 1 << 16)
            throw ConfigError{"image_size", std::to_string(c.image_size), "one that gives 1 to 65536 patches of " + std::to_string(c.patch_size) + " pixels"};
        return c;
    };
    if (is_packed(folder)) {
        const PackedModel  packed = detail::open_packed_as(Layout::tower, folder, options);
        PretrainedTower<B> p{Vit<B>{of_size(vit_settings(packed.settings.object("vit")))}, transform_settings(packed.settings.object("transform"))};
        p.transform.size = p.vit.config.image_size;
        load_tower(be, p.vit, packed.weights, options.load);
        return p;
    }
    const auto      json = ConfigReader::open(folder / "config.json");
    const VitConfig config = of_size(timm_config(json));
    ImageTransform  transform{.stats = statistics::half, .strategy = Resize::naive, .size = config.image_size};
    if (json.has("pretrained_cfg") && json.object("pretrained_cfg").has("mean"))
        transform.stats = read_statistics(json.object("pretrained_cfg"), "mean", "std");
    PretrainedTower<B> p{Vit<B>{config}, transform};
    load_tower(be, p.vit, Checkpoint::open(folder, options.mode), options.load);
    return p;
}

}  // namespace prism
