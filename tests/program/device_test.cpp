// The program's commands on a device, which the processor plays here: the same answers as on the processor itself.
#include "program/support.hpp"

#include "prism/backend/cuda/emulated.hpp"
#include "prism/io/checkpoint.hpp"

#include "answers.hpp"
#include "features.hpp"
#include "logits.hpp"

#include <cmath>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

using namespace prism;
using namespace prism::test;

namespace {

/// What a command writes to standard output when it runs on the emulated device.
template <class Args>
std::string said(const program::Common& common, const Args& args) {
    const std::ostringstream text;
    std::streambuf* const    before = std::cout.rdbuf(text.rdbuf());
    try {
        program::run_on<EmulatedCuda>(common, args);
    } catch (...) {
        std::cout.rdbuf(before);
        throw;
    }
    std::cout.rdbuf(before);
    return text.str();
}
template <class Args>
Json told(const program::Common& common, const Args& args) {
    return parse_json(said(common, args), "standard output");
}

const std::string  models = std::string(PRISM_TEST_DATA) + "/reference/vlm/", vlm = models + "prism-dinosiglip+7b", vla = models + "openvla-hf", image = vlm + "/image.png";
program::Common    common_of(const std::string& model) { return {.model = model, .vision_dir = {}, .llm_dir = {}, .quiet = true, .json = true}; }

/// Tensors that the two backends wrote are the same but for the order of sums.
void check_alike(const std::string& here, const std::string& there, const char* name) {
    const auto        a = Checkpoint::open(here), b = Checkpoint::open(there);
    const TensorInfo *x = a.find(name), *y = b.find(name);
    REQUIRE((x && y));
    CHECK(x->shape == y->shape);
    const auto found = to_floats(*x), want = to_floats(*y);
    double     error = 0, size = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
        const double d = static_cast<double>(found[i]) - static_cast<double>(want[i]), w = static_cast<double>(want[i]);
        error += d * d, size += w * w;
    }
    CHECK(std::sqrt(error / size) < 2e-4);  // NaN fails
}

}  // namespace

TEST_CASE("program/device: ask, score and act answer as on the processor") {
    program::Ask ask{.images = {image}, .prompts = {"hello"}, .max_new_tokens = 8};
    const Json   want = run({"ask", "--json", "--quiet", "--model", vlm, "--image", image, "--prompt", "hello", "--max-new-tokens", "8"}).json();
    const Json   found = told(common_of(vlm), ask);  // a single question: steps are recorded
    for (const char* field : {"prompt", "input_ids", "output_ids", "text"}) CHECK(found.at(field) == want.at(field));
    for (const char* field : {"load_s", "image_s", "vision_s", "prefill_s", "decode_s"}) CHECK(found.at("timing").at(field).get<double>() > 0);
    auto plain = common_of(vlm);
    plain.json = false;
    CHECK(unicode::strip(said(plain, ask)) == want.at("text").get<std::string>());
    ask.prompts = {"hello", "Hello!"};
    CHECK(told(common_of(vlm), ask)[0].at("output_ids") == want.at("output_ids"));  // a batch: they are not
    ask.prompts = {std::string(3000, 'a')};
    CHECK_THROWS_WITH_AS(told(common_of(vlm), ask), doctest::Contains("with a picture of 9"), ConfigError);

    const Json p = told(common_of(vlm), program::Score{.image = image, .prompt = "hello", .choices = "Yes,No"}).at("probabilities");
    const Json q = run({"score", "--json", "--quiet", "--model", vlm, "--image", image, "--prompt", "hello", "--choices", "Yes,No"}).json().at("probabilities");
    CHECK(p.size() == 2);
    for (const auto& [choice, value] : q.items()) CHECK(std::abs(p.at(choice).get<double>() - value.get<double>()) < 1e-4);

    const program::Act act{.image = vla + "/image.png", .instruction = "Pick up the RED square", .unnorm_key = "bridge_orig"};
    CHECK(told(common_of(vla), act) == run({"act", "--json", "--quiet", "--model", vla, "--image", vla + "/image.png", "--instruction", act.instruction, "--unnorm-key", "bridge_orig"}).json());
}

TEST_CASE("program/device: features and logits are those of the processor, from pictures and from pixels") {
    const Scratch     scratch;
    const std::string here = scratch.path("here.safetensors"), there = scratch.path("there.safetensors");
    told(common_of(vlm), program::Features{.image = image, .out = here});
    REQUIRE(run({"features", "--quiet", "--model", vlm, "--image", image, "--out", there}).status == 0);
    check_alike(here, there, "patch_features");

    const std::string tower = std::string(PRISM_TEST_DATA) + "/reference/vision/dino", pixels = tower + "/expected.safetensors";
    told(common_of(tower), program::Features{.pixels = pixels, .out = here});
    REQUIRE(run({"features", "--quiet", "--model", tower, "--pixels", pixels, "--out", there}).status == 0);
    check_alike(here, there, "patch_features");

    told(common_of(vlm), program::Logits{.image = image, .out = here, .prompt = "hello"});
    REQUIRE(run({"logits", "--quiet", "--model", vlm, "--image", image, "--prompt", "hello", "--out", there}).status == 0);
    check_alike(here, there, "logits");
}
