// Operations row by row, against f64.
#include "prism/ops/rows.hpp"
#include "prism/ops/attention.hpp"
#include "prism/ops/patchify.hpp"
#include "support/arrays.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>

using namespace prism;
using namespace prism::test;

namespace {

constexpr std::size_t widths[]{1, 2, 7, 8, 9, 15, 16, 17, 31, 97, 1000, 1024};

/// body(be, rows, width) for every instruction set, several widths and heights; the message says which.
template <class Body>
void everywhere(Body&& body) {
    for (Isa isa : isas()) {
        Cpu be{{.threads = 2, .isa = isa}};
        for (std::size_t d : widths)
            for (std::size_t n : {1, 3, 50}) {
                const double error = body(be, n, d);
                CHECK_MESSAGE(error <= 1, to_string(isa) << ", " << n << " x " << d << ": " << error);
            }
    }
}

struct Moments {
    double mean = 0, mean_magnitude = 0, variance = 0, mean_square = 0;
};
Moments moments(const Array& x, std::size_t i) {
    Moments      m;
    const double n = static_cast<double>(x.cols());
    for (std::size_t j = 0; j < x.cols(); ++j)
        m.mean += at(x, i, j) / n, m.mean_magnitude += std::abs(at(x, i, j)) / n, m.mean_square += at(x, i, j) * at(x, i, j) / n;
    for (std::size_t j = 0; j < x.cols(); ++j) m.variance += (at(x, i, j) - m.mean) * (at(x, i, j) - m.mean) / n;
    return m;
}
/// Of every row.
std::vector<Moments> all_moments(const Array& x) {
    std::vector<Moments> all;
    for (std::size_t i = 0; i < x.rows(); ++i) all.push_back(moments(x, i));
    return all;
}

}  // namespace

TEST_CASE("ops/rows: layer_norm is within the rounding of its two sums, also far from zero and in place") {
    everywhere([](Cpu& be, std::size_t n, std::size_t d) {
        constexpr float eps = 1e-5f;
        const Array     w = Array::random(1, d, 1), b = Array::random(1, d, 2), x = Array::random(n, d, 3, d + 5, 2, 30);
        Array           y{n, d, d + 3}, z = x;
        ops::layer_norm<Cpu>(be, x.in(), w.row(), b.row(), eps, y.mat());
        ops::layer_norm<Cpu>(be, z.in(), w.row(), b.row(), eps, z.mat());
        const auto of = all_moments(x);
        const auto scale = [&](std::size_t i) { return 1 / std::sqrt(of[i].variance + static_cast<double>(eps)); };
        const auto expected = [&](std::size_t i, std::size_t j) { return (at(x, i, j) - of[i].mean) * scale(i) * at(w, 0, j) + at(b, 0, j); };
        // The mean is a sum of d; each difference from it carries that sum's error; their squares are a sum of d again.
        const auto bound = [&](std::size_t i, std::size_t j) {
            const double mean_error = sum_bound(d, of[i].mean_magnitude), own = u * std::abs(at(x, i, j));
            const double scaled = std::abs(expected(i, j) - at(b, 0, j));
            return std::abs(at(w, 0, j)) * scale(i) * (mean_error + own) + scaled * (static_cast<double>(d) + 8) * u +
                   scaled * mean_error * mean_error * scale(i) * scale(i) + u * std::abs(at(b, 0, j)) + 2 * u * std::abs(expected(i, j));
        };
        CHECK(y.kept_to_its_rows());
        return std::max(worst(y, expected, bound), worst(z, expected, bound));
    });
}

TEST_CASE("ops/rows: rms_norm is within the rounding of its sum, in place too") {
    everywhere([](Cpu& be, std::size_t n, std::size_t d) {
        constexpr float eps = 1e-6f;
        const Array     w = Array::random(1, d, 1), x = Array::random(n, d, 3, d + 5);
        Array           y{n, d, d + 3}, z = x;
        ops::rms_norm<Cpu>(be, x.in(), w.row(), eps, y.mat());
        ops::rms_norm<Cpu>(be, z.in(), w.row(), eps, z.mat());
        const auto of = all_moments(x);
        const auto expected = [&](std::size_t i, std::size_t j) {
            return at(x, i, j) / std::sqrt(of[i].mean_square + static_cast<double>(eps)) * at(w, 0, j);
        };
        const auto bound = [&](std::size_t i, std::size_t j) { return std::abs(expected(i, j)) * (static_cast<double>(d) / 2 + 8) * u; };
        CHECK(y.kept_to_its_rows());
        return std::max(worst(y, expected, bound), worst(z, expected, bound));
    });
}

TEST_CASE("ops/rows: silu_mul, add_scaled, add, add_table and copy, with any distance between rows") {
    everywhere([](Cpu& be, std::size_t n, std::size_t d) {
        const Array a = Array::random(n, d, 1, d + 1, 3), b = Array::random(n, d, 2, d + 2), gamma = Array::random(1, d, 3);
        Array       y{n, d, d + 3};
        ops::silu_mul<Cpu>(be, a.in(), b.in(), y.mat());
        double error = worst(y, [&](std::size_t i, std::size_t j) { return activation(Activation::silu, at(a, i, j)) * at(b, i, j); },
                             [&](std::size_t i, std::size_t j) { return (activation_bound(at(a, i, j)) + u * std::abs(at(a, i, j))) * std::abs(at(b, i, j)); });

        Array x = b;
        ops::add_scaled<Cpu>(be, a.in(), gamma.row(), x.mat());
        error = std::max(error, worst(x, [&](std::size_t i, std::size_t j) { return at(b, i, j) + at(gamma, 0, j) * at(a, i, j); },
                                      [&](std::size_t i, std::size_t j) { return 2 * u * (std::abs(at(b, i, j)) + 2 * std::abs(at(gamma, 0, j) * at(a, i, j))); }));
        Array sum = b;
        ops::add<Cpu>(be, a.in(), sum.mat());
        const auto plain = [&](std::size_t i, std::size_t j) { return at(b, i, j) + at(a, i, j); };
        const auto rounded = [&](std::size_t i, std::size_t j) { return u * std::abs(plain(i, j)) + 0x1p-149; };
        error = std::max(error, worst(sum, plain, rounded));

        Array three = Array::random(3 * n, d, 2, d + 4);
        const Array before = three;
        ops::add_table<Cpu>(be, a.in(), three.mat());
        error = std::max(error, worst(three, [&](std::size_t i, std::size_t j) { return at(before, i, j) + at(a, i % n, j); },
                                      [&](std::size_t i, std::size_t j) { return u * std::abs(at(before, i, j) + at(a, i % n, j)) + 0x1p-149; }));

        Array same{n, d, d + 9};
        ops::copy<Cpu>(be, a.in(), same.mat());
        error = std::max(error, worst(same, [&](std::size_t i, std::size_t j) { return at(a, i, j); }, [](std::size_t, std::size_t) { return 0.0; }));
        CHECK((y.kept_to_its_rows() && x.kept_to_its_rows() && three.kept_to_its_rows() && same.kept_to_its_rows()));
        return error;
    });
}

TEST_CASE("ops/rows: activations have the published values") {
    struct Row { float z, gelu_erf, quick_gelu, gelu_tanh, silu; };
    constexpr Row table[]{{-3, -0.004049694f, -0.018071310f, -0.003637392f, -0.142277620f}, {-1, -0.158655254f, -0.154204234f, -0.158808009f, -0.268941421f},
                          {-0.5f, -0.154268769f, -0.149611563f, -0.154285990f, -0.188770334f}, {0.5f, 0.345731231f, 0.350388437f, 0.345714010f, 0.311229666f},
                          {1, 0.841344746f, 0.845795766f, 0.841191991f, 0.731058579f}, {3, 2.995950306f, 2.981928690f, 2.996362608f, 2.857722380f}};
    for (Isa isa : isas())
        for (const Row& r : table) {
            Cpu be{{.threads = 1, .isa = isa}};
            const std::pair<Activation, float> expected[]{{Activation::none, r.z}, {Activation::gelu_erf, r.gelu_erf}, {Activation::quick_gelu, r.quick_gelu},
                                                          {Activation::gelu_tanh, r.gelu_tanh}, {Activation::silu, r.silu}};
            for (const auto& entry : expected) {
                const Activation   act = entry.first;
                std::vector<float> x(19, r.z);  // whole vectors and a rest
                ops::activate<Cpu>(be, act, Mat<Cpu>{x.data(), {1, x.size()}});
                const double limit = activation_bound(static_cast<double>(r.z)) + 5e-10;  // the table has nine digits
                for (float y : x)
                    CHECK_MESSAGE(std::abs(static_cast<double>(y) - static_cast<double>(entry.second)) <= limit, to_string(isa) << ", " << to_string(act) << "(" << r.z << ")");
            }
        }
}

TEST_CASE("ops/rows: activations of every bf16 number are within their rounding, and NaN stays NaN") {
    Array z{256, 256};
    for (std::size_t i = 0; i < 65536; ++i) {
        bf16_t b;
        b.bits = static_cast<std::uint16_t>(i);
        z.mat()(i / 256, i % 256) = b;
    }
    for (Isa isa : isas())
        for (Activation act : activations) {
            Cpu   be{{.threads = 2, .isa = isa}};
            Array y = z;
            ops::activate<Cpu>(be, act, y.mat());
            std::size_t wrong = 0;
            for (std::size_t i = 0; i < 256; ++i)
                for (std::size_t j = 0; j < 256; ++j) {
                    const double x = at(z, i, j), found = at(y, i, j);
                    if (std::isnan(x)) wrong += !std::isnan(found);
                    else if (std::isinf(x)) wrong += x > 0 && !std::isinf(found);
                    else wrong += !(std::abs(found - activation(act, x)) <= activation_bound(x));
                }
            CHECK_MESSAGE(wrong == 0, to_string(isa) << ", " << to_string(act));
        }
}

TEST_CASE("ops/attention: rope_table has the published frequencies, and cosines and sines of f32 angles") {
    struct Known { std::size_t n_angles, j; float frequency; };
    Cpu be{{.threads = 1}};
    for (const Known k : {Known{64, 1, 0.86596435f}, Known{64, 2, 0.74989420f}, Known{64, 8, 0.31622776f}, Known{64, 16, 0.1f}, Known{64, 32, 0.01f},
                          Known{64, 63, 0.000115478208f}, Known{16, 1, 0.56234133f}, Known{16, 15, 0.000177827940f}}) {
        Array              cos{3, k.n_angles}, sin{3, k.n_angles};
        std::vector<float> frequencies(k.n_angles);
        ops::rope_table<Cpu>(be, 499, 1e4f, {frequencies.data(), {k.n_angles}}, cos.mat(), sin.mat());
        CHECK(std::abs(frequencies[k.j] / k.frequency - 1) < 4 * static_cast<float>(u));
        for (std::size_t i = 0; i < 3; ++i) {
            const double angle = static_cast<double>(499.0f + static_cast<float>(i)) * static_cast<double>(frequencies[k.j]);
            CHECK(std::abs(at(cos, i, k.j) - std::cos(angle)) <= u * angle + 2 * u);  // the angle is rounded once
            CHECK(std::abs(at(sin, i, k.j) - std::sin(angle)) <= u * angle + 2 * u);
        }
    }
}

TEST_CASE("ops/attention: rope_half rotates pairs of halves, and leaves what does not rotate as it is") {
    for (Isa isa : isas())
        for (std::size_t n_heads : {1, 3})
            for (std::size_t head_dim : {2, 6, 64, 66, 80, 128})
                for (std::size_t n_angles : {head_dim / 2, head_dim / 4, std::size_t{1}, std::size_t{0}}) {
                    Cpu         be{{.threads = 2, .isa = isa}};
                    const Array cos = Array::random(5, n_angles, 1), sin = Array::random(5, n_angles, 2);
                    const Array x = Array::random(5, n_heads * head_dim, 3, n_heads * head_dim + 4);
                    Array       y = x;
                    ops::rope_half<Cpu>(be, cos.in(), sin.in(), n_heads, y.mat());
                    const auto rotated = [&](std::size_t i, std::size_t j, bool magnitude) {
                        const std::size_t in_head = j % head_dim;
                        if (in_head >= 2 * n_angles) return at(x, i, j);
                        const bool   first = in_head < n_angles;
                        const double a = at(x, i, j) * at(cos, i, in_head % n_angles);
                        const double b = (first ? -at(x, i, j + n_angles) : at(x, i, j - n_angles)) * at(sin, i, in_head % n_angles);
                        return magnitude ? std::abs(a) + std::abs(b) : a + b;
                    };
                    const double error = worst(y, [&](std::size_t i, std::size_t j) { return rotated(i, j, false); },
                                               [&](std::size_t i, std::size_t j) { return j % head_dim < 2 * n_angles ? 2 * u * rotated(i, j, true) : 0.0; });
                    CHECK_MESSAGE((error <= 1 && y.kept_to_its_rows()), to_string(isa) << ", " << n_heads << " heads of " << head_dim << ", " << n_angles << " angles");
                }
}

TEST_CASE("ops/patchify: rows are patches, channel by channel; what is left over at the edges is not read") {
    struct Shape { std::size_t n, height, width, patch; };
    for (const Shape s : {Shape{1, 4, 4, 2}, Shape{2, 7, 11, 3}, Shape{3, 5, 5, 5}, Shape{1, 31, 29, 14}, Shape{2, 6, 4, 1}}) {
        Cpu               be{{.threads = 2}};
        const auto        pixels = normal(s.n * 3 * s.height * s.width, 1);
        const std::size_t rows = s.height / s.patch, cols = s.width / s.patch;
        Array             y{s.n * rows * cols, 3 * s.patch * s.patch, 3 * s.patch * s.patch + 5};
        ops::patchify<Cpu>(be, {pixels.data(), {s.n, 3, s.height, s.width}}, s.patch, y.mat());
        const double error = worst(
            y,
            [&](std::size_t i, std::size_t j) {
                const std::size_t image = i / (rows * cols), row = i / cols % rows * s.patch + j / s.patch % s.patch;
                const std::size_t col = i % cols * s.patch + j % s.patch, channel = j / (s.patch * s.patch);
                return static_cast<double>(pixels[((image * 3 + channel) * s.height + row) * s.width + col]);
            },
            [](std::size_t, std::size_t) { return 0.0; });
        CHECK((error == 0 && y.kept_to_its_rows()));
    }
}

TEST_CASE("ops/rows: exponentials keep their digits far from zero") {
    std::vector<float> z;
    for (float x = -86; x < 0; x += 0.37f) z.push_back(x);
    for (Isa isa : isas()) {
        Cpu  be{{.threads = 1, .isa = isa}};
        auto y = z;
        ops::activate<Cpu>(be, Activation::silu, {y.data(), {1, y.size()}});
        double most = 0;
        for (std::size_t i = 0; i < z.size(); ++i) {
            const double expected = activation(Activation::silu, static_cast<double>(z[i]));
            most = std::max(most, std::abs(static_cast<double>(y[i]) / expected - 1));
        }
        CHECK_MESSAGE(most <= 8 * u, to_string(isa) << ": " << most / u);  // two ulp of exp, an addition, a division, a product
    }
}
