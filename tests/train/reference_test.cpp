// Whole models in training against PyTorch: every folder training/ of the reference cases, all three stages.
#include "prism/backend/cpu/training.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/model/language_files.hpp"
#include "prism/model/load.hpp"
#include "prism/model/pixels.hpp"
#include "prism/model/tower_files.hpp"
#include "prism/train/trainer.hpp"
#include "support/cases.hpp"
#include "support/tensors.hpp"

using namespace prism;
using namespace prism::test;

namespace {

/// The model, the batch and the answers of one folder.
struct Case {
    Checkpoint                initial, batch;
    Json                      expected;
    PrismaticConfig           config;
    NameMap                   rename;
    std::vector<std::int32_t> ids, labels;
    std::size_t               length;
    std::vector<std::int64_t> pictures;

    explicit Case(const std::filesystem::path& folder)
        : initial(Checkpoint::open(folder / "initial.safetensors")), batch(Checkpoint::open(folder / "batch.safetensors")),
          expected(read_json(folder / "expected.json")) {
        const ConfigReader json = ConfigReader::open(folder / "model.json");
        config.projector = projector_from_arch(json.text("arch_specifier"));
        config.llm = language_model_config(json.object("text_config"));
        for (const char* key : {"dino", "siglip"}) {
            rename.prefix("vision_backbone." + std::to_string(config.towers.size()), "vision_backbone." + std::string(key) + "_featurizer");
            config.towers.push_back({key, timm_config(json.object("vision").object(key)), {}});
        }
        const auto integers = [&](const char* name) {
            const auto all = to_integers(*batch.find(name));
            return std::vector<std::int32_t>(all.begin(), all.end());
        };
        ids = integers("input_ids"), labels = integers("labels"), length = batch.find("input_ids")->shape[1];
        pictures = to_integers(*batch.find("multimodal_indices"));
    }

    Prismatic<Cpu> model(Cpu& be) const {
        Prismatic<Cpu> m{config};
        load(be, m, initial, rename);
        return m;
    }
    std::vector<TrainingRow> rows() const {
        std::vector<TrainingRow> all;
        for (std::size_t i = 0; i < ids.size() / length; ++i) {
            const auto at = std::find(pictures.begin(), pictures.end(), static_cast<std::int64_t>(i));
            all.push_back({std::span(ids).subspan(i * length, length), std::span(labels).subspan(i * length, length), {}});
            if (at != pictures.end()) all.back().picture = static_cast<std::size_t>(at - pictures.begin());
        }
        return all;
    }
    Pixels<Cpu> pixels(Cpu& be) const {
        Pixels<Cpu> all;
        for (const auto& t : config.towers) {
            const auto         stored = floats(batch, "pixel_values." + t.key);
            const std::size_t  one = 3 * t.vit.image_size * t.vit.image_size;
            std::vector<float> seen;
            for (std::int64_t i : pictures) {
                const auto from = stored.begin() + i * static_cast<std::ptrdiff_t>(one);
                seen.insert(seen.end(), from, from + static_cast<std::ptrdiff_t>(one));
            }
            all.add(be, seen, {pictures.size(), 3, t.vit.image_size, t.vit.image_size});
        }
        return all;
    }
};

std::vector<std::filesystem::path> training_cases() {
    std::vector<std::filesystem::path> found;
    for (const auto& root : reference_roots())
        if (std::filesystem::exists(root / "training/expected.json")) found.push_back(root / "training");
    return found;
}

/// The largest error of all gradients, in units of each tensor's largest.
double worst_gradient(const Arena<Cpu>& arena, const Checkpoint& file, const NameMap& rename) {
    double worst = 0;
    for (const Slot& slot : arena.layout().slots) worst = std::max(worst, relative_error(arena.values(slot).span(), floats(file, rename(slot.name))));
    return worst;
}

/// How far parameters are from PyTorch's after the steps.
struct ParameterErrors {
    double      sure = 0, unsure = 0;  // the largest where the first gradient was more than rounding, and elsewhere
    std::size_t n = 0, far = 0;        // all, and those of the former that are off by more than 1e-4
};

/// AdamW divides a gradient by its own size: where that is all rounding, a step is as long as any other. (The bias of a key
/// changes nothing, so that its gradient never is more; any other may come near nothing in one of the steps, and PyTorch's own
/// f32 and f64 differ by as much there.)
ParameterErrors parameter_errors(const Arena<Cpu>& arena, const Checkpoint& file, const Checkpoint& gradients, const NameMap& rename) {
    ParameterErrors errors;
    for (const Slot& slot : arena.layout().slots) {
        const auto found = arena.values(slot).span();
        const auto expected = floats(file, rename(slot.name)), gradient = floats(gradients, rename(slot.name));
        float      largest = 0;
        for (float g : gradient) largest = std::max(largest, std::abs(g));
        errors.n += found.size();
        for (std::size_t i = 0; i < found.size(); ++i) {
            const bool   sure = std::abs(gradient[i]) > 1e-4f * largest;
            const double error = std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
            double&      worst = sure ? errors.sure : errors.unsure;
            worst = std::max(worst, error);
            errors.far += sure && error > 1e-4 ? 1 : 0;
        }
    }
    return errors;
}

}  // namespace

TEST_CASE("train: each stage has PyTorch's first gradients, losses, norms and parameters after its steps") {
    for (const auto& folder : training_cases()) {
        CAPTURE(folder.string());
        const Case c{folder};
        Cpu        be{{.threads = 2}};
        for (bool replay : {true, false})
            for (Stage stage : {Stage::align, Stage::finetune, Stage::full_finetune}) {
                const std::string name{to_string(stage)};
                CAPTURE(name);
                CAPTURE(replay);
                const Json&      expected = c.expected.at(name);
                const auto       n_steps = expected.at("steps").size();
                const bool       whole = std::filesystem::exists(folder / name);  // a case may be without the tensors of a stage
                const Checkpoint first = whole ? Checkpoint::open(folder / name / "first_gradients.safetensors") : Checkpoint{};
                auto             model = c.model(be);
                const auto       pixels = c.pixels(be);
                const auto       rows = c.rows();
                OptimizerOptions options{.lr = expected.at("adamw").at("lr").get<double>(), .weight_decay = expected.at("adamw").at("weight_decay").get<double>(),
                                         .max_grad_norm = expected.at("max_grad_norm").get<double>(), .total_steps = n_steps};
                options.warmup_ratio = expected.at("warmup_steps").get<double>() / static_cast<double>(n_steps);
                Trainer                  trainer{be, model, stage, {.optimizer = options, .tape = {.replay = replay}}};
                const TrainingBatch<Cpu> batch{.rows = rows, .pixels = pixels.views()};
                for (const auto& step : expected.at("steps")) {
                    CHECK(trainer.micro_step(batch) == doctest::Approx(step.at("loss").get<double>()).epsilon(1e-4));
                    if (whole && step.at("step") == 0) {
                        CHECK(worst_gradient(trainer.optimizer().gradients(), first, c.rename) < 1e-4);
                        CHECK(trainer.optimizer().layout().slots.size() == first.tensors().size());  // nothing else has a gradient
                    }
                    const StepReport report = trainer.step();
                    CHECK(report.grad_norm == doctest::Approx(step.at("grad_norm").get<double>()).epsilon(1e-3));
                    CHECK(report.lr == doctest::Approx(step.at("lr").get<double>()).epsilon(1e-9));
                }
                if (!whole) continue;
                const ParameterErrors errors = parameter_errors(trainer.optimizer().parameters(), Checkpoint::open(folder / name / "after.safetensors"), first, c.rename);
                CHECK(errors.far * 10'000 <= errors.n);
                CHECK(errors.sure < options.lr / 2);
                CHECK(errors.unsure < options.lr);
            }
    }
}
