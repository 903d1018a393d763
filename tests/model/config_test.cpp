// Every setting of a config.json that cannot be used is a ConfigError with key, value and what is allowed.
#include "model/support.hpp"

using namespace prism;
using namespace prism::test;

namespace {

struct Bad {
    std::string key;      // a dotted path in the document
    Json        value;    // null removes the key
    std::string reported; // the key as the error has it; empty: `key`
    std::string allowed;  // a part of what is allowed
};

void set(Json& json, const std::string& path, const Json& value) {
    Json*       at = &json;
    std::size_t begin = 0;
    for (std::size_t dot; (dot = path.find('.', begin)) != path.npos; begin = dot + 1) at = &(*at)[path.substr(begin, dot - begin)];
    if (value.is_null()) at->erase(path.substr(begin));
    else (*at)[path.substr(begin)] = value;
}

/// Sets one key after another to a bad value and opens the document each time.
template <class Open>
void each_is_refused(const Json& good, const std::vector<Bad>& all, Open&& open) {
    CHECK_NOTHROW(open(good));
    for (const Bad& bad : all) {
        Json json = good;
        set(json, bad.key, bad.value);
        try {
            open(json);
            FAIL_CHECK(bad.key << " = " << bad.value.dump() << " was taken");
        } catch (const ConfigError& e) {
            const std::string reported = bad.reported.empty() ? bad.key : bad.reported;
            CHECK_MESSAGE(e.key == reported, bad.key << ": " << std::string(e.what()));
            if (!bad.value.is_null() && bad.value.is_primitive()) CHECK_MESSAGE(e.value == bad.value.dump(), bad.key << ": " << std::string(e.what()));
            CHECK_MESSAGE(e.allowed.find(bad.allowed) != e.allowed.npos, bad.key << ": " << std::string(e.what()));
        } catch (const std::exception& e) { FAIL_CHECK(bad.key << " = " << bad.value.dump() << ": " << std::string(e.what())); }
    }
}

constexpr auto huge = std::uint64_t{1} << 40;

}  // namespace

TEST_CASE("model/config: of a language model, Llama's family") {
    const Json good{{"model_type", "llama"}, {"vocab_size", 100}, {"hidden_size", 64}, {"intermediate_size", 128}, {"num_hidden_layers", 2},
                    {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"rms_norm_eps", 1e-5}, {"rope_theta", 1e4}};
    const auto open = [](const Json& json) { return language_model_config(ConfigReader{json, "config.json"}); };
    std::vector<Bad> all{{"model_type", nullptr, "", "'llama', 'mistral', 'qwen2' or 'phi'"}, {"model_type", "gpt2", "", "'llama', 'mistral', 'qwen2' or 'phi'"}, {"model_type", 3, "", "'phi'"}};
    for (const char* size : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"})
        for (const Json& value : {Json(0), Json(-4), Json(2.5), Json("64"), Json(huge), Json(true), Json::array({1})}) all.push_back({size, value, "", "an integer from 1 to "});
    for (const Json& value : {Json(0), Json(-1e-5), Json(1e-60), Json(1e60)}) all.push_back({"rms_norm_eps", value, "", "a number over 0"});
    for (const Json& value : {Json(0), Json(-1e4), Json(1e300)}) all.push_back({"rope_theta", value, "", "a number over 0"});
    all.push_back({"rope_theta", "big", "", "a finite number"});
    all.push_back({"num_attention_heads", 6, "", "a divisor of hidden_size 64"});
    all.push_back({"num_attention_heads", 64, "", "an even head size"});
    all.push_back({"num_key_value_heads", 3, "", "a divisor of num_attention_heads 4"});
    all.push_back({"head_dim", 7, "", "an even head size of at most 256"});
    all.push_back({"head_dim", 258, "", "an even head size of at most 256"});
    all.push_back({"hidden_act", "gelu", "", "'silu' or 'swish'"});
    all.push_back({"rope_scaling", Json{{"type", "linear"}, {"factor", 2}}, "", "null"});
    all.push_back({"attention_bias", true, "", "false"});
    all.push_back({"tie_word_embeddings", 1, "", "true or false"});
    each_is_refused(good, all, open);

    Json mistral = good;
    mistral["model_type"] = "mistral";
    each_is_refused(mistral, {{"sliding_window", 0, "", "an integer from 1"}, {"sliding_window", "none", "", "an integer from 1"}}, open);
    CHECK(std::get<LlamaConfig>(open(mistral)).window == 4097);  // the class default
    mistral["sliding_window"] = nullptr;
    CHECK(std::get<LlamaConfig>(open(mistral)).window == 0);
    Json qwen2 = good;
    qwen2["model_type"] = "qwen2";
    each_is_refused(qwen2, {{"use_sliding_window", true, "", "false"}}, open);
    CHECK(std::get<LlamaConfig>(open(qwen2)).qkv_bias);
    qwen2["num_key_value_heads"] = nullptr;
    CHECK(std::get<LlamaConfig>(open(qwen2)).n_kv_heads == 4);
}

TEST_CASE("model/config: of a language model, Phi") {
    const Json good{{"model_type", "phi"}, {"vocab_size", 100}, {"hidden_size", 80}, {"intermediate_size", 128}, {"num_hidden_layers", 2},
                    {"num_attention_heads", 4}, {"partial_rotary_factor", 0.4}, {"hidden_act", "gelu_new"}};
    each_is_refused(good,
                    {{"hidden_size", 0, "", "an integer from 1"}, {"num_attention_heads", 3, "", "a divisor of hidden_size 80"}, {"num_attention_heads", 80, "", "an even head size"},
                     {"partial_rotary_factor", 0, "", "over 0, at most 1"}, {"partial_rotary_factor", 1.5, "", "over 0, at most 1"}, {"partial_rotary_factor", 0.26, "", "an even number"},
                     {"partial_rotary_factor", "half", "", "a finite number"}, {"layer_norm_eps", 0, "", "a number over 0"}, {"rope_theta", -1, "", "a number over 0"},
                     {"hidden_act", "relu", "", "'gelu_new', 'gelu_pytorch_tanh', 'gelu' or 'quick_gelu'"}, {"qk_layernorm", true, "", "false"},
                     {"rope_scaling", Json{{"type", "dynamic"}}, "", "null"}},
                    [](const Json& json) { return language_model_config(ConfigReader{json, "config.json"}); });
}

TEST_CASE("model/config: rotary settings as transformers 5 writes them") {
    Json json{{"model_type", "qwen2"}, {"hidden_size", 64}, {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"rope_parameters", {{"rope_theta", 1e6}, {"rope_type", "default"}}}};
    CHECK(std::get<LlamaConfig>(language_model_config(ConfigReader{json, "c"})).rope_theta == 1e6f);
    json["rope_parameters"]["rope_type"] = "linear";
    CHECK(says(message<ConfigError>([&] { language_model_config(ConfigReader{json, "c"}); }), "'rope_parameters.rope_type' is \"linear\""));
    const Json phi{{"model_type", "phi"}, {"hidden_size", 64}, {"num_attention_heads", 4}, {"rope_parameters", {{"rope_theta", 1e4}, {"partial_rotary_factor", 0.25}}}};
    CHECK(std::get<PhiConfig>(language_model_config(ConfigReader{phi, "c"})).rotary_dim == 4);
}

TEST_CASE("model/config: of a timm tower") {
    const Json       good = read_json(reference("vision/dino") / "config.json");
    const auto       open = [](const Json& json) { return timm_config(ConfigReader{json, "config.json"}); };
    std::vector<Bad> all{{"architecture", nullptr, "", "a string"}, {"architecture", "resnet50", "", "vit_large_patch14_reg4_dinov2"}, {"model_args", "none", "", "an object"}};
    for (const char* size : {"img_size", "patch_size", "embed_dim", "depth", "num_heads"})
        for (const Json& value : {Json(0), Json(-1), Json(1.5), Json("8"), Json(huge)}) all.push_back({std::string("model_args.") + size, value, "", "an integer from 1 to "});
    all.push_back({"model_args.num_heads", 7, "", "a divisor of embed_dim 96"});
    all.push_back({"model_args.depth", 1, "", "at least 2"});
    all.push_back({"model_args.img_size", 13, "", "at least patch_size 14"});
    all.push_back({"model_args.img_size", 60000, "", "at most 65536 patches"});
    all.push_back({"model_args.reg_tokens", -1, "", "an integer from 0"});
    all.push_back({"model_args.mlp_ratio", 0, "", "over 0"});
    all.push_back({"model_args.mlp_ratio", 5000, "", "below 1024"});
    all.push_back({"model_args.act_layer", "relu", "", "'gelu', 'quick_gelu' or 'gelu_tanh'"});
    all.push_back({"model_args.init_values", "small", "", "a finite number"});
    all.push_back({"model_args.class_token", 1, "", "true or false"});
    each_is_refused(good, all, open);
    Json wide = good;
    wide["model_args"]["embed_dim"] = 1024, wide["model_args"]["num_heads"] = 2;
    CHECK(says(message<ConfigError>([&] { open(wide); }), "'model_args.num_heads' is 2; allowed: one that gives heads of at most 256"));
}

TEST_CASE("model/config: of OpenVLA's folder") {
    ModelFolder folder;
    folder.copy("vlm/openvla-hf");
    Cpu        be{{.threads = 1}};
    const Json good = read_json(folder / "config.json");
    each_is_refused(good,
                    {{"model_type", "robot", "", "'openvla'"}, {"arch_specifier", nullptr, "", "a string"}, {"vision_backbone_id", 4, "", "a string"},
                     {"image_resize_strategy", "stretch", "", "'letterbox', 'resize-naive' or 'resize-crop'"}, {"image_sizes", Json::array({42}), "", "one size a tower: 2"},
                     {"image_sizes", Json::array({42, 0}), "image_sizes.1", "an integer from 1"}, {"image_sizes", 42, "", "a list"}, {"timm_override_act_layers", "quick_gelu", "", "a list of null"},
                     {"timm_override_act_layers", Json::array({nullptr, "relu"}), "", "a list of null and \"quick_gelu\""}, {"timm_model_args", 3, "", "a list"},
                     {"n_action_bins", 0, "", "an integer from 1"}, {"pad_to_multiple_of", -64, "", "an integer from 1"}, {"text_config", Json::array(), "", "an object"},
                     {"text_config.num_attention_heads", 12, "num_attention_heads", "a divisor of hidden_size 64"}, {"text_config.model_type", "bloom", "model_type", "'llama'"},
                     {"norm_stats", Json::array(), "", "an object"}, {"norm_stats.bridge_orig.action.q01", nullptr, "", "a list"}, {"norm_stats.bridge_orig.action.q99", Json::array({1, 2}), "", "as many numbers as q01: 7"},
                     {"norm_stats.bridge_orig.action.mask", Json::array({true}), "", "a list as long as q01"}, {"norm_stats.bridge_orig.action.mask", Json::array({1, 1, 1, 1, 1, 1, 1}), "", "a list of true and false"}},
                    [&](const Json& json) {
                        folder.write("config.json", json);
                        from_pretrained(be, folder.path());
                    });
    Json json = good;
    json["vision_backbone_id"] = "dino-vit-x";
    folder.write("config.json", json);
    CHECK(says(message<ConfigError>([&] { from_pretrained(be, folder.path()); }), "config.json: 'vision_backbone_id' is \"dino-vit-x\"; allowed: clip-vit-b, clip-vit-l"));
    json = good, json["llm_backbone_id"] = "gpt-5";
    folder.write("config.json", json);
    CHECK(says(message<ConfigError>([&] { from_pretrained(be, folder.path()); }), "config.json: 'llm_backbone_id' is \"gpt-5\"; allowed: llama2-7b-pure, "));
    json = good, json["arch_specifier"] = "transformer";
    folder.write("config.json", json);
    CHECK(says(message<ConfigError>([&] { from_pretrained(be, folder.path()); }), "config.json: 'arch_specifier' is \"transformer\"; allowed: linear, gelu-mlp"));
}

TEST_CASE("model/config: of OpenVLA's preprocessor") {
    ModelFolder folder;
    folder.copy("vlm/openvla-hf");
    Cpu        be{{.threads = 1}};
    const Json mean{0.1, 0.2, 0.3}, std{0.4, 0.5, 0.6};
    const Json good{{"means", {mean, mean}}, {"stds", {std, std}}, {"tvf_do_letterbox", true}, {"tvf_letterbox_fill", {0, 127, 255}},
                    {"tvf_normalize_params", {{{"mean", mean}, {"std", std}}, {{"mean", mean}, {"std", std}}}}};
    const auto open = [&](const Json& json) {
        folder.write("preprocessor_config.json", json);
        from_pretrained(be, folder.path());
    };
    each_is_refused(good,
                    {{"tvf_normalize_params", Json::array(), "", "one entry a tower: 2"}, {"tvf_normalize_params", 7, "", "a list"},
                     {"tvf_letterbox_fill", {1, 2}, "", "three numbers from 0 to 255"}, {"tvf_letterbox_fill", {0, 0, 256}, "", "three numbers from 0 to 255"}, {"tvf_do_letterbox", "yes", "", "true or false"}},
                    open);
    Json plain = good;
    plain.erase("tvf_normalize_params");
    each_is_refused(plain,
                    {{"means", {mean}, "", "one entry a tower: 2"}, {"stds", 0.5, "", "one entry a tower: 2"}, {"means", {0.5, 0.5}, "means", "a list"},
                     {"means", {mean, {0.1, 0.2}}, "means", "three numbers"}, {"stds", {std, {0.1, 0.2, 0.0}}, "stds", "three numbers over 0"}},
                    open);
}

TEST_CASE("model/config: of a run folder, its towers and its language model") {
    ModelFolder folder;
    folder.copy("vlm/siglip-phi");
    Cpu        be{{.threads = 1}};
    const auto open_with = [&](const std::string& name) {
        return [&, name](const Json& json) {
            const Json before = read_json(folder / name);
            folder.write(name, json);
            struct Restore {
                const ModelFolder& folder;
                std::string       name;
                Json              json;
                ~Restore() { folder.write(name, json); }
            } restore{folder, name, before};
            from_pretrained(be, folder.path());
        };
    };
    each_is_refused(read_json(folder / "config.json"),
                    {{"model", 3, "", "an object"}, {"model.model_id", nullptr, "", "a string"}, {"model.vision_backbone_id", nullptr, "", "a string"}, {"model.llm_backbone_id", 1, "", "a string"},
                     {"model.arch_specifier", nullptr, "", "a string"}, {"model.image_resize_strategy", "none", "", "'letterbox'"}, {"model.llm_max_length", 0, "", "an integer from 1"}},
                    open_with("config.json"));
    each_is_refused(read_json(folder / "llm/config.json"), {{"hidden_size", 0, "", "an integer from 1"}, {"model_type", "gpt2", "", "'phi'"}}, open_with("llm/config.json"));
    each_is_refused(read_json(folder / "vision/siglip/config.json"),
                    {{"architecture", "vgg", "", "vit_"}, {"model_args.num_heads", 5, "", "a divisor of embed_dim"}, {"pretrained_cfg.mean", {1, 2}, "", "three numbers"}, {"pretrained_cfg.std", {1, 2, 0}, "", "three numbers over 0"}},
                    open_with("vision/siglip/config.json"));

    folder.edit("config.json", [](Json& json) { json["model"]["llm_backbone_id"] = "gpt-5"; });
    CHECK(says(message<ConfigError>([&] { from_pretrained(be, folder.path()); }), "config.json: 'model.llm_backbone_id' is \"gpt-5\"; allowed: llama2-7b-pure, "));
}

TEST_CASE("model/config: documents that are none, and folders that hold no model") {
    ModelFolder folder;
    Cpu        be{{.threads = 1}};
    const auto open = [&] { from_pretrained(be, folder.path()); };
    CHECK(says(message<LoadError>(open), "holds no config.json"));
    CHECK(says(message<LoadError>([&] { from_pretrained(be, folder / "nowhere"); }), "does not exist"));
    std::ofstream(folder / "config.json") << "{\"model_type\": ";
    CHECK(says(message<ConfigError>(open), "'(document)' is "));
    folder.write("config.json", Json::array({1}));
    CHECK(says(message<ConfigError>(open), "allowed: an object"));
    folder.write("config.json", Json::object());
    CHECK(says(message<ConfigError>(open), "'model_type' is missing; allowed: 'openvla'"));
    folder.write("config.json", Json{{"model_type", "llama"}});
    CHECK(says(message<LoadError>(open), "is a language model alone: open it with language_model_from_pretrained"));
    folder.write("config.json", Json{{"architecture", "vit_large_patch16_224"}});
    CHECK(says(message<LoadError>(open), "is a vision tower alone: open it with tower_from_pretrained"));
    CHECK(says(message<LoadError>([&] { from_pretrained(be, folder / "config.json"); }), "is no folder"));
}
