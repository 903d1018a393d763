// A run on disk: configuration, folder, checkpoints, metrics, that being killed changes nothing, and nor does the number of ranks.
#include "io/support.hpp"
#include "support/thread_ranks.hpp"

#include "prism/image/read.hpp"
#include "prism/train/run/loss_curve.hpp"
#include "prism/train/run/run_folder.hpp"
#include "prism/train/run/train_config.hpp"
#include "prism/train/run/train_run.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

using namespace prism;
using prism::test::TempFolder, prism::test::said;
namespace fs = std::filesystem;

namespace {

/// Examples without files: example i has i % 3 + 2 tokens, and every fourth no picture.
struct Numbers {
    std::vector<ExampleSize>    all;
    std::vector<ImageTransform> towers;

    explicit Numbers(std::size_t n) {
        for (std::size_t i = 0; i < n; ++i) all.push_back({i % 4 != 3, i % 5 + 1});
    }
    std::span<const ExampleSize>    sizes() const { return all; }
    std::span<const ImageTransform> transforms() const { return towers; }
    std::string                     name(std::size_t i) const { return "number " + std::to_string(i); }
    void                            read_picture(std::size_t, PixelReader&, std::span<const TowerPixels>) const {}
    TokenRow                        tokens(std::size_t i) const {
        TokenRow row;
        for (std::size_t j = 0; j < i % 3 + 2; ++j) row.ids.push_back(static_cast<std::int32_t>((i * 7 + j) % 8));
        row.labels = row.ids;
        return row;
    }
};

/// Of ten examples in a row, two cannot be used and one has nothing to learn.
struct Holes : Numbers {
    using Numbers::Numbers;
    TokenRow tokens(std::size_t i) const {
        if (i % 10 == 1 || i % 10 == 6) throw ExampleError{"holes", i, "image", "is a hole"};
        TokenRow row = Numbers::tokens(i);
        if (i % 10 == 3) row.labels.assign(row.labels.size(), ignored_label);
        return row;
    }
};

/// Learns a number for each token, with AdamW; alone or as one of several ranks.
struct Toy {
    Ranks              ranks{};
    std::vector<float> w = std::vector<float>(8, 0.5f), b = std::vector<float>(1, 0.0f), gradient = std::vector<float>(9), m = std::vector<float>(9), v = std::vector<float>(9);
    std::uint64_t      steps = 0;
    std::size_t        micro_steps = 0, passed_over = 0, nan_at = 0, bad_gradient_at = 0;
    std::vector<double> losses{};  // of micro-steps

    double micro_step(const Batch& batch, double scale) {
        if (++micro_steps == nan_at) return std::nan("");
        if (micro_steps == bad_gradient_at) gradient[0] = std::nanf("");
        double loss = 0;
        const double n = static_cast<double>(batch.ids.size());
        for (const std::int32_t id : batch.ids) {
            const float error = w[static_cast<std::size_t>(id)] + b[0] - 0.25f * static_cast<float>(id);
            loss += static_cast<double>(error * error) / n;
            const auto g = static_cast<float>(2 * static_cast<double>(error) * scale / n);
            gradient[static_cast<std::size_t>(id)] += g, gradient[8] += g;
        }
        losses.push_back(loss);
        return loss;
    }
    void pass_over() { ++passed_over; }
    double step(double rate) {
        ++steps;
        double     norm = 0;
        const auto at = bounds();
        ranks.sum_shares(gradient, at);
        std::vector<float> all = w;
        all.push_back(b[0]);
        for (std::size_t i = at[ranks.rank()]; i < at[ranks.rank() + 1]; ++i) {
            const float g = gradient[i];
            norm += static_cast<double>(g * g);
            m[i] += 0.1f * (g - m[i]), v[i] = 0.999f * v[i] + 0.001f * g * g;
            const double t = static_cast<double>(steps), hat = static_cast<double>(m[i]) / (1 - std::pow(0.9, t)), root = std::sqrt(static_cast<double>(v[i]) / (1 - std::pow(0.999, t)));
            all[i] -= static_cast<float>(rate * hat / (root + 1e-8));
        }
        ranks.gather_shares(all, at);
        std::copy_n(all.begin(), 8, w.begin()), b[0] = all[8];
        clear_gradients();
        return std::sqrt(ranks.total(norm));
    }
    std::vector<std::size_t> bounds() const {
        std::vector<std::size_t> at;
        for (std::size_t r = 0; r <= ranks.n(); ++r) at.push_back(9 * r / ranks.n());
        return at;
    }
    void clear_gradients() { std::ranges::fill(gradient, 0.0f); }
    void set_steps(std::uint64_t n) { steps = n; }
    std::vector<NamedSpan> parameters() { return {{"projector.projector.0.weight", {2, 4}, w}, {"llm_backbone.llm.bias", {1}, b}}; }
    std::vector<NamedSpan> moments() {
        const std::size_t first = bounds()[ranks.rank()], n = bounds()[ranks.rank() + 1] - first;
        return {{"m", {n}, std::span(m).subspan(first, n)}, {"v", {n}, std::span(v).subspan(first, n)}};
    }
};
static_assert(StageTrainer<Toy> && CountsMicroSteps<Toy>);
static_assert(ExampleSource<Numbers>);

StagePlan plan_of(std::size_t epochs, std::size_t checkpoint_every = 0) {
    return {.stage = Stage::finetune, .settings = {.epochs = epochs, .global_batch_size = 8, .per_device_batch_size = 4, .learning_rate = 0.05}, .checkpoint_every = checkpoint_every, .identity = {{"seed", 7}}};
}
RunFolder folder_in(const TempFolder& temp, std::size_t keep = 0) { return {temp.path(), "toy", "Finetune/Step", keep}; }

/// Metrics without what a clock says.
std::vector<Json> timeless(const RunFolder& folder) {
    auto lines = folder.metrics();
    for (Json& line : lines) line.erase("Finetune/Step Time");
    return lines;
}

Json tiny_config() {
    return {{"model", {{"model_id", "tiny"}, {"vision_backbone_id", "siglip-vit-b16-224px"}, {"llm_backbone_id", "llama2-7b-pure"}, {"arch_specifier", "no-align+gelu-mlp"}, {"image_resize_strategy", "letterbox"}}},
            {"dataset", {{"dataset_id", "mine"}, {"align_stage_components", {"a/chat.json", "a"}}, {"finetune_stage_components", {"f/chat.json", "f"}}, {"dataset_root_dir", "/data"}}},
            {"stage", {"align", "finetune"}}};
}
std::string refused(const std::function<void(Json&)>& change) {
    Json json = tiny_config();
    change(json);
    try {
        TrainConfig::from(ConfigReader{json, "c.json"});
    } catch (const ConfigError& e) { return e.key + " | " + e.value + " | " + e.allowed; }
    return "accepted";
}

}  // namespace

TEST_CASE("train/run: the learning rate is the reference's") {
    const StageSettings s{.global_batch_size = 128, .learning_rate = 2e-5};
    struct Golden {
        std::size_t step;
        double      rate;
    };
    for (const Golden g : {Golden{0, 0}, Golden{1, 1.29032258e-7}, Golden{154, 1.98709677e-5}, Golden{155, 2e-5}, Golden{156, 1.99999981e-5}, Golden{2599, 1.04826073e-5}, Golden{5197, 1.94040238e-12}})
        CHECK(learning_rate(s, g.step, 5198) == doctest::Approx(g.rate).epsilon(1e-8));
    CHECK(learning_rate({.global_batch_size = 1, .learning_rate = 3, .cosine = false}, 0, 10) == 3);
}

TEST_CASE("train/run: a configuration has Prismatic's keys and values") {
    const auto of = [](const Json& json) { return TrainConfig::from(ConfigReader{json, "c.json"}); };
    const auto tiny = of(tiny_config());
    CHECK(tiny.stages.size() == 2);
    CHECK(tiny.align_data[0] == "/data/a/chat.json");
    CHECK(tiny.align.global_batch_size == 256);
    CHECK(tiny.align.learning_rate == 1e-3);
    CHECK(tiny.finetune.weight_decay == 0.1);
    CHECK(tiny.id_of(Stage::align) == "mine+tiny+stage-align+x7");
    for (const Stage stage : tiny.stages) {  // a run's own config.json is one, for the other stage as well
        const auto own = of(tiny.json_of(stage));
        CHECK(own.align_data == tiny.align_data);
        CHECK(own.finetune_data == tiny.finetune_data);
        CHECK(own.identity_of(stage) == tiny.identity_of(stage));
        CHECK(own.alignment_id() == (stage == Stage::finetune ? std::optional<std::string>("mine+tiny+stage-align+x7") : std::nullopt));
    }
    const auto aligned = [&](const char* id, const char* stage = "finetune") {
        Json named = tiny_config();
        named["stage"] = stage, named["run_id"] = id;
        return of(named).alignment_id().value_or("none");
    };
    CHECK(aligned("a+7b+stage-finetune+x7") == "a+7b+stage-align+x7");
    CHECK(aligned("a+7b+stage-finetune+lora-r32+x7") == "a+7b+stage-align+x7");
    CHECK(aligned("a+7b+stage-finetune+lora-r32") == "a+7b+stage-align");
    CHECK(aligned("a+stage-full-finetune+x7", "full-finetune") == "a+stage-align+x7");
    for (const char* id : {"mine", "a+stage-full-finetune+x7", "a+stage-finetuned+x7", "a+stage-align+x7"}) CHECK(aligned(id) == "none");
    Json null_prism = tiny_config();
    null_prism["prism"] = nullptr;
    CHECK(of(null_prism).identity_of(Stage::align) == tiny.identity_of(Stage::align));

    const auto known = of({{"model", {{"type", "prism-dinosiglip+7b"}, {"model_id", "prism-dinosiglip+7b"}, {"finetune_max_steps", nullptr}, {"finetune_train_strategy", "fsdp-full-shard"}}},
                           {"dataset", {{"type", "llava-lvis4v-lrv"}}}, {"stage", "finetune"}, {"hf_token", ".hf_token"}, {"trackers", {"jsonl"}}});
    CHECK(known.vision_backbone_id == "dinosiglip-vit-so-384px");
    CHECK(known.finetune.epochs == 2);
    CHECK(known.image_resize_strategy == Resize::naive);
    CHECK(known.finetune_data[0] == "data/download/llava-v1.5-instruct/llava_v1_5_lvis4v_lrv_mix1231k.json");
    CHECK(known.id_of(Stage::finetune) == "llava-lvis4v-lrv+prism-dinosiglip+7b+stage-finetune+x7");
    CHECK(of({{"model", {{"model_id", "one-stage+7b"}}}, {"dataset", {{"type", "llava-v15"}}}}).id_of(Stage::finetune) == "one-stage+7b+stage-finetune+x7");

    CHECK(refused([](Json& j) { j["model"]["finetune_lerning_rate"] = 1; }) == "model.finetune_lerning_rate | no known key | perhaps 'finetune_learning_rate'");
    CHECK(refused([](Json& j) { j["seeds"] = 1; }) == "seeds | no known key | perhaps 'seed'");
    CHECK(refused([](Json& j) { j["prism"]["keep"] = 1; }).starts_with("prism.keep | no known key | vision_dir, "));
    CHECK(refused([](Json& j) { j["stage"] = "pretrain"; }).starts_with("stage | \"pretrain\" | 'align', "));
    CHECK(refused([](Json& j) { j["model"]["finetune_global_batch_size"] = 100; }).starts_with("model.finetune_global_batch_size | 100"));
    CHECK(refused([](Json& j) { j["model"]["align_learning_rate"] = "fast"; }).starts_with("model.align_learning_rate"));
    CHECK(refused([](Json& j) { j["dataset"].erase("align_stage_components"); }).starts_with("dataset.align_stage_components | "));
    CHECK(refused([](Json& j) { j["run_id"] = "x"; }).starts_with("run_id"));
    CHECK(refused([](Json& j) { j["stage"] = "align", j["run_id"] = "../x"; }).starts_with("run_id"));

    const auto adapters = [](const Json& keys) {
        return [keys](Json& j) { j["prism"] = keys; };
    };
    Json lora = tiny_config();
    lora["prism"] = {{"lora_rank", 32}, {"lora_dropout", 0.0}};
    const auto with = of(lora);
    CHECK(with.lora.rank == 32);
    CHECK(with.lora.alpha == 16);
    CHECK(with.lora.targets.empty());
    CHECK(with.adapters(Stage::align).rank == 0);
    CHECK(with.id_of(Stage::align) == tiny.id_of(Stage::align));
    CHECK(with.id_of(Stage::finetune) == "mine+tiny+stage-finetune+lora-r32+x7");
    CHECK_FALSE(with.identity_of(Stage::align)["prism"].contains("lora_rank"));
    lora["prism"].update({{"lora_alpha", 16}, {"lora_target_modules", "all-linear"}});  // as if they were not there
    CHECK(of(lora).identity_of(Stage::finetune) == with.identity_of(Stage::finetune));
    lora["prism"]["lora_target_modules"] = {"q_proj", "v_proj"};
    CHECK(of(lora).lora.targets.size() == 2);
    CHECK(of(of(lora).json_of(Stage::finetune)).lora.targets == of(lora).lora.targets);
    CHECK(refused(adapters({{"lora_alpha", 16}})) == "prism.lora_alpha | 16 | nothing without a lora_rank");
    CHECK(refused(adapters({{"lora_rank", 0}, {"lora_target_modules", "all-linear"}})).starts_with("prism.lora_target_modules | "));
    CHECK(refused(adapters({{"lora_rank", -1}})).starts_with("prism.lora_rank | -1 | an integer from 0"));
    CHECK(refused(adapters({{"lora_rank", 4}, {"lora_alpha", 0}})).starts_with("prism.lora_alpha | 0"));
    lora["prism"]["lora_dropout"] = 0.1;
    CHECK(of(lora).lora.dropout == 0.1);
    CHECK(of(lora).identity_of(Stage::finetune)["prism"]["lora_dropout"] == 0.1);
    CHECK(of(of(lora).json_of(Stage::finetune)).lora.dropout == 0.1);
    CHECK(refused(adapters({{"lora_rank", 4}, {"lora_dropout", 1}})) == "prism.lora_dropout | 1 | a number from 0 to below 1");
    CHECK(refused(adapters({{"lora_rank", 4}, {"lora_dropout", -0.1}})).starts_with("prism.lora_dropout | "));
    CHECK(refused(adapters({{"lora_rank", 4}, {"lora_target_modules", Json::array()}})).starts_with("prism.lora_target_modules | []"));

    Json cached = tiny_config();
    cached["prism"] = {{"feature_cache_bytes", 1 << 20}};
    CHECK(of(cached).feature_cache(Stage::align).bytes == 1 << 20);
    CHECK(of(cached).feature_cache(Stage::full_finetune).bytes == 0);
    CHECK(of(cached).identity_of(Stage::align)["prism"].empty());  // the bits are the same
    cached["prism"]["feature_cache_format"] = "bf16";
    CHECK(of(cached).identity_of(Stage::align)["prism"] == Json{{"feature_cache_format", "bf16"}});
    CHECK(refused(adapters({{"feature_cache_format", "bf16"}})) == "prism.feature_cache_format | \"bf16\" | nothing without feature_cache_bytes");
    CHECK(refused(adapters({{"feature_cache_bytes", 5}, {"feature_cache_format", "q8"}})).starts_with("prism.feature_cache_format | \"q8\""));
    CHECK(refused([&](Json& j) { adapters({{"feature_cache_bytes", 5}})(j), j["stage"] = "full-finetune"; }).starts_with("prism.feature_cache_bytes | 5 | 0 for full-finetune"));
    CHECK(refused([](Json& j) { j["stage"] = "align", j["prism"] = {{"lora_rank", 4}}; }) == "prism.lora_rank | 4 | 0 for align, which trains no language model");

    CHECK(refused([](Json& j) { j["model"].erase("model_id"); }) == "model.model_id |  | a string");
}

TEST_CASE("train/run: the loss becomes a picture") {
    std::vector<LossPoint> points;
    for (int i = 1; i <= 3000; ++i) points.push_back({static_cast<double>(i), 5 * std::exp(-i / 500.0) + 0.2 * std::sin(i), 5 * std::exp(-i / 500.0)});
    points.push_back({3001, std::nan(""), 1});
    const Image image = loss_curve(points);
    CHECK(image.height() == 400);
    std::size_t blue = 0, grey = 0;
    for (std::size_t y = 0; y < 400; ++y)
        for (std::size_t x = 0; x < 640; ++x) blue += image.row(y)[3 * x + 2] == 200, grey += image.row(y)[3 * x] == 175;
    CHECK(blue > 500);
    CHECK(grey > 1000);
    CHECK(loss_curve(std::vector<LossPoint>{{1, 2, 2}}).width() == 640);
    CHECK_THROWS_AS(loss_curve({}), ConfigError);
}

TEST_CASE("train/run: a stage leaves Prismatic's folder, and its metrics") {
    const TempFolder temp;
    const Numbers    numbers(37);  // 28 with pictures, 9 without: 4 and 2 batches of 8
    Toy              toy;
    auto             folder = folder_in(temp);
    folder.describe({{"seed", 7}}, {{"lr", 1}});
    std::size_t       seen = 0;
    const StageResult result = train_stage(toy, numbers, plan_of(2), folder, {.on_step = [&](const StageProgress& p) {
        CHECK(p.n_steps == 12);
        return p.step == ++seen;
    }});
    CHECK(result.finished);
    CHECK(result.steps == 12);
    CHECK(result.loader.batches == 24);

    const auto lines = folder.metrics();
    REQUIRE(lines.size() == 12);
    CHECK(lines[0].size() == 5);
    CHECK(lines[0]["Finetune/Step"] == 1);
    CHECK(lines[11]["Finetune/Learning Rate"].get<double>() == learning_rate(plan_of(2).settings, 12, 10));
    CHECK(lines[11]["Finetune/Loss (Raw)"].get<double>() < lines[0]["Finetune/Loss (Raw)"].get<double>());
    CHECK(read_json(folder.path() / "run-metrics.jsonl")["run_id"] == "toy");
    CHECK(fs::equivalent(folder.path() / "metrics.jsonl", folder.path() / "toy.jsonl"));
    CHECK(read_image(folder.path() / "loss.png").width() == 640);

    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder.path() / "checkpoints")) names.push_back(entry.path().filename().string());
    std::ranges::sort(names);
    REQUIRE(names.size() == 3);
    CHECK(names[0] == "latest-checkpoint.pt");
    CHECK(names[1].starts_with("step-000006-epoch-00-loss="));
    CHECK(names[2].starts_with("step-000012-epoch-01-loss="));
    const auto tensors = read_torch(folder.latest());
    REQUIRE(tensors.size() == 2);
    CHECK(tensors[0].name == "model.projector.projector.0.weight");
    CHECK(tensors[1].name == "model.llm_backbone.llm.bias");
    CHECK(to_floats(tensors[0]) == toy.w);

    Toy other;
    restore_parameters({{"projector.projector.0.weight", {2, 4}, other.w}}, folder.latest());
    CHECK(other.w == toy.w);
    CHECK_THROWS_AS(restore_parameters({{"vision_backbone.x", {1}, other.b}}, folder.latest()), LoadError);
    CHECK_THROWS_AS(restore_parameters({{"projector.projector.0.weight", {8}, other.w}}, folder.latest()), LoadError);
}

TEST_CASE("train/run: the loss of a step is the mean over all of its batches, more than 128 as well") {
    const TempFolder temp;
    const Numbers    numbers(200);  // 150 with pictures, 50 without: a step of 200 batches for each
    Toy              toy;
    auto             folder = folder_in(temp);
    StagePlan        plan = plan_of(1);
    plan.settings.global_batch_size = 200, plan.settings.per_device_batch_size = 1;
    train_stage(toy, numbers, plan, folder);
    const auto lines = folder.metrics();
    REQUIRE(lines.size() == 2);
    REQUIRE(toy.losses.size() == 400);
    const auto mean = [&](std::size_t from, std::size_t n) { return std::accumulate(toy.losses.begin() + static_cast<std::ptrdiff_t>(from), toy.losses.begin() + static_cast<std::ptrdiff_t>(from + n), 0.0) / static_cast<double>(n); };
    for (std::size_t i = 0; i < 2; ++i) {
        CHECK(lines[i]["Finetune/Loss (Raw)"] == mean(200 * i, 200));
        CHECK(lines[i]["Finetune/Loss"] == mean(200 * i + 72, 128));
    }
}

TEST_CASE("train/run: a cap on steps ends a stage in the middle of an epoch, or takes more epochs") {
    const Numbers numbers(37);
    for (const std::size_t cap : {4U, 15U}) {
        const TempFolder temp;
        Toy              toy;
        auto             folder = folder_in(temp);
        StagePlan        plan = plan_of(1);
        plan.settings.max_steps = cap;
        CHECK(train_stage(toy, numbers, plan, folder).steps == cap);
        CHECK(folder.metrics().size() == cap);
        CHECK(train_stage(toy, numbers, plan, folder).steps == cap);  // done: nothing happens
        CHECK(toy.steps == cap);
    }
    const TempFolder temp;
    Toy              toy;
    auto             folder = folder_in(temp);
    const Numbers    few(3);
    StagePlan        large = plan_of(1);
    large.stage = Stage::align;  // does not repeat examples
    CHECK_THROWS_AS(train_stage(toy, few, large, folder), ConfigError);
    StagePlan forever = plan_of(1);
    forever.settings.max_steps = 600;  // 100 epochs of 6
    CHECK(StageOrder{forever, numbers.sizes()}.n_steps == 600);
    forever.settings.max_steps = 601;
    CHECK_THROWS_WITH_AS(train_stage(toy, numbers, forever, folder), "'max_steps' is 601; allowed: at most the 600 steps of 100 epochs", ConfigError);
}

TEST_CASE("train/run: a run that was stopped goes on with the same bits") {
    const TempFolder whole_temp, parts_temp;
    const Numbers    numbers(37);
    Toy              whole;
    auto             whole_folder = folder_in(whole_temp);
    train_stage(whole, numbers, plan_of(3), whole_folder);
    for (const std::size_t stop : {1U, 5U, 6U, 13U, 18U}) {
        Toy  part;  // a fresh one: all comes from the folder
        auto folder = folder_in(parts_temp);
        const auto result = train_stage(part, numbers, plan_of(3), folder, {.on_step = [&](const StageProgress& p) { return p.step < stop; }});
        CHECK(result.steps >= stop);
    }
    auto folder = folder_in(parts_temp);
    Toy  last;
    CHECK(train_stage(last, numbers, plan_of(3), folder).finished);
    CHECK(last.w == whole.w);
    CHECK(last.v == whole.v);
    CHECK(timeless(folder) == timeless(whole_folder));
    CHECK(read_file(folder.latest()) == read_file(whole_folder.latest()));

    // What does not fit is named, and the folder stays as it was: this one has a merged model, and a line more.
    fs::remove(folder.latest());
    parts_temp.write("toy/checkpoints/latest-checkpoint.pt", "merged");
    folder.log({{"Finetune/Step", 19}});
    const auto not_as = [&](const char* key, const Numbers& data, const Json& identity) {
        StagePlan other = plan_of(3);
        other.identity = identity;
        try {
            train_stage(last, data, other, folder);
            FAIL("no error");
        } catch (const ConfigError& e) { CHECK(e.key == key); }
        CHECK(read_file(folder.latest()) == "merged");
        CHECK(folder.metrics().size() == 19);
    };
    Numbers longer(37);
    longer.all[5].words = 9;
    not_as("/seed", numbers, {{"seed", 8}});
    not_as("/data/rows", Numbers(38), {{"seed", 7}});
    not_as("/data/rows_checksum", longer, {{"seed", 7}});
    {  // as earlier versions left it
        const auto state = folder.path() / "resume.bundle";
        Bundle     bundle = read_bundle(MappedFile::open(state));
        bundle.contents.erase("data"), bundle.contents.erase("skipped");
        bundle.contents["identity"]["dataset"]["align_stage_components"] = {"a/chat.json", "a"};
        write_bundle(state, bundle.contents, bundle.entries);
    }
    CHECK(train_stage(last, longer, plan_of(3), folder).finished);
    CHECK(folder.metrics().size() == 18);
    CHECK(read_file(folder.latest()) == read_file(whole_folder.latest()));

    StagePlan plan = plan_of(4);
    plan.machine = {{"isa", "one"}};
    std::vector<std::string> said_of;
    const auto               until = [&](std::size_t stop) {
        train_stage(last, numbers, plan, folder, {.on_step = [&](const StageProgress& p) { return p.step < stop; }, .on_change = [&](const std::string& sentence) { said_of.push_back(sentence); }});
    };
    until(20), until(21);
    CHECK(said_of.empty());  // the first run had named no machine
    plan.machine = {{"isa", "two"}};
    until(22);
    REQUIRE(said_of.size() == 1);
    CHECK(said_of[0].find("'isa' was \"one\" and is \"two\"") != std::string::npos);
    CHECK_THROWS_AS(folder_in(parts_temp), LoadError);  // the folder is in use
}

TEST_CASE("train/run: killed at any moment, a run ends with the bits of an unbroken one") {
    const char*   asked = std::getenv("PRISM_KILLS");
    const int     kills = asked ? std::atoi(asked) : 12;
    const Numbers numbers(101);
    const auto    plan = plan_of(4, 3);
    const auto    train = [&](const TempFolder& temp) {
        Toy  toy;
        auto folder = folder_in(temp, 2);
        return train_stage(toy, numbers, plan, folder, {.on_step = [](const StageProgress&) {
            std::this_thread::sleep_for(std::chrono::microseconds(300));
            return true;
        }});
    };
    const TempFolder whole;
    const std::size_t n_steps = train(whole).steps;
    const auto        expected = timeless(folder_in(whole));
    CHECK(expected.size() == n_steps);

    std::mt19937 random{1};
    int          killed = 0;
    while (killed < kills) {
        const TempFolder temp;
        for (bool finished = false; !finished;) {
            const pid_t child = ::fork();
            REQUIRE(child >= 0);
            if (child == 0) {
                try {
                    ::_exit(train(temp).finished ? 0 : 3);
                } catch (...) { ::_exit(4); }
            }
            if (killed < kills) {
                std::this_thread::sleep_for(std::chrono::microseconds(random() % 40000));
                ::kill(child, SIGKILL);
            }
            int status = 0;
            ::waitpid(child, &status, 0);
            finished = WIFEXITED(status);
            if (finished) REQUIRE(WEXITSTATUS(status) == 0);
            else ++killed;
        }
        CHECK(timeless(folder_in(temp)) == expected);
        std::size_t n_files = 0;
        for (const auto& entry : fs::directory_iterator(temp.path() / "toy/checkpoints")) {
            const std::string name = entry.path().filename().string();
            CHECK(read_file(entry.path()) == read_file(whole.path() / "toy/checkpoints" / name));
            ++n_files;
        }
        CHECK(n_files == 3);  // the last two, and the latest
        CHECK(read_file(temp.path() / "toy/resume.bundle") == read_file(whole.path() / "toy/resume.bundle"));
    }
    MESSAGE(killed, " kills");
}

namespace {

/// A plan of four micro-batches a step; an epoch of alignment ends with some that are too few for one.
StagePlan plan_of_ranks(Stage stage, const Ranks& ranks = {}) {
    StagePlan plan = plan_of(2, 3);
    plan.stage = stage, plan.settings.per_device_batch_size = 2, plan.ranks = ranks;
    return plan;
}
/// Trains on n ranks, the first of which has the folder, until `stop` steps have been made. What each of them threw.
std::vector<std::exception_ptr> train_on_ranks(std::size_t n, const TempFolder& temp, Stage stage = Stage::finetune, std::size_t stop = 100,
                                               const std::function<void(Toy&, StagePlan&)>& change = {}) {
    const Numbers                   numbers(37);
    std::vector<std::vector<float>> learnt(n);
    auto problems = test::on_ranks(n, [&](const Ranks& ranks) {
        Toy                      toy{ranks};
        std::optional<RunFolder> folder;
        if (ranks.first()) folder.emplace(temp.path(), "toy", metrics_name(stage) + "/Step");
        else toy.w[3] = 9;  // what it has does not matter: all begin with what the first has
        StagePlan plan = plan_of_ranks(stage, ranks);
        if (change) change(toy, plan);
        train_stage(toy, numbers, plan, folder ? &*folder : nullptr, {.on_step = [&](const StageProgress& p) { return p.step < stop; }});
        learnt[ranks.rank()] = toy.w;
    });
    for (const auto& w : learnt) CHECK(w == learnt[0]);
    return problems;
}
double furthest(const std::vector<Json>& a, const std::vector<Json>& b, const std::string& name) {
    REQUIRE(a.size() == b.size());
    double most = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        for (const char* key : {"/Loss", "/Loss (Raw)"}) most = std::max(most, std::abs(a[i].at(name + key).get<double>() - b[i].at(name + key).get<double>()));
    return most;
}

}  // namespace

TEST_CASE("train/run: ranks have the losses of one process, and the same bits again") {
    for (const Stage stage : {Stage::align, Stage::finetune}) {
        const std::string name = metrics_name(stage);
        const auto        metrics = [&](const TempFolder& temp) { return RunFolder{temp.path(), "toy", name + "/Step"}.metrics(); };
        const TempFolder  one;
        CHECK(said(train_on_ranks(1, one, stage)[0]) == "");
        CHECK(metrics(one).size() == (stage == Stage::align ? 8 : 12));
        for (const std::size_t n : {2U, 4U}) {
            const TempFolder whole, parts;
            for (const auto& problem : train_on_ranks(n, whole, stage)) CHECK(said(problem) == "");
            CHECK(furthest(metrics(whole), metrics(one), name) < 1e-5);
            for (const std::size_t stop : {1U, 5U, 100U}) train_on_ranks(n, parts, stage, stop);
            for (const char* file : {"checkpoints/latest-checkpoint.pt", "resume.bundle"})
                CHECK(read_file(whole.path() / "toy" / file) == read_file(parts.path() / "toy" / file));
        }
        const TempFolder mixed;  // the number of ranks may change
        for (const auto& [n, stop] : {std::pair{2U, 2U}, {1U, 5U}, {4U, 7U}, {2U, 100U}}) train_on_ranks(n, mixed, stage, stop);
        CHECK(furthest(metrics(mixed), metrics(one), name) < 1e-5);
    }
}

TEST_CASE("train/run: what cannot be used is left out, by all ranks alike, and counted across interruptions") {
    const Holes holes(40);  // 12 of them; a batch is one example here
    std::size_t made = 0, passed_over = 0;
    const auto  train = [&](std::size_t n, const TempFolder& temp, std::size_t stop, BadExamples bad = BadExamples::skip) {
        StageResult result;
        std::mutex  mutex;
        made = passed_over = 0;
        const auto problems = test::on_ranks(n, [&](const Ranks& ranks) {
            Toy                      toy{ranks};
            std::optional<RunFolder> folder;
            if (ranks.first()) folder.emplace(temp.path(), "toy", "Align/Step");
            StagePlan plan = plan_of_ranks(Stage::align, ranks);
            plan.settings.per_device_batch_size = 1, plan.loader.bad = bad;
            const auto       own = train_stage(toy, holes, plan, folder ? &*folder : nullptr, {.on_step = [&](const StageProgress& p) { return p.step < stop; }});
            const std::lock_guard lock{mutex};
            made += toy.micro_steps, passed_over += toy.passed_over, result = own;
        });
        for (const auto& problem : problems)
            if (problem) std::rethrow_exception(problem);
        return result;
    };
    const auto       metrics = [&](const TempFolder& temp) { return RunFolder{temp.path(), "toy", "Align/Step"}.metrics(); };
    const TempFolder one, refusing;
    const auto       result = train(1, one, 100);
    CHECK(result.steps == 10);
    CHECK(result.loader.skipped == 24);  // in two epochs
    CHECK(made == 56);
    CHECK(passed_over == 24);
    CHECK((result.loader.first_skipped.starts_with("holes: example ") || result.loader.first_skipped.starts_with("number ")));
    CHECK(train(1, one, 100).loader.skipped == 24);  // done: nothing happens
    CHECK_THROWS_AS((void)train(1, refusing, 100, BadExamples::refuse), ExampleError);
    for (const std::size_t n : {1U, 2U, 4U}) {
        const TempFolder whole, parts;
        CHECK(train(n, whole, 100).loader.skipped == 24);
        CHECK(passed_over == 24);
        CHECK(furthest(metrics(whole), metrics(one), "Align") < 1e-5);
        for (const std::size_t stop : {1U, 5U, 6U, 100U}) train(n, parts, stop);
        for (const char* file : {"checkpoints/latest-checkpoint.pt", "resume.bundle"})
            CHECK(read_file(whole.path() / "toy" / file) == read_file(parts.path() / "toy" / file));
    }
}

TEST_CASE("train/run: a stage of which nothing can be used is no stage") {
    struct : Numbers {
        using Numbers::Numbers;
        TokenRow tokens(std::size_t i) const { throw ExampleError{"none", i, "image", "is a hole"}; }
    } none{37};
    const TempFolder temp;
    Toy              toy;
    auto             folder = folder_in(temp);
    StagePlan        plan = plan_of(1);
    plan.loader.bad = BadExamples::skip;
    try {
        train_stage(toy, none, plan, folder);
        FAIL("no error");
    } catch (const ConfigError& e) { CHECK(e.allowed.find("none: example ") != std::string::npos); }
    CHECK_FALSE(fs::exists(folder.latest()));
}

TEST_CASE("train/run: what stops one rank stops all, and one says why") {
    // What `teller` says when something is wrong with `culprit`.
    const auto failed = [](std::size_t culprit, std::size_t teller, const std::function<void(Toy&, StagePlan&)>& change) {
        const TempFolder temp;
        const auto       problems = train_on_ranks(4, temp, Stage::finetune, 100, [&](Toy& toy, StagePlan& plan) {
            if (toy.ranks.rank() == culprit) change(toy, plan);
        });
        for (std::size_t r = 0; r < 4; ++r)
            if (r != teller) CHECK(said(problems[r]) == "stopped, because rank " + std::to_string(teller) + " failed");
        return said(problems[teller]);
    };
    const std::string loss = failed(2, 2, [](Toy& toy, StagePlan&) { toy.nan_at = 5; });
    CHECK(loss.starts_with("step 5: the loss is nan, in a batch of number "));
    CHECK(loss.find("the last good checkpoint is ") != std::string::npos);
    CHECK(failed(1, 0, [](Toy& toy, StagePlan&) { toy.bad_gradient_at = 1; }).starts_with("step 1: the norm of the gradients is nan"));
    CHECK(failed(3, 3, [](Toy&, StagePlan& plan) { plan.identity = {{"seed", 8}}; }).find("the configuration and the annotations of the first") != std::string::npos);
    CHECK(failed(1, 1, [](Toy&, StagePlan& plan) { plan.settings.per_device_batch_size = 3; }).find("a multiple of 4 ranks") != std::string::npos);
}

TEST_CASE("train/run: a loss that is no number stops the run, and says where and what is left") {
    const TempFolder temp;
    const Numbers    numbers(37);
    for (const std::size_t at : {1U, 9U}) {
        Toy  toy;
        auto folder = folder_in(temp);
        toy.nan_at = at;
        try {
            train_stage(toy, numbers, plan_of(2, 2), folder);
            FAIL("no error");
        } catch (const TrainingError& e) {
            CHECK(e.step == (at + 1) / 2);
            CHECK(e.examples.size() == 4);
            CHECK(std::string(e.what()).find("number " + std::to_string(e.examples[0])) != std::string::npos);
            CHECK(e.checkpoint.empty() == (at == 1));
            if (at > 1) CHECK(fs::equivalent(e.checkpoint, folder.latest()));
        }
    }
    Toy  toy;
    auto folder = folder_in(temp);
    toy.bad_gradient_at = 1;  // the first of two batches; it may be either
    try {
        train_stage(toy, numbers, plan_of(2, 2), folder);
        FAIL("no error");
    } catch (const TrainingError& e) {
        REQUIRE(e.examples.size() == 8);
        for (const std::size_t i : e.examples) CHECK(std::string(e.what()).find("number " + std::to_string(i)) != std::string::npos);
    }
}

TEST_CASE("train/run: checkpoints without a state are not written over, unless the run was killed before its first state") {
    const TempFolder temp;
    const Numbers    numbers(37);
    Toy              toy;
    auto             folder = folder_in(temp);
    train_stage(toy, numbers, plan_of(1), folder);
    const auto metrics = folder.metrics();
    fs::remove(folder.path() / "resume.bundle");
    const auto latest = read_file(folder.latest());
    Toy        other;
    try {
        train_stage(other, numbers, plan_of(2), folder);
        FAIL("no error");
    } catch (const LoadError& e) {
        CHECK(e.file == folder.latest().string());
        CHECK(std::string(e.what()).find("resume.bundle") != std::string::npos);
    }
    CHECK(folder.metrics() == metrics);
    CHECK(read_file(folder.latest()) == latest);
    fs::remove(folder.latest());  // as it is between the first checkpoint and its state
    CHECK(train_stage(other, numbers, plan_of(1), folder).finished);
    CHECK(other.w == toy.w);
    CHECK(read_file(folder.latest()) == latest);
}

TEST_CASE("train/run: a damaged state is refused, and what a killed process left beside goes away") {
    const TempFolder temp;
    const Numbers    numbers(37);
    Toy              toy;
    {
        auto folder = folder_in(temp);
        train_stage(toy, numbers, plan_of(1), folder);
    }
    temp.write("toy/checkpoints/x.pt.new-1-0", "half");
    temp.write("toy/toy.jsonl", read_file(temp.path() / "toy/toy.jsonl") + "{\"Finetune/St");
    CHECK(folder_in(temp).metrics().size() == 6);
    CHECK_FALSE(fs::exists(temp.path() / "toy/checkpoints/x.pt.new-1-0"));
    auto state = read_file(temp.path() / "toy/resume.bundle");
    state[30] = static_cast<char>(state[30] ^ 1);
    temp.write("toy/resume.bundle", state);
    auto folder = folder_in(temp);
    CHECK_THROWS_AS(train_stage(toy, numbers, plan_of(1), folder), FormatError);
}
