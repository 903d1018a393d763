// The program as a user meets it, on every reference case: what it answers, and what it says when it cannot.
#include "program/support.hpp"
#include "support/cases.hpp"
#include "support/tensors.hpp"

#include "prism/image/read.hpp"
#include "prism/model/pretrained.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <vector>

using namespace prism;
using namespace prism::test;

namespace {

using Arguments = std::vector<std::string>;

std::string joined(const Json& ids) {
    std::string text;
    for (const Json& id : ids) text += (text.empty() ? "" : ",") + id.dump();
    return text;
}

const std::filesystem::path& committed() {
    static const auto root = std::filesystem::path(PRISM_TEST_DATA) / "reference";
    return root;
}
/// Its weights are random: texts of any length, which tell whether computing went as it should.
std::string random_model() { return (committed() / "vlm/prism-dinosiglip+7b").string(); }
std::string small_image() { return (committed() / "vlm/prism-dinosiglip+7b/image.png").string(); }

/// Folders vlm/<model> of one layout, in every root.
std::vector<std::filesystem::path> folders_of(Layout layout) {
    std::vector<std::filesystem::path> found;
    for (const auto& folder : reference_cases("vlm"))
        if (layout_of(folder) == layout) found.push_back(folder);
    REQUIRE_FALSE(found.empty());
    return found;
}

/// The work failed, or the question was wrong: nothing on standard output, one line on the other that names `facts`.
void check_refused(int status, const Arguments& arguments, std::initializer_list<const char*> facts, std::string_view input = {}) {
    CAPTURE(arguments);
    const Ran ran = run(arguments, input);
    CHECK(ran.status == status);
    CHECK(ran.out.empty());
    std::size_t last = ran.err.rfind("\nprism: ");  // a line of its own: files may be called x.prism
    last = last == std::string::npos ? 0 : last + 1;
    REQUIRE_MESSAGE(ran.err.compare(last, 7, "prism: ") == 0, ran.err);
    const std::string line = ran.err.substr(last);
    CHECK(std::count(line.begin(), line.end(), '\n') == 1);
    for (const char* fact : facts) CHECK_MESSAGE(line.find(fact) != std::string::npos, line << " does not say " << fact);
}

}  // namespace

TEST_CASE("program/ask: ids and text are the reference's, one by one, raw and as a batch") {
    for (const auto& folder : folders_of(Layout::prismatic_run)) {
        CAPTURE(folder.string());
        const Json      expected = read_json(folder / "expected.json");
        const Arguments ask{"ask", "--json", "--quiet", "--model", folder, "--image", folder / "image.png", "--max-new-tokens", "16"};
        Arguments       batch = ask;
        for (const Json& row : expected.at("cases")) {
            const auto check = [&](const Json& answer) {
                CHECK(answer.at("prompt") == row.at("prompt"));
                CHECK(answer.at("input_ids") == row.at("input_ids"));
                CHECK(answer.at("output_ids") == row.at("greedy_ids"));
                CHECK(answer.at("text") == row.at("text"));
                for (const char* field : {"load_s", "image_s", "vision_s", "prefill_s"}) CHECK(answer.at("timing").at(field).get<double>() > 0);
                for (const char* field : {"decode_s", "decode_tokens_per_s"})  // an answer of one token needs no decoding
                    CHECK((answer.at("timing").at(field).get<double>() > 0 || row.at("greedy_ids").size() <= 1));
            };
            Arguments one = ask, raw = ask;
            one.insert(one.end(), {"--prompt", row.at("question")});
            raw.insert(raw.end(), {"--raw-prompt", "--prompt", row.at("prompt")});
            batch.insert(batch.end(), {"--prompt", row.at("question")});
            check(run(one).json());
            check(run(raw).json());
        }
        const Json answers = run(batch).json();
        REQUIRE(answers.is_array());
        REQUIRE(answers.size() == expected.at("cases").size());
        for (std::size_t i = 0; i < answers.size(); ++i) {
            CHECK(answers[i].at("output_ids") == expected.at("cases")[i].at("greedy_ids"));
            CHECK(answers[i].at("timing").at("vision_s") == answers[0].at("timing").at("vision_s"));  // encoded once
        }
    }
}

TEST_CASE("program/ask: pictures and prompts pair up or are shared, and text comes without --json, too") {
    const std::string image = small_image(), other = committed() / "images/rgb-67x48.png";
    const auto        ask = [](Arguments more) {
        more.insert(more.begin(), {"ask", "--json", "--quiet", "--model", random_model(), "--max-new-tokens", "5"});
        return run(more).json();
    };
    const Json one = ask({"--image", image, "--prompt", "a"}), two = ask({"--image", other, "--prompt", "b"});
    const Json pair = ask({"--image", image, "--image", other, "--prompt", "a", "--prompt", "b"});
    CHECK(pair[0].at("output_ids") == one.at("output_ids"));
    CHECK(pair[1].at("output_ids") == two.at("output_ids"));
    const Json shared = ask({"--image", image, "--image", other, "--prompt", "b"});
    CHECK(shared[1].at("output_ids") == two.at("output_ids"));
    CHECK(ask({"--prompt", "a"}).at("timing").at("vision_s") == 0);
    CHECK(ask({"--image", image}).at("prompt").get<std::string>().find("Describe the image.") != std::string::npos);
    for (const char* prompt : {"[INST] Look, what is it? [/INST]", "[]", "[a]", ""}) CHECK(ask({"--raw-prompt", "--prompt", prompt}).at("prompt") == prompt);  // no lists

    const Ran plain = run({"ask", "--quiet", "--model", random_model(), "--max-new-tokens", "5", "--image", image, "--prompt", "a"});
    CHECK(plain.status == 0);
    CHECK(plain.err.empty());
    CHECK(plain.out.find(one.at("text").get<std::string>()) != std::string::npos);
    CHECK_FALSE(one.at("complete").get<bool>());
    CHECK(run({"ask", "--model", random_model(), "--max-new-tokens", "5", "--prompt", "a"}).err.find("the answer is cut after 5 tokens (--max-new-tokens)") != std::string::npos);
    const Ran whole = run({"ask", "--json", "--prompt", "Is there a circle?"});
    CHECK(whole.json().at("complete").get<bool>());
    CHECK(whole.err.find("cut") == std::string::npos);
    const Ran piped = run({"ask", "--json", "--quiet", "--model", random_model(), "--max-new-tokens", "5", "--image", "-", "--prompt", "a"}, read_file(image));
    CHECK(piped.json().at("output_ids") == one.at("output_ids"));
}

TEST_CASE("program/ask: samples with a seed, converts weights, and notes what it runs") {
    const Arguments warm{"ask", "--json", "--model", random_model(), "--prompt", "a", "--temperature", "2", "--top-k", "50", "--top-p", "0.95", "--max-new-tokens", "12", "--seed"};
    const auto      seeded = [&](const char* seed) {
        Arguments arguments = warm;
        arguments.push_back(seed);
        return run(arguments).json().at("output_ids");
    };
    CHECK(seeded("7") == seeded("7"));
    CHECK(seeded("7") != seeded("8"));

    const Arguments ask{"ask", "--json", "--model", random_model(), "--prompt", "a", "--max-new-tokens", "3", "--weights"};
    for (const char* weights : {"as-stored", "f32", "bf16", "f16"}) {
        Arguments arguments = ask;
        arguments.push_back(weights);
        const Ran ran = run(arguments);
        CHECK(ran.json().at("output_ids").size() == 3);
        CHECK(ran.err.find("prismatic-run") != std::string::npos);
    }
    CHECK(run({"ask", "--json", "--quiet", "--model", random_model(), "--prompt", "a", "--isa", "portable", "--threads", "3", "--max-new-tokens", "3"}).status == 0);
    // Memory is taken for what fits into the context, not for what is asked for.
    const Json endless = run({"ask", "--json", "--quiet", "--model", committed() / "vlm/prism-dinosiglip+7b", "--prompt", "a", "--max-new-tokens", "1073741824"}).json();
    CHECK(endless.at("output_ids").size() + endless.at("input_ids").size() <= 512 + 1);
}

TEST_CASE("program/score: probabilities are the reference's") {
    for (const auto& folder : folders_of(Layout::prismatic_run)) {
        CAPTURE(folder.string());
        const Json document = read_json(folder / "expected.json");
        for (const Json& row : document.at("cases")) {
            std::string choices;
            for (const auto& [choice, p] : row.at("string_probabilities").items()) choices += (choices.empty() ? "" : ",") + choice;
            const Json found = run({"score", "--json", "--quiet", "--model", folder, "--image", folder / "image.png", "--prompt", row.at("question"), "--choices", choices})
                                   .json().at("probabilities");
            CHECK(found.size() == row.at("string_probabilities").size());
            for (const auto& [choice, p] : row.at("string_probabilities").items()) CHECK(std::abs(found.at(choice).get<double>() - p.get<double>()) < 1e-3);
        }
    }
}

TEST_CASE("program/score: spaces around a choice are no part of it") {
    const auto p = [](const char* choices) { return run({"score", "--json", "--quiet", "--model", random_model(), "--prompt", "a", "--choices", choices}).json().at("probabilities"); };
    CHECK(p("Yes,No it is") == p(" Yes ,  No it is"));
    CHECK(p("Yes, No it is").contains("No it is"));
}

TEST_CASE("program/act: tokens and actions are OpenVLA's for every dataset") {
    for (const auto& folder : folders_of(Layout::openvla)) {
        CAPTURE(folder.string());
        const Json expected = read_json(folder / "expected.json");
        for (const auto& [dataset, values] : expected.at("actions").items()) {
            const Arguments act{"act", "--json", "--quiet", "--model", folder, "--image", folder / "image.png", "--unnorm-key", dataset, "--instruction"};
            for (const bool raw : {false, true}) {
                Arguments arguments = act;
                arguments.push_back(raw ? expected.at("prompt").get<std::string>() : "Pick up the RED square");
                if (raw) arguments.push_back("--raw-prompt");
                const Json found = run(arguments).json();
                CHECK(found.at("prompt") == expected.at("prompt"));
                CHECK(found.at("input_ids") == expected.at("input_ids"));
                CHECK(found.at("action_token_ids") == expected.at("action_token_ids"));
                REQUIRE(found.at("action").size() == values.size());
                for (std::size_t d = 0; d < values.size(); ++d) CHECK(std::abs(found.at("action")[d].get<double>() - values[d].get<double>()) < 1e-6);
            }
        }
    }
}

TEST_CASE("program/features: towers and models give the reference's patch features, from pixels and from pictures") {
    const Scratch     scratch;
    const std::string out = scratch.path("out.safetensors");
    const auto        check = [&](Arguments arguments, const std::filesystem::path& folder, double tolerance) {
        CAPTURE(folder.string());
        const Checkpoint  expected = Checkpoint::open(folder / "expected.safetensors");
        const TensorInfo* want = expected.find("patch_features");
        REQUIRE(want);
        arguments.insert(arguments.begin(), {"features", "--json", "--quiet", "--model", folder, "--out", out});
        const Json said = run(arguments).json();
        const auto file = Checkpoint::open(out);
        CHECK(said.at("shape").get<std::vector<std::size_t>>() == want->shape);
        CHECK(file.find("patch_features")->shape == want->shape);
        CHECK(relative_error(floats(file, "patch_features"), to_floats(*want)) < tolerance);
    };
    for (const auto& folder : reference_cases("vision")) {
        Arguments arguments{"--pixels", folder / "expected.safetensors"};
        if (std::filesystem::exists(folder / "run.json"))
            arguments.insert(arguments.end(), {"--image-size", std::to_string(ConfigReader::open(folder / "run.json").count("img_size"))});
        check(arguments, folder, 2e-4);
    }
    for (const auto& folder : folders_of(Layout::prismatic_run)) {
        check({"--pixels", folder / "expected.safetensors"}, folder, 2e-4);
        check({"--image", folder / "image.png"}, folder, 2e-4);
    }
    for (const auto& folder : folders_of(Layout::openvla)) {  // six channels, and no features to compare with but the picture's
        run({"features", "--quiet", "--model", folder, "--image", folder / "image.png", "--out", out});
        const auto of_picture = floats(Checkpoint::open(out), "patch_features");
        run({"features", "--quiet", "--model", folder, "--pixels", folder / "expected.safetensors", "--out", out});
        CHECK(relative_error(floats(Checkpoint::open(out), "patch_features"), of_picture) < 1e-5);
    }
}

TEST_CASE("program/features: the principal components are painted over a picture of the same proportions") {
    const Scratch     scratch;
    const std::string tower = committed() / "vision/dino", picture = committed() / "images/rgb-67x48.png", png = scratch.path("pca.png");
    const Ran         ran = run({"features", "--json", "--model", tower, "--image", picture, "--image-size", "140", "--pca", png});
    CHECK(ran.json().at("shape") == Json{1, 100, 96});
    const Image painted = read_image(png), seen = read_image(picture);
    CHECK(painted.height() * seen.width() == painted.width() * seen.height());
    CHECK(painted.width() >= 448);
    const auto [least, most] = std::minmax_element(painted.pixels.begin(), painted.pixels.end());
    CHECK(*most - *least > 100);  // not one grey
}

TEST_CASE("program/logits: every position's are the reference's, of pictures with prompts and of text") {
    const Scratch     scratch;
    const std::string out = scratch.path("out.safetensors");
    const auto        check = [&](Arguments arguments, std::span<const float> want, std::size_t vocab, double tolerance) {
        arguments.insert(arguments.begin(), {"logits", "--json", "--quiet", "--out", out});
        CHECK(run(arguments).json().at("shape") == Json{want.size() / vocab, vocab});
        CHECK(relative_error(floats(Checkpoint::open(out), "logits"), want) < tolerance);
    };
    for (const auto& folder : folders_of(Layout::prismatic_run)) {
        CAPTURE(folder.string());
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        std::size_t      i = 0;
        const Json document = read_json(folder / "expected.json");
        for (const Json& row : document.at("cases")) {
            const std::string name = std::to_string(i++) + ".logits";
            const auto        want = floats(expected, name);
            const std::size_t vocab = expected.find(name)->shape.back();
            const Arguments   model{"--model", folder, "--image", folder / "image.png"};
            Arguments         ids = model, prompt = model, raw = model;
            ids.insert(ids.end(), {"--ids", joined(row.at("input_ids"))});
            prompt.insert(prompt.end(), {"--prompt", row.at("question")});
            raw.insert(raw.end(), {"--raw-prompt", "--prompt", row.at("prompt")});
            for (const auto& arguments : {ids, prompt, raw}) check(arguments, want, vocab, 5e-4);
        }
    }
    for (const auto& folder : reference_cases("lm")) {  // without a tokenizer
        CAPTURE(folder.string());
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        const TensorInfo* bf16 = expected.find("logits_of_bf16_weights_in_f32_arithmetic");
        const TensorInfo* want = bf16 ? bf16 : expected.find("logits");
        const auto        ids = to_integers(*expected.find("input_ids"));
        const std::size_t n = expected.find("input_ids")->shape.back(), vocab = want->shape.back();
        const auto        values = to_floats(*want);
        check({"--model", folder, "--ids", joined(Json(std::vector(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n))))},
              std::span(values).first(n * vocab), vocab, 2e-4);
    }
}

TEST_CASE("program/preprocess: tensors are those of Python's transforms") {
    const Scratch     scratch;
    const std::string out = scratch.path("out.safetensors");
    for (const auto& root : reference_roots()) {
        const Checkpoint expected = Checkpoint::open(root / "images/expected.safetensors");
        for (const Json& row : read_json(root / "images/cases.json")) {
            CAPTURE(row);
            const std::string tower = row.at("statistics"), image = row.at("image");
            const Json        said = run({"preprocess", "--json", "--image", root / "images" / image, "--statistics", tower == "dino" ? "imagenet" : tower == "clip" ? "clip" : "half",
                                          "--size", row.at("size").dump(), "--resize", row.at("strategy"), "--out", out}).json();
            const auto        want = floats(expected, row.at("tensor"));
            const auto        found = floats(Checkpoint::open(out), "pixel_values");
            CHECK(said.at("shape") == Json{3, row.at("size"), row.at("size")});
            const bool jpeg = image.ends_with(".jpg");  // decoders differ by up to two levels of 255, over deviations of at least 0.22
            REQUIRE(found.size() == want.size());
            for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(std::abs(found[i] - want[i]) <= (jpeg ? 2.01f / 255 / 0.22f : 1e-6f * std::max(1.0f, std::abs(want[i]))));
        }
    }
    const Ran piped = run({"preprocess", "--image", "-", "--size", "8", "--out", "-"}, read_file(small_image()));
    CHECK(piped.status == 0);
    const std::string file = scratch.write("piped.safetensors", piped.out);
    CHECK(Checkpoint::open(file).find("pixel_values")->shape == std::vector<std::size_t>{3, 8, 8});
}

TEST_CASE("program/tokenize, detokenize: ids and texts are the reference's") {
    const Scratch scratch;
    for (const auto& root : reference_roots())
        for (const char* name : {"llama", "phi"}) {
            const auto folder = root / "tokenizers" / name;
            CAPTURE(folder.string());
            Json texts = Json::array(), ids = Json::array(), bare = Json::array(), decoded = Json::array(), skipped = Json::array();
            const Json document = read_json(folder / "expected.json");
            for (const Json& row : document.at("cases")) {
                texts.push_back(row.at("text")), ids.push_back(row.at("ids")), bare.push_back(row.at("ids_without_special"));
                decoded.push_back(row.at("decoded")), skipped.push_back(row.at("decoded_skip_special"));
            }
            const std::string text_file = scratch.write("texts.json", texts.dump()), id_file = scratch.write("ids.json", ids.dump());
            CHECK(run({"tokenize", "--json", "--model", folder, "--in", text_file}).json() == ids);
            CHECK(run({"tokenize", "--json", "--model", folder, "--no-special", "--in", "-"}, texts.dump()).json() == bare);
            CHECK(run({"detokenize", "--json", "--model", folder, "--in", id_file}).json() == decoded);
            CHECK(run({"detokenize", "--json", "--model", folder, "--skip-special", "--in", "-"}, ids.dump()).json() == skipped);
        }
    const std::string special = R"(["</s>"])";
    CHECK(run({"tokenize", "--json", "--in", "-"}, special).json() == Json{{1, 2}});
    CHECK(run({"tokenize", "--json", "--plain", "--in", "-"}, special).json()[0].size() > 2);
}

TEST_CASE("program/inspect: every layout and kind of file, at once") {
    const auto inspect = [](const std::filesystem::path& path) { return run({"inspect", "--json", path}).json(); };
    const auto sum = [](const Json& found) {
        std::size_t n = 0;
        for (const Json& t : found.at("tensors")) {
            std::size_t elements = 1;
            for (const Json& extent : t.at("shape")) elements *= extent.get<std::size_t>();
            n += elements;
            CHECK(t.at("bytes").get<std::size_t>() >= elements);
            CHECK_FALSE(t.at("name").get<std::string>().empty());
        }
        CHECK(found.at("parameters") == n);
        return n;
    };
    const Json vlm = inspect(committed() / "vlm/prism-dinosiglip+7b");
    CHECK(vlm.at("layout") == "prismatic-run");
    CHECK(vlm.at("architecture") == "dinosiglip-vit-so-224px + no-align+fused-gelu-mlp + llama2-7b-pure");
    CHECK(sum(vlm) > 800'000);
    const Json vla = inspect(committed() / "vlm/openvla-hf");
    CHECK(vla.at("layout") == "openvla");
    CHECK(sum(vla) == Checkpoint::open(committed() / "vlm/openvla-hf").bytes() / 4);
    const Json tower = inspect(committed() / "vision/dino");
    CHECK(tower.at("layout") == "timm-tower");
    CHECK(tower.at("architecture").get<std::string>().starts_with("vit_large_patch14_reg4_dinov2"));
    sum(tower);
    const Json bf16 = inspect(committed() / "lm/llama-bf16-sharded");
    CHECK(bf16.at("layout") == "language-model");
    CHECK(bf16.at("architecture") == "LlamaForCausalLM");
    CHECK(bf16.at("tensors")[0].at("dtype") == "BF16");
    sum(bf16);
    CHECK(inspect(committed() / "lm/llama-bf16-sharded/pytorch_model.bin").at("parameters") == bf16.at("parameters"));
    CHECK(inspect(committed() / "lm/llama-bf16-sharded/model.safetensors.index.json").at("parameters") == bf16.at("parameters"));
    CHECK(inspect(committed() / "vision/dino/model.safetensors").at("layout") == "safetensors");
    CHECK(inspect(committed() / "formats/legacy.pt").at("layout") == "torch");
    CHECK(inspect(committed() / "tokenizers/llama").at("layout") == "tokenizer");
    CHECK(inspect(committed() / "tokenizers/llama/tokenizer.model").at("layout") == "tokenizer");
    CHECK(run({"inspect", committed() / "vision/dino"}).out.find("blocks.0.attn.qkv.weight") != std::string::npos);
}

TEST_CASE("program/inspect: a list of architectures may be empty") {
    const Scratch scratch;
    Json          config = read_json(committed() / "lm/qwen2/config.json");
    config["architectures"] = Json::array();
    const auto weights = std::filesystem::canonical(committed() / "lm/qwen2/model.safetensors");
    std::filesystem::create_symlink(weights, scratch.path("model.safetensors"));
    const auto folder = std::filesystem::path(scratch.write("config.json", config.dump())).parent_path();
    CHECK(run({"inspect", "--json", folder}).json().at("architecture") == "qwen2");
}

TEST_CASE("program/bench: cases are listed, and help says how") {
    CHECK(run({"bench", "--help"}).out.find("--list") != std::string::npos);
    const Json  all = run({"bench", "--list", "--json"}).json();
    std::string lines;
    for (const char* kind : {"vision", "prefill", "decode", "action", "matmul"})
        for (const Json& name : all.at(kind)) lines += std::string(kind) + '/' + name.get<std::string>() + '\n';
    CHECK(run({"bench", "--list"}).out == lines);
    for (const char* name : {"vision/dinosiglip-224\n", "vision/siglip-vit-so400m\n", "prefill/llama2-7b\n", "decode/tinyllama-1.1b\n", "decode/vicuna-v15-7b\n", "action/openvla-7b\n"})
        CHECK(lines.find(name) != std::string::npos);
}

TEST_CASE("program/pack: every command answers from a packed file as it does from the folder, and inspect knows it") {
    const Scratch     scratch;
    const std::string vlm = committed() / "vlm/prism-dinosiglip+7b", vla = committed() / "vlm/openvla-hf", tower = committed() / "vision/dino", llm = committed() / "lm/qwen2";
    const auto        pack = [&](const std::string& model, const std::string& weights) {
        const std::string file = scratch.path("model.prism");
        const Json        said = run({"pack", "--json", "--quiet", "--model", model, "--weights", weights, "--out", file}).json();
        CHECK(said.at("bytes") == std::filesystem::file_size(file));
        const Json found = run({"inspect", "--json", file}).json();
        CHECK(found.at("tensors").size() == said.at("tensors"));
        CHECK(found.at("layout") == "packed-" + run({"inspect", "--json", model}).json().at("layout").get<std::string>());
        std::uint64_t n = 0, bytes = 0;
        for (const Json& t : found.at("tensors")) {
            std::uint64_t elements = 1;
            for (const Json& extent : t.at("shape")) elements *= extent.get<std::uint64_t>();
            n += elements, bytes += t.at("bytes").get<std::uint64_t>();
        }
        CHECK(found.at("parameters") == n);
        CHECK(bytes < said.at("bytes"));
        return file;
    };
    const auto same = [](Arguments arguments, const std::string& folder, const std::string& weights, const std::string& file, const char* field) {
        arguments.insert(arguments.end(), {"--json", "--quiet", "--model"});
        Arguments packed = arguments;
        arguments.insert(arguments.end(), {folder, "--weights", weights}), packed.push_back(file);
        const Json want = run(arguments).json(), found = run(packed).json();
        CHECK(found.at(field) == want.at(field));
    };
    for (const char* weights : {"as-stored", "f32", "bf16", "q8", "q4"}) {
        CAPTURE(weights);
        const std::string of_vlm = pack(vlm, weights);
        same({"ask", "--image", small_image(), "--prompt", "What is in it?", "--max-new-tokens", "8"}, vlm, weights, of_vlm, "output_ids");
        same({"score", "--image", small_image(), "--prompt", "What is in it?", "--choices", "a,b,c"}, vlm, weights, of_vlm, "probabilities");
        const std::string a = scratch.path("a.safetensors"), b = scratch.path("b.safetensors");
        for (Arguments work : {Arguments{"features", "--image", small_image()}, Arguments{"logits", "--image", small_image(), "--prompt", "What is in it?"}}) {
            work.push_back("--quiet");
            Arguments packed = work;
            work.insert(work.end(), {"--model", vlm, "--weights", weights, "--out", a}), packed.insert(packed.end(), {"--model", of_vlm, "--out", b});
            CHECK(run(work).status == 0);
            CHECK(run(packed).status == 0);
            CHECK(read_file(a) == read_file(b));
        }
        const std::string of_vla = pack(vla, weights);
        same({"act", "--image", small_image(), "--instruction", "pick up the mug", "--unnorm-key", "bridge_orig"}, vla, weights, of_vla, "action");
    }
    const std::string of_vlm = pack(vlm, "q4"), special = R"(["a</s> <PAD> b"])";
    CHECK(run({"inspect", "--json", of_vlm}).json().at("architecture") == "dinosiglip-vit-so-224px + fused-gelu-mlp + llama2-7b-pure");
    CHECK(run({"tokenize", "--json", "--in", "-", "--model", of_vlm}, special).json() == run({"tokenize", "--json", "--in", "-", "--model", vlm}, special).json());
    const Ran asked = run({"ask", "--model", of_vlm, "--prompt", "a", "--max-new-tokens", "2"});
    CHECK(asked.err.find(of_vlm + ": packed prismatic-run") != std::string::npos);
    const Ran piped = run({"pack", "--quiet", "--model", of_vlm, "--out", "-"});
    CHECK(piped.status == 0);
    CHECK(piped.out == read_file(of_vlm));  // packed again, it is the same
    CHECK(run({"pack", "--quiet", "--out", scratch.path("default.prism")}).out.find("default.prism: ") != std::string::npos);

    const std::string of_tower = pack(tower, "bf16"), of_llm = (std::filesystem::rename(of_tower, scratch.path("tower.prism")), pack(llm, "q8"));
    CHECK(run({"inspect", "--json", of_llm}).json().at("architecture").get<std::string>().starts_with("llama of "));
    CHECK(run({"features", "--json", "--quiet", "--model", scratch.path("tower.prism"), "--image", small_image(), "--image-size", "140", "--out", scratch.path("f")}).json().at("shape") == Json{1, 100, 96});
    CHECK(run({"logits", "--json", "--quiet", "--model", of_llm, "--ids", "1,2", "--out", scratch.path("l")}).status == 0);
}

TEST_CASE("program/pack: files that cannot be used say why in one line") {
    const Scratch     scratch;
    const std::string file = scratch.path("model.prism"), model = committed() / "vlm/siglip-phi";
    REQUIRE(run({"pack", "--quiet", "--model", model, "--weights", "q4", "--out", file}).status == 0);
    const std::string bytes = read_file(file);
    check_refused(1, {"ask", "--prompt", "a", "--model", file, "--weights", "f32"}, {"model.prism", "'weights' is f32", "as-stored", "q8, q4"});
    check_refused(1, {"ask", "--prompt", "a", "--model", scratch.write("cut.prism", bytes.substr(0, bytes.size() - 1))}, {"cut.prism", "bytes"});
    check_refused(1, {"ask", "--prompt", "a", "--model", scratch.write("head.prism", bytes.substr(0, 500))}, {"head.prism", "header"});
    std::string other = bytes;
    other[8] = 9;
    check_refused(1, {"ask", "--prompt", "a", "--model", scratch.write("newer.prism", other)}, {"newer.prism", "version 9", "pack it again"});
    check_refused(1, {"inspect", scratch.path("newer.prism")}, {"newer.prism", "version 9", "pack it again"});
    other = bytes, other[100] ^= 1;
    check_refused(1, {"tokenize", "--in", "-", "--model", scratch.write("damaged.prism", other)}, {"damaged.prism", "checksum"}, "[]");
    check_refused(1, {"features", "--image", small_image(), "--image-size", "56", "--model", file, "--out", scratch.path("x")}, {"--image-size is 56"});
    check_refused(2, {"--model", "x", "ask", "--prompt", "a"}, {"--model stands before the command", "prism ask --model"});
    check_refused(2, {"ask", "--promt=What is in it?"}, {"ask has no option --promt;", "--prompt"});
    check_refused(1, {"pack", "--model", "/nowhere", "--out", scratch.path("x")}, {"/nowhere"});
    check_refused(1, {"pack", "--model", model, "--out", "/nowhere/x"}, {"/nowhere/x"});
    CHECK_FALSE(std::filesystem::exists(scratch.path("x")));
}

TEST_CASE("program/inspect: a file of gigabytes takes no longer than a small one") {
    const Scratch     scratch;
    const std::string path = scratch.path("big.safetensors");
    constexpr std::uint64_t n = std::uint64_t{3} << 30;
    std::string       header = R"({"w":{"dtype":"F32","shape":[)" + std::to_string(n / 4) + R"(],"data_offsets":[0,)" + std::to_string(n) + "]}}";
    const std::uint64_t length = header.size();
    scratch.write("big.safetensors", std::string(reinterpret_cast<const char*>(&length), 8) + header);
    std::error_code failed;
    std::filesystem::resize_file(path, 8 + length + n, failed);  // a hole: nothing is on disk
    if (failed) return;
    const auto start = std::chrono::steady_clock::now();
    CHECK(run({"inspect", "--json", path}).json().at("parameters") == n / 4);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(1));
}

TEST_CASE("program/chat: a line is a turn, in a pipe too") {
    const std::string first = run({"ask", "--quiet", "--model", random_model(), "--image", small_image(), "--prompt", "hello", "--max-new-tokens", "4"}).out;
    const Ran         ran = run({"chat", "--quiet", "--model", random_model(), "--image", small_image(), "--max-new-tokens", "4"}, "hello\n\nhello\n/reset\nhello\n/image " + small_image() + "\nhello");
    CHECK(ran.status == 0);
    CHECK(ran.err.empty());
    const std::size_t n = first.size();
    REQUIRE(ran.out.size() > 3 * n);
    CHECK(ran.out.substr(0, n) == first);
    CHECK(ran.out.substr(ran.out.size() - 2 * n) == first + first);
    check_refused(1, {"chat", "--quiet"}, {"/nowhere.png"}, "/image /nowhere.png\n");
}

TEST_CASE("program: questions that cannot be asked are usage errors") {
    check_refused(2, {}, {"command", "ask, chat, ", "prism --help"});
    for (const char* later : {"eval", "fly"}) check_refused(2, {later}, {later, "ask, chat, ", "prism --help"});
    check_refused(2, {"tokenise", "--in", "-"}, {"'tokenise' is no command", "perhaps 'tokenize'", "prism --help"});
    check_refused(2, {"--image", "x"}, {"--image", "a command is expected", "prism --help"});
    check_refused(2, {"ask", "cat.jpg"}, {"ask: 'cat.jpg'", "--image FILE", "prism ask --help"});
    check_refused(2, {"inspect", "a", "b"}, {"inspect: 'b'", "prism inspect --help"});
    check_refused(2, {"ask", "--promt", "a"}, {"ask has no option --promt; perhaps --prompt", "prism ask --help"});
    check_refused(2, {"shapes"}, {"--out"});
    check_refused(2, {"ask"}, {"--image", "--prompt"});
    check_refused(2, {"ask", "--prompt", "a", "--no-such-option"}, {"--no-such-option"});
    check_refused(2, {"ask", "--prompt", "a", "--threads", "0"}, {"--threads"});
    check_refused(2, {"ask", "--prompt", "a", "--threads", "many"}, {"--threads"});
    check_refused(2, {"ask", "--prompt", "a", "--weights", "q3"}, {"as-stored", "bf16", "q4"});
    check_refused(2, {"ask", "--prompt", "a", "--backend", "abacus"}, {"cpu", "cuda"});
    check_refused(2, {"ask", "--prompt", "a", "--isa", "mmx"}, {"--isa", "mmx", "portable"});
    for (const Arguments& idle : {Arguments{"inspect", random_model()}, {"shapes", "--describe"}, {"tokenize", "--in", "-"}, {"preprocess", "--image", small_image(), "--out", "x"}}) {
        Arguments wrong = idle;
        wrong.insert(wrong.end(), {"--isa", "nonsense"});
        check_refused(2, wrong, {"--isa", "nonsense", "portable"}, "[]");  // also where nothing is computed
    }
    for (const char* top_p : {"0", "-1", "1.5", "nan"}) check_refused(2, {"ask", "--prompt", "a", "--top-p", top_p}, {"--top-p is"});
    for (const char* temperature : {"-1", "nan", "inf"}) check_refused(2, {"ask", "--prompt", "a", std::string("--temperature=") + temperature}, {"--temperature is"});
    check_refused(2, {"chat", "--top-k=-2"}, {"--top-k is -2"});
    check_refused(2, {"preprocess", "--image", small_image(), "--statistics", "mine", "--out", "x"}, {"--statistics is mine", "imagenet, clip, half"});
    check_refused(2, {"preprocess", "--image", small_image(), "--resize", "squash", "--out", "x"}, {"--resize is squash", "letterbox"});
    check_refused(2, {"bench", "--case", "vision/clip-vit-1"}, {"--case is vision/clip-vit-1", "prism bench --list", "perhaps vision/clip-vit-"});
    check_refused(2, {"bench", "--case", "decode/something-else"}, {"--case", "prism bench --list"});
    check_refused(2, {"bench", "--case", "fly"}, {"--case is fly", "vision/<backbone>"});
    check_refused(2, {"bench", "--case", "matmul/2x3"}, {"--case", "<m>x<k>x<n>"});
    check_refused(2, {"ask", "--prompt", "a", "--backend", "cuda", "--isa", "avx2"}, {"--isa avx2", "cpu"});
    check_refused(2, {"train", "config.json", "--backend", "cuda"}, {"cuda", "cpu"});
    check_refused(2, {"ask", "--prompt", "a", "--max-new-tokens", "0"}, {"--max-new-tokens"});
    check_refused(2, {"ask", "--image", "a", "--image", "b", "--prompt", "a", "--prompt", "b", "--prompt", "c"}, {"2 of --image", "3 of --prompt"});
    check_refused(2, {"features", "--out", "x"}, {"--image", "--pixels"});
    check_refused(2, {"features", "--image", "x"}, {"--out", "--pca"});
    check_refused(2, {"features", "--image", "x", "--pca", "x.jpg"}, {"--pca x.jpg", ".png"});
    for (const char* nothing : {"", " ", " \n\t"}) {
        check_refused(2, {"ask", "--prompt", nothing}, {"--prompt", "no text"});
        check_refused(2, {"ask", "--prompt", "a", "--prompt", nothing}, {"--prompt", "no text"});
        check_refused(2, {"score", "--prompt", nothing, "--choices", "a,b"}, {"--prompt", "no text"});
        check_refused(2, {"logits", "--prompt", nothing, "--out", "x"}, {"--prompt", "no text"});
        check_refused(2, {"act", "--image", small_image(), "--instruction", nothing}, {"--instruction", "no text"});
    }
    for (const char* choices : {"", ",", " ", "A,", "A, ,B", "A,A", "A, A"}) check_refused(2, {"score", "--prompt", "a", "--choices", choices}, {"--choices", "separated by commas"});
    check_refused(2, {"logits", "--out", "x"}, {"--prompt", "--ids"});
    check_refused(2, {"preprocess", "--image", small_image(), "--json", "--out", "-"}, {"standard output"});
    check_refused(2, {"pack"}, {"--out"});
    check_refused(2, {"pack", "--json", "--out", "-"}, {"standard output"});
    check_refused(2, {"pack", "--weights", "q3", "--out", "x"}, {"as-stored", "bf16", "q4"});
}

TEST_CASE("program: work that fails says which file or value, and what is wrong, in one line") {
    const Scratch     scratch;
    const std::string image = small_image(), bytes = read_file(image), model = committed() / "vlm/prism-dinosiglip+7b", words = scratch.path("words");
    std::filesystem::copy(committed() / "lm/llama-bf16-sharded", words);
    for (const auto& file : std::filesystem::directory_iterator(committed() / "tokenizers/llama")) std::filesystem::copy(file, scratch.path("words/" + file.path().filename().string()));
    if (const Ran ran = run({"ask", "--prompt", "a", "--max-new-tokens", "2", "--backend", "cuda"}); ran.status != 0) {  // it may work
        const bool built = run({"--version"}).out.find("cuda (toolkit ") != std::string::npos;
        check_refused(1, {"ask", "--prompt", "a", "--backend", "cuda"}, {built ? "no CUDA device can be used" : "--backend cuda: this build has no CUDA"});
    }
    check_refused(1, {"ask", "--prompt", "a", "--image", "/nowhere.png"}, {"/nowhere.png"});
    check_refused(1, {"ask", "--prompt", "a", "--image", model}, {"folder"});
    check_refused(1, {"ask", "--prompt", "a", "--image", scratch.write("cut.png", bytes.substr(0, bytes.size() / 2))}, {"cut.png", "cut off"});
    check_refused(1, {"ask", "--prompt", "a", "--image", scratch.write("text.png", "hello")}, {"text.png", "PNG", "JPEG"});
    check_refused(1, {"ask", "--prompt", "a", "--image", "-"}, {"standard input"});
    check_refused(1, {"ask", "--prompt", "a", "--model", "/nowhere"}, {"/nowhere"});
    check_refused(1, {"ask", "--prompt", "a", "--model", image}, {"image.png"});
    check_refused(1, {"ask", "--prompt", "a", "--model", committed() / "images"}, {"images", "config.json"});
    check_refused(1, {"ask", "--prompt", "a", "--model", committed() / "vision/dino"}, {"tower"});
    check_refused(1, {"ask", "--prompt", "a", "--model", committed() / "lm/llama-bf16-sharded"}, {"tokenizer"});
    check_refused(1, {"ask", "--prompt", "a", "--model", model, "--llm-dir", "/nowhere"}, {"/nowhere", "folder"});
    std::string many;
    for (int i = 0; i < 600; ++i) many += "word ";
    for (const char* command : {"ask", "score", "logits"}) {
        Arguments arguments{command, "--model", model, "--image", image, "--prompt", many};
        if (command == std::string("score")) arguments.insert(arguments.end(), {"--choices", "A,B"});
        if (command == std::string("logits")) arguments.insert(arguments.end(), {"--out", scratch.path("x")});
        check_refused(1, arguments, {"--prompt is ", "tokens with a picture of 9", "512"});
    }
    CHECK(run({"ask", "--max-new-tokens", "1", "--prompt", many}).err.find("is cut to its first 512 of") != std::string::npos);  // as the reference does, but not in silence
    check_refused(1, {"chat", "--image", image}, {"/help", "/reset"}, "/help\n");
    CHECK(run({"chat", "--quiet", "--image", image}, "/quit\nhello").out.empty());
    check_refused(1, {"act", "--image", image, "--instruction", "go", "--unnorm-key", "mars"}, {"mars", "bridge_orig, tabletop"});
    check_refused(1, {"act", "--image", image, "--instruction", "go", "--model", model}, {"no action statistics, so it is no policy"});
    check_refused(1, {"features", "--image", image, "--model", committed() / "vision/dino", "--image-size", "3", "--out", scratch.path("x")}, {"--image-size is 3"});
    check_refused(1, {"features", "--image", image, "--model", model, "--image-size", "56", "--out", scratch.path("x")}, {"--image-size is 56"});
    check_refused(1, {"ask", "--image", image, "--prompt", "a", "--model", words}, {"--image is given", "no eyes"});
    check_refused(1, {"features", "--pixels", image, "--out", scratch.path("x")}, {"image.png"});
    check_refused(1, {"features", "--pixels", committed() / "formats/expected.safetensors", "--out", scratch.path("x")}, {"pixel_values"});
    check_refused(1, {"features", "--image", image, "--out", "/nowhere/x"}, {"/nowhere/x"});
    check_refused(1, {"features", "--image", image, "--out", model}, {"is a folder"});
    check_refused(1, {"features", "--image", image, "--out", "/dev/null"}, {"/dev/null", "no file"});
    check_refused(1, {"logits", "--ids", "1,999999", "--out", scratch.path("x")}, {"999999"});
    check_refused(1, {"logits", "--image", image, "--model", committed() / "lm/llama-bf16-sharded", "--ids", "1", "--out", scratch.path("x")}, {"no pictures"});
    check_refused(1, {"tokenize", "--in", "-"}, {"JSON"}, "[");
    check_refused(1, {"tokenize", "--in", "-"}, {"--in is number", "array of strings"}, "[1]");
    check_refused(1, {"detokenize", "--in", "-"}, {"4294967296"}, "[[4294967296]]");
    check_refused(1, {"detokenize", "--in", "-"}, {"ids"}, R"([["a"]])");
    check_refused(1, {"inspect", "/nowhere"}, {"/nowhere"});
    check_refused(1, {"inspect", image}, {"image.png"});
    check_refused(1, {"inspect", committed() / "formats/whole_module_must_be_refused.pt"}, {"whole_module"});
    CHECK_FALSE(std::filesystem::exists(scratch.path("x")));  // no half-written result
}

TEST_CASE("program: help has an example for every command, and the version says what was built") {
    for (const char* command : {"ask", "chat", "score", "act", "features", "logits", "preprocess", "tokenize", "detokenize", "inspect", "pack"}) {
        CAPTURE(command);
        const Ran ran = run({command, "--help"});
        CHECK(ran.status == 0);
        CHECK(ran.err.empty());
        const std::size_t example = ran.out.find("Example:\n");
        // The small model would be shown a photograph.
        CHECK((ran.out.find("cat.jpg") == std::string::npos || ran.out.find("--model ", example) != std::string::npos || command == std::string("preprocess")));
        REQUIRE(example != std::string::npos);
        CHECK(ran.out.substr(example).find(std::string("prism ") + command) != std::string::npos);
        CHECK(std::count(ran.out.begin() + static_cast<std::ptrdiff_t>(example), ran.out.end(), '\n') <= 3);
    }
    CHECK(run({"--help"}).out.find("Example:") != std::string::npos);
    const Ran version = run({"--version"});
    CHECK(version.status == 0);
    for (const char* fact : {"prism ", "compiler", "instruction set", "backends: cpu"}) CHECK(version.out.find(fact) != std::string::npos);
}
