// prism train, from a configuration to a folder that prism ask opens; and killed on the way.
#include "program/support.hpp"
#include "support/tensors.hpp"

#include "prism/backend/cpu/isa.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/model/adapters.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <random>
#include <sstream>
#include <string>
#include <vector>

using namespace prism;
using namespace prism::test;
namespace fs = std::filesystem;

namespace {

const fs::path reference = fs::path(PRISM_TEST_DATA) / "reference";

/// A small model's parts as a base, a few conversations over the committed pictures, and a configuration of both.
struct World {
    Scratch scratch;
    Json    config;

    World() {
        const fs::path small = reference / "vlm/prism-dinosiglip+7b", llm = scratch.path("llm");
        fs::create_directories(llm);
        for (const auto& entry : fs::directory_iterator(small / "llm")) fs::copy_file(fs::canonical(entry.path()), llm / entry.path().filename());
        const Checkpoint trained = Checkpoint::open(small / "checkpoints/latest-checkpoint.pt");
        const Checkpoint        decoder = trained.below("model.llm_backbone.llm");
        std::vector<TensorData> tensors;
        for (const TensorInfo& t : decoder.tensors()) tensors.push_back({.name = t.name, .dtype = t.dtype, .shape = t.shape, .bytes = {t.data, t.bytes()}});
        write_safetensors(llm / "model.safetensors", tensors);
        Json              rows = Json::array(), captions = Json::array();
        const std::string pictures[]{"rgb.jpg", "rgb8.png", "grey.jpg", "palette4.png", "420.jpg"};
        for (std::size_t i = 0; i < 14; ++i) {
            Json row{{"id", std::to_string(i)}, {"conversations", {{{"from", "human"}, {"value", "<image>\nWhat is in picture " + std::to_string(i) + "?"}}, {{"from", "gpt"}, {"value", "A thing of kind " + std::to_string(i % 5) + "."}}}}};
            if (i % 3 != 2) row["image"] = pictures[i % 5], captions.push_back(row);
            rows.push_back(row);
        }
        scratch.write("rows.json", rows.dump()), scratch.write("captions.json", captions.dump());
        const std::string images = (fs::path(PRISM_TEST_DATA) / "images").string();
        config = {{"model", {{"model_id", "tiny"}, {"vision_backbone_id", "dinosiglip-vit-so-224px"}, {"llm_backbone_id", "llama2-7b-pure"}, {"arch_specifier", "fused-gelu-mlp"},
                             {"image_resize_strategy", "resize-naive"}, {"align_global_batch_size", 4}, {"align_per_device_batch_size", 2}, {"finetune_global_batch_size", 4},
                             {"finetune_per_device_batch_size", 2}, {"finetune_learning_rate", 2e-3}, {"finetune_epochs", 3}}},
                  {"dataset", {{"dataset_id", "llava-v15"}, {"dataset_root_dir", scratch.path("")}, {"align_stage_components", {"captions.json", images}}, {"finetune_stage_components", {"rows.json", images}}}},
                  {"stage", {"align", "finetune"}}, {"run_root_dir", scratch.path("runs")},
                  {"prism", {{"vision_dir", (small / "vision").string()}, {"llm_dir", llm.string()}, {"checkpoint_every", 2}}}};
    }
    std::vector<std::string> command(const std::string& threads = "1") const { return {"train", scratch.write("config.json", config.dump()), "--threads", threads}; }
    fs::path                 folder(const std::string& stage) const { return fs::path(config["run_root_dir"].get<std::string>()) / ("tiny+stage-" + stage + "+x7"); }
};

/// The tokens that `prism ask` answers with about a picture.
Json answer(const fs::path& model) {
    return run({"ask", "--model", model.string(), "--image", (fs::path(PRISM_TEST_DATA) / "images/rgb8.png").string(), "--prompt", "What is it?", "--max-new-tokens", "12", "--json"}).json().at("output_ids");
}

}  // namespace

TEST_CASE("program/train: two stages, and a folder that can be asked") {
    const World world;
    auto        command = world.command();
    command.push_back("--json");
    const Json trained = run(command).json();
    CHECK(trained["steps"] == 2 + 12);
    CHECK(trained["skipped"] == 0);
    const Checkpoint aligned = Checkpoint::open(world.folder("align") / "checkpoints/latest-checkpoint.pt");
    CHECK(aligned.below("model.llm_backbone").tensors().empty());
    CHECK_FALSE(aligned.below("model.projector").tensors().empty());
    std::string    text = read_file(world.folder("finetune") / "metrics.jsonl");
    CHECK(std::count(text.begin(), text.end(), '\n') == 12);
    const Json first = parse_json(text.substr(0, text.find('\n')), "first"), last = parse_json(text.substr(text.rfind('\n', text.size() - 2) + 1), "last");
    CHECK(last["Finetune/Loss (Raw)"].get<double>() < 0.8 * first["Finetune/Loss (Raw)"].get<double>());
    CHECK(fs::exists(world.folder("finetune") / "loss.png"));
    CHECK(answer(world.folder("finetune")).size() > 0);
    const Ran again = run(command);  // all is done
    CHECK(again.json()["steps"] == 14);
    CHECK(again.err.find("is finished; another run needs another run_id") != std::string::npos);
    const Ran own = run({"train", (world.folder("finetune") / "config.json").string(), "--threads", "1", "--json"});  // finds its alignment
    CHECK(own.json()["steps"] == 12);
}

TEST_CASE("program/train: the configuration among the examples trains on a folder that prism shapes writes") {
    const Scratch scratch;
    const fs::path data = scratch.path("shapes"), llm = data / "llm";
    REQUIRE(run({"shapes", "--quiet", "--out-folder", data, "--kind", "conversations", "--count", "40"}).status == 0);
    fs::copy(reference / "lm/llama-bf16-sharded", llm, fs::copy_options::recursive);
    REQUIRE(run({"shapes", "--quiet", "--out-folder", llm, "--kind", "tokenizer"}).status == 0);
    Json       config = read_json(fs::path(PRISM_SOURCE_DIR) / "examples/train.json");
    const auto moved = [&](const Json& path) {
        const std::string text = path.get<std::string>(), root = "build/small";
        return text.starts_with(root) ? data.string() + text.substr(root.size()) : (fs::path(PRISM_SOURCE_DIR) / text).string();
    };
    for (Json* path : {&config["dataset"]["dataset_root_dir"], &config["run_root_dir"], &config["prism"]["vision_dir"], &config["prism"]["llm_dir"]}) *path = moved(*path);
    CHECK(run({"train", scratch.write("config.json", config.dump()), "--threads", "1", "--json"}).json()["steps"] == 4);  // 40 rows in batches of 16: three with pictures, one of those without
    CHECK(answer(data / "runs/shapes+small+stage-finetune+x7").size() > 0);
}

TEST_CASE("program/train: examples that are skipped are counted, and the first is named") {
    World world;
    Json  rows = parse_json(read_file(world.scratch.path("captions.json")), "captions");
    rows[3]["image"] = "none.jpg", rows[5] = 5;
    world.scratch.write("captions.json", rows.dump());
    world.config["stage"] = "align", world.config["prism"]["bad_examples"] = "skip", world.config["model"]["align_per_device_batch_size"] = 1;
    auto command = world.command();
    command.push_back("--json");
    for (int again = 0; again < 2; ++again) {
        const Ran ran = run(command);
        CHECK(ran.json()["skipped"] == 2);
        CHECK(ran.err.find("example 5: 'example' is no object") != std::string::npos);
        CHECK((ran.err.find("left out while training; the first: " + world.scratch.path("captions.json") + ": example 3: 'image' cannot be used") != std::string::npos) == (again == 0));
    }
}

namespace {

/// Kills or interrupts a run at random moments until it ends, and compares `files` of the folders of `stages` with those of an unbroken one.
void expect_same_when_killed(const World& whole, std::initializer_list<const char*> stages, std::initializer_list<const char*> files) {
    REQUIRE(run(whole.command()).status == 0);
    const char*  asked = std::getenv("PRISM_KILLS");
    const int    kills = asked ? std::atoi(asked) : 4;
    std::mt19937 random{2};
    World        broken;
    broken.config["run_root_dir"] = broken.scratch.path("other");
    // The same base and data, so that the same run is resumed.
    for (const char* key : {"dataset", "prism"}) broken.config[key] = whole.config[key];
    for (int killed = 0;;) {
        const int signal = std::array{SIGKILL, SIGINT, SIGTERM}[static_cast<std::size_t>(killed) % 3];
        const Ran ran = run(broken.command("2"), {}, std::chrono::microseconds(killed < kills ? 1 + random() % 600000 : 0), signal);
        if (ran.status == 128 + signal) {
            ++killed;
            continue;
        }
        REQUIRE_MESSAGE(ran.status == 0, ran.err);
        if (killed < kills) fs::remove_all(broken.scratch.path("other"));  // it got through; once more
        else break;
    }
    for (const char* stage : stages)
        for (const char* name : files) CHECK_MESSAGE(read_file(whole.folder(stage) / name) == read_file(broken.folder(stage) / name), name);
}

}  // namespace

TEST_CASE("program/train: killed at random moments, and on other threads, it ends with the same bytes") {
    expect_same_when_killed(World{}, {"align", "finetune"}, {"checkpoints/latest-checkpoint.pt", "resume.bundle"});
}

TEST_CASE("program/train: adapters as well, and in the end they are merged") {
    World world;
    world.config["prism"].update({{"lora_rank", 4}, {"lora_dropout", 0.3}, {"lora_target_modules", {"q_proj", "v_proj"}}});
    expect_same_when_killed(world, {"finetune+lora-r4"}, {"checkpoints/latest-checkpoint.pt", "resume.bundle", "adapter_model.safetensors", "adapter_config.json"});
    const fs::path run = world.folder("finetune+lora-r4"), latest = run / "checkpoints/latest-checkpoint.pt";
    const Json     merged = answer(run);
    CHECK(read_json(run / "adapter_config.json")["base_model_name_or_path"] == world.config["prism"]["llm_dir"]);
    fs::path       last;  // the last point of the run, which has adapters alone, as if it went on
    for (const auto& entry : fs::directory_iterator(run / "checkpoints"))
        if (entry.path().filename().string().starts_with("step-000012")) last = entry.path();
    fs::copy_file(last, latest, fs::copy_options::overwrite_existing);
    CHECK(holds_adapters(Checkpoint::open(latest).below("model.llm_backbone.llm")));
    CHECK(answer(run) == merged);
}

TEST_CASE("program/train: what is wrong is said in a line") {
    World      world;
    const auto refused = [&](const char* part) {
        const Ran ran = run(world.command());
        CHECK(ran.status == 1);
        CHECK(ran.error_lines() == 1);
        CHECK_MESSAGE(ran.err.find(part) != std::string::npos, ran.err);
    };
    const Json good = world.config;
    world.config["model"]["finetune_epoch"] = 1;
    refused("perhaps 'finetune_epochs'");
    world.config = good, world.config["stage"] = "finetune";
    refused("pretrained_checkpoint");
    world.config = good, world.config["prism"]["llm_dir"] = "/nowhere";
    refused("/nowhere");
    world.config = good, world.config["dataset"]["align_stage_components"][0] = "none.json";
    refused("none.json");
    world.config = good, world.config["dataset"]["align_stage_components"][1] = "/nowhere";
    refused("'image' cannot be used");
    world.config = good, world.config["prism"].update({{"lora_rank", 4}, {"lora_target_modules", {"query"}}});
    refused("'lora_target_modules' is query; allowed: 'q_proj', ");
    world.config = good;
    REQUIRE(run(world.command()).status == 0);
    auto fast = world.command();
    fast.insert(fast.end(), {"--compute", "fast"});
    const Ran other = run(fast);
    CHECK(other.status == 1);
    CHECK(other.error_lines() == 1);
    CHECK_MESSAGE(other.err.find("'/compute' is \"fast\"; allowed: \"exact\"") != std::string::npos, other.err);
    auto elsewhere = world.command();
    elsewhere.insert(elsewhere.end(), {"--isa", "portable"});
    const Ran moved = run(elsewhere);
    CHECK(moved.status == 0);
    CHECK((moved.err.find("'isa' was ") != std::string::npos) == (best_isa() != Isa::portable));
    CHECK(run({"train"}).status == 2);
    CHECK(run({"train", "config.json", "--weights", "q8"}).status == 2);
}

#ifdef PRISM_MPIRUN

namespace {

/// mpirun with so many processes of prism train.
Ran run_ranks(int n, const World& world) {
    std::vector<std::string> words;
    std::istringstream       mpirun{PRISM_MPIRUN};
    for (std::string word; mpirun >> word;) words.push_back(word);
    words.insert(words.end(), {std::to_string(n), PRISM_PROGRAM});
    for (const std::string& word : world.command()) words.push_back(word);
    return run_program(words);
}
/// Lines of standard error that prism has written; mpirun adds its own.
std::vector<std::string> complaints(const Ran& ran) {
    std::vector<std::string> all;
    std::istringstream       lines{ran.err};
    for (std::string line; std::getline(lines, line);)
        if (line.starts_with("prism: ")) all.push_back(line);
    return all;
}
/// The loss of every step of fine-tuning.
std::vector<double> losses(const World& world) {
    std::vector<double> all;
    std::istringstream  lines{read_file(world.folder("finetune") / "metrics.jsonl")};
    for (std::string line; std::getline(lines, line);) all.push_back(parse_json(line, "metrics")["Finetune/Loss (Raw)"].get<double>());
    return all;
}
double furthest(const std::vector<double>& a, const std::vector<double>& b) {
    REQUIRE(a.size() == b.size());
    double most = 0;
    for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
    return most;
}

}  // namespace

TEST_CASE("program/train: two and four processes have the losses of one, stop together and go on together, or as one") {
    World world;
    // A step is four micro-batches. One picture is of this test's own, and broken for a while. AdamW makes whole steps of gradients
    // that are nothing but rounding, so that losses differ by more the higher the rate is; the published one is a fifth of this.
    world.config["model"]["finetune_learning_rate"] = 1e-4;
    for (const char* stage : {"align", "finetune"}) world.config["model"][std::string(stage) + "_per_device_batch_size"] = 1;
    const fs::path pictures = world.scratch.path("pictures");
    fs::copy(fs::path(PRISM_TEST_DATA) / "images", pictures);
    Json rows = parse_json(read_file(world.scratch.path("rows.json")), "rows");
    rows[3]["image"] = "own.jpg";  // read in the third step, after a checkpoint
    world.scratch.write("rows.json", rows.dump());
    world.config["dataset"]["finetune_stage_components"][1] = pictures.string();
    const auto in = [&](const char* root) { world.config["run_root_dir"] = world.scratch.path(root); };
    const auto end_of = [&](const char* name) { return read_file(world.folder("finetune") / name); };

    fs::copy_file(pictures / "rgb.jpg", pictures / "own.jpg");
    in("one");
    REQUIRE(run(world.command()).status == 0);
    const auto expected = losses(world);
    CHECK(expected.size() == 12);
    in("four");
    REQUIRE(run_ranks(4, world).status == 0);
    CHECK(furthest(losses(world), expected) < 1e-5);
    in("two");
    const Ran two = run_ranks(2, world);
    REQUIRE_MESSAGE(two.status == 0, two.err);
    CHECK(complaints(two).empty());
    CHECK(std::count(two.out.begin(), two.out.end(), '\n') == 2);
    CHECK(furthest(losses(world), expected) < 1e-5);
    const std::string checkpoint = end_of("checkpoints/latest-checkpoint.pt"), state = end_of("resume.bundle");

    world.scratch.write("pictures/own.jpg", "no picture");
    in("broken");
    const Ran failed = run_ranks(2, world);
    CHECK(failed.status == 1);
    REQUIRE_MESSAGE(complaints(failed).size() == 1, failed.err);
    CHECK_MESSAGE(complaints(failed)[0].find("'image' cannot be used") != std::string::npos, failed.err);
    REQUIRE(fs::exists(world.folder("finetune") / "resume.bundle"));
    fs::copy(world.scratch.path("broken"), world.scratch.path("other"), fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    fs::copy_file(pictures / "rgb.jpg", pictures / "own.jpg", fs::copy_options::overwrite_existing);
    REQUIRE(run_ranks(2, world).status == 0);
    CHECK(end_of("checkpoints/latest-checkpoint.pt") == checkpoint);
    CHECK(end_of("resume.bundle") == state);
    in("other");
    REQUIRE(run(world.command()).status == 0);
    CHECK(furthest(losses(world), expected) < 1e-5);

    // Three processes cannot share four micro-batches: found out by all, said by one.
    in("three");
    const Ran refused = run_ranks(3, world);
    CHECK(refused.status == 1);
    REQUIRE_MESSAGE(complaints(refused).size() == 1, refused.err);
    CHECK_MESSAGE(complaints(refused)[0].find("a multiple of 3 ranks") != std::string::npos, refused.err);
}

#endif
