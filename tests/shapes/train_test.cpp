#include "shapes/measure.hpp"
#include "shapes/model.hpp"

#include "prism/train.hpp"
#include "prism/train/data/examples.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

using namespace prism;

namespace {

/// One object on its background, and its colour. Nothing where the scene has none.
struct Lesson {
    Image       picture;
    std::string color;
};
std::optional<Lesson> lesson(shapes::Split split, std::size_t i) {
    shapes::Scene scene = shapes::make_scene(3, {split, i});
    if (scene.objects.empty() || scene.damage != shapes::Damage::none) return std::nullopt;
    scene.objects.resize(1), scene.label.reset();
    return Lesson{shapes::draw(scene), std::string(shapes::color_names[static_cast<std::size_t>(scene.objects[0].color)])};
}

constexpr const char* question = "What color is the shape?";

}  // namespace

TEST_CASE("shapes/train: a model composed from modules learns in seconds what colour it sees") {
    Cpu  be{};
    auto model = shapes::fresh_model(be, 5, {.image_size = 48, .tower_width = 48, .tower_layers = 3, .tower_heads = 3, .width = 64, .layers = 2, .heads = 2});
    const auto&       towers = model.model.config.towers;
    const std::size_t per_step = 16, n_steps = 600, size = towers[0].vit.image_size, n_pixels = 3 * size * size;
    const auto        format = prompt_builder_for(shapes::prompt_style).format();
    Trainer           trainer{be, model.model, Stage::full_finetune,
                              {.optimizer = {.lr = 1e-3, .beta2 = 0.95, .total_steps = n_steps, .warmup_ratio = 0.1}, .tape = {.replay = false}}};

    std::vector<std::vector<float>> pixels(towers.size(), std::vector<float>(per_step * n_pixels));
    std::size_t                     next = 0;
    for (std::size_t step = 0; step < n_steps; ++step) {
        std::vector<TokenRow> texts;
        for (; texts.size() < per_step; ++next) {
            const auto l = lesson(shapes::Split::train, next);
            if (!l) continue;
            for (std::size_t t = 0; t < towers.size(); ++t)
                towers[t].transform.apply(l->picture, {pixels[t].data() + texts.size() * n_pixels, {3, size, size}});
            texts.push_back(conversation_row(*model.tokenizer, format, std::vector<Turn>{{Role::human, std::string("<image>\n") + question}, {Role::gpt, l->color}}, true, 64));
        }
        std::vector<TrainingRow>    rows;
        std::vector<PixelView<Cpu>> views;
        for (const TokenRow& text : texts) rows.push_back({text.ids, text.labels, rows.size()});
        for (const auto& p : pixels) views.push_back({p.data(), {per_step, 3, size, size}});
        trainer.micro_step({.rows = rows, .pixels = views});
        REQUIRE(trainer.step().finite);
    }

    std::size_t asked = 0, right = 0, changed = 0;
    const ChatParts parts = chat_parts(model, 256);
    for (std::size_t i = 0; asked < 100; ++i) {
        const auto l = lesson(shapes::Split::validation, i);
        if (!l) continue;
        Image grey = l->picture;
        std::ranges::fill(grey.pixels, std::uint8_t{128});
        const std::vector<prism::Question> both{{&l->picture, question}, {&grey, question}};
        const auto                         answers = ask_batch(be, model.model, parts, both, {.max_new_tokens = 4});
        ++asked, right += shapes::exact_match(answers[0].text, l->color), changed += answers[0].text != answers[1].text;
    }
    MESSAGE(right << " of " << asked << " colours are right; a grey picture changes " << changed << " answers");
    CHECK(right >= 95);
    CHECK(changed >= 70);
}

TEST_CASE("shapes/measure: true answers are right, and every question of every picture is counted") {
    const shapes::World world{.seed = 0};
    std::size_t         n = 0, n_boxes = 0;
    for (std::size_t i = 0; i < 40; ++i)
        for (const auto& q : shapes::conversation(world.scene(shapes::Split::validation, i))) {
            CHECK(shapes::is_right(q, q.answer));
            CHECK(!shapes::is_right(q, "nothing of the kind"));
            n += i < 6 && q.type != shapes::Type::caption, n_boxes += q.box.has_value();
        }
    CHECK(n_boxes > 0);

    Cpu                 be{};
    const auto          model = shapes::fresh_model(be, 5, {.image_size = 48, .tower_width = 48, .tower_layers = 2, .tower_heads = 3, .width = 64, .layers = 1, .heads = 2});
    std::size_t         pictures = 0;
    const auto          m = shapes::measure(be, model.model, chat_parts(model, 512), world, {.pictures = 6, .on_picture = [&](std::size_t done) { pictures = done; }});
    std::size_t         counted = 0, right = 0;
    for (const auto& type : m.types) counted += type.n, right += type.right;
    CHECK(counted == n);
    CHECK(right <= counted);
    CHECK(m.counts_to_six.n <= m.types[static_cast<std::size_t>(shapes::Type::count)].n);
    CHECK(m.asked > 0);
    CHECK(pictures == 6);
    CHECK(m.floor > 0.0);
    CHECK(m.floor <= 1.0);
}
