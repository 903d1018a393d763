#include "model/support.hpp"
#include "shapes/model.hpp"
#include "shapes/naming.hpp"
#include "shapes/part.hpp"
#include "shapes/probe.hpp"
#include "shapes/supervised.hpp"
#include "shapes/support.hpp"
#include "shapes/text.hpp"
#include "shapes/world.hpp"

#include "prism/generate/ask_batch.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

using namespace prism;
using shapes::Patch;
using shapes::Split;
using test::tiny_tower;

namespace {

const std::vector<std::int32_t>& labels(const shapes::PatchTruth& truth, Patch what) { return truth.labels[static_cast<std::size_t>(what)]; }
/// The values of the parameters of a module that `pick` chooses, one behind another.
template <class M, class Pick>
std::vector<float> values_of(Cpu& be, const M& module, Pick&& pick) {
    const Arena<Cpu> some{be, arena_layout(module, pick)};
    REQUIRE(!some.layout().slots.empty());
    some.copy(be, module);
    return {some.values().span().begin(), some.values().span().end()};
}
std::vector<float> numbers(const std::vector<NamedSpan>& state) {
    std::vector<float> all;
    for (const NamedSpan& s : state) all.insert(all.end(), s.values.begin(), s.values.end());
    return all;
}

}  // namespace

TEST_CASE("shapes/supervised: the truth about a patch is what the scene has there") {
    std::size_t objects = 0, letters = 0;
    for (std::size_t i = 0; i < 200; ++i) {
        const shapes::Scene scene = shapes::make_scene(0, {Split::train, i});
        shapes::PatchTruth  truth;
        add_truth(scene, 9, 9, truth, i % 2 == 0);
        REQUIRE(truth.edges.size() == 81);
        int middles = 0;
        for (std::size_t p = 0; p < 81; ++p) {
            const auto label = [&](Patch what) { return labels(truth, what)[p]; };
            CHECK(label(Patch::blurred) == (scene.damage == shapes::Damage::blurred));
            if (scene.damage == shapes::Damage::blurred) {
                CHECK(label(Patch::color) == ignored_label);
                continue;
            }
            middles += label(Patch::middles);
            if (label(Patch::letter) < 20) ++letters;
            if (const auto* o = shapes::object_at(scene, p / 9, p % 9, 9, 9)) {  // the probes' own rule, which is stricter
                ++objects;
                CHECK(label(Patch::color) == static_cast<int>(o->color));
                CHECK(label(Patch::size) == static_cast<int>(o->size));
                CHECK(label(Patch::texture) == static_cast<int>(o->texture));
                if (!o->cut) CHECK(label(Patch::shape) == static_cast<int>(o->shape));
                const bool counted = i % 2 == 0 && scene.damage == shapes::Damage::none;
                const auto alike = [&](auto&& same) { return counted ? static_cast<int>(std::min<std::ptrdiff_t>(7, std::ranges::count_if(scene.objects, same))) : ignored_label; };
                for (const unsigned properties : shapes::alike_in)
                    CHECK(truth.labels[shapes::alike_class(properties)][p] == alike([&](const auto& other) {
                        return (!(properties & shapes::has_shape) || other.shape == o->shape) && (!(properties & shapes::has_color) || other.color == o->color) &&
                               (!(properties & shapes::has_size) || other.size == o->size) && (!(properties & shapes::has_texture) || other.texture == o->texture);
                    }));
                const double x1 = (0.5 + static_cast<double>(truth.edges[p][0]) / 9) * scene.width * shapes::px;
                CHECK(std::abs(x1 - o->box().x1) < 3);  // sixteenths of a pixel
            }
        }
        if (scene.damage == shapes::Damage::none && scene.kind == shapes::Kind::ordinary) CHECK(middles == static_cast<int>(scene.objects.size()));
    }
    CHECK(objects > 500);
    CHECK(letters > 200);
}

TEST_CASE("shapes/supervised: gradients are those of the loss") {
    Cpu                     be{{.threads = 2}};
    shapes::Supervised<Cpu> m{tiny_tower().vit, true}, grads{tiny_tower().vit, true};
    randomise(be, m, {.seed = 4, .spread = 0.15f});
    const ArenaLayout layout = arena_layout(m, [&](std::string_view name) { return m.trained(name); });
    Arena<Cpu>        theta{be, layout}, gradients{be, layout};
    theta.adopt(be, m), gradients.bind(grads);
    const std::size_t  n = 2, side = 48;
    std::vector<float> pixels(n * 3 * side * side);
    shapes::PatchTruth truth;
    for (std::size_t i = 0; i < n; ++i) {
        const shapes::Scene scene = shapes::make_scene(0, {Split::train, i});
        tiny_tower().transform.apply(draw(scene), {pixels.data() + i * 3 * side * side, {3, side, side}});
        add_truth(scene, 6, 6, truth, true);
    }
    Workspace<Cpu> ws{be, std::size_t{16} << 20};
    Tape<Cpu>      tape{{.replay = false}};
    const auto     loss = [&](shapes::Supervised<Cpu>* to) {
        tape.restart();
        return shapes::supervised_pass<Cpu>(be, ws, m, {pixels.data(), {n, 3, side, side}}, truth, tape, to);
    };
    loss(&grads);
    for (const Slot& slot : layout.slots) {
        const auto  values = theta.values(slot), slopes = gradients.values(slot);
        double      largest = 0;
        std::size_t at = 0;
        for (std::size_t i = 0; i < slot.size; ++i)
            if (std::abs(slopes(i)) > largest) largest = std::abs(slopes(i)), at = i;
        REQUIRE(largest > 0);
        const float was = values(at), h = 2e-3f;
        values(at) = was + h;
        const double above = loss(nullptr);
        values(at) = was - h;
        const double below = loss(nullptr);
        values(at) = was;
        INFO(slot.name);
        CHECK((above - below) / (2 * static_cast<double>(h)) == doctest::Approx(slopes(at)).epsilon(0.02));
    }
}

TEST_CASE("shapes/part: towers and language learn, and a part that was killed goes on with the same bits") {
    const test::ModelFolder folder;
    const shapes::World   world{.seed = 0};
    Cpu                   be{{.threads = 2}};
    struct Killed {};
    const auto twice = [&](auto&& fresh, const std::string& name, std::size_t steps, auto&& step) {
        const Json identity{{"steps", steps}};
        auto       whole = fresh(), first = fresh(), second = fresh();
        const shapes::Part unbroken{folder / (name + "-unbroken"), name, steps, 5}, part{folder / name, name, steps, 5};
        run_part(unbroken, identity, *whole, [&](std::size_t k) { return step(*whole, k); });
        CHECK_THROWS_AS(run_part(part, identity, *first, [&](std::size_t k) { return k == 8 ? throw Killed{} : step(*first, k); }), Killed);
        std::size_t made = 0;
        run_part(part, identity, *second, [&](std::size_t k) { return ++made, step(*second, k); });
        CHECK(made == steps - 5);  // the last checkpoint was after five
        CHECK(numbers(second->state()) == numbers(whole->state()));
        CHECK_THROWS_AS(run_part(part, Json{{"steps", steps + 1}}, *second, [](std::size_t) { return 0.0; }), ConfigError);
        CHECK_THROWS_AS(run_part({folder / (name + "-nan"), name, steps, 5}, identity, *first, [](std::size_t) { return std::nan(""); }), TrainingError);
        return whole;
    };
    const shapes::TowerOptions options{.batch = 16, .steps = 300, .rate = 4e-3};
    const auto tower = twice([&] { return std::make_unique<shapes::SupervisedTrainer>(be, tiny_tower(), options); }, "tower", options.steps, [&](auto& t, std::size_t k) {
        return t.step([&](std::size_t i) { return world.scene(Split::train, k * options.batch + i); });
    });
    tower->look([&](std::size_t i) { return world.scene(Split::validation, i); });
    MESSAGE("colours of patches: " << tower->right()[0]);
    CHECK(tower->right()[0] > 0.8);  // always "none": 0.63

    // From a tower that knows colours, one that counts begins with them, and leaves the other as it is.
    Vit<Cpu> known{tiny_tower().vit};
    shapes::copy_parameters(be, tower->tower(), known);
    const auto values = [&] { return values_of(be, known, [](std::string_view) { return true; }); };
    const auto untouched = values();
    const auto colours = [&](const Vit<Cpu>* from) {
        shapes::SupervisedTrainer counting{be, tiny_tower(), {.batch = 16, .steps = 40, .rate = 4e-3, .alike = true}, from};
        for (std::size_t k = 0; k < 40; ++k) counting.step([&](std::size_t i) { return world.scene(Split::train, k * 16 + i); });
        counting.look([&](std::size_t i) { return world.scene(Split::validation, i); });
        CHECK(counting.right()[shapes::alike_class(shapes::has_shape | shapes::has_color)] > 0);
        return counting.right()[0];
    };
    const double with = colours(&known), without = colours(nullptr);
    MESSAGE("colours of patches after 40 steps of counting: " << with << ", from nothing " << without);
    CHECK(with > without + 0.05);
    CHECK(values() == untouched);

    const LlamaConfig                            decoder = std::get<LlamaConfig>(shapes::composition({.width = 64, .layers = 2, .heads = 2}).llm);
    std::vector<std::unique_ptr<LanguageModel<Cpu>>> models;
    double                                           before = 0;
    const auto text = twice(
        [&] {
            models.push_back(std::make_unique<LanguageModel<Cpu>>(decoder));
            randomise(be, *models.back(), {.seed = 1, .spread = 0.06f});
            auto trainer = std::make_unique<shapes::TextTrainer>(be, *models.back(), shapes::TextOptions{.batch = 8, .steps = 40, .rate = 4e-3});
            before = trainer->held_out();
            return trainer;
        },
        "language", 40, [](auto& t, std::size_t k) { return t.step(k); });
    MESSAGE("language: " << before << " to " << text->held_out());
    CHECK(before > 5);
    CHECK(text->held_out() < 3.5);
}

TEST_CASE("shapes/part: what makes a part what it is covers its world, its options and all parts before it") {
    shapes::World    world;
    const Json       plain = settings_of(world);
    std::vector<Json> all{plain};
    const auto       with = [&](auto&& change) {
        shapes::World other;
        change(other);
        all.push_back(settings_of(other));
    };
    with([](auto& w) { w.seed = 1; }), with([](auto& w) { w.questions = 7; }), with([](auto& w) { w.text_percent = 6; }), with([](auto& w) { w.plain_first = 26; });
    with([](auto& w) { w.plain_later = 76; }), with([](auto& w) { w.mixture.weights[3] += 1; }), with([](auto& w) { w.captions.label_percent = 31; });
    with([](auto& w) { w.drill_percent = 1; }), with([](auto& w) { w.n_drills = 25; }), with([](auto& w) { w.most_objects = 3; });
    for (std::size_t i = 0; i < all.size(); ++i)
        for (std::size_t k = 0; k < i; ++k) CHECK(all[i] != all[k]);
    CHECK(settings_of(shapes::TowerOptions{.rate = 1e-3}) != settings_of(shapes::TowerOptions{}));
    CHECK(settings_of(shapes::TextOptions{.batch = 65}) != settings_of(shapes::TextOptions{}));
    CHECK(shapes::settings_of(StageSettings{.global_batch_size = 1, .learning_rate = 1, .cosine = false}) != shapes::settings_of(StageSettings{.global_batch_size = 1, .learning_rate = 1}));

    const auto last = [](const Json& whole, const Json& first, const Json& second) {
        shapes::Recipe recipe{whole};
        recipe.part(first);
        return recipe.part(second);
    };
    const Json seven{{"seed", 7}}, eight{{"seed", 8}}, one{{"part", "one"}}, other{{"part", "other"}}, two{{"part", "two"}};
    CHECK(last(seven, one, two) == last(seven, one, two));
    CHECK(last(seven, one, two) != last(eight, one, two));
    CHECK(last(seven, one, two) != last(seven, other, two));
    CHECK(last(seven, one, two)["part"] == "two");
}

TEST_CASE("shapes/pictures: a batch is what each tower would have been given picture by picture, on any number of threads") {
    const auto               config = shapes::composition({.image_size = 48, .tower_width = 32, .tower_layers = 3, .tower_heads = 2});
    std::vector<ImageTransform> transforms{config.towers[0].transform, config.towers[1].transform};
    transforms[1].size = 32;
    for (const std::size_t threads : {1U, 3U}) {
        Cpu                      be{{.threads = threads}};
        shapes::Pictures         pictures{transforms};
        std::vector<std::size_t> objects(5);
        for (const std::size_t n : {5U, 3U}) {
            pictures.draw(be, n, [&](std::size_t i) {
                shapes::Scene scene = shapes::make_scene(0, {Split::train, i});
                objects[i] = scene.objects.size();
                return scene;
            });
            for (std::size_t t = 0; t < 2; ++t) {
                const auto view = pictures.views()[t];
                CHECK(view.extent(0) == n);
                for (std::size_t i = 0; i < n; ++i) {
                    const shapes::Scene scene = shapes::make_scene(0, {Split::train, i});
                    std::vector<float>  expected(3 * transforms[t].size * transforms[t].size);
                    transforms[t].apply(draw(scene), {expected.data(), {3, transforms[t].size, transforms[t].size}});
                    CHECK(std::equal(expected.begin(), expected.end(), view.data() + i * expected.size()));
                    CHECK(objects[i] == scene.objects.size());
                }
            }
        }
    }
}

TEST_CASE("shapes/model: a deeper model answers as before, and has the blocks that were asked for") {
    Cpu        be{{.threads = 2}};
    const auto fresh = [&] { return shapes::fresh_model(be, 3, {.image_size = 48, .tower_width = 32, .tower_layers = 3, .tower_heads = 2, .width = 64, .layers = 3, .heads = 2}); };
    const auto p = fresh(), grown = shapes::deeper(be, fresh(), {.first_tower = {1, 1}, .decoder = {0, 2, 2}});
    CHECK(std::get<LlamaConfig>(grown.model.config.llm).n_layers == 6);
    CHECK(grown.model.towers[0].blocks.size() == 5);
    CHECK(grown.model.towers[1].blocks.size() == 3);
    const Image                        picture = shapes::draw(shapes::make_scene(0, {Split::train, 1}));
    const std::vector<prism::Question> asked{{&picture, "What color is the star?"}, {&picture, "How many shapes are there?"}, {&picture, "Is there a red circle?"}};
    const auto answers = [&](const Pretrained<Cpu>& model) {
        std::string all;
        for (const Answer& a : ask_batch(be, model.model, chat_parts(model, 512), asked, {.max_new_tokens = 12})) all += a.text + '\n';
        return all;
    };
    CHECK(answers(p).size() > 20);
    CHECK(answers(grown) == answers(p));
    const auto values = [&](const Pretrained<Cpu>& model, const std::string& name) {
        std::size_t n_found = 0;
        auto        found = values_of(be, model.model, [&](std::string_view n) { return n.ends_with(name) && ++n_found; });
        REQUIRE(n_found == 1);
        return found;
    };
    CHECK(values(grown, ".layers.1.self_attn.q_proj.weight") == values(p, ".layers.0.self_attn.q_proj.weight"));
    CHECK(values(grown, ".layers.2.mlp.down_proj.weight") == values(p, ".layers.1.mlp.down_proj.weight"));
    CHECK(values(grown, "vision_backbone.0.blocks.3.attn.qkv.weight") == values(p, "vision_backbone.0.blocks.1.attn.qkv.weight"));
    CHECK(values(grown, "vision_backbone.0.blocks.4.mlp.fc2.bias") == values(p, "vision_backbone.0.blocks.2.mlp.fc2.bias"));
    for (const char* silent : {"vision_backbone.0.blocks.2.attn.proj.bias", "vision_backbone.0.blocks.3.mlp.fc2.weight", ".layers.1.self_attn.o_proj.weight", ".layers.4.mlp.down_proj.weight", ".layers.5.mlp.down_proj.weight"})
        CHECK(std::ranges::all_of(values(grown, silent), [](float v) { return v == 0; }));
}

TEST_CASE("shapes/model: features are centred without losing a difference, and the projector learns to name what is there") {
    Cpu                be{{.threads = 2}};
    auto               p = shapes::fresh_model(be, 3, {.image_size = 48, .tower_width = 32, .tower_layers = 3, .tower_heads = 2, .width = 64, .layers = 1, .heads = 2});
    Prismatic<Cpu>&    vlm = p.model;
    const std::size_t  n = vlm.n_soft_tokens(), d = vlm.projector.d_vision(), size = 48;
    std::vector<Image> pictures;
    for (std::size_t i = 0; i < 8; ++i) pictures.push_back(shapes::draw(shapes::make_scene(0, {Split::train, i})));
    Workspace<Cpu> ws{be, std::size_t{16} << 20};
    const auto     features = [&] {
        std::vector<float> all(pictures.size() * n * d), pixels(3 * size * size);
        for (std::size_t i = 0; i < pictures.size(); ++i)
            for (std::size_t t = 0, column = 0; t < 2; column += vlm.towers[t++].d_model()) {
                vlm.config.towers[t].transform.apply(pictures[i], {pixels.data(), {3, size, size}});
                const Mat<Cpu> to{all.data() + i * n * d, {n, d}};
                vlm.towers[t].forward(be, ws, {pixels.data(), {1, 3, size, size}}, to.cols(column, vlm.towers[t].d_model()));
            }
        return all;
    };
    const auto before = features();
    shapes::centre_features(be, vlm, pictures);
    const auto after = features();
    for (std::size_t j = 0; j < d; ++j) {
        double mean = 0, most = 0;
        for (std::size_t i = 0; i < pictures.size() * n; ++i) {
            mean += static_cast<double>(after[i * d + j]) / static_cast<double>(pictures.size() * n);
            most = std::max(most, std::abs(static_cast<double>((before[i * d + j] - before[j]) - (after[i * d + j] - after[j]))));
        }
        CHECK(std::abs(mean) < 1e-4);
        CHECK(most < 1e-4);
    }

    const std::vector<float> towers = features();
    shapes::NamingTrainer    trainer{be, vlm, {.batch = 8, .steps = 150, .rate = 5e-3}};
    double                   first = 0, last = 0;
    for (std::size_t k = 0; k < 150; ++k) {
        last = trainer.step([&](std::size_t i) { return shapes::make_scene(0, {Split::train, k * 8 + i}); });
        if (k == 0) first = last;
    }
    MESSAGE("naming: " << first << " to " << last);
    CHECK(first > 9.5);  // of 336 words, read by a table of random numbers that no projector can make sure of more; and of places
    CHECK(last < 8.6);
    CHECK(features() == towers);  // they are as they were
}
