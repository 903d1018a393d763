// A stage with adapters on disk: killed or not, what it leaves, and what that answers.
#include "train/support.hpp"

#include "prism/train/run/base_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <map>
#include <string>
#include <vector>

using namespace prism;
using namespace prism::test;
namespace fs = std::filesystem;

namespace {

/// The small model in a stage with adapters on two kinds of its layers.
struct Adapted {
    Cpu                 be;
    Pretrained<Cpu>     base;
    PrismaticStage<Cpu> stage;

    explicit Adapted(std::size_t threads = 1)
        : be{{.threads = threads}}, base(from_pretrained(be, small)),
          stage(be, base.model, Stage::finetune, {.lora = {.rank = 3, .alpha = 6, .dropout = 0.2, .seed = 7, .targets = {"q_proj", "down_proj"}}, .seed = 7}) {}

    /// Trains up to that step, in a folder that can be opened afterwards.
    void train(const fs::path& root, std::size_t until = std::numeric_limits<std::size_t>::max()) {
        RunFolder       folder{root, "small", "Finetune/Step"};
        const StagePlan plan{.settings = {.epochs = 2, .global_batch_size = 4, .per_device_batch_size = 2, .learning_rate = 1e-2}, .checkpoint_every = 2};
        Json config = read_json(small / "config.json");
        config["prism"] = {{"lora_rank", 3}, {"lora_alpha", 6}};
        folder.describe(config, {});
        if (!fs::exists(folder.path() / "start.pt")) fs::create_symlink(small / "checkpoints/latest-checkpoint.pt", folder.path() / "start.pt");
        for (const char* part : {"vision", "llm"})
            if (!fs::exists(folder.path() / part)) fs::create_directory_symlink(small / part, folder.path() / part);
        const Noise noise{base.model};
        if (train_stage(stage, noise, plan, folder, {.on_step = [&](const StageProgress& p) { return p.step < until; }}).finished) stage.finish(be, folder, "the base");
    }
};

/// All values of a model by name, whatever their formats.
std::map<std::string, std::vector<float>> values_of(Cpu& be, const Prismatic<Cpu>& model) {
    const Arena<Cpu> all{be, arena_layout(model, [](std::string_view name) { return name.find("attn_pool") == name.npos; })};
    all.copy(be, model);
    std::map<std::string, std::vector<float>> values;
    for (const Slot& slot : all.layout().slots) {
        const auto span = all.values(slot).span();
        values[slot.name].assign(span.begin(), span.end());
    }
    return values;
}
bool adapted(const std::string& name) { return name.ends_with("q_proj.weight") || name.ends_with("down_proj.weight"); }

}  // namespace

TEST_CASE("train/lora: adapters name the language model that their stage began with") {
    const TempFolder   temp;
    TrainConfig        config;
    std::vector<float> weight(1);
    config.llm_dir = "llm";
    const fs::path aligned = temp.path() / "aligned.pt", whole = small / "checkpoints/latest-checkpoint.pt";
    write_torch(aligned, {{"model", prism::detail::model_dict({{"projector.projector.0.weight", {1}, weight}})}});
    CHECK(first_language_model(config, {}) == "llm");
    CHECK(first_language_model(config, aligned) == "llm");
    CHECK(first_language_model(config, whole) == whole);
}

TEST_CASE("train/run: a stage with adapters that was stopped ends with the same bytes, and leaves an ordinary folder beside the adapters") {
    const TempFolder whole, parts;
    Adapted          unbroken;
    unbroken.train(whole.path());
    for (const std::size_t until : {1U, 3U, 4U}) Adapted{2}.train(parts.path(), until);  // each from the folder alone
    Adapted{2}.train(parts.path());
    std::size_t n_points = 0, n_layers = std::get<LlamaConfig>(unbroken.base.model.config.llm).n_layers;
    for (const auto& entry : fs::directory_iterator(whole.path() / "small/checkpoints")) {
        const std::string name = entry.path().filename().string();
        CHECK_MESSAGE(read_file(entry.path()) == read_file(parts.path() / "small/checkpoints" / name), name);
        if (!name.starts_with("step-")) continue;
        ++n_points;
        const Checkpoint llm = Checkpoint::open(entry.path()).below("model.llm_backbone.llm");
        CHECK(llm.tensors().size() == 2 * 2 * n_layers);
        for (const TensorInfo& t : llm.tensors()) CHECK(t.name.find("_proj.lora_") != t.name.npos);
    }
    CHECK(n_points == 4);  // of 8 steps
    for (const char* name : {"resume.bundle", "adapter_model.safetensors", "adapter_config.json"}) CHECK_MESSAGE(read_file(whole.path() / "small" / name) == read_file(parts.path() / "small" / name), name);

    Cpu        be{{.threads = 1}};
    auto       base = from_pretrained(be, small), merged = from_pretrained(be, whole.path() / "small"), started = from_pretrained(be, small);
    start_from(be, started.model, whole.path() / "small/checkpoints/latest-checkpoint.pt");
    const auto before = values_of(be, base.model), now = values_of(be, unbroken.base.model), opened = values_of(be, merged.model), resumed = values_of(be, started.model);
    for (const auto& one : now) {
        const std::string& name = one.first;
        CAPTURE(name);
        CHECK((before.at(name) == one.second) == !(adapted(name) || name.starts_with("projector.")));  // nothing else has moved
        CHECK(opened.at(name) == one.second);
        CHECK(resumed.at(name) == one.second);
    }
    const std::vector<std::int32_t> ids{1, 5, 17, 20};
    const std::vector<TrainingRow>  rows{{ids, ids, {}}};
    const double                    loss = unbroken.stage.trainer().loss({.rows = rows});
    CHECK(Trainer{be, merged.model, Stage::align}.loss({.rows = rows}) == doctest::Approx(loss).epsilon(1e-6));
    CHECK(Trainer{be, base.model, Stage::align}.loss({.rows = rows}) != doctest::Approx(loss).epsilon(3e-4));

    CHECK_THROWS_AS(start_from(be, started.model, whole.path() / "small/resume.bundle"), FormatError);
    for (const auto& entry : fs::directory_iterator(whole.path() / "small/checkpoints"))
        if (entry.path().filename().string().starts_with("step-")) CHECK_THROWS_WITH_AS(start_from(be, started.model, entry.path()), doctest::Contains("has not ended"), LoadError);  // adapters without their base
}

TEST_CASE("train/run: a run with adapters is opened before it ends, merged into what it began with") {
    const TempFolder temp;
    Adapted          a;
    a.train(temp.path(), 3);
    const fs::path run = temp.path() / "small";
    Cpu            be{{.threads = 2}};
    CHECK(holds_adapters(Checkpoint::open(run / "checkpoints/latest-checkpoint.pt").below("model.llm_backbone.llm")));
    const auto expected = values_of(be, a.base.model), opened = values_of(be, from_pretrained(be, run).model), before = values_of(be, from_pretrained(be, small).model);
    std::size_t n_moved = 0;
    for (const auto& one : expected) {
        const std::string&        name = one.first;
        const std::vector<float>& values = one.second;
        CAPTURE(name);
        const auto& found = opened.at(name);
        REQUIRE(found.size() == values.size());
        double worst = 0;
        for (std::size_t i = 0; i < values.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(values[i]) - static_cast<double>(found[i])));
        CHECK(worst <= (adapted(name) ? 1e-6 : 0.0));  // four roundings of values below 4
        n_moved += found != before.at(name);
    }
    CHECK(n_moved > 2 * std::get<LlamaConfig>(a.base.model.config.llm).n_layers);  // and the projector

    const auto refused = [&](const char* part) {
        CHECK_THROWS_WITH_AS(from_pretrained(be, run), doctest::Contains(part), Error);
    };
    fs::remove(run / "start.pt");
    refused("llm");  // which has a tokenizer and no weights
    fs::create_symlink(run / "nowhere.pt", run / "start.pt");
    refused("start.pt");
    fs::remove(run / "start.pt");
    fs::create_symlink(small / "checkpoints/latest-checkpoint.pt", run / "start.pt");
    NewFile config{run / "config.json"};
    config.write(read_file(small / "config.json"));
    config.commit();
    refused("lora_alpha");
}

TEST_CASE("model: adapters are merged where both halves and their matrix are there, and tables of words grow alike for a seed") {
    const std::vector<float> w{1, 2, 3, 4, 5, 6}, a{1, -1, 2}, b{0.5f, 2}, table{1, 2, 3, 4};
    const auto               tensor = [](const char* name, std::vector<std::size_t> shape, const std::vector<float>& values) {
        return TensorInfo{name, Dtype::f32, std::move(shape), {}, reinterpret_cast<const std::byte*>(values.data()), nullptr, "here"};
    };
    Cpu              be{{.threads = 2}};
    const TensorInfo down = tensor("q.lora_A.weight", {1, 3}, a), up = tensor("q.lora_B.weight", {2, 1}, b);
    const Checkpoint base{"base", {tensor("q.weight", {2, 3}, w), tensor("model.embed_tokens.weight", {2, 2}, table)}};
    const Checkpoint merged = with_adapters(be, base, {"adapters", {down, up}}, 4);
    CHECK(to_floats(*merged.find("q.weight")) == std::vector<float>{3, 0, 7, 12, -3, 22});
    CHECK(to_floats(*merged.find("model.embed_tokens.weight")) == table);
    CHECK_THROWS_AS(with_adapters(be, base, {"adapters", {down}}, 4), LoadError);
    CHECK_THROWS_AS(with_adapters(be, base, {"adapters", {up}}, 4), LoadError);
    CHECK_THROWS_AS(with_adapters(be, base, {"adapters", {down, up, tensor("q.weight", {2, 3}, w)}}, 4), LoadError);
    CHECK_THROWS_AS(with_adapters(be, base, {"adapters", {tensor("q.lora_A.weight", {3, 1}, a), up}}, 4), LoadError);
    CHECK_THROWS_AS(with_adapters(be, base, {"adapters", {tensor("k.lora_A.weight", {1, 3}, a), tensor("k.lora_B.weight", {2, 1}, b)}}, 4), LoadError);

    const auto grown = to_floats(*with_words(base, 5, 7).find("model.embed_tokens.weight"));
    CHECK(grown.size() == 10);
    CHECK(std::equal(table.begin(), table.end(), grown.begin()));
    CHECK(grown == to_floats(*with_words(base, 5, 7).find("model.embed_tokens.weight")));
    CHECK(grown != to_floats(*with_words(base, 5, 8).find("model.embed_tokens.weight")));
    CHECK(std::ranges::none_of(grown, [](float x) { return x == 0 || std::abs(x) > 4.0001f; }));
}

TEST_CASE("train/run: the files of adapters are PEFT's, and what they hold is what was merged") {
    const TempFolder temp;
    Adapted          a;
    a.train(temp.path());
    const Json config = read_json(temp.path() / "small/adapter_config.json");
    CHECK(config["peft_type"] == "LORA");
    CHECK(config["base_model_name_or_path"] == "the base");
    CHECK(config["r"] == 3);
    CHECK(config["lora_alpha"] == 6);
    CHECK(config["lora_dropout"] == 0.2);
    CHECK(config["target_modules"] == Json{"down_proj", "q_proj"});
    const Checkpoint file = Checkpoint::open(temp.path() / "small/adapter_model.safetensors");
    CHECK(file.tensors().size() == 2 * 2 * std::get<LlamaConfig>(a.base.model.config.llm).n_layers);
    const TensorInfo *const in = file.find("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"), *const out = file.find("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
    REQUIRE(in);
    REQUIRE(out);
    const std::size_t d_in = in->shape[1], d_out = out->shape[0];
    CHECK(in->shape[0] == 3);
    CHECK(out->shape[1] == 3);
    Cpu               be{{.threads = 1}};
    const std::string name = "llm_backbone.llm.model.layers.1.mlp.down_proj.weight";
    const auto        w = values_of(be, from_pretrained(be, small).model).at(name), merged = values_of(be, a.base.model).at(name), x = to_floats(*in), y = to_floats(*out);
    double            worst = 0;
    for (std::size_t i = 0; i < d_out; ++i)
        for (std::size_t j = 0; j < d_in; ++j) {
            double expected = static_cast<double>(w[i * d_in + j]);
            for (std::size_t k = 0; k < 3; ++k) expected += 2 * static_cast<double>(y[i * 3 + k]) * static_cast<double>(x[k * d_in + j]);
            worst = std::max(worst, std::abs(expected - static_cast<double>(merged[i * d_in + j])));
        }
    CHECK(worst < 1e-6);  // four roundings of values below 4
}

TEST_CASE("train/run: a stage with adapters takes the memory and the work that were named") {
    Adapted                         a{2};
    Trainer<Cpu>&                   trainer = a.stage.trainer();
    const std::vector<std::int32_t> ids{1, 5, 17, 20, 3, 9};
    const std::vector<TrainingRow>  rows{{ids, ids, {}}, {std::span(ids).first(3), std::span(ids).first(3), {}}};
    const TrainingCost              cost = trainer.cost({.rows = rows});
    const std::uint64_t             done = a.be.flops_done();
    trainer.micro_step({.rows = rows});
    CHECK((a.be.flops_done() - done == cost.flops));
    CHECK(trainer.workspace_bytes() == cost.workspace_bytes);
    std::size_t n_adapted = 0, n_frozen = 0;
    visit(a.base.model, [&](const std::string& path, const auto& param) { (adapted(path) ? n_adapted : n_frozen) += param.size(); });
    std::size_t n_trained = 0;
    for (const Slot& slot : trainer.optimizer().layout().slots) n_trained += slot.size;
    const std::size_t named = 4 * (4 * n_trained + n_adapted);
    CHECK(cost.state_bytes >= named);
    CHECK(cost.state_bytes < named + named / 8);  // arenas are rounded up, and merging takes a little
    CHECK(4 * n_trained < n_frozen);

    CHECK_THROWS_AS((Trainer{a.be, a.base.model, Stage::align, {.lora = {.rank = 3}}}), ConfigError);
    try {
        const Trainer other{a.be, a.base.model, Stage::finetune, {.lora = {.rank = 3, .targets = {"q_proj", "query"}}}};
        FAIL("no error");
    } catch (const ConfigError& e) {
        CHECK(e.value == "query");
        CHECK(e.allowed.find("'q_proj', ") != std::string::npos);
    }
}
