// Towers that are trained from nothing: gradients against differences, bits, and what they learn in seconds.
#include "shapes/contrastive_trainer.hpp"
#include "shapes/source.hpp"
#include "shapes/world.hpp"

#include "io/support.hpp"

#include "prism/image/transform.hpp"
#include "prism/text/prompt.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

using namespace prism;
using namespace prism::shapes;

namespace {

Vit<Cpu> small_tower(Cpu& be, std::size_t image_size, std::size_t patch_size, std::size_t width, std::size_t layers) {
    Vit<Cpu> tower{VitConfig{.image_size = image_size, .patch_size = patch_size, .d_model = width, .n_layers = layers, .n_heads = 2, .d_ff = 2 * width, .class_token = false}};
    randomise(be, tower, {.seed = 3, .spread = 0.3f});
    return tower;
}

std::vector<ImageTransform> transform(std::size_t size) { return {{.stats = statistics::half, .strategy = Resize::naive, .size = size}}; }

/// Pictures of the world and what is said of them.
struct Pairs {
    std::vector<float>       pixels;
    std::vector<std::string> captions;

    Pairs(Split split, std::size_t n, std::size_t size) : pixels(n * 3 * size * size), captions(n) {
        const World world{.seed = 0, .captions = {.spatial_percent = 50}};
        for (std::size_t i = 0; i < n; ++i) {
            const Row row = world.caption_row(split, i);
            transform(size)[0].apply(draw(*row.scene), {pixels.data() + i * 3 * size * size, {3, size, size}});
            captions[i] = row.turns[1].text;
        }
    }
};

double dot(std::span<const float> a, std::span<const float> b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return sum;
}

/// Holds the gradient of each parameter against differences of the loss in one direction; their error is of the fourth order.
template <class Trainer>
void check_gradients(Trainer& trainer, const std::function<double()>& loss) {
    trainer.clear_gradients();
    loss();
    const Optimizer<Cpu>&    optimizer = trainer.optimizer();
    const std::vector<float> gradients(optimizer.gradients().values().span().begin(), optimizer.gradients().values().span().end());
    for (const Slot& slot : optimizer.layout().slots) {
        CAPTURE(slot.name);
        const std::span<float>   values = optimizer.parameters().values(slot).span();
        const auto               gradient = std::span(gradients).subspan(slot.offset, slot.size);
        const std::vector<float> start(values.begin(), values.end());
        std::vector<float>       direction(slot.size);
        for (std::size_t i = 0; i < slot.size; ++i) direction[i] = prism::detail::random_normal(17, i);
        const double length = std::sqrt(dot(direction, direction)), step = 0.02 / std::sqrt(length);
        const auto   along = [&](double t) {
            for (std::size_t i = 0; i < slot.size; ++i) values[i] = static_cast<float>(static_cast<double>(start[i]) + t * static_cast<double>(direction[i]));
            return loss();
        };
        const double slope = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (12 * step);
        std::ranges::copy(start, values.begin());
        CHECK(std::abs(dot(gradient, direction) - slope) < 2e-3 * std::sqrt(dot(gradient, gradient)) * (1 + length / 10) + 2e-4);
    }
    trainer.clear_gradients();
}

std::vector<float> all_parameters(const Optimizer<Cpu>& o) { return {o.parameters().values().span().begin(), o.parameters().values().span().end()}; }

/// An alignment stage over the world's captions.
StagePlan plan_of(std::size_t steps, std::size_t batch, double rate) {
    return {.stage = Stage::align, .settings = {.max_steps = steps, .global_batch_size = batch, .per_device_batch_size = batch, .learning_rate = rate}};
}
WorldExamples pairs_of_the_world(std::size_t n, std::size_t size) {
    return {{.seed = 0, .captions = {.spatial_percent = 50}}, Split::train, n, {.format = prompt_format::pure(), .transforms = transform(size), .captions = true}};
}

}  // namespace

TEST_CASE("shapes/contrastive: the gradients of towers, maps and scale are those of differences, with and without blocks run again") {
    const Pairs pairs{Split::train, 5, 24};
    for (const bool replay : {false, true}) {
        Cpu                be{{.threads = 2}};
        auto               tower = small_tower(be, 24, 8, 16, 3);
        ContrastiveTrainer trainer{be, tower, {.text = {.max_tokens = 9, .d_model = 12, .n_layers = 2, .n_heads = 2}, .d_common = 8, .together = 2, .tape = {.replay = replay}}};
        const auto         set = [&](const char* name, float value) { trainer.optimizer().parameters().values(*trainer.optimizer().layout().find(name))(0) = value; };
        set("scale.log", 0.7f), set("scale.bias", -0.4f);
        CHECK(trainer.optimizer().layout().find("tower.blocks.1.mlp.fc2.weight"));
        CHECK(!trainer.optimizer().layout().find("tower.blocks.2.mlp.fc2.weight"));
        const Tokenizer words = tokenizer();
        Batch           batch;
        for (std::size_t i = 0; i < 5; ++i) batch.add({words.encode(pairs.captions[i]), {}}, i, true);
        batch.pixels = {pairs.pixels};
        check_gradients(trainer, [&] { return trainer.micro_step(batch, 1); });
    }
}

TEST_CASE("shapes/contrastive: a stage has the same bits with 1 and 3 threads, and when it was interrupted") {
    const auto examples = pairs_of_the_world(32, 24);
    const auto train = [&](std::size_t threads, const std::vector<std::size_t>& stops) {
        const test::TempFolder temp;
        std::vector<float>     outcome;
        for (const std::size_t stop : stops) {
            Cpu                be{{.threads = threads}};
            auto               tower = small_tower(be, 24, 8, 16, 3);
            ContrastiveTrainer trainer{be, tower, {.text = {.d_model = 24}, .together = 5}};
            RunFolder          folder{temp.path(), "tower", "Align/Step"};
            train_stage(trainer, examples, plan_of(5, 12, 3e-3), folder, {.on_step = [&](const StageProgress& p) { return p.step < stop; }});
            outcome = all_parameters(trainer.optimizer());
            // The tower that was given is the one that is trained.
            CHECK(tower.patch_embed.proj.weight.stored().data == trainer.pair().tower.patch_embed.proj.weight.stored().data);
        }
        return outcome;
    };
    const auto whole = train(1, {5});
    CHECK(train(3, {5}) == whole);
    CHECK(train(2, {2, 3, 5}) == whole);
}

TEST_CASE("shapes/contrastive: steps on rows of the world are those on their pictures and captions, and a state is all there is") {
    const World world{.seed = 0, .captions = {.spatial_percent = 50}};
    const Pairs pairs{Split::train, 6, 24};
    const auto  row = [&](std::size_t i) { return world.caption_row(Split::train, i); };
    const auto  with = [&](auto&& steps) {
        Cpu                be{{.threads = 2}};
        auto               tower = small_tower(be, 24, 8, 16, 3);
        ContrastiveTrainer trainer{be, tower, {.steps = 4, .text = {.d_model = 24}}};
        steps(trainer);
        return all_parameters(trainer.optimizer());
    };
    std::vector<std::vector<float>> saved;
    const auto                      whole = with([&](auto& t) {
        for (int k = 0; k < 4; ++k) t.step(pairs.pixels, pairs.captions);
    });
    with([&](auto& t) {
        for (int k = 0; k < 2; ++k) t.step(transform(24)[0], 6, row);
        for (const NamedSpan& s : t.state()) saved.emplace_back(s.values.begin(), s.values.end());
    });
    const auto parts = with([&](auto& t) {
        for (std::size_t i = 0; i < saved.size(); ++i) std::ranges::copy(saved[i], t.state()[i].values.begin());
        t.set_steps(2);
        for (int k = 0; k < 2; ++k) t.step(transform(24)[0], 6, row);
    });
    CHECK(parts == whole);
}

TEST_CASE("shapes/contrastive: a tower learns in seconds which picture a caption is about") {
    constexpr std::size_t size = 24, n = 8, n_steps = 400;
    Cpu                   be{};
    auto                  tower = small_tower(be, size, 6, 32, 3);
    ContrastiveTrainer    trainer{be, tower, {.steps = n_steps, .rate = 2e-3, .text = {.d_model = 48}, .d_common = 32}};
    // One object each, of all colours: its look is the caption.
    std::vector<float>       pixels(n * 3 * size * size);
    std::vector<std::string> captions(n);
    std::size_t              next = 0;
    const auto               fill = [&](Split split) {
        for (std::size_t i = 0; i < n; ++next) {
            Scene scene = make_scene(3, {split, next});
            if (scene.objects.empty() || scene.damage != Damage::none || static_cast<std::size_t>(scene.objects[0].color) != i) continue;
            scene.objects.resize(1), scene.label.reset();
            transform(size)[0].apply(draw(scene), {pixels.data() + i * 3 * size * size, {3, size, size}});
            captions[i++] = "A " + std::string(color_names[static_cast<std::size_t>(scene.objects[0].color)]) + " shape.";
        }
    };
    const auto retrieved = [&] {
        double share = 0;
        next = 0;
        for (std::size_t i = 0; i < 8; ++i) fill(Split::validation), share += trainer.retrieval(pixels, captions) / 8;
        return share;
    };
    const double before = retrieved();
    double       loss = 0;
    next = 0;
    for (std::size_t step = 0; step < n_steps; ++step) fill(Split::train), loss = trainer.step(pixels, captions);
    const double after = retrieved();
    MESSAGE("loss " << loss << ", retrieved " << before << " before, " << after << " after; chance 0.125");
    CHECK(before < 0.3);
    CHECK(after > 0.4);
    CHECK_THROWS_AS(trainer.step(pixels, std::vector<std::string>(3)), ShapeError);
}
