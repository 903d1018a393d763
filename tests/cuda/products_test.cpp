// Products on a device, against sums in f64 over the weights' own numbers.
#include "device.hpp"
#include "weights.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <string>

using namespace prism;
using namespace prism::test;

namespace {

struct Case {
    std::size_t m = 1, n = 1, k = 1;
    bool        fast = false, gated = false, bias = false, add = false, gamma = false;
    Activation  act = Activation::none;
    std::size_t first = 0;         // of the weights' rows
    bool        file = false;      // weights in rows of a file
    std::size_t x_offset = 0;      // floats behind an aligned place
    bool        poison_row = false;  // the last row of x is NaN
};

template <Format F, class D>
struct Weights {
    std::vector<float> values;  // [first + n, k]
    Buffer<device>     memory;
    AnyPacked<device>  packed;
};
template <Format F, class D>
Weights<F, D> weights(D& driver, const Case& c, unsigned seed) {
    const std::size_t rows = c.first + c.n, offset = c.file ? 2 : 0;
    const auto        blocks = encoded<F>(normal_rows(rows, c.k, seed, 0.5f), rows, c.k);
    Weights<F, D>     w;
    w.values = decoded<F>(blocks, rows, c.k);
    w.memory = c.file ? on_device(driver, blocks, offset) : on_device(driver, device_rows<F>(blocks, rows, c.k));
    w.packed.dtype = F::dtype, w.packed.rows = c.n, w.packed.cols = c.k, w.packed.first = c.first;
    if (c.file) {
        w.packed.stride = blocks_per_row<F>(c.k), w.packed.first = 0;
        w.packed.data = w.memory.template as<std::byte>() + offset + c.first * w.packed.stride * sizeof(typename F::block);
    } else {
        w.packed.panels = w.memory.template as<std::byte>();
    }
    return w;
}

double activated(Activation act, double z) {
    switch (act) {
        case Activation::gelu_erf: return 0.5 * z * (1 + std::erf(z / std::sqrt(2.0)));
        case Activation::gelu_tanh: return 0.5 * z * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
        case Activation::quick_gelu: return z / (1 + std::exp(-1.702 * z));
        case Activation::silu: return z / (1 + std::exp(-z));
        case Activation::none: break;
    }
    return z;
}

/// x as the kernels may take it: what f32 arithmetic sees, or in fast products of many rows what 16 bits keep of it.
double taken(Dtype weights, const Case& c, float x, float most) {
    if (!c.fast || c.m <= cuda::Products<TestDriver>::few_rows || weights == Dtype::f32) return x;
    if (weights != Dtype::f16) return static_cast<float>(bf16_t{x});
    const float scale = std::exp2(12.0f - std::floor(std::log2(most)));
    return static_cast<double>(static_cast<float>(fp16_t{x * scale})) / scale;
}

/// x w^T in f64, [m, n], and by how much a product in f32 may miss it: the line of f32 sums, 2e-5 of a row's rms and 1e-5 of
/// the number, and for rows that meet 16-bit weights as the sum of two what the second one loses: each rounds to 8 bits and
/// leaves 2^-9, so 2^-18 of every |x w| (of f16: 2^-22).
struct Sums {
    std::vector<double> value, slack;
};
Sums sums_of(Dtype dtype, const Case& c, const std::vector<float>& x, const std::vector<float>& w) {
    Sums         s{std::vector<double>(c.m * c.n), std::vector<double>(c.m * c.n)};
    const bool   tensor_cores = c.m > cuda::Products<TestDriver>::few_rows && dtype != Dtype::f32;
    const double split = tensor_cores && !c.fast ? (dtype == Dtype::f16 ? 0x1p-22 : 0x1p-18) : 0;
    for (std::size_t i = 0; i < c.m; ++i) {
        float most = 1e-30f;
        for (std::size_t k = 0; k < c.k; ++k) most = std::max(most, std::fabs(x[i * c.k + k]));
        double squares = 0;
        for (std::size_t j = 0; j < c.n; ++j) {
            double sum = 0, magnitude = 0;
            for (std::size_t k = 0; k < c.k; ++k) {
                const double p = taken(dtype, c, x[i * c.k + k], most) * static_cast<double>(w[(c.first + j) * c.k + k]);
                sum += p, magnitude += std::fabs(p);
            }
            s.value[i * c.n + j] = sum, s.slack[i * c.n + j] = split * magnitude + 1e-5 * std::fabs(sum);
            squares += sum * sum;
        }
        for (std::size_t j = 0; j < c.n; ++j) s.slack[i * c.n + j] += (2e-5 + (tensor_cores ? 4 * cut_off(c.k) : 0)) * std::sqrt(squares / static_cast<double>(c.n));
    }
    return s;
}

/// Runs one product and holds it against the reference. Returns y [m, n].
template <Format F, Format Up = F, class D>
std::vector<float> check(D& driver, const Case& c, bool use_library = true) {
    CAPTURE(std::string(F::name));
    CAPTURE(c.m); CAPTURE(c.n); CAPTURE(c.k); CAPTURE(c.fast); CAPTURE(c.gated); CAPTURE(c.add); CAPTURE(to_string(c.act)); CAPTURE(c.first);
    const auto        w = weights<F, D>(driver, c, 1);
    const auto        up = weights<Up, D>(driver, c, 2);
    const std::size_t ldx = c.k + c.x_offset, ldy = c.n + 3;

    auto x = normal_rows(c.m, c.k, 3);
    if (c.poison_row) std::fill(x.end() - static_cast<std::ptrdiff_t>(c.k), x.end(), NAN);
    std::vector<float> x_rows(c.m * ldx + c.x_offset, NAN);  // what lies between rows must not be read
    for (std::size_t i = 0; i < c.m; ++i) std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(i * c.k), c.k, x_rows.begin() + static_cast<std::ptrdiff_t>(c.x_offset + i * ldx));
    const auto         bias = normal_rows(1, c.n, 4), gamma = normal_rows(1, c.n, 5), before = normal_rows(c.m, c.n, 6);
    std::vector<float> y_rows(c.m * ldy, NAN);
    if (c.add)
        for (std::size_t i = 0; i < c.m; ++i) std::copy_n(before.begin() + static_cast<std::ptrdiff_t>(i * c.n), c.n, y_rows.begin() + static_cast<std::ptrdiff_t>(i * ldy));

    const auto d_x = on_device(driver, x_rows), d_y = on_device(driver, y_rows), d_bias = on_device(driver, bias), d_gamma = on_device(driver, gamma);
    cuda::ProductJob job;
    job.w = w.packed;
    if (c.gated) job.up = up.packed;
    if (c.bias) job.after.bias = {d_bias.template as<const float>(), {c.n}};
    if (c.gamma) job.after.gamma = {d_gamma.template as<const float>(), {c.n}};
    job.after.act = c.act, job.after.add = c.add;
    job.y = {d_y.template as<float>(), static_cast<std::int32_t>(c.m), static_cast<std::int32_t>(c.n), static_cast<std::int64_t>(ldy)};

    std::vector<Buffer<device>> scratch;
    cuda::Products<D>           products;
    products.use_library = use_library;
    products.run(
        driver,
        [&](std::size_t bytes) {
            scratch.push_back(driver.allocate(bytes));
            return scratch.back().template as<std::byte>();
        },
        cuda::Rows<const float>{d_x.template as<float>() + c.x_offset, static_cast<std::int32_t>(c.m), static_cast<std::int32_t>(c.k), static_cast<std::int64_t>(ldx)},
        std::span(&job, 1), c.fast);
    CHECK(scratch.size() <= 1);

    const auto got = from_device<float>(driver, d_y.data(), c.m * ldy);
    const Sums z = sums_of(F::dtype, c, x, w.values), z_up = c.gated ? sums_of(Up::dtype, c, x, up.values) : Sums{};
    std::vector<float> y(c.m * c.n);
    double             worst = 0;
    std::size_t        unwritten = 0, spoiled = 0;
    for (std::size_t i = 0; i < c.m; ++i)
        for (std::size_t j = 0; j < ldy; ++j) {
            const float v = got[i * ldy + j];
            if (j >= c.n) {
                spoiled += !std::isnan(v);
                continue;
            }
            const std::size_t at = i * c.n + j;
            y[at] = v;
            if (c.poison_row && i + 1 == c.m) {
                unwritten += !std::isnan(v);
                continue;
            }
            double r = z.value[at] + (c.bias && !c.gated ? bias[j] : 0), slack = z.slack[at];
            if (c.gated) {
                slack = std::fabs(activated(Activation::silu, r)) * z_up.slack[at] + 1.1 * slack * std::fabs(z_up.value[at]) + slack * z_up.slack[at];
                r = activated(Activation::silu, r) * z_up.value[at];
            }
            slack = 1.13 * slack + 2e-6 * (std::fabs(r) + 1);  // no function here is steeper; its own rounding
            r = activated(c.act, r);
            if (c.gamma) r *= gamma[j], slack *= std::fabs(gamma[j]);
            if (c.add) r += before[at], slack += 1e-6 * std::fabs(before[at]);
            const double off = std::fabs(v - r) / slack;
            worst = off <= worst ? worst : off;  // NaN is worst
            unwritten += std::isnan(v);
        }
    CHECK(worst <= 1);
    if (c.act == Activation::none && !c.gated && !c.add && !c.poison_row) {
        // and all of them together: the line of f32 sums, and what the split of x loses at most
        double error = 0, all = 0;
        for (std::size_t at = 0; at < y.size(); ++at) {
            const double r = z.value[at] + (c.bias ? bias[at % c.n] : 0);
            error += (y[at] - r) * (y[at] - r), all += r * r;
        }
        CHECK(std::sqrt(error / all) <= 2e-6 * std::max(1.0, std::sqrt(static_cast<double>(c.k) / 4096)) + 0x1p-17 + cut_off(c.k));
    }
    CHECK(unwritten == 0);
    CHECK(spoiled == 0);
    return y;
}

template <class Fn>
void for_formats(Fn&& f) {
    const auto over = [&]<Format... F>(format_list<F...>) { (f(F{}), ...); };
    over(all_formats{});
}

constexpr std::array<std::size_t, 9> row_counts{1, 2, 3, 7, 8, 9, 31, 33, 130};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) { return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

}  // namespace

TEST_CASE("cuda/products: every format and number of rows, exact and fast, keeps the tolerance of f32 sums") {
    for_formats([]<Format F>(F) {
        TestDriver driver(Wishes{});
        for (std::size_t m : row_counts)
            for (bool fast : {false, true}) {
                check<F>(driver, {.m = m, .n = 37, .k = 200, .fast = fast});
                check<F>(driver, {.m = m, .n = 131, .k = 65, .fast = fast, .first = 3, .x_offset = 1});
            }
        for (std::size_t m : {std::size_t{1}, std::size_t{9}}) {
            check<F>(driver, {.m = m, .n = 1, .k = 1});
            check<F>(driver, {.m = m, .n = 5, .k = 31});
            check<F>(driver, {.m = m, .n = 3, .k = 33, .fast = true});
        }
    });
}

TEST_CASE("cuda/products: widths of models, longer than what shared memory holds of x") {
    for_formats([]<Format F>(F) {
        TestDriver driver(Wishes{});
        for (std::size_t k : {std::size_t{592}, std::size_t{1152}, std::size_t{4304}, std::size_t{11008}}) {
            check<F>(driver, {.m = 1, .n = 9, .k = k});
            check<F>(driver, {.m = 3, .n = 9, .k = k});
        }
        check<F>(driver, {.m = 9, .n = 9, .k = 4304});
        check<F>(driver, {.m = 2, .n = 700, .k = 64});  // more blocks than one
    });
}

TEST_CASE("cuda/products: what a library takes keeps the tolerance, too, at the widths of models and where rows begin anywhere") {
    const auto of = []<Format F>(F) {
        TestDriver driver(Wishes{.library = true});
        for (std::size_t m : {std::size_t{9}, std::size_t{64}})
            for (bool fast : {false, true}) {
                check<F>(driver, {.m = m, .n = 24, .k = 4304, .fast = fast});
                check<F>(driver, {.m = m, .n = 16, .k = 11008, .fast = fast, .x_offset = 1});
            }
    };
    of(f32{}), of(f16{}), of(bf16{});
}

TEST_CASE("cuda/products: bias, activation, residual with layer scale and the gate of SiLU follow the sums") {
    for_formats([]<Format F>(F) {
        TestDriver driver(Wishes{.library = true});
        for (std::size_t m : {std::size_t{1}, std::size_t{5}, std::size_t{19}})
            for (bool library : {false, true}) {
                for (Activation act : {Activation::gelu_erf, Activation::gelu_tanh, Activation::quick_gelu, Activation::silu})
                    check<F>(driver, {.m = m, .n = 70, .k = 96, .bias = true, .act = act}, library);
                check<F>(driver, {.m = m, .n = 70, .k = 96, .bias = true, .add = true}, library);
                check<F>(driver, {.m = m, .n = 70, .k = 96, .bias = true, .add = true, .gamma = true}, library);
                check<F>(driver, {.m = m, .n = 70, .k = 96, .fast = true, .add = true, .gamma = true, .act = Activation::gelu_erf}, library);
                check<F>(driver, {.m = m, .n = 70, .k = 96, .gated = true, .first = 2}, library);
                check<F>(driver, {.m = m, .n = 133, .k = 40, .fast = true, .gated = true}, library);
                check<F>(driver, {.m = m, .n = 21, .k = 40, .gated = true, .add = true}, library);
                check<F>(driver, {.m = m, .n = 21, .k = 37}, library);
            }
    });
}

#if !defined(__CUDACC__)  // a library may leave a product to us
TEST_CASE("cuda/products: the library gets many rows of plain formats, converted, twice where exact; nothing else") {
    const auto calls = []<Format F>(F, const Case& c, bool use = true) {
        TestDriver driver(Wishes{.library = true});
        check<F>(driver, c, use);
        return driver.products();
    };
    CHECK(calls(f32{}, {.m = 9, .n = 8, .k = 16}) == 1);
    CHECK(calls(bf16{}, {.m = 9, .n = 8, .k = 16}) == 2);
    CHECK(calls(bf16{}, {.m = 9, .n = 8, .k = 16, .fast = true}) == 1);
    CHECK(calls(f16{}, {.m = 9, .n = 8, .k = 16, .gated = true}) == 4);
    CHECK(calls(bf16{}, {.m = 8, .n = 8, .k = 16}) == 0);
    CHECK(calls(q8{}, {.m = 9, .n = 8, .k = 16}) == 0);
    CHECK(calls(bf16{}, {.m = 9, .n = 8, .k = 16}, false) == 0);
    // One that adds nothing has done half of an exact product when it says so; then all of it is ours.
    for (const Case& c : {Case{.m = 20, .n = 70, .k = 96, .bias = true}, Case{.m = 20, .n = 70, .k = 96, .add = true}, Case{.m = 9, .n = 33, .k = 40, .gated = true}})
        for_formats([&]<Format F>(F) {
            TestDriver driver(Wishes{.library = true, .library_adds = false});
            check<F>(driver, c);
        });
}
#endif

TEST_CASE("cuda/products: one kernel for several products with the same rows, with the bits that each has alone") {
    for_formats([]<Format F>(F) {
        for (const Case& size : {Case{.m = 1, .k = 160}, Case{.m = 6, .k = 160}, Case{.m = 20, .k = 160}, Case{.m = 20, .k = 1100}}) {
            const std::size_t m = size.m, k = size.k;
            CAPTURE(std::string(F::name));
            CAPTURE(m);
            CAPTURE(k);
            TestDriver                       driver(Wishes{});
            const std::array<std::size_t, 3> widths{100, 33, 7};
            const auto                      x = on_device(driver, normal_rows(m, k, 3));
            std::vector<Weights<F, TestDriver>> w;
            std::vector<cuda::ProductJob>           jobs(3);
            std::vector<Buffer<device>>             together, memory;
            for (std::size_t i = 0; i < 3; ++i) {
                w.push_back(weights<F, TestDriver>(driver, {.n = widths[i], .k = k}, static_cast<unsigned>(i)));
                together.push_back(driver.allocate(m * widths[i] * sizeof(float)));
                jobs[i].w = w[i].packed;
                jobs[i].y = {together[i].as<float>(), static_cast<std::int32_t>(m), static_cast<std::int32_t>(widths[i]), static_cast<std::int64_t>(widths[i])};
            }
            const auto scratch = [&](std::size_t bytes) {
                memory.push_back(driver.allocate(bytes));
                return memory.back().as<std::byte>();
            };
            const cuda::Rows<const float>  rows{x.as<float>(), static_cast<std::int32_t>(m), static_cast<std::int32_t>(k), static_cast<std::int64_t>(k)};
            cuda::Products<TestDriver> products;
            products.run(driver, scratch, rows, jobs, false);
            const std::size_t n_launches = m <= 8 || F::dtype == Dtype::f32 ? 1 : 2;
            CHECK(driver.launches() == n_launches);
            for (std::size_t i = 0; i < 3; ++i) {
                const auto       alone = driver.allocate(m * widths[i] * sizeof(float));
                cuda::ProductJob job = jobs[i];
                job.y.data = alone.as<float>();
                products.run(driver, scratch, rows, std::span(&job, 1), false);
                CHECK(same_bits(from_device<float>(driver, alone.data(), m * widths[i]), from_device<float>(driver, together[i].data(), m * widths[i])));
            }
        }
    });
}

TEST_CASE("cuda/products: a row has the same bits among few rows or alone, in tiles of any size, on every device, for every order of threads") {
    for_formats([]<Format F>(F) {
        CAPTURE(std::string(F::name));
        TestDriver driver(Wishes{});
        const auto     head = [](const std::vector<float>& y, std::size_t n) { return std::vector<float>(y.begin(), y.begin() + static_cast<std::ptrdiff_t>(n)); };
        const auto     alone = check<F>(driver, {.m = 1, .n = 50, .k = 300});
        for (std::size_t m : {std::size_t{2}, std::size_t{3}, std::size_t{8}}) CHECK(same_bits(head(check<F>(driver, {.m = m, .n = 50, .k = 300}), 50), alone));

        TestDriver small(Wishes{.n_processors = 1}), middle(Wishes{.n_processors = 3}), large(Wishes{.n_processors = 1000});
        CHECK(same_bits(check<F>(small, {.m = 1, .n = 50, .k = 4200}), check<F>(large, {.m = 1, .n = 50, .k = 4200})));  // long enough for warps to share rows
        const Case     many{.m = 130, .n = 150, .k = 100};
        const auto     tiles = check<F>(small, many);
        CHECK(same_bits(check<F>(middle, many), tiles));
        CHECK(same_bits(check<F>(large, many), tiles));
        CHECK(same_bits(head(check<F>(driver, {.m = 9, .n = 150, .k = 100}), 150), head(tiles, 150)));

        for (cuda::Order order : {cuda::Order::reversed, cuda::Order::shuffled}) {
            TestDriver other(Wishes{.order = order});
            CHECK(same_bits(check<F>(other, {.m = 1, .n = 50, .k = 300}), alone));
            TestDriver other_large(Wishes{.order = order, .n_processors = 1000});
            CHECK(same_bits(check<F>(other_large, many), tiles));
            TestDriver other_small(Wishes{.order = order, .n_processors = 1});
            CHECK(same_bits(check<F>(other_small, many), tiles));
        }
    });
}

TEST_CASE("cuda/products: up to 64 rows meet long columns in parts, with the bits of each row alone, on every device, for every order of blocks") {
    for_formats([]<Format F>(F) {
        CAPTURE(std::string(F::name));
        const std::size_t n = 70, k = 2100;
        CHECK(cuda::ColumnParts::of(static_cast<std::int64_t>(n), static_cast<std::int64_t>(k)).n == 3);
        TestDriver driver(Wishes{});
        const auto head = [](const std::vector<float>& y, std::size_t rows) { return std::vector<float>(y.begin(), y.begin() + static_cast<std::ptrdiff_t>(rows * n)); };
        const auto most = check<F>(driver, {.m = 64, .n = n, .k = k}, false);
        for (std::size_t m : {std::size_t{9}, std::size_t{17}, std::size_t{33}}) CHECK(same_bits(check<F>(driver, {.m = m, .n = n, .k = k}, false), head(most, m)));
        check<F>(driver, {.m = 65, .n = n, .k = k}, false);  // whole columns
        const Case gated{.m = 20, .n = 45, .k = 1100, .gated = true}, after{.m = 12, .n = 131, .k = 1030, .fast = true, .bias = true, .add = true, .gamma = true};
        const auto expected_gated = check<F>(driver, gated, false), expected_after = check<F>(driver, after, false);
        for (cuda::Order order : {cuda::Order::forward, cuda::Order::reversed, cuda::Order::shuffled})
            for (int n_processors : {1, 1000}) {  // tiles of 128 columns, of 64
                TestDriver other(Wishes{.order = order, .n_processors = n_processors});
                CHECK(same_bits(check<F>(other, {.m = 17, .n = n, .k = k}, false), head(most, 17)));
                CHECK(same_bits(check<F>(other, gated, false), expected_gated));
                CHECK(same_bits(check<F>(other, after, false), expected_after));
            }
        TestDriver fibers(Wishes{.order = cuda::Order::reversed, .threads = cuda::Threads::fibers_with_late_copies});
        CHECK(same_bits(check<F>(fibers, gated, false), expected_gated));
    });
}

TEST_CASE("cuda/products: columns are cut by the weights' shape: no more tiles than counters, no part without columns") {
    for (std::int64_t n : {1, 63, 64, 65, 1024, 4096, 5120, 8448, 8449, 11008, 128256})
        for (std::int64_t k : {1, 32, 511, 1024, 1025, 2100, 4096, 4304, 11008, 28672}) {
            CAPTURE(n);
            CAPTURE(k);
            const auto         parts = cuda::ColumnParts::of(n, k);
            const std::int64_t steps = (k + 31) / 32;
            CHECK(parts.steps % 8 == 0);
            CHECK(parts.n >= 1);
            CHECK(parts.n <= cuda::ColumnParts::most);
            CHECK((parts.n - 1) * parts.steps < steps);
            CHECK(parts.n * parts.steps >= steps);
            if (parts.n > 1) CHECK((n + 63) / 64 * parts.n <= cuda::ColumnParts::most_tiles);
        }
    CHECK(cuda::ColumnParts::of(4096, 4096).n == 4);
    CHECK(cuda::ColumnParts::of(11008, 4096).n == 1);
}

TEST_CASE("cuda/products: a matrix in rows of a file is multiplied, too") {
    for_formats([]<Format F>(F) {
        TestDriver driver(Wishes{});
        for (std::size_t m : {std::size_t{1}, std::size_t{9}}) {
            check<F>(driver, {.m = m, .n = 41, .k = 100, .bias = true, .first = 2, .file = true, .x_offset = 1});
            check<F>(driver, {.m = m, .n = 41, .k = 96, .gated = true, .file = true});
        }
    });
}

TEST_CASE("cuda/products: gate and up may differ in format") {
    TestDriver driver(Wishes{.library = true});
    for (std::size_t m : {std::size_t{1}, std::size_t{8}, std::size_t{20}}) {
        check<q4, q8>(driver, {.m = m, .n = 30, .k = 64, .fast = m == 1, .gated = true});
        check<q4m, bf16>(driver, {.m = m, .n = 30, .k = 64, .gated = true, .add = true});
        check<f32, f16>(driver, {.m = m, .n = 30, .k = 65, .gated = true}, m == 20);
    }
}

TEST_CASE("cuda/products: no kernel misses a barrier, nor a wait for copies") {
    for_formats([]<Format F>(F) {
        TestDriver plain(Wishes{});
        const Case few{.m = 3, .n = 37, .k = 200}, many{.m = 70, .n = 40, .k = 130, .gated = true};
        const auto expected_few = check<F>(plain, few), expected_many = check<F>(plain, many);
        for (cuda::Order order : {cuda::Order::forward, cuda::Order::reversed})
            for (cuda::Threads threads : {cuda::Threads::fibers, cuda::Threads::fibers_with_late_copies}) {
                TestDriver driver(Wishes{.order = order, .threads = threads});
                CHECK(same_bits(check<F>(driver, few), expected_few));
                CHECK(same_bits(check<F>(driver, many), expected_many));
            }
    });
}

TEST_CASE("cuda/products: NaN stays in its row") {
    for_formats([]<Format F>(F) {
        TestDriver driver(Wishes{});
        for (std::size_t m : {std::size_t{2}, std::size_t{20}}) check<F>(driver, {.m = m, .n = 37, .k = 96, .poison_row = true});
    });
}

TEST_CASE("cuda/products: an infinity is no NaN where rows become two numbers") {
    TestDriver     driver(Wishes{});
    const std::size_t  m = 9, n = 8, k = 64;
    std::vector<float> x = normal_rows(m, k, 3);
    x[2 * k + 5] = INFINITY;
    const auto       w = weights<bf16, TestDriver>(driver, {.n = n, .k = k}, 1);
    const auto       d_x = on_device(driver, x), d_y = driver.allocate(m * n * sizeof(float)), scratch = driver.allocate(1 << 20);
    cuda::ProductJob job;
    job.w = w.packed, job.y = {d_y.as<float>(), m, n, n};
    cuda::Products<TestDriver>{}.run(driver, [&](std::size_t) { return scratch.as<std::byte>(); }, cuda::Rows<const float>{d_x.as<float>(), m, k, k}, std::span(&job, 1), false);
    const auto y = from_device<float>(driver, d_y.data(), m * n);
    for (std::size_t j = 0; j < n; ++j) {
        CHECK(y[2 * n + j] == std::copysign(INFINITY, w.values[j * k + 5]));
        CHECK(std::isfinite(y[3 * n + j]));
    }
}

TEST_CASE("cuda/products: rows for f16 weights may be larger and smaller than f16 holds") {
    TestDriver     driver(Wishes{});
    const std::size_t  m = 9, n = 8, k = 64;
    std::vector<float> x = normal_rows(m, k, 3);
    const auto         w = weights<f16, TestDriver>(driver, {.n = n, .k = k}, 1);
    for (std::size_t i = 0; i < m; ++i)
        for (std::size_t j = 0; j < k; ++j) x[i * k + j] *= std::exp2(static_cast<float>(i) * 25 - 100);
    for (bool fast : {false, true}) {
        const auto       d_x = on_device(driver, x), d_y = driver.allocate(m * n * sizeof(float)), scratch = driver.allocate(1 << 20);
        cuda::ProductJob job;
        job.w = w.packed, job.y = {d_y.as<float>(), m, n, n};
        cuda::Products<TestDriver>{}.run(driver, [&](std::size_t) { return scratch.as<std::byte>(); }, cuda::Rows<const float>{d_x.as<float>(), m, k, k}, std::span(&job, 1), fast);
        const auto y = from_device<float>(driver, d_y.data(), m * n);
        double     error = 0, all = 0;
        for (std::size_t i = 0; i < m; ++i)
            for (std::size_t j = 0; j < n; ++j) {
                double r = 0;
                for (std::size_t p = 0; p < k; ++p) r += static_cast<double>(x[i * k + p]) * static_cast<double>(w.values[j * k + p]);
                const double unit = std::exp2(100 - static_cast<double>(i) * 25);  // every row counts alike
                error += (y[i * n + j] - r) * (y[i * n + j] - r) * unit * unit, all += r * r * unit * unit;
            }
        CHECK(std::sqrt(error / all) <= (fast ? 0x1p-11 : 2e-6));
    }
}
