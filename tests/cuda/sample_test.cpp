// Tokens chosen on the device are those that Sampler chooses on the host.
#include "device.hpp"

#include "prism/generate/sampling.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <random>

using namespace prism;
using namespace prism::test;

namespace {

struct Chooser {
    Device         be;
    Buffer<device> scores, token, uniform;
    std::size_t    n = 0;

    explicit Chooser(const std::vector<float>& values, Wishes wishes = {})
        : be({.driver = wishes}), scores(be.allocate(values.size() * sizeof(float))), token(be.allocate(sizeof(std::int32_t))), uniform(be.allocate(sizeof(double))), n(values.size()) {
        be.driver().to_device(scores.data(), values.data(), values.size() * sizeof(float));
    }
    std::int32_t chosen() {
        std::int32_t id = -2;
        be.driver().to_host(&id, token.data(), sizeof id);
        return id;
    }
    std::int32_t likeliest(std::int32_t first) {
        be.driver().launch({1, 1, 1}, cuda::TakeLikeliest::max_threads, cuda::TakeLikeliest::shared_bytes,
                           cuda::TakeLikeliest{scores.as<float>(), static_cast<std::int32_t>(n), first, token.as<std::int32_t>()});
        return chosen();
    }
    std::int32_t drawn(const SamplingOptions& o, double at, std::int32_t first) {
        be.driver().to_device(uniform.data(), &at, sizeof at);
        be.driver().launch({1, 1, 1}, cuda::TakeDrawn::max_threads, cuda::TakeDrawn::shared_bytes,
                           cuda::TakeDrawn{scores.as<float>(), static_cast<std::int32_t>(n), first, static_cast<std::int32_t>(o.top_k), o.temperature, o.top_p,
                                           uniform.as<double>(), token.as<std::int32_t>()});
        return chosen();
    }
};

/// *to = the sum of all values, which threads add up in shared memory.
struct AddUp {
    static constexpr int max_threads = 256;
    const std::uint64_t* values;
    std::int32_t         n;
    std::uint64_t*       to;

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        auto* const sum = b.template shared<cuda::SharedSum>(0);
        b.each([&](int t) {
            if (t == 0) *sum = {0, 0};
        });
        b.each([&](int t) {
            for (std::int32_t i = t; i < n; i += max_threads) sum->add(values[i]);
        });
        b.each_alone([&](int t) {
            if (t == 0) *to = sum->value();
        });
    }
};

}  // namespace

TEST_CASE("cuda/sample: the likeliest token is the first of the largest scores, and -1 where one is not finite") {
    for (std::size_t n : {1, 2, 31, 1024, 1025, 5003, 8191, 8193, 20000}) {
        CAPTURE(n);
        auto scores = normal(n, static_cast<unsigned>(n));
        const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
        CHECK(Chooser{scores}.likeliest(7) == 7 + best);
        scores[n - 1] = scores[static_cast<std::size_t>(best)];
        CHECK(Chooser{scores}.likeliest(0) == best);
        for (float bad : {NAN, INFINITY, -INFINITY}) {
            auto broken = scores;
            broken[n / 2] = bad;
            CHECK(Chooser{broken}.likeliest(0) == -1);
        }
    }
}

TEST_CASE("cuda/sample: a sum of 64 bits in shared memory carries from its lower half, whoever adds") {
    std::mt19937_64 random(3);
    const auto      sum_of = [](const std::vector<std::uint64_t>& values, Wishes wishes) {
        Device               be{{.driver = wishes}};
        const Buffer<device> from = be.allocate(values.size() * sizeof(std::uint64_t)), to = be.allocate(sizeof(std::uint64_t));
        std::uint64_t        sum = 0;
        be.driver().to_device(from.data(), values.data(), values.size() * sizeof(std::uint64_t));
        const AddUp kernel{from.as<std::uint64_t>(), static_cast<std::int32_t>(values.size()), to.as<std::uint64_t>()};
        be.driver().launch({1, 1, 1}, AddUp::max_threads, sizeof(cuda::SharedSum), kernel);
        be.driver().to_host(&sum, to.data(), sizeof sum);
        return sum;
    };
    std::vector<std::uint64_t> mixed(3000);
    for (auto& v : mixed) v = random() >> 12;
    using Values = std::vector<std::uint64_t>;
    for (const Values& values : {Values(2, 0xffffffffU), Values{0xffffffffU, 1}, Values{0x80000000U, 0x80000000U, 0x1ffffffffU, 0}, Values(1025, std::uint64_t{1} << 40),
                                 Values(777, 0xfffffffffU), mixed}) {
        std::uint64_t expected = 0;
        for (std::uint64_t v : values) expected += v;
        for (cuda::Order order : {cuda::Order::forward, cuda::Order::shuffled})
            for (cuda::Threads threads : {cuda::Threads::phases, cuda::Threads::fibers}) CHECK(sum_of(values, {.order = order, .threads = threads}) == expected);
    }
}

TEST_CASE("cuda/sample: a drawn token is Sampler's, whatever the filters, ties included") {
    for (std::size_t n : {1, 3, 100, 1500}) {
        auto scores = normal(n, 9, 3);
        for (std::size_t i = 0; i < n; i += 3) scores[i] = std::round(scores[i]);  // many equal ones
        for (const SamplingOptions& o : {SamplingOptions{.temperature = 1}, SamplingOptions{.temperature = 0.5f, .top_k = 5}, SamplingOptions{.temperature = 1.5f, .top_p = 0.7f},
                                         SamplingOptions{.temperature = 0.9f, .top_k = 40, .top_p = 0.9f}, SamplingOptions{.temperature = 2, .top_k = 1},
                                         SamplingOptions{.temperature = 1, .top_p = 1e-6f}}) {
            CAPTURE(n);
            CAPTURE(o.temperature);
            CAPTURE(o.top_k);
            CAPTURE(o.top_p);
            Chooser            device{scores};
            SamplingOptions    seeded = o;
            seeded.seed = 11;
            Sampler            host{seeded};
            std::mt19937_64    random(11);  // as Sampler draws from it
            for (int i = 0; i < 12; ++i) {
                auto copy = scores;
                CHECK(device.drawn(o, static_cast<double>(random() >> 11) * 0x1p-53, 5) == host.next(copy, {}, 5));
            }
        }
    }
}

TEST_CASE("cuda/sample: no kernel misses a barrier") {
    const auto            scores = normal(2100, 5, 2);
    const SamplingOptions o{.temperature = 1, .top_k = 60, .top_p = 0.8f};
    Chooser               plain{scores};
    for (cuda::Order order : {cuda::Order::forward, cuda::Order::reversed}) {
        Chooser c{scores, {.order = order, .threads = cuda::Threads::fibers}};
        CHECK(c.likeliest(0) == plain.likeliest(0));
        for (double at : {0.01, 0.6, 0.99}) CHECK(c.drawn(o, at, 0) == plain.drawn(o, at, 0));
    }
}
