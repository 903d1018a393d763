// The driver without a device: recordings, forks and what the library would do.
#include "prism/backend/cuda/emulator.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

using prism::Buffer;
using prism::DeviceError;
using prism::device;
using prism::cuda::Emulator;
using prism::cuda::LibraryProduct;
using prism::cuda::Order;
using prism::cuda::Staged;

namespace {

/// y[i] = a y[i] + b x[i]
struct Mix {
    static constexpr int max_threads = 32;
    const float*         x;
    float*               y;
    int                  n;
    float                a, b;

    template <class Block>
    PRISM_DEVICE void operator()(Block& block) const {
        block.each_alone([&](int t) {
            const int i = block.x * max_threads + t;
            if (i < n) y[i] = a * y[i] + b * x[i];
        });
    }
};

constexpr int n = 70;

void mix(Emulator& be, const Buffer<device>& x, const Buffer<device>& y, float a, float b) {
    be.launch({(n + 31) / 32, 1, 1}, 32, 0, Mix{x.as<float>(), y.as<float>(), n, a, b});
}
std::vector<float> values_of(Emulator& be, const Buffer<device>& b) {
    std::vector<float> v(b.bytes() / sizeof(float));
    be.to_host(v.data(), b.data(), b.bytes());
    return v;
}
Buffer<device> filled(Emulator& be, float value) {
    const std::vector<float> v(n, value);
    Buffer<device>           b = be.allocate(n * sizeof(float));
    be.to_device(b.data(), v.data(), b.bytes());
    return b;
}
bool all_are(const std::vector<float>& v, float value) {
    return !v.empty() && std::all_of(v.begin(), v.end(), [=](float x) { return x == value; });
}

}  // namespace

TEST_CASE("backend/cuda/emulator: a recording runs nothing, and is replayed with what its copies bring") {
    Emulator           be;
    const auto         y = filled(be, 100);
    std::vector<float> in(n, 1.0f);
    Staged             id;
    auto               r = be.record([&] {
        id = be.to_device(y.data(), in.data(), y.bytes());
        const auto h = filled(be, 3);  // stays with the recording
        mix(be, h, y, 2, 1);
        be.clear(h.data(), h.bytes());
        mix(be, h, y, 1, 1);
        CHECK(be.recording());
    });
    CHECK_FALSE(be.recording());
    CHECK(r.n_steps() == 5);
    CHECK(all_are(values_of(be, y), 100));
    std::fill(in.begin(), in.end(), 99.0f);  // was copied when it was recorded
    be.replay(r);
    CHECK(all_are(values_of(be, y), 5));
    r.rewrite(id, in.data(), y.bytes());
    be.replay(r);
    be.replay(r);
    CHECK(all_are(values_of(be, y), 201));
    CHECK_THROWS_AS(r.rewrite(Staged{}, in.data(), 4), DeviceError);
    CHECK_THROWS_AS(r.rewrite(id, in.data(), y.bytes() + 1), DeviceError);
    auto moved = std::move(r);
    be.replay(moved);
    CHECK(all_are(values_of(be, y), 201));
}

TEST_CASE("backend/cuda/emulator: what waits cannot be recorded, and an error leaves the driver usable") {
    Emulator   be;
    const auto y = filled(be, 1);
    float      value = 0;
    CHECK_THROWS_WITH_AS(be.record([&] { be.wait(); }), doctest::Contains("wait failed with code 900: a recording is being made"), DeviceError);
    CHECK_THROWS_AS(be.record([&] { be.to_host(&value, y.data(), 4); }), DeviceError);
    CHECK_THROWS_AS(be.record([&] { be.record([] {}); }), DeviceError);
    const auto r = be.record([&] { mix(be, y, y, 1, 1); });
    CHECK_THROWS_AS(be.record([&] { be.replay(r); }), DeviceError);
    CHECK_FALSE(be.recording());
    be.replay(r);
    CHECK(all_are(values_of(be, y), 2));
    CHECK_THROWS_AS(be.fork([&] { mix(be, y, y, 1, 1); }, [] { throw prism::Error{"on purpose"}; }), prism::Error);
    CHECK(be.branch() == 0);
    CHECK(all_are(values_of(be, y), 4));
}

TEST_CASE("backend/cuda/emulator: the parts of a fork run in an order of their own, and scratch memory they share shows") {
    std::vector<std::vector<float>> apart, shared;
    for (const Order order : {Order::forward, Order::reversed, Order::shuffled})
        for (const bool recorded : {false, true}) {
            Emulator   be({.order = order});
            const auto p = filled(be, 1), q = filled(be, 2), scratch = filled(be, 0), mine = filled(be, 0);
            const auto both = [&](const Buffer<device>& of_b) {
                be.fork(
                    [&] {
                        CHECK(be.branch() == 0);
                        for (int i = 0; i < 4; ++i) mix(be, p, scratch, 0, 1), mix(be, scratch, p, 1, 1);
                    },
                    [&] {
                        CHECK(be.branch() == 1);
                        be.fork([&] { mix(be, q, of_b, 0, 1); }, [&] { mix(be, of_b, q, 1, 1); });  // within a fork: in order
                        for (int i = 0; i < 3; ++i) mix(be, q, of_b, 0, 1), mix(be, of_b, q, 1, 1);
                    });
                mix(be, p, q, 1, 100);
            };
            const auto run = [&](const Buffer<device>& of_b) {
                if (recorded) be.replay(be.record([&] { both(of_b); }));
                else both(of_b);
                return values_of(be, q);
            };
            apart.push_back(run(mine));
            shared.push_back(run(scratch));
        }
    for (const auto& v : apart) CHECK(all_are(v, 32 + 100 * 16));
    CHECK(std::any_of(shared.begin(), shared.end(), [&](const auto& v) { return v != shared[0]; }));
}

TEST_CASE("backend/cuda/emulator: a copy to the host within a fork waits for its part") {
    Emulator   be({.order = Order::reversed});
    const auto p = filled(be, 1), q = filled(be, 2);
    be.fork(
        [&] {
            mix(be, p, p, 1, 1);
            CHECK(all_are(values_of(be, p), 2));
        },
        [&] {
            mix(be, q, q, 1, 1);
            be.wait();
            CHECK(q.as<float>()[0] == 4);
        });
    CHECK(all_are(values_of(be, q), 4));
}

TEST_CASE("backend/cuda/emulator: memory ends where it is told to, and a smaller request works") {
    Emulator   be({.memory_bytes = 10'000});
    const auto a = be.allocate(6000);
    CHECK(std::isnan(a.as<float>()[0]));
    CHECK_THROWS_WITH_AS(be.allocate(6000), doctest::Contains("out of memory: 6000 bytes were asked for"), DeviceError);
    CHECK(be.allocate(3000).bytes() == 3000);
}

TEST_CASE("backend/cuda/emulator: the library's products are those of their definition") {
    std::mt19937                    random(5);
    std::normal_distribution<float> normal;
    Emulator                        be({.library = true});
    const std::int64_t              m = 5, k = 19, cols = 7, ldx = 24, ldw = 20, ldy = 11;
    std::vector<prism::bf16_t>      x(m * ldx), w(cols * ldw);
    std::vector<float>              bias(cols), y(m * ldy);
    for (auto& v : x) v = prism::bf16_t{normal(random)};
    for (auto& v : w) v = prism::bf16_t{normal(random)};
    for (auto& v : bias) v = normal(random);
    for (auto& v : y) v = normal(random);
    for (const bool add : {false, true}) {
        std::vector<float> got = y;
        LibraryProduct     p{.type = prism::Dtype::bf16, .m = m, .n = cols, .k = k, .x = x.data(), .ldx = ldx, .w = w.data(), .ldw = ldw,
                             .bias = add ? nullptr : bias.data(), .add = add, .y = got.data(), .ldy = ldy};
        REQUIRE(be.multiply(p));
        for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t j = 0; j < ldy; ++j) {
                const auto at = static_cast<std::size_t>(i * ldy + j);
                double     sum = add ? double{y[at]} : j < cols ? double{bias[static_cast<std::size_t>(j)]} : 0.0;
                if (j >= cols) sum = double{y[at]};
                else
                    for (std::int64_t l = 0; l < k; ++l) sum += double{float(x[static_cast<std::size_t>(i * ldx + l)])} * double{float(w[static_cast<std::size_t>(j * ldw + l)])};
                CHECK(got[at] == doctest::Approx(sum).epsilon(1e-5));
            }
    }
    CHECK_FALSE(Emulator{}.multiply({}));
}
