// Whole models on a device give the reference's answers: towers, language models, Prismatic's run folders, OpenVLA.
#include "sessions.hpp"

#include "prism/backend/dry/twin.hpp"
#include "prism/generate/chat.hpp"
#include "prism/generate/policy.hpp"
#include "prism/image/read.hpp"
#include "prism/model/pixels.hpp"
#include "prism/model/pretrained.hpp"
#include "support/cases.hpp"
#include "support/tensors.hpp"

using namespace prism;
using namespace prism::test;

namespace {

/// Cases of the repository: those of the whole set are larger than an emulated device has time for.
std::vector<std::filesystem::path> cases(const char* room) {
    std::vector<std::filesystem::path> some;
    for (const auto& folder : reference_cases(room))
        if (!emulated || folder.string().starts_with(PRISM_TEST_DATA)) some.push_back(folder);
    REQUIRE_FALSE(some.empty());
    return some;
}

std::vector<std::int32_t> integers(const Checkpoint& file, const std::string& name, std::size_t row) {
    const TensorInfo* t = file.find(name);
    REQUIRE(t);
    const auto all = to_integers(*t);
    const auto n = static_cast<std::ptrdiff_t>(t->shape.back()), first = static_cast<std::ptrdiff_t>(row) * n;
    return {all.begin() + first, all.begin() + first + n};
}

/// ||found - expected|| / ||expected||
double relative_l2(std::span<const float> found, std::span<const float> expected) {
    double difference = 0, all = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double e = static_cast<double>(expected[i]), d = static_cast<double>(found[i]) - e;
        difference += d * d, all += e * e;
    }
    return std::sqrt(difference / all);
}

double cosine(std::span<const float> a, std::span<const float> b) {
    double ab = 0, aa = 0, bb = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        ab += static_cast<double>(a[i]) * static_cast<double>(b[i]), aa += static_cast<double>(a[i]) * static_cast<double>(a[i]),
            bb += static_cast<double>(b[i]) * static_cast<double>(b[i]);
    return ab / std::sqrt(aa * bb);
}

}  // namespace

TEST_CASE("cuda/models: patch features are timm's, and with rounded products almost") {
    for (const auto& folder : cases("vision")) {
        CAPTURE(folder.string());
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        std::size_t      image_size = 0;
        if (std::filesystem::exists(folder / "run.json")) image_size = ConfigReader::open(folder / "run.json").count("img_size");
        const auto        pixels = floats(expected, "pixel_values"), want = floats(expected, "patch_features");
        const std::size_t n = expected.find("pixel_values")->shape[0];
        for (auto [compute, weights] : {std::pair{Compute::exact, Dtype::f32}, {Compute::fast, Dtype::bf16}}) {
            Device               be{{.compute = compute}};
            PretrainedOptions    options;
            if (weights != Dtype::f32) options.load.kept = [](std::string_view, Dtype) { return Dtype::bf16; };
            const auto           tower = tower_from_pretrained(be, folder, image_size, options);
            const VitConfig&     c = tower.vit.config;
            const Buffer<device> uploaded = be.allocate(pixels.size() * sizeof(float)), features = be.allocate(want.size() * sizeof(float));
            be.upload(pixels, {uploaded.as<float>(), {pixels.size()}});
            const PixelView<Device> view{uploaded.as<const float>(), {n, 3, c.image_size, c.image_size}};
            const Mat<Device>       out{features.as<float>(), {n * c.n_patches(), c.d_model}};
            Workspace<Device>       ws{be, dry_run([&, twin = dry_twin(tower.vit)](Dry& dry, Workspace<Dry>& dry_ws) {
                                       twin.forward(dry, dry_ws, dry_view(view), {nullptr, {n * c.n_patches(), c.d_model}});
                                   }).workspace_bytes};
            tower.vit.forward(be, ws, view, out);
            const auto found = downloaded(be, out);
            if (weights == Dtype::f32) CHECK(relative_error(found, want) < 2e-4);
            else CHECK(cosine(found, want) > 0.9995);  // the weights are rounded, too
            tower.vit.forward(be, ws, view, out);
            CHECK(downloaded(be, out) == found);
        }
    }
}

TEST_CASE("cuda/models: logits and greedy ids are transformers'; recorded steps choose the same tokens as steps one by one") {
    for (const auto& folder : cases("lm")) {
        CAPTURE(folder.string());
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        if (!expected.find("logits")) continue;
        const auto  want = floats(expected, "logits");
        const auto  ids = integers(expected, "input_ids", 0), mask = integers(expected, "attention_mask", 0);
        const auto  used = static_cast<std::size_t>(std::count(mask.begin(), mask.end(), 1));
        const auto  row = expected.find("logits")->shape[2];
        Device      be;
        TextOnly    model{std::move(language_model_from_pretrained(be, folder).llm)};
        for (Dtype cache : {Dtype::f32, Dtype::bf16}) {
            Session<Device, TextOnly> session{be, model, {.max_tokens = 128, .cache = cache}};
            if (cache == Dtype::f32) {
                CHECK(relative_error(all_logits(session, {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(used)}), std::span(want).first(used * row)) < 2e-4);
                CHECK(session.generate(ids, {.max_new_tokens = 24}).ids == integers(expected, "greedy_ids", 0));
            }
            // One token a call never reaches a second step, so nothing is recorded; penalties keep to the host.
            for (const SamplingOptions& sampling : {SamplingOptions{}, SamplingOptions{.temperature = 1.2f, .top_k = 9, .top_p = 0.8f, .seed = 3}}) {
                Session<Device, TextOnly> fresh{be, model, {.max_tokens = 128, .cache = cache}};
                const auto                recorded = fresh.generate(ids, {.max_new_tokens = 12, .sampling = sampling}).ids;
                std::vector<std::int32_t> one_by_one, history = ids;
                Sampler                   sampler{sampling};
                for (std::size_t i = 0; i < recorded.size(); ++i) {
                    auto scores = fresh.next_logits(history);
                    one_by_one.push_back(sampler.next(scores, history));
                    history.push_back(one_by_one.back());
                }
                CHECK(recorded == one_by_one);
                fresh.forget();
                CHECK(fresh.generate(ids, {.max_new_tokens = 12, .sampling = sampling}).ids == recorded);
            }
        }
    }
}

TEST_CASE("cuda/models: bf16 weights give the logits of those weights in f32 arithmetic, and with rounded rows almost") {
    for (const auto& folder : cases("lm")) {
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        const auto*      logits = expected.find("logits_of_bf16_weights_in_f32_arithmetic");
        if (!logits) continue;
        CAPTURE(folder.string());
        for (Compute compute : {Compute::exact, Compute::fast}) {
            Device   be{{.compute = compute}};
            TextOnly model{LanguageModel<Device>{language_model_config(ConfigReader::open(folder / "config.json"))}};
            load_language_model(be, model.llm, Checkpoint::open(folder));
            Session<Device, TextOnly> session{be, model, {.max_tokens = 64}};
            const auto                found = all_logits(session, integers(expected, "input_ids", 0)), want = to_floats(*logits);
            if (compute == Compute::exact) CHECK(relative_error(found, want) < 2e-4);
            else CHECK(relative_l2(found, want) < 2e-2);
        }
    }
}

TEST_CASE("cuda/models: no bit depends on which of two towers is ahead, nor on the order of threads") {
    const auto  folder = std::filesystem::path(PRISM_TEST_DATA) / "reference/vlm/prism-dinosiglip+7b";
    const Image image = read_image(folder / "image.png");
    for (Compute compute : {Compute::exact, Compute::fast}) {
        std::vector<float> first;
        for (cuda::Order order : {cuda::Order::forward, cuda::Order::reversed, cuda::Order::shuffled}) {
            Device               be{{.compute = compute, .driver = Wishes{order}}};
            const auto           vlm = from_pretrained(be, folder);
            const Pixels<Device> pixels{be, vlm.model.transforms(), image};
            const std::size_t    n = vlm.model.n_soft_tokens(), d = vlm.model.llm.d_model();
            Workspace<Device>    ws{be, seeing_cost(vlm.model, pixels.views()).workspace_bytes};
            const Buffer<device> soft = be.allocate(n * d * sizeof(float));
            const Mat<Device>    out{soft.as<float>(), {n, d}};
            vlm.model.see(be, ws, pixels.views(), out);
            const auto found = downloaded(be, out);
            if (first.empty()) first = found;
            CHECK(found == first);
        }
    }
}

TEST_CASE("cuda/models: a run folder and OpenVLA's answer as Python does") {
    std::size_t n = 0;
    for (const auto& folder : cases("vlm")) {
        CAPTURE(folder.string());
        const Json   json = read_json(folder / "expected.json");
        const Image  image = read_image(folder / "image.png");
        Device       be;
        const auto   vlm = from_pretrained(be, folder);
        ++n;
        if (layout_of(folder) == Layout::openvla) {
            for (const auto& [dataset, values] : json.at("actions").items()) {
                Policy policy{be, vlm, dataset};
                for (int turn = 0; turn < 3; ++turn) {  // step by step, recorded, replayed
                    const Action action = policy.act(image, "Pick up the RED square");
                    CHECK(action.token_ids == json.at("action_token_ids").get<std::vector<std::int32_t>>());
                    REQUIRE(action.values.size() == values.size());
                    for (std::size_t d = 0; d < action.values.size(); ++d) CHECK(std::abs(action.values[d] - values[d].get<double>()) < 1e-6);
                }
            }
        }
        if (layout_of(folder) != Layout::prismatic_run) continue;
        Chat chat{be, vlm};
        for (const auto& row : json.at("cases")) {
            CAPTURE(row.at("question"));
            chat.show(image);
            const Answer answer = chat.ask(row.at("question").get<std::string>(), {.max_new_tokens = 16});
            CHECK(answer.output_ids == row.at("greedy_ids").get<std::vector<std::int32_t>>());
            CHECK(answer.text == row.at("text").get<std::string>());
        }
    }
    CHECK(n > 0);
}
