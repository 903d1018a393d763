// Sessions: what is read again and what is not, how answers end, what is refused.
#include "generate/support.hpp"
#include "prism/generate/batch.hpp"

#include <doctest/doctest.h>

#include <thread>

using namespace prism;
using namespace prism::test;

namespace {

struct Fixture {
    Cpu         be{{.threads = 2}};
    OneEye<Cpu> model;

    Fixture() { randomise(be, model, 5); }
    Session<Cpu, OneEye<Cpu>> session(SessionOptions options = {.max_tokens = 64}) { return {be, model, options}; }
    Ids fresh(const Ids& ids, std::size_t n, const Picture* picture = nullptr) {
        auto s = session();
        if (picture) s.show(picture->views);
        return s.generate(ids, {.max_new_tokens = n}).ids;
    }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "generate/session: what a prompt shares with the one before is not read again, and changes no answer") {
    const Picture a{1}, b{2};
    auto          s = session();
    const Ids     first = prompt(9, 1);
    const auto    said = s.generate(first, {.max_new_tokens = 6}).ids;
    CHECK(said == fresh(first, 6));
    CHECK(s.length() == 9 + 5);  // the last token was not read yet

    const Ids longer = joined(joined(first, said), prompt(4, 2));
    CHECK(s.generate(longer, {.max_new_tokens = 6}).ids == fresh(longer, 6));
    Ids forked = longer;
    forked.resize(12), forked[10] = (forked[10] + 1) % 31;
    CHECK(s.generate(forked, {.max_new_tokens = 6}).ids == fresh(forked, 6));
    CHECK(s.generate(forked, {.max_new_tokens = 6}).ids == fresh(forked, 6));  // the very same again: the last token is read anew
    CHECK(s.generate(Ids{3}, {.max_new_tokens = 6}).ids == fresh({3}, 6));

    s.show(a.views);
    CHECK(s.generate(first, {.max_new_tokens = 6}).ids == fresh(first, 6, &a));
    CHECK(s.generate(longer, {.max_new_tokens = 6}).ids == fresh(longer, 6, &a));
    s.show(b.views);
    CHECK(s.generate(longer, {.max_new_tokens = 6}).ids == fresh(longer, 6, &b));
    s.hide();
    CHECK(s.generate(longer, {.max_new_tokens = 6}).ids == fresh(longer, 6));
    CHECK(fresh(first, 12, &a) != fresh(first, 12, &b));  // the model does look
}

TEST_CASE_FIXTURE(Fixture, "generate/session: several prompts on one picture encode it once") {
    const Picture a{1};
    pictures_encoded = 0;
    auto s = session();
    s.show(a.views);
    for (unsigned i = 0; i < 5; ++i) s.generate(prompt(6, i), {.max_new_tokens = 3});
    s.next_logits(prompt(3, 1));
    s.log_probabilities(prompt(3, 1), std::vector<Ids>{{1, 2}, {3}});
    CHECK(pictures_encoded == 1);
}

TEST_CASE_FIXTURE(Fixture, "generate/session: reading in chunks of any size gives the logits of reading at once") {
    const Picture a{1};
    const Ids     ids = prompt(21, 3);
    const auto    logits = [&](std::size_t chunk) {
        auto s = session({.max_tokens = 64, .prefill_chunk = chunk});
        s.show(a.views);
        std::vector<float> all;
        std::size_t        rows = 0;
        s.all_logits(ids, [&](std::size_t position, std::span<const float> row) {
            CHECK(position == rows++);
            all.insert(all.end(), row.begin(), row.end());
        });
        CHECK(rows == 25);
        const auto last = s.next_logits(ids);
        for (std::size_t i = 0; i < 31; ++i) CHECK(std::abs(last[i] - all[24 * 31 + i]) < 1e-5f);
        return all;
    };
    const auto whole = logits(512);
    for (std::size_t chunk : {1, 2, 3, 5, 24, 25}) {
        const auto found = logits(chunk);
        double     most = 0;
        for (std::size_t i = 0; i < whole.size(); ++i) most = std::max(most, std::abs(static_cast<double>(found[i]) - static_cast<double>(whole[i])));
        CHECK(most < 1000 * u);  // sums in another order through two layers
    }
}

TEST_CASE_FIXTURE(Fixture, "generate/batch: items answer as they do alone, with pictures of their own, another's or none") {
    const Picture a{1}, b{2};
    Array         soft_a{4, 16}, soft_b{4, 16};
    Workspace<Cpu> ws{be, 1 << 16};
    model.see(be, ws, a.views, soft_a.mat()), model.see(be, ws, b.views, soft_b.mat());
    const std::vector<BatchItem<Cpu>> items{{prompt(7, 1), soft_a.in()}, {prompt(2, 2)}, {prompt(12, 3), soft_b.in()}, {prompt(7, 1), soft_b.in()}, {prompt(1, 4), soft_a.in(), 0}};
    const std::vector<const Picture*> pictures{&a, nullptr, &b, &b, nullptr};
    for (SamplingOptions sampling : {SamplingOptions{}, SamplingOptions{.temperature = 1, .top_k = 20, .seed = 3}}) {
        const GenerateOptions options{.max_new_tokens = 8, .sampling = sampling, .stop_ids = {4, 17}};
        const auto            together = generate_batch(be, model.llm, std::span(items), options);
        REQUIRE(together.size() == items.size());
        for (std::size_t i = 0; i < items.size(); ++i) {
            auto s = session();
            if (items[i].soft.rows()) s.show_soft(items[i].soft);
            const auto alone = s.generate(items[i].ids, options, items[i].picture_at);
            CHECK(together[i].ids == alone.ids);
            CHECK(together[i].stop == alone.stop);
        }
    }
    std::vector<Ids> heard(items.size());
    const auto       cut = generate_batch(be, model.llm, std::span(items), {.max_new_tokens = 8}, [&](std::size_t item, std::int32_t id) {
        heard[item].push_back(id);
        return item != 1 || heard[1].size() < 3;
    });
    for (std::size_t i = 0; i < items.size(); ++i) {
        CHECK(heard[i] == cut[i].ids);
        CHECK(cut[i].ids.size() == (i == 1 ? 3 : 8));
        CHECK(cut[i].stop == (i == 1 ? Stop::callback : Stop::max_new_tokens));
    }
    CHECK(generate_batch(be, model.llm, std::span<const BatchItem<Cpu>>{}, {}).empty());
    const std::vector<BatchItem<Cpu>> one_is_empty{{prompt(2, 1)}, {}};
    CHECK_THROWS_AS(generate_batch(be, model.llm, std::span(one_is_empty), {}), ConfigError);
}

TEST_CASE_FIXTURE(Fixture, "generate/session: an answer ends at a stop id, at its length, by the callback, or where the context is full") {
    const Ids  ids = prompt(6, 1);
    const auto whole = fresh(ids, 20);
    auto       s = session();

    const auto stopped = s.generate(ids, {.max_new_tokens = 20, .stop_ids = {whole[4], 1000}});
    CHECK(stopped.stop == Stop::stop_id);
    const auto stop_at = std::find(whole.begin(), whole.end(), whole[4]) - whole.begin();
    CHECK(stopped.ids == Ids(whole.begin(), whole.begin() + stop_at + 1));  // the stop id is the last

    Ids  heard;
    auto called = s.generate(ids, {.max_new_tokens = 20, .stop_ids = {whole[4]}, .on_token = [&](std::int32_t id) { return heard.push_back(id), true; }});
    CHECK(heard == Ids(whole.begin(), whole.begin() + stop_at));  // the callback does not hear it
    called = s.generate(ids, {.max_new_tokens = 20, .on_token = [n = 0](std::int32_t) mutable { return ++n < 3; }});
    CHECK((called.stop == Stop::callback && called.ids == Ids(whole.begin(), whole.begin() + 3)));

    const auto none = s.generate(ids, {.max_new_tokens = 0});
    CHECK((none.ids.empty() && none.stop == Stop::max_new_tokens));

    auto       small = session({.max_tokens = 10});
    const auto full = small.generate(ids, {.max_new_tokens = 20});
    CHECK(full.stop == Stop::context_full);
    CHECK(full.ids == Ids(whole.begin(), whole.begin() + 5));  // four tokens fit, and the fifth was never read
    CHECK(small.generate(ids, {.max_new_tokens = 2}).ids == Ids(whole.begin(), whole.begin() + 2));
}

TEST_CASE_FIXTURE(Fixture, "generate/session: another thread stops an answer within a token, and the session stays usable") {
    auto              s = session({.max_tokens = 4096});
    std::atomic<bool> cancel{true};
    CHECK(s.generate(prompt(5, 1), {.cancel = &cancel}).ids.size() == 1);
    cancel = false;
    std::atomic<int> heard{0};
    int              when_cancelled = 0;
    std::thread      other([&] {
        while (heard < 20) std::this_thread::yield();
        when_cancelled = heard;
        cancel = true;
    });
    const auto out = s.generate(prompt(5, 1), {.max_new_tokens = 4000, .on_token = [&](std::int32_t) { return ++heard, true; }, .cancel = &cancel});
    other.join();
    CHECK(out.stop == Stop::cancelled);
    CHECK(static_cast<int>(out.ids.size()) == heard);
    CHECK(heard >= when_cancelled);
    CHECK(s.generate(prompt(5, 1), {.max_new_tokens = 7}).ids == fresh(prompt(5, 1), 7));
}

TEST_CASE_FIXTURE(Fixture, "generate/session: scores that are no numbers name the step and give what was generated before") {
    const Ids  ids = prompt(4, 6);
    const auto good = fresh(ids, 12);
    // The row of the table that the fourth token reads becomes NaN, so the scores after it are.
    std::size_t poisoned = 0;
    while (std::find(ids.begin(), ids.end(), good[poisoned]) != ids.end()) ++poisoned;
    const auto first = static_cast<std::size_t>(std::find(good.begin(), good.end(), good[poisoned]) - good.begin());
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        auto tensors = random_tensors(model, 5);
        for (auto& t : tensors)
            if (t.name == "llm.model.embed_tokens.weight") {
                auto values = to_floats(t);
                values[static_cast<std::size_t>(good[poisoned]) * 16 + 3] = bad;
                t = tensor(t.name, t.shape, values);
            }
        OneEye<Cpu> broken;
        bind_all(be, broken, tensors);
        Session<Cpu, OneEye<Cpu>> s{be, broken, {.max_tokens = 64}};
        try {
            s.generate(ids, {.max_new_tokens = 12});
            FAIL("NaN went through");
        } catch (const GenerationError& e) {
            CHECK(e.step == first + 1);
            CHECK(e.ids == Ids(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(first) + 1));
            CHECK(std::string(e.what()).find("step " + std::to_string(first + 1)) != std::string::npos);
        }
        const std::vector<BatchItem<Cpu>> one{{ids}};
        CHECK_THROWS_AS(generate_batch(be, broken.llm, std::span(one), {.max_new_tokens = 12}), GenerationError);
        CHECK(s.generate(ids, {.max_new_tokens = first}).ids == Ids(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(first)));
    }
}

TEST_CASE_FIXTURE(Fixture, "generate/session: a prompt that does not fit, is empty or has ids that are none is refused before any work") {
    const Picture a{1};
    auto          s = session({.max_tokens = 12});
    s.show(a.views);
    s.generate(prompt(3, 1), {.max_new_tokens = 1});
    const std::size_t before = s.length();
    const auto        message = [&](const Ids& ids, GenerateOptions options = {.max_new_tokens = 3}) -> std::string {
        try {
            s.generate(ids, options);
        } catch (const ConfigError& e) { return e.what(); }
        return "taken";
    };
    CHECK(message(prompt(9, 2)) == "'prompt' is 9 tokens with a picture of 4; allowed: together at most max_tokens = 12");
    CHECK(message({}) == "'prompt' is empty; allowed: at least one token");
    CHECK(message({1, 31}) == "'token id' is 31; allowed: 0 ... 30");
    CHECK(message({1, -7}) == "'token id' is -7; allowed: 0 ... 30");
    CHECK(message({1, soft_token, 2}) == "'token id' is -1; allowed: 0 ... 30");
    CHECK(message({1}, {.first_id = 31}) == "'first_id' is 31; allowed: below 31");
    CHECK(message({1}, {.first_id = 20, .n_ids = 12}) == "'n_ids' is 12; allowed: at most 11");
    CHECK(message({1}, {.sampling = {.temperature = -1}}).starts_with("'temperature' is"));
    CHECK(s.length() == before);  // nothing was read, nothing forgotten
    CHECK(message(prompt(8, 2)) == "taken");

    s.hide();
    CHECK(message({1, soft_token}) == "'token id' is -1; allowed: 0 ... 30");
    CHECK_THROWS_AS((Session<Cpu, OneEye<Cpu>>{be, model, {.max_tokens = std::numeric_limits<std::size_t>::max()}}), ConfigError);
    const std::vector<float>    big(3 * 8 * 8);
    const std::vector<PixelView<Cpu>> wrong{{big.data(), {1, 3, 8, 8}}};
    CHECK_THROWS_AS(s.show(wrong), ShapeError);
    CHECK_FALSE(s.has_picture());
    CHECK_THROWS_AS(s.show_soft(Array(2, 15).in()), ShapeError);
}

TEST_CASE_FIXTURE(Fixture, "generate/session: soft tokens of any number may come and go beside pictures") {
    const Picture a{1};
    auto          s = session();
    s.show_soft(Array::random(1, 16, 1).in());  // fewer than a picture has
    CHECK(s.generate(prompt(3, 1), {.max_new_tokens = 3}).ids.size() == 3);
    s.show(a.views);
    CHECK(s.generate(prompt(3, 1), {.max_new_tokens = 9}).ids == fresh(prompt(3, 1), 9, &a));
    s.show_soft(Array::random(9, 16, 1).in());
    CHECK(s.generate(prompt(3, 1), {.max_new_tokens = 3}).ids.size() == 3);
    CHECK(s.length() == 3 + 9 + 2);
}

TEST_CASE_FIXTURE(Fixture, "generate/session: only the ids asked for are scored, and they are the best of those") {
    const Ids  ids = prompt(5, 2);
    auto       s = session();
    const auto logits = s.next_logits(ids);
    const auto best = std::max_element(logits.begin() + 7, logits.begin() + 19) - logits.begin();
    CHECK(s.generate(ids, {.max_new_tokens = 1, .first_id = 7, .n_ids = 12}).ids == Ids{static_cast<std::int32_t>(best)});
    const auto tail = std::max_element(logits.begin() + 7, logits.end()) - logits.begin();
    CHECK(s.generate(ids, {.max_new_tokens = 1, .first_id = 7}).ids == Ids{static_cast<std::int32_t>(tail)});
    // A penalty on the ids that were there, which are counted from 0 all the same.
    Ids with_best = ids;
    with_best.back() = static_cast<std::int32_t>(best);
    const auto again = s.next_logits(with_best);
    Ids        seen = with_best;
    auto       expected = again;
    std::ranges::sort(seen), seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (std::int32_t id : seen) expected[static_cast<std::size_t>(id)] *= expected[static_cast<std::size_t>(id)] > 0 ? 0.5f : 2.0f;
    const auto likeliest = std::max_element(expected.begin() + 7, expected.begin() + 19) - expected.begin();
    CHECK(s.generate(with_best, {.max_new_tokens = 1, .sampling = {.repetition_penalty = 2}, .first_id = 7, .n_ids = 12}).ids == Ids{static_cast<std::int32_t>(likeliest)});
}

TEST_CASE_FIXTURE(Fixture, "generate/session: the log-probability of a choice is the sum over its tokens") {
    const Ids  ids = prompt(5, 2);
    auto       s = session();
    const auto log_softmax = [&](const Ids& before, std::int32_t id) {
        const auto logits = session().next_logits(before);
        double     sum = 0;
        for (float x : logits) sum += std::exp(static_cast<double>(x));
        return static_cast<double>(logits[static_cast<std::size_t>(id)]) - std::log(sum);
    };
    const std::vector<Ids> choices{{3}, {3, 9}, {30, 0, 12}, {3}};
    const auto             found = s.log_probabilities(ids, choices);
    for (std::size_t c = 0; c < choices.size(); ++c) {
        double expected = 0;
        Ids    before = ids;
        for (std::int32_t id : choices[c]) expected += log_softmax(before, id), before.push_back(id);
        CHECK(std::abs(found[c] - expected) < 1000 * u);
    }
    CHECK(s.generate(ids, {.max_new_tokens = 5}).ids == fresh(ids, 5));  // the choices left nothing behind
    CHECK_THROWS_AS(s.log_probabilities(ids, std::vector<Ids>{{}}), ConfigError);
    CHECK_THROWS_AS(s.log_probabilities(ids, std::vector<Ids>{{31}}), ConfigError);
}

TEST_CASE("generate: one constant model serves several threads, on one backend and on several, with the answers of one") {
    Cpu         shared{{.threads = 2}};
    OneEye<Cpu> made;
    randomise(shared, made, 5, Dtype::bf16);
    const OneEye<Cpu>& model = made;
    const auto         work = [&](Cpu& be, unsigned seed) {
        const Picture             picture{seed};
        Session<Cpu, OneEye<Cpu>> s{be, model, {.max_tokens = 64, .prefill_chunk = 5}};
        s.show(picture.views);
        Ids all;
        for (unsigned i = 0; i < 4; ++i) all = joined(all, s.generate(prompt(7 + i, seed + i), {.max_new_tokens = 9, .sampling = {.temperature = i % 2 ? 1.0f : 0.0f, .seed = seed}}).ids);
        return all;
    };
    std::vector<Ids> expected;
    for (unsigned i = 0; i < 4; ++i) expected.push_back(work(shared, i));
    for (bool one_backend : {true, false}) {
        std::vector<Ids>         found(4);
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < 4; ++i)
            threads.emplace_back([&, i] {
                if (one_backend) {
                    found[i] = work(shared, i);
                } else {
                    Cpu own{{.threads = 1 + i % 3}};
                    found[i] = work(own, i);
                }
            });
        for (auto& t : threads) t.join();
        CHECK(found == expected);
    }
}
