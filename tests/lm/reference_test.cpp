// Language models against transformers: every folder lm/<family> of the reference cases.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/generate/session.hpp"
#include "prism/model/pretrained.hpp"
#include "support/cases.hpp"
#include "support/tensors.hpp"

using namespace prism;
using namespace prism::test;

namespace {

/// A language model has no eyes: a session over it reads text alone.
struct TextOnly {
    LanguageModel<Cpu> llm;
};

std::vector<std::int32_t> row(const Checkpoint& file, const std::string& name, std::size_t i) {
    const TensorInfo* t = file.find(name);
    REQUIRE(t);
    const auto                all = to_integers(*t);
    const std::size_t         n = t->shape.back();
    std::vector<std::int32_t> ids;
    for (std::size_t k = 0; k < n; ++k) ids.push_back(static_cast<std::int32_t>(all[i * n + k]));
    return ids;
}

std::vector<float> all_logits(Session<Cpu, TextOnly>& session, const std::vector<std::int32_t>& ids) {
    std::vector<float> out;
    session.all_logits(ids, [&](std::size_t, std::span<const float> logits) { out.insert(out.end(), logits.begin(), logits.end()); });
    return out;
}

}  // namespace

TEST_CASE("lm: logits and greedy ids are transformers', whatever the number of threads and the chunk") {
    const auto cases = reference_cases("lm");
    REQUIRE_FALSE(cases.empty());
    for (const auto& folder : cases) {
        CAPTURE(folder.string());
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        if (!expected.find("logits")) continue;
        const auto        want = floats(expected, "logits");
        const auto        mask = to_integers(*expected.find("attention_mask"));
        const std::size_t n_rows = expected.find("logits")->shape[0], n = expected.find("logits")->shape[1], vocab = expected.find("logits")->shape[2];
        std::vector<float> first;
        for (std::size_t threads : {1, 2, 5}) {
            Cpu                   be{{.threads = threads}};
            TextOnly              model{std::move(language_model_from_pretrained(be, folder).llm)};
            Session<Cpu, TextOnly> session{be, model, {.max_tokens = 128}};
            for (std::size_t r = 0; r < n_rows; ++r) {
                auto ids = row(expected, "input_ids", r);
                std::size_t used = 0;
                while (used < n && mask[r * n + used]) ++used;
                ids.resize(used);  // padding on the right never reaches what is before it
                const auto found = all_logits(session, ids);
                CHECK(relative_error(found, std::span(want).subspan(r * n * vocab, used * vocab)) < 2e-4);
                if (r == 0) {
                    if (threads == 1) first = found;
                    CHECK(found == first);
                }
            }
            const auto greedy = session.generate(row(expected, "input_ids", 0), {.max_new_tokens = 24});
            CHECK(greedy.ids == row(expected, "greedy_ids", 0));
        }
        Cpu                    be{{.threads = 2}};
        TextOnly               model{std::move(language_model_from_pretrained(be, folder).llm)};
        Session<Cpu, TextOnly> chunked{be, model, {.max_tokens = 128, .prefill_chunk = 7}};
        CHECK(relative_error(all_logits(chunked, row(expected, "input_ids", 0)), std::span(want).first(n * vocab)) < 2e-4);
    }
}

TEST_CASE("lm: bf16 weights, sharded safetensors and one .bin, give the logits of those weights in f32 arithmetic") {
    for (const auto& folder : reference_cases("lm")) {
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        const auto*      logits = expected.find("logits_of_bf16_weights_in_f32_arithmetic");
        if (!logits) continue;
        CAPTURE(folder.string());
        Cpu  be{{.threads = 2}};
        auto config = language_model_config(ConfigReader::open(folder / "config.json"));
        for (const auto& path : {folder, folder / "pytorch_model.bin"}) {
            TextOnly model{LanguageModel<Cpu>{config}};
            load_language_model(be, model.llm, Checkpoint::open(path));
            visit(model.llm, [](const std::string& name, const auto& p) {
                if constexpr (requires { p.rows(); })
                    if (!p.shape().empty()) CHECK_MESSAGE(p.dtype() == Dtype::bf16, name << " is not kept as stored");
            });
            Session<Cpu, TextOnly> session{be, model, {.max_tokens = 64}};
            CHECK(relative_error(all_logits(session, row(expected, "input_ids", 0)), to_floats(*logits)) < 2e-4);
        }
    }
}
