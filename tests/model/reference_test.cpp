// Whole models against the reference: every folder vlm/<model> of the reference cases.
#include "prism/prism.hpp"
#include "support/cases.hpp"
#include "support/tensors.hpp"

using namespace prism;
using namespace prism::test;

namespace {

std::vector<std::int32_t> ids_of(const Json& list) { return list.get<std::vector<std::int32_t>>(); }

/// pixel_values as the reference's transforms made them.
Pixels<Cpu> reference_pixels(Cpu& be, const Pretrained<Cpu>& vlm, const Checkpoint& expected) {
    Pixels<Cpu> pixels;
    std::size_t channel = 0;
    for (const auto& t : vlm.model.config.towers) {
        const std::size_t  side = t.vit.image_size;
        std::vector<float> values;
        if (expected.find("pixel_values")) {  // OpenVLA stacks the towers' channels
            const auto all = floats(expected, "pixel_values");
            values.assign(all.begin() + static_cast<std::ptrdiff_t>(channel * side * side), all.begin() + static_cast<std::ptrdiff_t>((channel + 3) * side * side));
            channel += 3;
        } else {
            const bool plain = expected.find("pixel_values." + t.key) != nullptr;
            values = floats(expected, "pixel_values." + t.key + (plain ? "" : "-gelu"));
        }
        pixels.add(be, values, {1, 3, side, side});
    }
    return pixels;
}

std::vector<float> all_logits(Session<Cpu, Prismatic<Cpu>>& session, const std::vector<std::int32_t>& ids) {
    std::vector<float> out;
    session.all_logits(ids, [&](std::size_t, std::span<const float> logits) { out.insert(out.end(), logits.begin(), logits.end()); });
    return out;
}

}  // namespace

TEST_CASE("model: a run folder answers as Python does: pixels, features, logits, ids, text, probabilities") {
    std::size_t n = 0;
    for (const auto& folder : reference_cases("vlm")) {
        if (layout_of(folder) != Layout::prismatic_run) continue;
        ++n;
        CAPTURE(folder.string());
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        const Json       json = read_json(folder / "expected.json");
        Cpu              be{{.threads = 2}};
        const auto       vlm = from_pretrained(be, folder);
        const Image      image = read_image(folder / "image.png");

        const Pixels<Cpu> reference = reference_pixels(be, vlm, expected);
        for (std::size_t t = 0; t < vlm.model.towers.size(); ++t) {
            const auto&        transform = vlm.model.config.towers[t].transform;
            std::vector<float> made(3 * transform.size * transform.size);
            transform.apply(image, {made.data(), {3, transform.size, transform.size}});
            CHECK(relative_error(made, std::span(reference.views()[t].data(), made.size())) < 1e-6);
        }

        const std::size_t  n_patches = vlm.model.n_soft_tokens(), d_vision = vlm.model.config.d_vision(), d = vlm.model.config.d_model();
        std::vector<float> features(n_patches * d_vision), projected(n_patches * d);
        const auto         bytes = dry_run([&, twin = dry_twin(vlm.model)](Dry& dry, Workspace<Dry>& ws) {
                               std::vector<PixelView<Dry>> views;
                               for (const auto& v : reference.views()) views.push_back(dry_view(v));
                               twin.see(dry, ws, views, {nullptr, {n_patches, d}});
                           }).workspace_bytes;
        Workspace<Cpu>     ws{be, bytes};
        vlm.model.features(be, ws, reference.views(), {features.data(), {n_patches, d_vision}});
        vlm.model.see(be, ws, reference.views(), {projected.data(), {n_patches, d}});
        CHECK(relative_error(features, floats(expected, "patch_features")) < 2e-4);
        CHECK(relative_error(projected, floats(expected, "projected")) < 5e-4);

        Chat chat{be, vlm};
        std::size_t i = 0;
        for (const auto& row : json.at("cases")) {
            CAPTURE(row.at("question"));
            chat.show(image);
            const Answer answer = chat.ask(row.at("question").get<std::string>(), {.max_new_tokens = 16});
            CHECK(answer.prompt == row.at("prompt"));
            CHECK(answer.input_ids == ids_of(row.at("input_ids")));
            CHECK(answer.output_ids == ids_of(row.at("greedy_ids")));
            CHECK(answer.text == row.at("text").get<std::string>());
            CHECK(chat.ask_raw(row.at("prompt").get<std::string>(), {.max_new_tokens = 16}).output_ids == answer.output_ids);

            CHECK(relative_error(all_logits(chat.session(), answer.input_ids), floats(expected, std::to_string(i) + ".logits")) < 5e-4);

            std::vector<std::string> choices;
            for (const auto& [choice, p] : row.at("string_probabilities").items()) choices.push_back(choice);
            chat.restart();
            const auto found = chat.score(row.at("question").get<std::string>(), choices);
            for (std::size_t c = 0; c < choices.size(); ++c)
                CHECK(std::abs(found[c] - row.at("string_probabilities").at(choices[c]).get<double>()) < 1e-3);
            ++i;
        }
    }
    CHECK(n > 0);
}

TEST_CASE("model: OpenVLA's folder gives the reference's logits, tokens and actions") {
    std::size_t n = 0;
    for (const auto& folder : reference_cases("vlm")) {
        if (layout_of(folder) != Layout::openvla) continue;
        ++n;
        CAPTURE(folder.string());
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        const Json       json = read_json(folder / "expected.json");
        Cpu              be{{.threads = 2}};
        const auto       vla = from_pretrained(be, folder);
        CHECK(vla.action_vocabulary.size == json.at("vocab_size_for_actions").get<std::size_t>());

        Chat chat{be, vla};
        chat.show(reference_pixels(be, vla, expected));
        CHECK(relative_error(all_logits(chat.session(), ids_of(json.at("input_ids"))), floats(expected, "logits")) < 5e-4);

        const Image image = read_image(folder / "image.png");
        for (const auto& [dataset, values] : json.at("actions").items()) {
            Policy       policy{be, vla, dataset};
            const Action action = policy.act(image, "Pick up the RED square");
            CHECK(action.prompt == json.at("prompt"));
            CHECK(action.input_ids == ids_of(json.at("input_ids")));
            CHECK(action.token_ids == ids_of(json.at("action_token_ids")));
            REQUIRE(action.values.size() == values.size());
            for (std::size_t d = 0; d < action.values.size(); ++d) CHECK(std::abs(action.values[d] - values[d].get<double>()) < 1e-6);
            CHECK(policy.act_raw(image, json.at("prompt").get<std::string>()).token_ids == action.token_ids);

            Policy     narrow{be, vla, dataset, {.action_rows_only = true}};
            const auto first = static_cast<std::int32_t>(vla.action_vocabulary.size - vla.action_vocabulary.n_bins);
            for (std::int32_t id : narrow.act(image, "pick up the red square").token_ids) {
                CHECK(id >= first);
                CHECK(id < static_cast<std::int32_t>(vla.action_vocabulary.size));
            }
        }
        CHECK_THROWS_WITH_AS((Policy{be, vla, "no such dataset"}), doctest::Contains("bridge_orig, tabletop"), ConfigError);
    }
    CHECK(n > 0);
}
