// Whole folders: LLaVA's in both of its namings, runs with tuned towers, single towers of OpenVLA, and the files beside
// the weights.
#include "model/whole.hpp"
#include "prism/generate/policy.hpp"
#include "support/tensors.hpp"

using namespace prism;
using namespace prism::test;

TEST_CASE("model/llava: both namings give the model that its parts make, with LLaVA's transform and picture token") {
    const LlavaParts parts;
    Cpu              be{{.threads = 2}};

    PrismaticConfig c{.model_id = {}, .vision_backbone_id = {}, .llm_backbone_id = {}, .towers = {}, .projector = ProjectorKind::gelu_mlp, .llm = {}};
    c.towers.push_back({"clip", timm_config(ConfigReader::open(reference("vision/clip-gelu") / "config.json")), {}});
    c.llm = language_model_config(ConfigReader::open(reference("lm/llama-bf16-sharded") / "config.json"));
    Prismatic<Cpu> by_hand{c};
    load_tower(be, by_hand.towers[0], Checkpoint::open(reference("vision/clip-gelu")));
    load(be, by_hand.projector, Checkpoint{"projector", parts.projector}, NameMap{}.prefix("0", "linear_1").prefix("2", "linear_2"));
    load_language_model(be, by_hand.llm, Checkpoint{"llm", parts.llm});
    const Run expected = run(be, by_hand);

    for (bool newer : {false, true}) {
        ModelFolder folder;
        folder.copy("tokenizers/llama");
        folder.write("config.json", parts.config);
        folder.write("model.safetensors", newer ? parts.newer() : parts.older());
        const auto llava = from_pretrained(be, folder.path());
        CHECK(llava.layout == Layout::llava);
        CHECK(run(be, llava.model) == expected);
        CHECK(llava.image_token == 32);
        const ImageTransform& t = llava.model.config.towers[0].transform;
        CHECK((t.strategy == Resize::crop && t.size == 42 && t.margin == Margin::floor && t.stats.mean == statistics::clip.mean));

        Json other = parts.config;
        other["vision_config"]["layer_norm_eps"] = 0.25;
        folder.write("config.json", other);
        CHECK(from_pretrained(be, folder.path()).model.towers[0].config.norm_eps == 0.25f);

        Tensors surplus = newer ? parts.newer() : parts.older();
        for (const std::string name : {"image_newline", "lm_head.bias", "vision_model.extra"}) {
            surplus.push_back(tensor(name[0] == 'v' ? (newer ? "model.vision_tower." : "vision_tower.") + name : name, {2}, {1, 2}));
            folder.write("model.safetensors", surplus);
            CHECK_MESSAGE(says(message<LoadError>([&] { from_pretrained(be, folder.path()); }), "1 unexpected: '" + name + "'"), name);
            surplus.pop_back();
        }
        surplus.erase(std::ranges::find_if(surplus, [](const TensorInfo& tensor) { return tensor.name.ends_with("linear_2.bias"); }));
        folder.write("model.safetensors", surplus);
        CHECK(says(message<LoadError>([&] { from_pretrained(be, folder.path()); }), "1 missing: 'linear_2.bias' [64]"));
    }
}

TEST_CASE("model/llava: settings that cannot be used are refused with their key") {
    const LlavaParts parts;
    Cpu              be{{.threads = 1}};
    ModelFolder       folder;
    folder.write("model.safetensors", parts.older());
    struct Bad { const char* object; const char* key; Json value; const char* reported; };
    for (const Bad& bad : {Bad{"", "vision_feature_layer", -1, "'vision_feature_layer' is -1"}, Bad{"", "vision_feature_select_strategy", "full", "'vision_feature_select_strategy' is \"full\""},
                           Bad{"", "projector_hidden_act", "relu", "'projector_hidden_act' is"}, Bad{"", "image_token_index", -1, "'image_token_index' is -1"}, Bad{"", "text_config", nullptr, "'text_config' is missing"},
                           Bad{"vision_config", "model_type", "siglip", "'vision_config.model_type' is"}, Bad{"vision_config", "num_attention_heads", 5, "'vision_config.num_attention_heads' is 5; allowed: a divisor of hidden_size 32"},
                           Bad{"vision_config", "num_hidden_layers", 1, "'vision_config.num_hidden_layers' is 1; allowed: at least 2"}, Bad{"vision_config", "image_size", 13, "'vision_config.image_size' is 13; allowed: at least patch_size 14"},
                           Bad{"vision_config", "image_size", 60000, "at most 65536 patches"}, Bad{"vision_config", "hidden_act", "relu", "'vision_config.hidden_act' is"},
                           Bad{"vision_config", "layer_norm_eps", 0, "'vision_config.layer_norm_eps' is 0"}}) {
        Json json = parts.config;
        (*bad.object ? json[bad.object] : json)[bad.key] = bad.value;
        folder.write("config.json", json);
        const std::string what = message<ConfigError>([&] { from_pretrained(be, folder.path()); });
        CHECK_MESSAGE(says(what, bad.reported), std::string(bad.key) << ": " << what);
    }
}

TEST_CASE("model/run: towers that were tuned come from the checkpoint, whatever lies beside it") {
    Cpu be{{.threads = 2}};
    for (const std::string name : {"prism-dinosiglip+7b", "siglip-phi"}) {
        ModelFolder folder;
        folder.copy("vlm/" + name);
        const auto frozen = from_pretrained(be, folder.path());
        const Run  expected = run(be, frozen.model);
        Tensors    checkpoint = Checkpoint::open(folder / "checkpoints/latest-checkpoint.pt").tensors();
        const bool fused = frozen.model.towers.size() > 1;
        std::vector<std::string> prefixes;
        for (const auto& t : frozen.model.config.towers) {
            prefixes.push_back("model.vision_backbone." + (fused ? t.key + "_featurizer." : std::string("featurizer.")));
            append(checkpoint, prefixed(prefixes.back(), Checkpoint::open(folder.path() / "vision" / t.key).tensors()));
            std::filesystem::remove(folder.path() / "vision" / t.key / "model.safetensors");  // no longer needed
        }
        std::filesystem::remove(folder / "checkpoints/latest-checkpoint.pt");
        folder.write("checkpoints/latest-checkpoint.pt", checkpoint);  // formats are told by content
        CHECK(run(be, from_pretrained(be, folder.path()).model) == expected);

        Tensors tuned = checkpoint;  // other values than the published tower's
        for (auto& t : tuned)
            if (t.name == prefixes[0] + "norm.weight" || t.name == prefixes[0] + "blocks.0.norm1.weight") t = tensor(t.name, t.shape, normal(t.elements(), 9));
        folder.write("checkpoints/latest-checkpoint.pt", tuned);
        CHECK_FALSE(run(be, from_pretrained(be, folder.path()).model) == expected);

        for (const std::string surplus : {"model.vision_backbone.third_featurizer.norm.weight", "model.extra.weight", "epoch", "model.projector.temperature"}) {
            Tensors more = checkpoint;
            more.push_back(tensor(surplus, {2}, {1, 2}));
            folder.write("checkpoints/latest-checkpoint.pt", more);
            CHECK_MESSAGE(says(message<LoadError>([&] { from_pretrained(be, folder.path()); }), "unexpected: '"), surplus);
        }
        Tensors with_optimizer = checkpoint;
        with_optimizer.push_back(tensor("optimizer.state.0.exp_avg", {2}, {1, 2}));
        folder.write("checkpoints/latest-checkpoint.pt", with_optimizer);
        CHECK(run(be, from_pretrained(be, folder.path()).model) == expected);

        std::erase_if(checkpoint, [](const TensorInfo& t) { return t.name.starts_with("model.llm_backbone.llm.model.layers.1."); });
        folder.write("checkpoints/latest-checkpoint.pt", checkpoint);
        CHECK(says(message<LoadError>([&] { from_pretrained(be, folder.path()); }), "missing: 'model.layers.1."));
    }
}

TEST_CASE("model/run: towers and language files may lie elsewhere, and what is missing is named") {
    Cpu        be{{.threads = 2}};
    ModelFolder folder, elsewhere;
    folder.copy("vlm/siglip-phi");
    const Run expected = run(be, from_pretrained(be, folder.path()).model);
    std::filesystem::rename(folder / "vision", elsewhere / "towers");
    std::filesystem::rename(folder / "llm", elsewhere / "words");
    CHECK(run(be, from_pretrained(be, folder.path(), {.vision_dir = elsewhere / "towers", .llm_dir = elsewhere / "words"}).model) == expected);
    CHECK(run(be, from_pretrained(be, folder.path(), {.vision_dir = elsewhere / "towers", .llm_dir = elsewhere / "words", .mode = FileMode::copy}).model) == expected);
    CHECK(says(message<LoadError>([&] { from_pretrained(be, folder.path(), {.llm_dir = elsewhere / "words"}); }), "holds no folder 'siglip' for that vision tower"));

    // Without a config of its own a tower has its published sizes, which these weights do not have: all of them are told.
    std::filesystem::remove(elsewhere / "towers/siglip/config.json");
    const std::string what = message<LoadError>([&] { from_pretrained(be, folder.path(), {.vision_dir = elsewhere / "towers", .llm_dir = elsewhere / "words"}); });
    CHECK(says(what, "the weights do not fit the model"));
    CHECK(says(what, "'patch_embed.proj.bias' (expected [1152], found [48])"));
    std::filesystem::remove(folder / "checkpoints/latest-checkpoint.pt");
    CHECK_THROWS_AS(from_pretrained(be, folder.path(), {.vision_dir = elsewhere / "towers"}), LoadError);
}

TEST_CASE("model/openvla: a single tower loads from the featurizer alone") {
    Cpu        be{{.threads = 2}};
    ModelFolder folder;
    folder.copy("vlm/openvla-hf");
    const auto fused = from_pretrained(be, folder.path());
    Tensors    tensors = Checkpoint::open(folder.path()).tensors();
    std::erase_if(tensors, [](const TensorInfo& t) { return t.name.starts_with("vision_backbone.featurizer.") || t.name.starts_with("projector."); });
    for (auto& t : tensors)
        if (t.name.starts_with("vision_backbone.fused_featurizer.")) t.name.replace(16, 16, "featurizer");
    const std::size_t d = fused.model.config.towers[1].vit.d_model;
    append(tensors, {tensor("projector.fc1.weight", {64, d}, normal(64 * d, 1, 0.2f)), tensor("projector.fc1.bias", {64}, normal(64, 2)), tensor("projector.fc2.weight", {64, 64}, normal(64 * 64, 3, 0.2f)),
                     tensor("projector.fc2.bias", {64}, normal(64, 4))});
    for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
        if (entry.path().string().find("safetensors") != std::string::npos) std::filesystem::remove(entry.path());
    folder.write("model.safetensors", tensors);
    folder.edit("config.json", [](Json& json) {
        json["vision_backbone_id"] = "siglip-vit-so400m", json["arch_specifier"] = "no-align+gelu-mlp", json["use_fused_vision_backbone"] = false;
        json["image_sizes"] = {42}, json["timm_override_act_layers"] = {nullptr}, json["timm_model_args"] = Json::array({json["timm_model_args"][1]}), json["timm_model_ids"] = {"vit_so400m_patch14_siglip_224"};
    });
    const auto single = from_pretrained(be, folder.path());
    CHECK(single.model.towers.size() == 1);
    const auto pixels = normal(3 * 42 * 42, 5);
    CHECK(features(be, single.model.towers[0], pixels) == features(be, fused.model.towers[1], pixels));
    CHECK(run(be, single.model).ids.size() == 10);

    tensors.push_back(tensor("vision_backbone.fused_featurizer.norm.weight", {2}, {1, 2}));
    folder.write("model.safetensors", tensors);
    CHECK(says(message<LoadError>([&] { from_pretrained(be, folder.path()); }), "1 unexpected: 'vision_backbone.fused_featurizer.norm.weight'"));
}

TEST_CASE("model/openvla: preprocessor_config.json wins over what a tower was trained with, its tvf values over its others") {
    Cpu        be{{.threads = 1}};
    ModelFolder folder;
    folder.copy("vlm/openvla-hf");
    const auto stats = [&](std::size_t tower) { return from_pretrained(be, folder.path()).model.config.towers[tower].transform.stats; };
    CHECK(stats(0).mean == statistics::imagenet.mean);
    CHECK(stats(1).mean == statistics::half.mean);
    const Json a{0.1, 0.2, 0.3}, b{0.4, 0.5, 0.6}, x{0.7, 0.8, 0.9};
    Json       json{{"means", {a, b}}, {"stds", {b, x}}};
    folder.write("preprocessor_config.json", json);
    CHECK((stats(0).mean == std::array{0.1f, 0.2f, 0.3f} && stats(0).std == std::array{0.4f, 0.5f, 0.6f} && stats(1).std == std::array{0.7f, 0.8f, 0.9f}));
    json["tvf_normalize_params"] = {{{"mean", x}, {"std", a}}, {{"mean", b}, {"std", a}}};
    folder.write("preprocessor_config.json", json);
    CHECK((stats(0).mean == std::array{0.7f, 0.8f, 0.9f} && stats(0).std == std::array{0.1f, 0.2f, 0.3f} && stats(1).mean == std::array{0.4f, 0.5f, 0.6f}));

    folder.edit("config.json", [](Json& config) { config["image_resize_strategy"] = "letterbox"; });
    const auto fill = [&](std::size_t tower) { return *from_pretrained(be, folder.path()).model.config.towers[tower].transform.fill; };
    CHECK((fill(0) == Rgb{127, 127, 127} && fill(1) == fill(0)));  // once, with the last tower's colour
    json["tvf_do_letterbox"] = true, json["tvf_letterbox_fill"] = {0, 3, 255};
    folder.write("preprocessor_config.json", json);
    CHECK((fill(0) == Rgb{0, 3, 255} && fill(1) == fill(0)));
}

TEST_CASE("model/openvla: dataset_statistics.json replaces the norm_stats of config.json") {
    Cpu        be{{.threads = 1}};
    ModelFolder folder;
    folder.copy("vlm/openvla-hf");
    CHECK(from_pretrained(be, folder.path()).action_statistics.size() == 2);
    folder.write("dataset_statistics.json", Json{{"mine", {{"action", {{"q01", {-1, -2}}, {"q99", {3, 4}}, {"mask", {true, false}}}}, {"proprio", Json::object()}, {"num_trajectories", 3}}}});
    const auto all = from_pretrained(be, folder.path()).action_statistics;
    REQUIRE(all.size() == 1);
    const ActionStatistics& s = all.at("mine");
    CHECK((s.q01 == std::vector<double>{-1, -2} && s.q99 == std::vector<double>{3, 4} && s.mask == std::vector<bool>{true, false}));

    const ActionVocabulary words{.size = 1000, .n_bins = 256};
    const std::vector<std::int32_t> ids{999, 744};  // the first bin's centre, and one below the last, which counts as the last
    const auto values = unnormalise(ids, s, words);
    CHECK(std::abs(values[0] - (0.5 * (-1 + 1.0 / 255 + 1) * 4 - 1)) < 1e-12);
    CHECK(std::abs(values[1] - (1 - 1.0 / 255)) < 1e-12);
    CHECK(&action_statistics_for(all, "") == &all.at("mine"));
    CHECK_THROWS_WITH_AS(action_statistics_for(all, "bridge"), "'unnorm_key' is bridge; allowed: mine", ConfigError);
    CHECK_THROWS_WITH_AS(action_statistics_for({}, "bridge"), "this model has no action statistics, so it is no policy", Error);
}

TEST_CASE("model/run: actions of an OpenVLA run are words of the tokenizer as it was published, as they are after the export to Hugging Face's form") {
    Cpu         be{{.threads = 1}};
    ModelFolder folder;
    folder.copy("vlm/prism-dinosiglip+7b");
    const std::string id = read_json(folder / "config.json")["model"]["vision_backbone_id"];
    folder.edit("config.json", [](Json& json) { json["vla"] = {{"base_vlm", "prism-dinosiglip-224px+7b"}}, json.erase("model"); });
    folder.write("dataset_statistics.json", Json{{"mine", {{"action", {{"q01", {-1, -2}}, {"q99", {3, 4}}}}}}});
    REQUIRE(id == registered_model("prism-dinosiglip-224px+7b").vision_backbone_id);
    const auto vla = from_pretrained(be, folder.path());
    CHECK(vla.action_vocabulary.size == vla.model.llm.vocab_size() - 64);
    Policy     policy{be, vla};
    const auto action = policy.act(read_image(folder / "image.png"), "pick up the cup");
    CHECK(action.token_ids.size() == 2);
    CHECK_THROWS_AS(Policy(be, vla, "", {.max_tokens = action.input_ids.size() + vla.model.n_soft_tokens()}).act(read_image(folder / "image.png"), "pick up the cup"), ConfigError);
    CHECK(Policy(be, vla, "", {.max_tokens = action.input_ids.size() + vla.model.n_soft_tokens() + 1}).act(read_image(folder / "image.png"), "pick up the cup").token_ids == action.token_ids);
    folder.edit("config.json", [](Json& json) { json["vla"]["base_vlm"] = "robot"; });
    CHECK(says(message<ConfigError>([&] { from_pretrained(be, folder.path()); }), "config.json: 'vla.base_vlm' is \"robot\"; allowed: "));
}

TEST_CASE("model: scores that are no numbers end a chat with the text so far, and the conversation goes on") {
    Cpu        be{{.threads = 2}};
    ModelFolder folder;
    folder.copy("vlm/prism-dinosiglip+7b");
    const auto vlm = from_pretrained(be, folder.path());
    Chat       chat{be, vlm};
    const auto answer = chat.ask("What is it?", {.max_new_tokens = 8});
    REQUIRE(answer.output_ids.size() == 8);

    auto checkpoint = Checkpoint::open(folder / "checkpoints/latest-checkpoint.pt").tensors();
    for (auto& t : checkpoint)
        if (t.name == "model.llm_backbone.llm.model.embed_tokens.weight") {
            auto              values = to_floats(t);
            const std::size_t d = t.shape[1];
            values[static_cast<std::size_t>(answer.output_ids[4]) * d] = std::numeric_limits<float>::quiet_NaN();
            t = tensor(t.name, t.shape, values);
        }
    const auto seen = std::find(answer.output_ids.begin(), answer.output_ids.end(), answer.output_ids[4]) - answer.output_ids.begin();
    REQUIRE(std::ranges::count(answer.input_ids, answer.output_ids[4]) == 0);
    std::filesystem::remove(folder / "checkpoints/latest-checkpoint.pt");
    folder.write("checkpoints/latest-checkpoint.pt", checkpoint);
    const auto broken = from_pretrained(be, folder.path());
    Chat       spoiled{be, broken};
    const auto before = spoiled.ask("What is it?", {.max_new_tokens = static_cast<std::size_t>(seen) + 1});
    spoiled.restart();
    try {
        spoiled.ask("What is it?", {.max_new_tokens = 8});
        FAIL("NaN went through");
    } catch (const GenerationError& e) {
        CHECK(e.step == static_cast<std::size_t>(seen) + 1);
        CHECK(e.ids == before.output_ids);
        CHECK(unicode::strip(e.text) == before.text);
    }
    CHECK(spoiled.ask("What is it?", {.max_new_tokens = 1}).output_ids[0] == answer.output_ids[0]);  // the failed turn left no trace

    CHECK(says(message<ConfigError>([&] { Chat{be, vlm, 20}.ask("What is it, and what is it not, and why is that so?"); }), "together at most max_tokens = 20"));
}
