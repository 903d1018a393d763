// A tower that teaches itself: balance, gradients, what it learns in seconds, and that being killed changes nothing.
#include "model/support.hpp"
#include "shapes/distilled.hpp"
#include "shapes/model.hpp"
#include "shapes/part.hpp"
#include "shapes/support.hpp"
#include "shapes/world.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

using namespace prism;
using shapes::Split;
using test::tiny_tower;

TEST_CASE("shapes/distilled: shares of prototypes sum to one, and a prototype that all rows would take is hardly used more often than others") {
    constexpr std::size_t n = 240, k = 12;
    std::vector<float>    values(n * k);
    for (std::size_t i = 0; i < n * k; ++i) values[i] = 0.3f * prism::detail::random_normal(3, i) + (i % k == 2 ? 1.0f : 0.0f);  // every row would take the third
    const Mat<Cpu> scores{values.data(), {n, k}};
    shapes::detail::balance(scores, 0.1);
    std::vector<double> used(k);
    for (std::size_t i = 0; i < n; ++i) {
        double sum = 0;
        for (std::size_t j = 0; j < k; ++j) sum += static_cast<double>(scores(i, j)), used[j] += static_cast<double>(scores(i, j));
        CHECK(sum == doctest::Approx(1));
    }
    for (std::size_t j = 0; j < k; ++j) {
        CAPTURE(j);
        CHECK(used[j] > 0.6 * n / k);
        CHECK(used[j] < 2.5 * n / k);  // without balance the third has all
    }
}

TEST_CASE("shapes/distilled: gradients are those of the loss") {
    Cpu                    be{{.threads = 2}};
    shapes::Distilled<Cpu> m{{tiny_tower().vit, 24, 16, 12}}, grads{m.config};
    randomise(be, m, {.seed = 4, .spread = 0.15f});
    const ArenaLayout layout = arena_layout(m, [&](std::string_view name) { return m.trained(name); });
    Arena<Cpu>        theta{be, layout}, gradients{be, layout};
    theta.adopt(be, m), gradients.bind(grads);
    shapes::Pictures pictures{{tiny_tower().transform}};
    pictures.draw(be, 2, [](std::size_t i) { return shapes::make_scene(0, {Split::train, i}); });
    const std::vector<std::int32_t> rows{0, 5, 13, 14, 40, 71};
    std::vector<float>              wanted(rows.size() * 12);
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = prism::detail::random_normal(9, i);
    shapes::detail::balance({wanted.data(), {rows.size(), 12}}, 0.5);
    Workspace<Cpu> ws{be, std::size_t{16} << 20};
    Tape<Cpu>      tape{{.replay = false}};
    const auto     loss = [&](shapes::Distilled<Cpu>* to) {
        tape.restart();
        return shapes::distilled_pass<Cpu>(be, ws, m, pictures.view(), rows, wanted, 0.2, tape, to);
    };
    loss(&grads);
    for (const Slot& slot : layout.slots) {
        const auto  values = theta.values(slot), slopes = gradients.values(slot);
        double      largest = 0;
        std::size_t at = 0;
        for (std::size_t i = 0; i < slot.size; ++i)
            if (std::abs(slopes(i)) > largest) largest = std::abs(slopes(i)), at = i;
        CAPTURE(slot.name);
        REQUIRE(largest > 0);
        const float  was = values(at);
        const double h = 2e-3;
        const auto   with = [&](double change) {
            values(at) = static_cast<float>(static_cast<double>(was) + change);
            return loss(nullptr);
        };
        const double slope = (8 * (with(h) - with(-h)) - (with(2 * h) - with(-2 * h))) / (12 * h);
        values(at) = was;
        CHECK(slope == doctest::Approx(slopes(at)).epsilon(0.02));
    }
}

TEST_CASE("shapes/distilled: a student learns what its teacher sees behind holes, and goes on with the same bits where it was killed") {
    const test::ModelFolder         folder;
    const shapes::World            world{.seed = 0};
    Cpu                            be{{.threads = 2}};
    const shapes::DistilledOptions options{.batch = 8, .steps = 240, .rate = 4e-3, .d_hidden = 48, .d_common = 16, .n_prototypes = 24};
    struct Killed {};
    const auto step = [&](shapes::DistilledTrainer& t, std::size_t k) { return t.step([&](std::size_t i) { return world.scene(Split::train, k * options.batch + i); }); };
    shapes::DistilledTrainer whole{be, tiny_tower(), options}, first{be, tiny_tower(), options}, second{be, tiny_tower(), options};
    double                   begin = 0, end = 0;
    run_part({folder / "whole", "whole", options.steps, 100}, Json::object(), whole, [&](std::size_t k) {
        const double loss = step(whole, k);
        if (k < 10) begin += loss / 10;
        if (k + 10 >= options.steps) end += loss / 10;
        return loss;
    });
    MESSAGE("loss: " << begin << " to " << end);
    CHECK(begin > 0.8 * std::log(24));
    CHECK(end < 0.96 * begin);
    CHECK_THROWS_AS(run_part({folder / "part", "part", options.steps, 100}, Json::object(), first, [&](std::size_t k) { return k == 131 ? throw Killed{} : step(first, k); }), Killed);
    run_part({folder / "part", "part", options.steps, 100}, Json::object(), second, [&](std::size_t k) { return step(second, k); });
    const auto a = whole.state(), b = second.state();
    REQUIRE(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) CHECK_MESSAGE(std::equal(a[i].values.begin(), a[i].values.end(), b[i].values.begin()), a[i].name);
}
