// Features of frozen towers that are kept: the bits of a run without, and what is not done again.
#include "train/support.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <string>
#include <vector>

using namespace prism;
using namespace prism::test;
namespace fs = std::filesystem;

namespace {

/// What a run of two epochs did.
struct Outcome {
    std::string       checkpoint, state;
    std::vector<Json> metrics;
    std::size_t       reads = 0;  // of pictures
};

struct Asked {
    Stage               stage = Stage::finetune;
    FeatureCacheOptions cache{};
    std::size_t         threads = 1, until = 100;
};

/// Trains up to a step, from where the folder stands.
Outcome train(const fs::path& root, const Asked& asked) {
    Cpu                 be{{.threads = asked.threads}};
    auto                base = from_pretrained(be, small);
    PrismaticStage<Cpu> stage{be, base.model, asked.stage, {}, {}, asked.cache};
    RunFolder           folder{root, "small", metrics_name(asked.stage) + "/Step"};
    const Noise         noise{base.model};
    const StagePlan     plan{.stage = asked.stage, .settings = {.epochs = 2, .global_batch_size = 4, .per_device_batch_size = 2, .learning_rate = 1e-2}, .checkpoint_every = 1,
                             .loader = {.threads = asked.threads}};
    train_stage(stage, noise, plan, folder, {.on_step = [&](const StageProgress& p) { return p.step < asked.until; }});
    return {read_file(folder.latest()), read_file(folder.path() / "resume.bundle"), folder.metrics(), noise.reads};
}
std::size_t counted(const Outcome& o, const std::string& what) { return o.metrics.back().at("Finetune/Pictures " + what).get<std::size_t>(); }

}  // namespace

TEST_CASE("train/cache: a run that keeps features has the bits of one that does not, whatever its budget, and computes each once") {
    const std::size_t n_pictures = 9;  // of 13 rows
    for (const Stage stage : {Stage::align, Stage::finetune}) {
        const TempFolder plain, ample, tight, resumed;
        const Outcome    without = train(plain.path(), {.stage = stage});
        const Outcome    with = train(ample.path(), {.stage = stage, .cache = {.bytes = std::size_t{1} << 30}, .threads = 2});
        CHECK(with.checkpoint == without.checkpoint);
        CHECK(with.state == without.state);
        CHECK(with.reads < without.reads);
        CHECK(with.metrics.size() == without.metrics.size());
        CHECK(without.metrics.back().size() == 5);
        if (stage != Stage::finetune) continue;
        CHECK(counted(with, "Computed") == n_pictures);
        CHECK(counted(with, "Remembered") == without.reads - n_pictures);
        CHECK(with.reads >= n_pictures);

        Cpu               be{{.threads = 1}};
        const auto        model = from_pretrained(be, small);
        const std::size_t one = model.model.n_soft_tokens() * model.model.projector.d_vision() * sizeof(float);
        const Outcome     few = train(tight.path(), {.stage = stage, .cache = {.bytes = 3 * one + one / 2}});
        CHECK(few.checkpoint == without.checkpoint);
        CHECK(counted(few, "Computed") > n_pictures);
        CHECK(counted(few, "Remembered") > 0);
        CHECK(counted(few, "Remembered") + counted(few, "Computed") == without.reads);

        for (const std::size_t until : {2U, 3U, 5U}) train(resumed.path(), {.stage = stage, .cache = {.bytes = until * one}, .until = until});
        CHECK(train(resumed.path(), {.stage = stage}).state == without.state);
    }
}

TEST_CASE("train/cache: in bf16 the outcome depends neither on the budget nor on where a run was stopped") {
    const TempFolder    exact, whole, tight, parts;
    FeatureCacheOptions ample{.bytes = std::size_t{1} << 30, .dtype = Dtype::bf16}, hardly{.bytes = 1, .dtype = Dtype::bf16};
    const Outcome       plain = train(exact.path(), {}), rounded = train(whole.path(), {.cache = ample});
    CHECK(rounded.checkpoint != plain.checkpoint);
    const double loss = plain.metrics.back()["Finetune/Loss"].get<double>();
    CHECK(rounded.metrics.back()["Finetune/Loss"].get<double>() == doctest::Approx(loss).epsilon(0.02));
    const Outcome none = train(tight.path(), {.cache = hardly});
    CHECK(none.checkpoint == rounded.checkpoint);
    CHECK(counted(none, "Remembered") == 0);
    train(parts.path(), {.cache = ample, .until = 3});
    CHECK(train(parts.path(), {.cache = ample, .threads = 2}).checkpoint == rounded.checkpoint);
}

TEST_CASE("train/cache: it is refused where towers are trained, and keeps f32 or bf16") {
    Cpu  be{{.threads = 1}};
    auto base = from_pretrained(be, small);
    CHECK_THROWS_AS((PrismaticStage<Cpu>{be, base.model, Stage::full_finetune, {}, {}, {.bytes = 1}}), ConfigError);
    CHECK_THROWS_AS((FeatureCache<Cpu>{be, base.model, {.bytes = 1, .dtype = Dtype::q8}}), ConfigError);
}
