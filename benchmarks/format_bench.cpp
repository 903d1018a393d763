// What each weight format costs in exactness: the table of quant/README.md. No times here.
//
//     format_bench [exact|fast [REFERENCE_CASES]]     tests/data/reference by default; a few minutes
//
// Random weights are a hard case: their products cancel more than those of trained ones, and scores lie close together.
#include "prism/backend/dry/twin.hpp"
#include "prism/generate/policy.hpp"
#include "prism/model/random.hpp"
#include "prism/model/store_as.hpp"
#include "prism/prism.hpp"

#include <cstdio>
#include <filesystem>

using namespace prism;

namespace {

constexpr Dtype formats[]{Dtype::bf16, Dtype::f16, Dtype::q8, Dtype::q4m, Dtype::q4};

/// Root mean square of the difference over that of the reference.
double error(std::span<const float> found, std::span<const float> expected) {
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        const double d = static_cast<double>(found[i]) - static_cast<double>(expected[i]);
        difference += d * d, size += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
    }
    return std::sqrt(difference / size);
}

std::string row(const char* name) { return std::string("| ") + name + " |"; }

std::vector<float> features(Cpu& be, const Vit<Cpu>& vit) {
    const auto&        c = vit.config;
    std::vector<float> pixels(3 * c.image_size * c.image_size), out(c.n_patches() * c.d_model);
    for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = detail::random_normal(7, i);
    const PixelView<Cpu> view{pixels.data(), {1, 3, c.image_size, c.image_size}};
    const auto           cost = dry_run([&, twin = dry_twin(vit)](Dry& dry, Workspace<Dry>& ws) {
        twin.forward(dry, ws, dry_view(view), {nullptr, {c.n_patches(), c.d_model}});
    });
    Workspace<Cpu> ws{be, cost.workspace_bytes};
    vit.forward(be, ws, view, {out.data(), {c.n_patches(), c.d_model}});
    return out;
}

/// What `be` gives with a format, against what `plain` gives with f32.
void towers(Cpu& plain, Cpu& be, const char* name, const VitConfig& config) {
    std::vector<float> exact;
    std::string        line = row(name);
    for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::q8, Dtype::q4m, Dtype::q4}) {
        Vit<Cpu> vit{config};
        randomise(be, vit, {.seed = 1, .spread = 0.03f});
        if (dtype != Dtype::f32) store_as(be, vit, dtype);
        const auto found = features(dtype == Dtype::f32 ? plain : be, vit);
        if (dtype == Dtype::f32) exact = found;
        else line += " " + std::to_string(error(found, exact) * 100).substr(0, 6) + " % |";
    }
    std::puts(line.c_str());
}

struct TextOnly {
    Llama<Cpu> llm;
};

/// Scores and most likely tokens at every position of a text.
struct Scores {
    std::vector<float>       logits;
    std::vector<std::size_t> best;
};

Scores read(Cpu& be, const TextOnly& model) {
    std::vector<std::int32_t> ids;
    for (std::uint64_t i = 0; i < 64; ++i) ids.push_back(static_cast<std::int32_t>(detail::random_bits(3, i) % model.llm.vocab_size()));
    Session<Cpu, TextOnly> session{be, model, {.max_tokens = 64}};
    Scores                 scores;
    session.all_logits(ids, [&](std::size_t, std::span<const float> logits) {
        scores.logits.insert(scores.logits.end(), logits.begin(), logits.end());
        scores.best.push_back(static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    });
    return scores;
}

void decoder(Cpu& plain, Cpu& be) {
    LlamaConfig config = llama::llama_1b();
    config.n_layers = 8;
    Scores      exact;
    std::string errors = row("logits, 8 layers of the 1.1B shape"), agreement = row("same most likely token, of 64");
    for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::q8, Dtype::q4m, Dtype::q4}) {
        TextOnly model{Llama<Cpu>{config}};
        randomise(be, model.llm, {.seed = 2});
        if (dtype != Dtype::f32) store_model_as(be, model.llm, dtype);
        const Scores found = read(dtype == Dtype::f32 ? plain : be, model);
        if (dtype == Dtype::f32) {
            exact = found;
            continue;
        }
        std::size_t same = 0;
        for (std::size_t i = 0; i < found.best.size(); ++i) same += found.best[i] == exact.best[i];
        errors += " " + std::to_string(error(found.logits, exact.logits) * 100).substr(0, 6) + " % |";
        agreement += " " + std::to_string(same) + " |";
    }
    std::puts(errors.c_str()), std::puts(agreement.c_str());
}

void actions(Cpu& plain, Cpu& be, const std::filesystem::path& folder) {
    const Image         image = read_image(folder / "image.png");
    std::string         flipped = row("OpenVLA's reference model: bins flipped, of 7, scoring action rows");
    std::vector<std::int32_t> exact;
    const auto tokens = [&](Cpu& on, const Pretrained<Cpu>& vla) {
        Policy policy{on, vla, "bridge_orig", {.action_rows_only = true}};
        return policy.act(image, "pick up the red square").token_ids;
    };
    exact = tokens(plain, from_pretrained(plain, folder));
    for (Dtype dtype : formats) {
        auto vla = from_pretrained(be, folder);
        store_model_as(be, vla.model, dtype);
        const auto  found = tokens(be, vla);
        std::size_t n = 0;
        for (std::size_t i = 0; i < found.size(); ++i) n += found[i] != exact[i];
        flipped += " " + std::to_string(n) + " |";
    }
    std::puts(flipped.c_str());
}

}  // namespace

int main(int argc, char** argv) {
    const std::string_view way = argc > 1 ? argv[1] : "exact";
    if (way != "exact" && way != "fast") return std::fprintf(stderr, "format_bench: %s; allowed: exact, fast\n", argv[1]), 1;
    const std::filesystem::path cases = argc > 2 ? argv[2] : "tests/data/reference";
    Cpu                         plain, be{{.compute = way == "fast" ? Compute::fast : Compute::exact}};
    std::puts("| error against f32 weights | bf16 | f16 | q8 | q4m | q4 |\n|---|---|---|---|---|---|");
    towers(plain, be, "patch features, DINOv2-L 224", vit::dinov2_l14_reg4(224));
    towers(plain, be, "patch features, SO400M 224", vit::siglip_so400m14(224));
    decoder(plain, be);
    actions(plain, be, cases / "vlm" / "openvla-hf");
}
