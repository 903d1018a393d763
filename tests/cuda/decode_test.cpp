// What a decode step does in one launch has the bits of the launches that it stands for.
#include "device.hpp"
#include "weights.hpp"

#include "prism/ops/linear.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

using namespace prism;
using namespace prism::test;

namespace {

constexpr cuda::Order orders[]{cuda::Order::forward, cuda::Order::reversed, cuda::Order::shuffled};

/// Results of several matrices, and the launches that they took.
struct Found {
    std::vector<std::vector<float>> values{};
    std::size_t                     launches = 0;
};
bool same_bits(const Found& a, const Found& b) {
    return std::ranges::equal(a.values, b.values, [](const auto& x, const auto& y) { return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0; });
}

// ---- a norm in front of products ------------------------------------------------------------------------------------

struct Normed {
    std::size_t m = 1, k = 1;
    bool        aligned = true;  // rows, and the norm's weight, begin at multiples of 16 bytes
    float       spread = 1;
    std::size_t poisoned = ~std::size_t{0};  // a row with NaN
};

/// Three products with the same normed rows, one with a bias, and a gate: in a launch each, or behind a norm of its own.
template <Format F>
Found products(const Normed& c, bool merged, Wishes wishes = {}) {
    Device            be{{.driver = wishes}};
    const std::size_t ld = (c.k + 7) / 4 * 4 + (c.aligned ? 0 : 1);
    Array             above = Array::random(c.m + 1, c.k, 3, ld, c.spread);
    if (c.poisoned < c.m) above.mat()(c.poisoned + 1, c.k / 2) = NAN;
    const OnDevice    x(be, above), weight(be, Array::random(2, c.k, 4, ld)), room(be, Array{c.m, c.k}), bias(be, Array::random(1, 37, 5));
    const auto        matrix = [&](std::size_t n, unsigned seed) { return on_device(be.driver(), device_rows<F>(encoded<F>(normal_rows(n, c.k, seed, 0.5f), n, c.k), n, c.k)); };
    const auto        packed = [&](const Buffer<device>& memory, std::size_t n) {
        AnyPacked<device> w;
        w.dtype = F::dtype, w.panels = memory.template as<std::byte>(), w.rows = n, w.cols = c.k;
        return w;
    };
    const std::array<std::size_t, 4>    widths{37, 5, 12, 45};
    std::array<Buffer<device>, 5>       memory;
    std::vector<OnDevice>               y;
    for (std::size_t i = 0; i < 4; ++i) memory[i] = matrix(widths[i], static_cast<unsigned>(10 + i)), y.emplace_back(be, Array{c.m, widths[i], widths[i] + 3});
    memory[4] = matrix(45, 14);
    const std::array<ProductPart<device>, 3> parts{{{packed(memory[0], 37), bias.row(), y[0].mat()}, {packed(memory[1], 5), {}, y[1].mat()}, {packed(memory[2], 12), {}, y[2].mat()}}};

    const auto                    before = be.driver().launches();
    const In<Device>              rows = x.in().rows(1, c.m);
    const ops::NormedRows<Device> lazy{rows, weight.row(1), 1e-5f, room.mat()};
    if (!merged) ops::rms_norm<Device>(be, rows, weight.row(1), 1e-5f, room.mat());
    const auto& normed = merged ? lazy : ops::NormedRows<Device>{room.in()};
    ops::linear_each<Device>(be, normed, parts);
    ops::gated_linear<Device>(be, normed, packed(memory[3], 45), packed(memory[4], 45), y[3].mat());
    Found found{.launches = be.driver().launches() - before};
    for (const OnDevice& of : y) {
        const Array back = of.back();
        CHECK(back.kept_to_its_rows());
        found.values.push_back(back.values());
    }
    return found;
}

template <class Fn>
void for_formats(Fn&& f) {
    const auto over = [&]<Format... F>(format_list<F...>) { (f(F{}), ...); };
    over(all_formats{});
}

}  // namespace

TEST_CASE("cuda/decode: products norm up to eight rows on their way, with the bits of a norm before them, in every format") {
    for_formats([]<Format F>(F) {
        CAPTURE(std::string(F::name));
        for (std::size_t m = 1; m <= 8; ++m)
            for (bool aligned : {true, false}) {
                const Normed c{.m = m, .k = 200 + 33 * m + (aligned ? 0 : 1), .aligned = aligned};
                CAPTURE(c.m);
                CAPTURE(c.k);
                const Found merged = products<F>(c, true), apart = products<F>(c, false);
                CHECK(merged.launches == 2);
                CHECK(apart.launches == 3);
                CHECK(same_bits(merged, apart));
            }
        for (std::size_t m : {1, 2, 3})
            for (std::size_t k : {1, 3, 31, 65, 1024, 1152, 4304}) {
                const Normed c{.m = m, .k = k};
                CAPTURE(c.m);
                CAPTURE(c.k);
                CHECK(same_bits(products<F>(c, true), products<F>(c, false)));
            }
        CHECK(same_bits(products<F>({.m = 9, .k = 64}, true), products<F>({.m = 9, .k = 64}, false)));  // the norm by itself
    });
    CHECK(same_bits(products<bf16>({.m = 1, .k = 11008}, true), products<bf16>({.m = 1, .k = 11008}, false)));
}

TEST_CASE("cuda/decode: a norm in front of products misses no barrier") {
    for_formats([]<Format F>(F) {
        CAPTURE(std::string(F::name));
        for (const Normed& c : {Normed{.m = 1, .k = 300}, Normed{.m = 6, .k = 170, .aligned = false}}) {
            const Found expected = products<F>(c, false);
            for (cuda::Order order : orders) CHECK(same_bits(products<F>(c, true, {.order = order}), expected));
            for (cuda::Order order : {cuda::Order::forward, cuda::Order::reversed})
                CHECK(same_bits(products<F>(c, true, {.order = order, .threads = cuda::Threads::fibers_with_late_copies}), expected));
        }
    });
}

TEST_CASE("cuda/decode: small and large rows, and NaN, go through a norm in front as through one before") {
    for (float spread : {1e-30f, 1e-5f, 1e18f, 1e30f}) CHECK(same_bits(products<bf16>({.m = 3, .k = 200, .spread = spread}, true), products<bf16>({.m = 3, .k = 200, .spread = spread}, false)));
    const Normed c{.m = 3, .k = 70, .poisoned = 1};
    const Found  merged = products<f32>(c, true), apart = products<f32>(c, false);
    for (std::size_t i = 0; i < merged.values.size(); ++i)
        for (std::size_t j = 0; j < merged.values[i].size(); ++j) {
            CHECK(std::isnan(merged.values[i][j]) == std::isnan(apart.values[i][j]));
            if (!std::isnan(apart.values[i][j])) CHECK(merged.values[i][j] == apart.values[i][j]);
        }
}
