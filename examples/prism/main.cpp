// The program `prism`: its command line, and how errors become exit statuses.
#include "commands.hpp"
#include "options.hpp"

#include "prism/backend/cpu/isa.hpp"
#include "prism/core/error.hpp"
#include "prism/io/name_map.hpp"
#include "prism/version.hpp"

#include <CLI/CLI.hpp>

#include <concepts>
#include <exception>
#include <functional>
#include <iostream>
#include <new>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace program;

std::string version() {
#if defined(__clang__)
    const std::string compiler = "Clang " __clang_version__;
#else
    const std::string compiler = "GCC " __VERSION__;
#endif
    return "prism " + std::string(prism::version) + "\ncompiler: " + compiler +
           "\ninstruction set: " + std::string(to_string(prism::best_isa())) + "\nbackends: cpu"
#ifdef PRISM_WITH_CUDA
           ", cuda (toolkit " PRISM_WITH_CUDA ")"
#endif
        ;
}

/// Runs a command where --backend says. Commands that compute nothing, and pack, which only converts, run on the processor.
template <class Args>
void start(const Common& common, const Args& args) {
    if (common.backend == "cuda") {
        if (!common.isa.empty()) throw UsageError{"--isa " + common.isa + ": instruction sets are of --backend cpu"};
        if constexpr (std::same_as<Args, Train>) throw UsageError{"--backend cuda: training runs on the cpu"};
#ifdef PRISM_WITH_CUDA
        if constexpr (requires { on_cuda::run(common, args); }) return on_cuda::run(common, args);
#else
        throw prism::Error{"--backend cuda: this build has no CUDA"};
#endif
    }
    run(common, args);
}

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (const prism::Isa isa : prism::all_isas) names.emplace_back(to_string(isa));
    return names;
}

/// One command with the options that all have. `example` is what its help ends with.
template <class Args>
CLI::App* add(CLI::App& app, Common& common, Args& args, std::function<void()>& work, const char* name, const char* what,
              const std::string& example) {
    CLI::App* c = app.add_subcommand(name, what);
    c->add_option("--threads", common.threads, "How many threads of the cpu compute; default: physical cores")->check(CLI::Range(1, 1024));
    c->add_option("--backend", common.backend, "What computes: the processor, or an NVIDIA GPU")->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
    c->add_option("--weights", common.weights, "Format that weights are held in")
        ->check(CLI::IsMember({"as-stored", "f32", "bf16", "f16", "q8", "q4", "q4m"}))
        ->capture_default_str();
    c->add_option("--isa", common.isa, "Instruction set of the cpu; default: the fastest there is")
        ->check(CLI::IsMember(isa_names()));
    c->add_option("--compute", common.compute, "How products take their rows: exact, or fast (rounded to 16 bits or int8)")
        ->check(CLI::IsMember({"exact", "fast"}))->capture_default_str();
    c->add_flag("--quiet", common.quiet, "Nothing on standard error but errors");
    c->add_flag("--json", common.json, "JSON, and nothing else, on standard output");
    c->footer("Example:\n  " + example);
    c->callback([&] { work = [&] { start(common, args); }; });
    return c;
}

void add_model(CLI::App* c, Common& common) {
    c->add_option("--model", common.model, "Folder of a model, or one packed file; default: the small one of the shapes world (act: a policy with random weights)")
        ->check([](const std::string& path) { return path.empty() ? std::string("is empty") : std::string(); }, "");
    c->add_option("--vision-dir", common.vision_dir, "Vision towers of a run folder, when not in its vision/; or the mmproj file beside a decoder in GGUF");
    c->add_option("--llm-dir", common.llm_dir, "Language model's files of a run folder, when not in its llm/");
}

void add_sampling(CLI::App* c, std::size_t& max_new_tokens, prism::SamplingOptions& s) {
    c->add_option("--max-new-tokens", max_new_tokens, "Longest answer, in tokens")->check(CLI::Range(std::size_t{1}, std::size_t{1} << 30))->capture_default_str();
    c->add_option("--temperature", s.temperature, "0 takes the most likely token, always")->capture_default_str();
    c->add_option("--top-p", s.top_p, "Only the most likely tokens that together reach this probability")->capture_default_str();
    c->add_option("--top-k", s.top_k, "Only the K most likely tokens; 0: all")->capture_default_str();
    c->add_option("--seed", s.seed, "The same seed, the same answer")->capture_default_str();
}

/// All of a message in one line.
std::string one_line(std::string_view text) {
    std::string line;
    for (char c : text) {
        const bool space = c == '\n' || c == ' ';
        if (!space) line += c;
        else if (!line.empty() && line.back() != ' ') line += ' ';
    }
    return line;
}

std::vector<std::string> command_names(const CLI::App& app) {
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
    return names;
}

/// Why a word of the command line is none that is expected there, and what may have been meant.
std::string unexpected(const CLI::App& app, const CLI::App* command) {
    const std::vector<std::string> before = app.remaining(false);
    std::string                    word = before.empty() ? app.remaining(true).at(0) : before[0];
    const bool                     option = word.size() > 1 && word[0] == '-';
    if (word.starts_with("--")) word = word.substr(0, word.find('='));
    if (option && command && !before.empty()) return word + " stands before the command: options follow it, prism " + command->get_name() + ' ' + word + " ...";
    if (!command) {
        if (option) return word + " stands where a command is expected: " + joined(command_names(app));
        const auto near = prism::nearest_name(word, command_names(app));
        return "'" + word + "' is no command; " + (near ? "perhaps '" + *near + "'" : "there are " + joined(command_names(app)));
    }
    if (!option) return command->get_name() + ": '" + word + "' is not expected; " + (command->get_option_no_throw("--image") ? "a picture is given as --image FILE" : "values are given as --OPTION VALUE");
    std::vector<std::string> options;
    for (const CLI::Option* o : command->get_options())
        for (const std::string& name : o->get_lnames()) options.push_back("--" + name);
    const auto near = prism::nearest_name(word, options);
    return command->get_name() + " has no option " + word + (near ? "; perhaps " + *near : "");
}

/// An error of the work, which names the option where it is about one.
std::string told(const CLI::App& command, const prism::ConfigError& e) {
    const std::string what = e.what(), option = option_of(e.key);
    if (!what.starts_with("'" + e.key + "' is ")) return what;  // it stands in a file
    if (const CLI::Option* given = command.get_option_no_throw(option)) return given->count() > 0 || e.value.empty() ? said_of(option, e) : what;
    return option == "--prompt" && command.get_option_no_throw("--instruction") ? said_of("--instruction", e) : what;
}

int fail(int status, std::string_view what) {
    std::cerr << "prism: " << one_line(what) << '\n';
    return status;
}

}  // namespace

int main(int argc, char** argv) {
    std::ios::sync_with_stdio(false);
    Common                common;
    std::function<void()> work;

    CLI::App app{"Runs Prismatic-style vision-language models."};
    app.name("prism")->require_subcommand(0, 1)->set_version_flag("--version", version, "Print version, compiler, instruction set and backends");
    app.footer("`prism COMMAND --help` shows what a command can be asked.\nExample:\n"
               "  prism ask --image examples/shapes/pictures/scene-01.png --prompt \"What color is the star?\"\n"
               "  prism ask --model llava-1.5-7b-hf --image cat.jpg --prompt \"What is in it?\"");

    Ask   ask;
    auto* c = add(app, common, ask, work, "ask", "Answer a question about a picture", "prism ask --model prism-dinosiglip+7b --image cat.jpg --prompt \"What is in it?\"");
    add_model(c, common);
    c->add_option("--image", ask.images, "Picture, PNG or JPEG; - is standard input; given several times: a batch")->take_all();
    // One text each: CLI11 would take what stands between brackets, as in "[INST] ... [/INST]", for a list.
    c->add_option("--prompt", ask.prompts, "Question; given several times: a batch; without one: \"" + std::string(default_prompt) + '"')->allow_extra_args(false)->take_all();
    c->add_flag("--raw-prompt", ask.raw, "The prompt is all that the model reads; special tokens in it are tokens");
    add_sampling(c, ask.max_new_tokens, ask.sampling);

    Chat chat;
    c = add(app, common, chat, work, "chat", "Talk about a picture, a line a turn; /image FILE, /reset, /quit or the end of input", "prism chat --model prism-dinosiglip+7b --image cat.jpg");
    add_model(c, common);
    c->add_option("--image", chat.image, "Picture, PNG or JPEG");
    add_sampling(c, chat.max_new_tokens, chat.sampling);

    Score score;
    c = add(app, common, score, work, "score", "Probability of each choice as the answer, among the choices", "prism score --image examples/shapes/pictures/scene-01.png --prompt \"What color is the star?\" --choices \"red, cyan\"");
    add_model(c, common);
    c->add_option("--image", score.image, "Picture, PNG or JPEG; - is standard input");
    c->add_option("--prompt", score.prompt, "Question")->required();
    c->add_option("--choices", score.choices, "Answers to compare, separated by commas; spaces around them count with --raw-prompt alone")->required();
    c->add_flag("--raw-prompt", score.raw, "The prompt is all that the model reads; special tokens in it are tokens");

    Act act;
    c = add(app, common, act, work, "act", "OpenVLA: the robot action for a picture and an instruction",
            "prism act --model openvla-7b --image camera.png --instruction \"pick up the red square\" --unnorm-key bridge_orig");
    add_model(c, common);
    c->add_option("--image", act.image, "Picture, PNG or JPEG; - is standard input")->required();
    c->add_option("--instruction", act.instruction, "What the robot shall do")->required();
    c->add_option("--unnorm-key", act.unnorm_key, "Dataset whose statistics un-normalise the action; may be left out where there is one");
    c->add_flag("--raw-prompt", act.raw, "The instruction is all that the model reads");

    Features features;
    c = add(app, common, features, work, "features", "Patch features of a vision tower, or of a model's towers side by side",
            "prism features --model vit_large_patch14_reg4_dinov2 --image cat.jpg --out features.safetensors --pca features.png");
    add_model(c, common);
    auto* image = c->add_option("--image", features.image, "Picture, PNG or JPEG; - is standard input");
    auto* pixels = c->add_option("--pixels", features.pixels, "safetensors file with pixel_values [n, 3, S, S], or pixel_values.<tower> for each")->excludes(image);
    c->add_option("--out", features.out, "File for the tensor patch_features [n, n_patches, d], safetensors; - is standard output");
    c->add_option("--image-size", features.image_size, "Run a tower at another size than its file's, in pixels")->check(CLI::Range(1, 16384));
    c->add_option("--pca", features.pca, "PNG file for the first three principal components, painted over the picture")->excludes(pixels);

    Logits logits;
    c = add(app, common, logits, work, "logits", "Scores of every token at every position of a prompt", "prism logits --image examples/shapes/pictures/scene-01.png --prompt \"What color is the star?\" --out logits.safetensors");
    add_model(c, common);
    c->add_option("--image", logits.image, "Picture, PNG or JPEG; - is standard input");
    auto* prompt = c->add_option("--prompt", logits.prompt, "Question");
    c->add_option("--ids", logits.ids, "Token ids instead of a prompt, separated by commas")->delimiter(',')->check(CLI::NonNegativeNumber)->excludes(prompt);
    c->add_flag("--raw-prompt", logits.raw, "The prompt is all that the model reads; special tokens in it are tokens");
    c->add_option("--out", logits.out, "File for the tensor logits [positions, vocab], safetensors; - is standard output")->required();

    Preprocess preprocess;
    c = add(app, common, preprocess, work, "preprocess", "The pixel values that a vision tower reads",
            "prism preprocess --image cat.jpg --statistics half --size 384 --resize letterbox --out pixels.safetensors");
    c->add_option("--image", preprocess.image, "Picture, PNG or JPEG; - is standard input")->required();
    c->add_option("--statistics", preprocess.statistics, "Mean and deviation: imagenet, clip or half")->capture_default_str();
    c->add_option("--size", preprocess.size, "Side of the square, in pixels")->check(CLI::Range(1, 16384))->capture_default_str();
    c->add_option("--resize", preprocess.resize, "resize-naive, letterbox, resize-crop or pad")->capture_default_str();
    c->add_option("--out", preprocess.out, "File for the tensor pixel_values [3, N, N], safetensors; - is standard output")->required();

    Tokenize tokenize;
    c = add(app, common, tokenize, work, "tokenize", "Token ids of texts", "echo '[\"What is in it?\"]' | prism tokenize --model Llama-2-7b-hf --in -");
    add_model(c, common);
    c->add_option("--in", tokenize.in, "JSON file, an array of strings; - is standard input")->required();
    c->add_flag("--no-special", tokenize.no_special, "Leave start tokens out");
    c->add_flag("--plain", tokenize.plain, "Text that spells a special token is ordinary text");

    Detokenize detokenize;
    c = add(app, common, detokenize, work, "detokenize", "Texts of token ids", "echo '[[1, 15043]]' | prism detokenize --model Llama-2-7b-hf --in -");
    add_model(c, common);
    c->add_option("--in", detokenize.in, "JSON file, an array of arrays of ids; - is standard input")->required();
    c->add_flag("--skip-special", detokenize.skip_special, "Leave special tokens out of the text");

    Inspect inspect;
    c = add(app, common, inspect, work, "inspect", "What a model folder or file holds; reads headers only", "prism inspect prism-dinosiglip+7b");
    c->add_option("path", inspect.path, "Model folder, packed file, or file of weights or of a tokenizer")->required();

    Pack pack;
    c = add(app, common, pack, work, "pack", "Write one file that holds weights, settings and tokenizer, and opens at once",
            "prism pack --model openvla-7b --weights q4 --out openvla-7b.prism");
    add_model(c, common);
    c->add_option("--out", pack.out, "The file; every --model takes it; - is standard output")->required();

    Train train;
    c = add(app, common, train, work, "train", "A training run, or the rest of one that was stopped or killed", "prism train config.json");
    c->add_option("config", train.config, "Configuration, JSON with the keys of Prismatic's config.json, and prism.lora_rank for adapters; include/prism/train/run/README.md lists them")->required();

    Bench bench;
    c = add(app, common, bench, work, "bench", "Time parts of models on random weights, beside the limits of this machine",
            "prism bench --case decode/llama2-7b --weights q4\n  prism bench --case action/openvla-7b --weights bf16 --backend cuda");
    c->add_option("--case", bench.cases, "vision/<backbone>, prefill/<language model>, decode/<language model>, action/<policy> or matmul/<m>x<k>x<n>, as --list names them; "
                                         "default: one of each but an action")->take_all();
    c->add_flag("--list", bench.list, "Only say what cases there are, a line each");
    c->add_option("--runs", bench.runs, "Timed runs of each case, after one that is not timed")->check(CLI::Range(1, 1000))->capture_default_str();

    Shapes shapes;
    c = add(app, common, shapes, work, "shapes", "Pictures of the shapes world with questions, and folders of them to train on",
            "prism shapes --seed 7 --out scene.png --describe --questions\n  prism shapes --out-folder shapes --count 1000 --kind conversations");
    c->add_option("--seed", shapes.seed, "The world")->capture_default_str();
    c->add_option("--scene", shapes.scene, "The scene, or the first row of a folder")->check(CLI::Range(std::uint64_t{0}, (std::uint64_t{1} << 32) - 1))->capture_default_str();
    c->add_option("--split", shapes.split, "train, validation, test, compositional, clutter or fresh; default: fresh, of a folder train");
    auto* out = c->add_option("--out", shapes.out, "PNG file for the picture of a scene; - is standard output");
    c->add_flag("--describe", shapes.describe, "Say what is in it");
    c->add_flag("--questions", shapes.questions, "Ask and answer, a line each; $'...' is how bash takes several lines");
    auto* folder = c->add_option("--out-folder", shapes.out_folder, "Folder for many, in LLaVA's format")->excludes(out);
    c->add_option("--kind", shapes.kind, "conversations, captions, corpus, tokenizer, or benchmark: and one of vqa, gqa, viz, text, ref, ref+, refg, clutter, "
                                         "vsr, tally, pope, ai2d, compositional")->needs(folder)->capture_default_str();
    c->add_option("--count", shapes.count, "Rows of the folder, default: the whole split or benchmark; with --out, scenes on one sheet")->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 32));
    c->add_flag("--report", shapes.report, "Hashes of all splits, and what an answer is right without a look at the picture")->excludes(folder)->excludes(out);

    const auto command = [&]() -> const CLI::App* { return app.get_subcommands().empty() ? nullptr : app.get_subcommands()[0]; };
    const auto misused = [&](const std::string& why) { return fail(2, why + " (see prism " + (command() ? command()->get_name() + " " : "") + "--help)"); };
    try {
        app.parse(argc, argv);
        if (!work) return misused("a command is needed: " + joined(command_names(app)));
    } catch (const CLI::Success& e) {
        return app.exit(e);  // help and version
    } catch (const CLI::ExtrasError&) {
        return misused(unexpected(app, command()));
    } catch (const CLI::ParseError& e) {
        return misused(e.what());
    }
    try {
        work();
        if (!std::cout.flush()) throw prism::Error{"standard output: cannot be written"};
        return 0;
    } catch (const UsageError& e) {
        return fail(2, e.what());
    } catch (const prism::ConfigError& e) {
        return fail(1, told(*command(), e));
    } catch (const std::bad_alloc&) {
        return fail(1, "out of memory");
    } catch (const std::exception& e) {
        return fail(1, e.what());
    }
}
