// Operations on rows on a device, beside the same ones on the processor, which other tests hold against f64.
#include "device.hpp"

#include "prism/backend/cpu/cpu.hpp"
#include "prism/ops/attention.hpp"
#include "prism/ops/patchify.hpp"
#include "prism/ops/rows.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>

using namespace prism;
using namespace prism::test;

namespace {

constexpr std::size_t heights[]{1, 2, 3, 31, 261}, widths[]{1, 7, 31, 592, 1024, 1152};

/// Rows that start at multiples of 16 bytes, and rows that do not.
std::size_t padded(std::size_t cols, std::size_t i) { return i % 2 ? cols + 3 : (cols + 7) / 4 * 4; }

/// The largest difference of two results, in units of `step` times the largest value of its row, or of that row of what
/// they were made from; infinite for NaN, and where something was written between the rows.
double apart(const Array& found, const Array& expected, double step, const Array* from = nullptr) {
    double most = found.kept_to_its_rows() ? 0 : std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < found.rows(); ++i) {
        double largest = 1e-30;
        for (std::size_t j = 0; j < found.cols(); ++j) largest = std::max(largest, std::abs(static_cast<double>((from ? *from : expected)(i, j))));
        for (std::size_t j = 0; j < found.cols(); ++j) {
            const double d = std::abs(static_cast<double>(found(i, j)) - static_cast<double>(expected(i, j))) / (largest * step);
            most = std::isnan(d) ? std::numeric_limits<double>::infinity() : std::max(most, d);
        }
    }
    return most;
}

/// body(device, n, d, i) for every size.
template <class Body>
void everywhere(Body&& body) {
    Device      be{{.driver = Wishes{}}};
    Cpu         cpu{{.threads = 1}};
    std::size_t i = 0;
    for (std::size_t n : heights)
        for (std::size_t d : widths) {
            CAPTURE(n);
            CAPTURE(d);
            body(be, cpu, n, d, i++);
        }
}

}  // namespace

TEST_CASE("cuda/rows: norms are the processor's within the rounding of their sums, in place and far from zero too") {
    everywhere([](Device& be, Cpu& cpu, std::size_t n, std::size_t d, std::size_t i) {
        const Array w = Array::random(1, d, 1), b = Array::random(1, d, 2);
        for (float centre : {0.0f, 30.0f}) {
            const Array    x = Array::random(n, d, 3, padded(d, i), 2, centre);
            Array          layer{n, d, padded(d, i + 1)}, rms = layer;
            const OnDevice dx(be, x), dw(be, w), db(be, b), dlayer(be, layer), drms(be, rms), in_place(be, x);
            ops::layer_norm<Cpu>(cpu, x.in(), w.row(), b.row(), 1e-5f, layer.mat());
            ops::rms_norm<Cpu>(cpu, x.in(), w.row(), 1e-6f, rms.mat());
            ops::layer_norm<Device>(be, dx.in(), dw.row(), db.row(), 1e-5f, dlayer.mat());
            ops::layer_norm<Device>(be, in_place.in(), dw.row(), db.row(), 1e-5f, in_place.mat());
            ops::rms_norm<Device>(be, dx.in(), dw.row(), 1e-6f, drms.mat());
            // Both sides round a mean of d values: its error, as often as the centre is larger than the spread.
            const double step = 8 * u * (1 + static_cast<double>(centre)) + 2 * u * std::sqrt(static_cast<double>(d));
            if (d > 1 || centre == 0) CHECK(apart(dlayer.back(), layer, step) <= 1);
            CHECK(apart(drms.back(), rms, 8 * u + 2 * u * std::sqrt(static_cast<double>(d))) <= 1);
            const Array again = in_place.back(), once = dlayer.back();
            for (std::size_t r = 0; r < n; ++r)
                for (std::size_t j = 0; j < d; ++j) REQUIRE(again(r, j) == once(r, j));
        }
    });
}

TEST_CASE("cuda/rows: norms of rows that end in a four or not, wider than what threads hold, lying anywhere: the same bits") {
    Device be{{.driver = Wishes{}}};
    Cpu    cpu{{.threads = 1}};
    for (std::size_t d : {1, 3, 4, 5, 128, 255, 257, 1024, 1152, 4096, 8192, 8195, 9001}) {
        CAPTURE(d);
        const double step = 8 * u + 2 * u * std::sqrt(static_cast<double>(d));
        const Array  x = Array::random(2, d, 3), w = Array::random(2, d, 1), b = Array::random(2, d, 2);
        Array        layer{2, d}, rms = layer;
        ops::layer_norm<Cpu>(cpu, x.in(), w.row(), b.row(), 1e-5f, layer.mat());
        ops::rms_norm<Cpu>(cpu, x.in(), w.row(), 1e-6f, rms.mat());
        std::vector<Array> layers, squares;
        for (std::size_t ld : {(d + 7) / 4 * 4, (d + 7) / 4 * 4 + 1}) {
            const auto moved = [&](const Array& a) {  // rows 1 ... of a taller matrix, so that they begin at a four or not
                Array to{a.rows() + 1, d, ld};
                for (std::size_t i = 0; i <= a.rows(); ++i)
                    for (std::size_t j = 0; j < d; ++j) to.mat()(i, j) = i ? a(i - 1, j) : 7.0f;
                return to;
            };
            const OnDevice dx(be, moved(x)), dw(be, moved(w)), db(be, moved(b)), dlayer(be, Array{3, d, ld}), drms(be, Array{3, d, ld});
            ops::layer_norm<Device>(be, dx.in().rows(1, 2), dw.row(1), db.row(1), 1e-5f, dlayer.mat().rows(1, 2));
            ops::rms_norm<Device>(be, dx.in().rows(1, 2), dw.row(1), 1e-6f, drms.mat().rows(1, 2));
            const auto of = [&](const OnDevice& from) {
                const Array all = from.back();
                CHECK(all.kept_to_its_rows());
                Array two{2, d};
                for (std::size_t i = 0; i < 2; ++i)
                    for (std::size_t j = 0; j < d; ++j) two.mat()(i, j) = all(i + 1, j);
                return two;
            };
            layers.push_back(of(dlayer)), squares.push_back(of(drms));
        }
        if (d > 1) CHECK(apart(layers[0], layer, step) <= 1);
        CHECK(apart(squares[0], rms, step) <= 1);
        CHECK(layers[0].values() == layers[1].values());
        CHECK(squares[0].values() == squares[1].values());
    }
}

TEST_CASE("cuda/rows: what goes element by element is the processor's to a few roundings") {
    everywhere([](Device& be, Cpu& cpu, std::size_t n, std::size_t d, std::size_t i) {
        const Array    x = Array::random(n, d, 3, padded(d, i), 3), h = Array::random(n, d, 4, padded(d, i + 1)), gamma = Array::random(1, d, 5);
        const OnDevice dx(be, x), dh(be, h), dgamma(be, gamma);
        for (auto act : {Activation::gelu_erf, Activation::gelu_tanh, Activation::quick_gelu, Activation::silu}) {
            Array          y = x;
            const OnDevice dy(be, y);
            ops::activate<Cpu>(cpu, act, y.mat());
            ops::activate<Device>(be, act, dy.mat());
            CHECK_MESSAGE(apart(dy.back(), y, 8 * u, &x) <= 1, to_string(act));
        }
        Array          product{n, d, padded(d, i)}, scaled = x, plain = x, copied{n, d, padded(d, i + 1)};
        const OnDevice dproduct(be, product), dscaled(be, scaled), dplain(be, plain), dcopied(be, copied);
        ops::silu_mul<Cpu>(cpu, x.in(), h.in(), product.mat());
        ops::silu_mul<Device>(be, dx.in(), dh.in(), dproduct.mat());
        CHECK(apart(dproduct.back(), product, 16 * u) <= 1);
        ops::add_scaled<Cpu>(cpu, h.in(), gamma.row(), scaled.mat());
        ops::add_scaled<Device>(be, dh.in(), dgamma.row(), dscaled.mat());
        CHECK(apart(dscaled.back(), scaled, 2 * u) <= 1);
        ops::add<Cpu>(cpu, h.in(), plain.mat());
        ops::add<Device>(be, dh.in(), dplain.mat());
        CHECK(apart(dplain.back(), plain, 0.5 * u) <= 1);
        ops::copy<Device>(be, dx.in(), dcopied.mat());
        CHECK(apart(dcopied.back(), x, 1) == 0);
        if (n % 3 == 0) {
            Array          y = x;
            const Array    table = Array::random(n / 3, d, 7);
            const OnDevice dy(be, y), dtable(be, table);
            ops::add_table<Cpu>(cpu, table.in(), y.mat());
            ops::add_table<Device>(be, dtable.in(), dy.mat());
            CHECK(apart(dy.back(), y, 0.5 * u) <= 1);
        }
    });
}

TEST_CASE("cuda/rows: a recording of work side by side keeps the second workspace, whatever comes later") {
    Device         be{{.driver = Wishes{}}};
    const Array    x = Array::random(3, 64, 1);
    const OnDevice from(be, x), to(be, Array::random(3, 64, 2));
    const auto     through = [&](Workspace<Device>& ws) {
        auto scope = ws.scope();
        auto between = ws.mat(3, 64);
        ops::copy<Device>(be, from.in(), between);
        ops::copy<Device>(be, between, to.mat());
    };
    const auto        nothing = [](Workspace<Device>&) {};
    Workspace<Device> ws(be, 4096), larger(be, 1 << 20);
    be.side_by_side(ws, nothing, nothing);
    auto recording = be.record([&] { be.side_by_side(ws, nothing, through); });
    be.side_by_side(larger, nothing, nothing);
    std::vector<OnDevice> others;  // one of them lies where the second workspace was, had it gone
    const Array           other = Array::random(1, 1024, 3);
    for (int i = 0; i < 8; ++i) others.emplace_back(be, other);
    be.replay(recording);
    CHECK(apart(to.back(), x, 1) == 0);
    for (const OnDevice& o : others) CHECK(apart(o.back(), other, 1) == 0);
}

TEST_CASE("cuda/rows: NaN and infinities go through norms and activations") {
    Device be{{.driver = Wishes{}}};
    Array  x = Array::random(3, 64, 1), w = Array::random(1, 64, 2);
    x.mat()(1, 5) = NAN;
    x.mat()(2, 7) = INFINITY;
    const OnDevice dx(be, x), dw(be, w), y(be, x), z(be, x);
    ops::rms_norm<Device>(be, dx.in(), dw.row(), 1e-6f, y.mat());
    ops::activate<Device>(be, Activation::gelu_erf, z.mat());
    const Array norm = y.back(), act = z.back();
    CHECK(std::isfinite(norm(0, 5)));
    for (std::size_t j = 0; j < 64; ++j) CHECK(std::isnan(norm(1, j)));
    CHECK(std::isnan(norm(2, 7)));
    CHECK(std::isnan(act(1, 5)));
    CHECK(act(2, 7) == INFINITY);
}

TEST_CASE("cuda/rows: positions turn heads as on the processor, and patches are its patches") {
    Device be{{.driver = Wishes{}}};
    Cpu    cpu{{.threads = 1}};
    for (std::size_t n : {1, 5, 33})
        for (std::size_t head_dim : {6, 8, 10, 64, 72, 80}) {
            const std::size_t more = n == 5 ? 5 : 4;  // between rows: they begin at multiples of 16 bytes, or not
            CAPTURE(n);
            CAPTURE(head_dim);
            CAPTURE(more);
            const std::size_t heads = 3, angles = head_dim == 80 ? 16 : head_dim == 72 ? 10 : head_dim / 2;  // Phi-2 turns a part of each head
            Array             cos{n, angles, angles + more}, sin = cos, frequencies{1, angles}, x = Array::random(n, heads * head_dim, 4, heads * head_dim + more);
            const OnDevice    dcos(be, cos), dsin(be, sin), dx(be, x);
            ops::rope_table<Cpu>(cpu, 1000, 1e4f, {frequencies.mat().data(), {angles}}, cos.mat(), sin.mat());
            const Buffer<device> scratch = be.allocate(angles * sizeof(float));
            ops::rope_table<Device>(be, 1000, 1e4f, {scratch.as<float>(), {angles}}, dcos.mat(), dsin.mat());
            CHECK(apart(dcos.back(), cos, 4 * u) <= 1);
            CHECK(apart(dsin.back(), sin, 4 * u) <= 1);
            ops::rope_half<Cpu>(cpu, cos.in(), sin.in(), heads, x.mat());
            ops::rope_half<Device>(be, dcos.in(), dsin.in(), heads, dx.mat());
            CHECK(apart(dx.back(), x, 8 * u) <= 1);

            Array          cache{heads * 40, head_dim};
            const OnDevice dcache(be, cache);
            const OnDevice same(be, x);
            ops::split_heads<Cpu>(cpu, x.in(), heads, 40 * head_dim, cache.mat().rows(2, n));
            ops::split_heads<Device>(be, same.in(), heads, 40 * head_dim, dcache.mat().rows(2, n));
            CHECK(dcache.back().values() == cache.values());

            // Both in one launch: the bits of each alone.
            const Array    fresh = Array::random(n, heads * head_dim, 4, heads * head_dim + more), v = Array::random(n, heads * head_dim, 6);
            const OnDevice q(be, fresh), k(be, fresh), dv(be, v), keys(be, Array{heads * 40, head_dim}), values(be, Array{heads * 40, head_dim});
            const auto     before = be.driver().launches();
            ops::rope_and_append<Device>(be, dcos.in(), dsin.in(), q.mat(), k.mat(), dv.in(), heads, 40 * head_dim, keys.mat().rows(2, n), values.mat().rows(2, n));
            CHECK(be.driver().launches() == before + 1);
            CHECK(q.back().values() == dx.back().values());
            const OnDevice expected_keys(be, Array{heads * 40, head_dim}), expected_values(be, Array{heads * 40, head_dim});
            ops::split_heads<Device>(be, dx.in(), heads, 40 * head_dim, expected_keys.mat().rows(2, n));
            ops::split_heads<Device>(be, dv.in(), heads, 40 * head_dim, expected_values.mat().rows(2, n));
            CHECK(keys.back().values() == expected_keys.back().values());
            CHECK(values.back().values() == expected_values.back().values());

            // So are those of a cache of 16 bits, also where an integer on the device says which row is next.
            using Cache = View<bf16_t, device, dyn, dyn>;
            const std::size_t               bytes = heads * 40 * head_dim * sizeof(bf16_t);
            std::array<Buffer<device>, 4>   halves;
            std::array<Cache, 4>            rows_of;
            for (std::size_t c = 0; c < 4; ++c) {
                halves[c] = be.allocate(bytes);
                be.driver().clear(halves[c].data(), bytes);
                rows_of[c] = Cache{halves[c].as<bf16_t>() + (c < 2 ? 0 : 2 * head_dim), {n, head_dim}, {head_dim, 1}};
            }
            const Buffer<device> shift = be.allocate(sizeof(std::int32_t));
            be.upload(std::array<std::int32_t, 1>{2}, shift.as<std::int32_t>());
            const OnDevice turned(be, fresh);
            be.shift_from(shift.as<std::int32_t>());
            ops::rope_and_append<Device>(be, dcos.in(), dsin.in(), turned.mat(), k.mat(), dv.in(), heads, 40 * head_dim, rows_of[0], rows_of[1]);
            be.shift_from(nullptr);
            ops::split_heads<Device>(be, dx.in(), heads, 40 * head_dim, rows_of[2]);
            ops::split_heads<Device>(be, dv.in(), heads, 40 * head_dim, rows_of[3]);
            CHECK(turned.back().values() == dx.back().values());
            for (std::size_t c = 0; c < 2; ++c) {
                std::vector<std::byte> found(bytes), expected(bytes);
                be.driver().to_host(found.data(), halves[c].data(), bytes);
                be.driver().to_host(expected.data(), halves[c + 2].data(), bytes);
                CHECK(found == expected);
            }
        }
    const std::size_t side = 31, patch = 7, grid = side / patch;
    const auto        pixels = normal(2 * 3 * side * side, 3);
    const Array       flat = Array::random(1, pixels.size(), 3);
    Array             patches{2 * grid * grid, 3 * patch * patch, 3 * patch * patch + 2};
    const OnDevice    dpixels(be, flat), dpatches(be, patches);
    ops::patchify<Cpu>(cpu, {flat.in().data(), {2, 3, side, side}}, patch, patches.mat());
    ops::patchify<Device>(be, {dpixels.in().data(), {2, 3, side, side}}, patch, dpatches.mat());
    CHECK(dpatches.back().values() == patches.values());
}

TEST_CASE("cuda/rows: no kernel misses a barrier") {
    const Array x = Array::random(3, 700, 1), w = Array::random(1, 700, 2);
    const auto  norm = [&](Wishes wishes) {
        Device         be{{.driver = wishes}};
        const OnDevice dx(be, x), dw(be, w), y(be, x);
        ops::layer_norm<Device>(be, dx.in(), dw.row(), dw.row(), 1e-6f, y.mat());
        return y.back().values();
    };
    const auto expected = norm({});
    for (cuda::Order order : {cuda::Order::forward, cuda::Order::reversed, cuda::Order::shuffled})
        CHECK(norm({.order = order, .threads = cuda::Threads::fibers}) == expected);
}
