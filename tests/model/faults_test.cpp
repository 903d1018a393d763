// An allocation fails, each in turn: std::bad_alloc or an error of prism, no leak, and what was there before still works.
// JSON is read before: nlohmann's destructor takes memory, and the program ends where there is none.
#include "generate/support.hpp"
#include "model/support.hpp"
#include "support/allocations.hpp"

using namespace prism;
using namespace prism::test;

namespace {

/// Calls `work` until it succeeds, letting one allocation more succeed each time; `after` looks at what a failure left.
template <class Work, class After>
std::int64_t fail_each_allocation(Work&& work, After&& after) {
    for (std::int64_t failing = 0;; ++failing) {
        bool done = false;
        try {
            allocations_until_failure = failing;
            work();
            done = true;
        } catch (const std::bad_alloc&) {
        } catch (const Error&) {
        }
        const bool failed = allocations_until_failure.exchange(std::numeric_limits<std::int64_t>::max()) < 0;
        if (done && !failed) return failing;
        // A library in between may do without what it could not get; everybody else has to say so.
        after(done);
        REQUIRE(failing < 200'000);
    }
}

}  // namespace

TEST_CASE("model/faults: wherever memory runs out while loading, the model before stays whole") {
    Cpu        be{{.threads = 1}};
    ModelFolder folder;
    Vit<Cpu>   source{eye}, vit{eye};
    auto       halves = random_tensors(source, 7, Dtype::f16);  // norms and biases are converted, so they take memory
    folder.write("a.safetensors", random_tensors(source, 1));
    folder.write("b.safetensors", halves);
    const auto pixels = normal(3 * 8 * 8, 1);
    load_tower(be, vit, Checkpoint::open(folder / "a.safetensors"));
    const auto before = features(be, vit, pixels);
    std::size_t changed = 0;
    const auto  other = Checkpoint::open(folder / "b.safetensors");
    const auto  n = fail_each_allocation([&] { load_tower(be, vit, other); }, [&](bool) { changed += features(be, vit, pixels) != before; });
    CHECK(changed == 0);
    CHECK(n > 50);
    load_tower(be, source, Checkpoint::open(folder / "b.safetensors"));
    CHECK(features(be, vit, pixels) == features(be, source, pixels));
}

TEST_CASE("model/faults: wherever memory runs out while generating, the session and the model stay usable") {
    Cpu         be{{.threads = 2}};
    OneEye<Cpu> model;
    randomise(be, model, 5);
    const Picture picture{1};
    const Ids     ids = prompt(6, 1);
    const auto    answer = [&](Session<Cpu, OneEye<Cpu>>& s) {
        s.show(picture.views);
        return s.generate(ids, {.max_new_tokens = 4, .sampling = {.temperature = 1, .seed = 2}}).ids;
    };
    Session<Cpu, OneEye<Cpu>> reference{be, model, {.max_tokens = 32}};
    const Ids                 expected = answer(reference);

    const auto whole = fail_each_allocation(
        [&] {
            Session<Cpu, OneEye<Cpu>> s{be, model, {.max_tokens = 32}};
            answer(s);
        },
        [](bool done) { CHECK_FALSE(done); });
    CHECK(whole > 20);

    Session<Cpu, OneEye<Cpu>> kept{be, model, {.max_tokens = 32}};
    std::size_t               wrong = 0;
    fail_each_allocation([&] { answer(kept); }, [&](bool) { wrong += kept.generate(ids, {.max_new_tokens = 4, .sampling = {.temperature = 1, .seed = 2}}, 1).ids.empty() || answer(kept) != expected; });
    CHECK(wrong == 0);
}

TEST_CASE("model/faults: wherever memory runs out while a file is opened, converted and run, nothing is left behind") {
    for (const char* file : {"vlm/siglip-phi/checkpoints/latest-checkpoint.pt", "formats/legacy.pt"}) {
        const auto n = fail_each_allocation([&] { Checkpoint::open(reference(file)); }, [](bool done) { CHECK_FALSE(done); });
        CHECK(n > 100);
    }
    Cpu              be{{.threads = 1}};
    const Checkpoint file = Checkpoint::open(reference("vision/siglip"));
    VitConfig        config = timm_config(ConfigReader::open(reference("vision/siglip") / "config.json"));
    config.image_size = 56;  // the positions are resampled
    const auto pixels = normal(3 * 56 * 56, 1);
    const auto n = fail_each_allocation(
        [&] {
            Vit<Cpu> vit{config};
            load_tower(be, vit, file);
            features(be, vit, pixels);
        },
        [](bool done) { CHECK_FALSE(done); });
    CHECK(n > 100);
}
