// What a decode step does in one launch has the bits of the launches that it stands for; and how many there are.
#include "device.hpp"
#include "weights.hpp"

#include "prism/backend/cpu/cpu.hpp"
#include "prism/lm/language_model.hpp"
#include "prism/ops/attention.hpp"
#include "prism/ops/linear.hpp"
#include "support/random_weights.hpp"
#include "support/tensors.hpp"

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

// ---- positions, the cache and the attention -------------------------------------------------------------------------

struct Step {
    AttentionShape shape;
    std::size_t    n_q = 1, n_angles = 1, capacity = 0;
    std::size_t    shift = 0;  // of the positions, how much the device adds
};

/// y of one step, and all of the cache after it. Its rows are NaN where nothing was read yet.
template <class T>
Found step(const Step& c, bool merged, Wishes wishes = {}) {
    Device               be{{.driver = wishes}};
    AttentionShape       s = c.shape;
    const std::size_t    d = s.head_dim, size = s.n_kv_heads * c.capacity * d, old = s.q_pos;
    std::vector<T>       cache[2];
    const auto           numbers = normal(2 * size, 1);
    for (std::size_t which = 0; which < 2; ++which) {
        cache[which].assign(size, T(NAN));
        for (std::size_t h = 0; h < s.n_kv_heads; ++h)
            for (std::size_t i = h * c.capacity * d; i < (h * c.capacity + old) * d; ++i) cache[which][i] = T(numbers[which * size + i]);
    }
    const Buffer<device> keys = on_device(be.driver(), cache[0]), values = on_device(be.driver(), cache[1]);
    const OnDevice       q(be, Array::random(c.n_q, s.n_heads * d, 2, s.n_heads * d + 3)), k(be, Array::random(c.n_q, s.n_kv_heads * d, 3, s.n_kv_heads * d + 1)),
        v(be, Array::random(c.n_q, s.n_kv_heads * d, 4)), cos(be, Array::random(c.n_q, c.n_angles, 5)), sin(be, Array::random(c.n_q, c.n_angles, 6)),
        y(be, Array{c.n_q, s.n_heads * d, s.n_heads * d + 5});
    s.kv_head_stride = c.capacity * d, s.q_pos -= c.shift;
    const Buffer<device> by = be.allocate(sizeof(std::int32_t));
    be.upload(std::array<std::int32_t, 1>{static_cast<std::int32_t>(c.shift)}, by.as<std::int32_t>());
    using Cache = View<T, device, dyn, dyn>;
    const Cache all_keys{keys.as<T>(), {s.q_pos + c.n_q, d}}, all_values{values.as<T>(), {s.q_pos + c.n_q, d}};

    const auto before = be.driver().launches();
    if (c.shift) be.shift_from(by.as<std::int32_t>());
    if (merged) {
        ops::append_and_attend<Device>(be, cos.in(), sin.in(), q.mat(), k.mat(), v.in(), s, all_keys, all_values, y.mat());
    } else {
        ops::rope_half<Device>(be, cos.in(), sin.in(), s.n_heads, q.mat());
        ops::rope_half<Device>(be, cos.in(), sin.in(), s.n_kv_heads, k.mat());
        ops::split_heads<Device>(be, k.in(), s.n_kv_heads, s.kv_head_stride, all_keys.rows(s.q_pos, c.n_q));
        ops::split_heads<Device>(be, v.in(), s.n_kv_heads, s.kv_head_stride, all_values.rows(s.q_pos, c.n_q));
        ops::attention<Device>(be, q.in(), View<const T, device, dyn, dyn>(all_keys), View<const T, device, dyn, dyn>(all_values), s, y.mat());
    }
    be.shift_from(nullptr);
    Found       found{.launches = be.driver().launches() - before};
    const Array back = y.back();
    CHECK(back.kept_to_its_rows());
    for (std::size_t i = 0; i < c.n_q; ++i)
        for (std::size_t j = 0; j < s.n_heads * d; ++j) REQUIRE(std::isfinite(back(i, j)));
    found.values.push_back(back.values());
    for (const Buffer<device>* of : {&keys, &values}) {
        found.values.emplace_back();
        for (const T x : from_device<T>(be.driver(), of->data(), size)) found.values.back().push_back(static_cast<float>(x));
    }
    return found;
}

AttentionShape shape(std::size_t n_heads, std::size_t n_kv_heads, std::size_t head_dim, std::size_t q_pos, std::size_t window = 0) {
    return {.n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim, .causal = true, .q_pos = q_pos, .window = window, .scale = scale_of(head_dim)};
}

const Step steps[]{
    {shape(2, 2, 64, 0), 1, 32, 8},            // the first token of all
    {shape(2, 2, 64, 64), 1, 32, 130},         // the first of a part
    {shape(4, 1, 128, 62), 4, 64, 70},         // new rows in two parts
    {shape(4, 2, 80, 200), 2, 16, 300},        // Phi-2 turns a part of each head
    {shape(14, 2, 32, 126, 3), 3, 16, 301},    // several groups of rows, and parts before the window
    {shape(16, 2, 64, 299, 100), 1, 32, 301},
    {shape(3, 3, 5, 70), 2, 2, 75},            // rows that begin anywhere
    {shape(2, 1, 130, 70), 2, 65, 75},         // two dimensions a thread
    {shape(2, 1, 256, 63), 3, 128, 80},        // values in the place of keys
    {shape(2, 1, 16, 1000), 1, 8, 1100},       // many parts
};

// ---- a step of a model ----------------------------------------------------------------------------------------------

/// These tensors in blocks of F, but for norms and biases, or those of them that have this in their name.
template <Format F>
std::vector<TensorInfo> in_format(std::vector<TensorInfo> tensors, const char* named = "") {
    for (TensorInfo& t : tensors) {
        if (t.shape.size() < 2 || t.name.find(named) == std::string::npos) continue;
        const auto values = to_floats(t);
        auto       blocks = std::make_shared<std::vector<typename F::block>>(encoded<F>(values, t.shape[0], t.shape[1]));
        t.dtype = F::dtype, t.data = reinterpret_cast<const std::byte*>(blocks->data()), t.owner = std::move(blocks);
    }
    return tensors;
}

LlamaConfig small_llama() {
    return {.vocab_size = 40, .d_model = 64, .d_ff = 96, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .window = 5, .qkv_bias = true};
}
PhiConfig small_phi() { return {.vocab_size = 40, .d_model = 64, .d_ff = 96, .n_layers = 2, .n_heads = 4, .n_kv_heads = 4, .head_dim = 16, .rotary_dim = 8}; }

/// Hidden states of `tokens` new rows in each of several sequences that have read a few before, and the launches of the last step.
template <Backend B, template <class> class M>
Found hidden_after(B& be, const M<B>& model, std::size_t n_sequences, std::size_t tokens, Dtype dtype) {
    std::vector<KvCache<B>> caches;
    for (std::size_t i = 0; i < n_sequences; ++i) caches.push_back(model.make_cache(be, 40, dtype));
    const auto run = [&](std::size_t n, unsigned seed) {
        std::vector<Segment<B>> batch;
        for (auto& cache : caches) batch.push_back({&cache, n});
        const std::size_t       rows = n * n_sequences, d = model.d_model();
        Workspace<B>            ws{be, std::size_t{1} << 20};
        const Mat<B>            x = ws.mat(rows, d);
        const auto              numbers = normal(rows * d, seed);
        for (std::size_t i = 0; i < rows; ++i) be.upload(std::span(numbers).subspan(i * d, d), x.row(i));
        Found found;
        if constexpr (requires { be.driver(); }) found.launches = be.driver().launches();
        model.forward(be, ws, batch, x);
        if constexpr (requires { be.driver(); }) found.launches = be.driver().launches() - found.launches;
        std::vector<float> values(rows * d);
        for (std::size_t i = 0; i < rows; ++i) be.download(x.row(i), std::span(values).subspan(i * d, d));
        be.wait();
        found.values.push_back(std::move(values));
        return found;
    };
    run(9, 7);
    run(1, 8);
    return run(tokens, 9);
}

/// A step takes so many launches for each layer, one for the angles of each sequence, one for the final norm, and in each layer one
/// more for each further sequence. It computes what the processor does: to a few roundings, or where rows become integers (2^-16 of
/// the largest of 32) or a cache's 16 bits round one to the other side (2^-8 of it) to one of those.
template <template <class> class M, class Config>
void check_steps(const Config& config, std::size_t per_layer, const std::vector<TensorInfo>& tensors) {
    Device    be{{.driver = Wishes{}}};
    Cpu       cpu{{.threads = 1}};
    M<Device> model{config};
    M<Cpu>    same{config};
    bind_all(be, model, tensors), bind_all(cpu, same, tensors);
    const bool blocks = std::ranges::any_of(tensors, [](const TensorInfo& t) { return item_bytes(t.dtype) == 0; });
    for (Dtype dtype : {Dtype::f32, Dtype::bf16})
        for (const auto& batch : {std::array<std::size_t, 2>{1, 1}, {1, 3}, {2, 1}, {8, 1}, {2, 4}}) {
            const std::size_t n_sequences = batch[0], tokens = batch[1];
            CAPTURE(to_string(dtype));
            CAPTURE(n_sequences);
            CAPTURE(tokens);
            const Found found = hidden_after(be, model, n_sequences, tokens, dtype), expected = hidden_after(cpu, same, n_sequences, tokens, dtype);
            CHECK(found.launches == n_sequences + 1 + config.n_layers * (per_layer + n_sequences - 1));
            CHECK(relative_error(found.values[0], expected.values[0]) < (dtype == Dtype::bf16 ? 0x1p-8 : blocks ? 0x1p-12 : 1e-5));
        }
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

TEST_CASE_TEMPLATE("cuda/decode: positions, the cache and the attention in one launch have the bits of three steps", T, float, bf16_t) {
    for (const Step& c : steps) {
        CAPTURE(c.shape.n_heads);
        CAPTURE(c.shape.head_dim);
        CAPTURE(c.shape.q_pos);
        CAPTURE(c.n_q);
        const Found merged = step<T>(c, true), apart = step<T>(c, false);
        CHECK(merged.launches == 1);
        CHECK(apart.launches == 5);
        CHECK(same_bits(merged, apart));
        if (c.shape.q_pos == 0) continue;
        Step later = c;
        later.shift = (c.shape.q_pos + 1) / 2;
        CHECK(same_bits(step<T>(later, true), apart));
    }
    const Step many{shape(2, 1, 64, 60), 5, 32, 70};
    const Found merged = step<T>(many, true);
    CHECK(merged.launches == 2);
    CHECK(same_bits(merged, step<T>(many, false)));
}

TEST_CASE_TEMPLATE("cuda/decode: no order of threads or blocks changes the step, and it misses no barrier", T, float, bf16_t) {
    for (const Step& c : steps) {
        if (c.shape.q_pos > 300) continue;
        CAPTURE(c.shape.head_dim);
        const Found expected = step<T>(c, false);
        for (cuda::Order order : orders) CHECK(same_bits(step<T>(c, true, {.order = order}), expected));
        for (cuda::Threads threads : {cuda::Threads::fibers, cuda::Threads::fibers_with_late_copies})
            CHECK(same_bits(step<T>(c, true, {.order = cuda::Order::reversed, .threads = threads}), expected));
    }
}

TEST_CASE("cuda/decode: what does not belong to one cache is refused") {
    Device               be{{.driver = Wishes{}}};
    const OnDevice       x(be, Array{2, 8}), angles(be, Array{2, 4});
    const Buffer<device> memory = be.allocate(64 * sizeof(float));
    const auto           call = [&](AttentionShape s, std::size_t rows, In<Device> cos) {
        const Mat<Device> cache{memory.as<float>(), {rows, 8}};
        s.kv_head_stride = 64;
        ops::append_and_attend<Device>(be, cos, angles.in(), x.mat(), x.mat(), x.in(), s, cache, cache, x.mat());
    };
    CHECK_THROWS_WITH_AS(call(shape(1, 1, 8, 3), 6, angles.in()), "append_and_attend: keys: expected [5, any], found [6, 8]", ShapeError);
    CHECK_THROWS_AS(call(shape(1, 1, 8, 3), 5, x.in()), ShapeError);
    AttentionShape s = shape(1, 1, 8, 3);
    s.causal = false;
    CHECK_THROWS_AS(call(s, 5, angles.in()), ShapeError);
    CHECK_THROWS_WITH_AS((ops::NormedRows<Device>{x.in(), angles.row(), 1e-5f, x.mat()}), "rms_norm: weight: expected [8], found [4]", ShapeError);
}

TEST_CASE("cuda/decode: a layer of Llama takes five launches, of Phi six, in every format; the numbers are the processor's") {
    const auto llama = random_tensors(Llama<Cpu>{small_llama()}, 11), phi = random_tensors(Phi<Cpu>{small_phi()}, 12);
    check_steps<Llama>(small_llama(), 5, llama);
    check_steps<Phi>(small_phi(), 6, phi);
    check_steps<Llama>(small_llama(), 5, in_format<bf16>(llama));
    check_steps<Llama>(small_llama(), 5, in_format<q8>(llama));
    check_steps<Llama>(small_llama(), 5, in_format<q4m>(llama));
    check_steps<Llama>(small_llama(), 7, in_format<bf16>(llama, "up_proj"));  // gate and up in a launch each, and silu * mul
}

TEST_CASE("cuda/decode: a recorded step has the bits of the step, at other positions too") {
    Device        be{{.driver = Wishes{}}};
    const auto    config = small_llama();
    Llama<Device> model{config};
    bind_all(be, model, in_format<q8>(random_tensors(Llama<Cpu>{config}, 11)));
    const auto            last = [&](bool recorded) {
        KvCache<Device>      cache = model.make_cache(be, 30, Dtype::bf16);
        Workspace<Device>    ws{be, std::size_t{1} << 20};
        const Mat<Device>    x = ws.mat(1, config.d_model);
        const Buffer<device> shift = be.allocate(sizeof(std::int32_t));
        const auto           forward = [&] {
            const Segment<Device> segment{&cache, 1};
            model.forward(be, ws, std::span(&segment, 1), x);
        };
        const auto bring = [&](unsigned seed) { be.upload(normal(config.d_model, seed), x.row(0)); };
        for (unsigned i = 0; i < 3; ++i) bring(i), forward();
        if (!recorded) {
            for (unsigned i = 3; i < 8; ++i) bring(i), forward();
        } else {
            be.shift_from(shift.as<std::int32_t>());
            const auto before = be.driver().launches();
            auto       r = be.record(forward);
            be.shift_from(nullptr);
            CHECK(be.driver().launches() - before == 2 + 5 * config.n_layers);
            for (std::int32_t i = 3; i < 8; ++i) {
                bring(static_cast<unsigned>(i));
                be.upload(std::span<const std::int32_t>(std::array{i - 3}), shift.as<std::int32_t>());
                be.replay(r);
            }
        }
        return downloaded(be, x);
    };
    CHECK(last(true) == last(false));
}
