// What operations say of views that do not fit: op, argument, expected, found. In release builds too.
#include "prism/backend/dry/dry.hpp"
#include "prism/ops/attention.hpp"
#include "prism/ops/linear.hpp"
#include "prism/ops/patchify.hpp"
#include "prism/ops/rows.hpp"
#include "support/arrays.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace prism;

namespace {

template <Backend B>
struct Fixture {
    B                  be{};
    std::vector<float> memory = std::vector<float>(4096);

    Mat<B> mat(std::size_t rows, std::size_t cols) {
        if constexpr (B::has_numbers) return {memory.data(), {rows, cols}};
        else return {nullptr, {rows, cols}};
    }
    Vec<B> vec(std::size_t n) { return mat(1, n).row(0); }
    Packed<f32, typename B::space> weight(std::size_t rows, std::size_t cols) { return {mat(rows, cols).data(), rows, cols, cols}; }
    PixelView<B>                   pixels(std::size_t n, std::size_t h, std::size_t w) { return {mat(n, 3 * h * w).data(), {n, 3, h, w}}; }
};

template <class Call>
void refused(Call&& call, const std::string& op, const std::string& argument, const std::string& expected, const std::string& found) {
    try {
        call();
        FAIL_CHECK(op << " took a wrong " << argument);
    } catch (const ShapeError& e) {
        CHECK(e.op == op);
        CHECK(e.argument == argument);
        CHECK(e.expected == expected);
        CHECK(e.found == found);
        CHECK(e.what() == op + ": " + argument + ": expected " + expected + ", found " + found);
    }
}

}  // namespace

TEST_CASE_TEMPLATE("ops: every argument of the wrong shape is refused by name, with what was expected and found", B, Cpu, Dry) {
    Fixture<B> f;
    auto&      be = f.be;
    const auto x = f.mat(3, 4);

    refused([&] { ops::linear<B>(be, f.mat(3, 5), f.weight(2, 4), {}, f.mat(3, 2)); }, "linear", "x", "[any, 4]", "[3, 5]");
    refused([&] { ops::linear<B>(be, x, f.weight(2, 4), {}, f.mat(2, 2)); }, "linear", "y", "[3, 2]", "[2, 2]");
    refused([&] { ops::linear<B>(be, x, f.weight(2, 4), {}, f.mat(3, 3)); }, "linear", "y", "[3, 2]", "[3, 3]");
    refused([&] { ops::linear<B>(be, x, f.weight(2, 4), f.vec(3), f.mat(3, 2)); }, "linear", "bias", "[2]", "[3]");

    const std::int32_t ids[]{0, 6, 2}, negative[]{-1};
    refused([&] { ops::gather<B>(be, f.weight(7, 4), ids, f.mat(2, 4)); }, "gather", "y", "[3, 4]", "[2, 4]");
    refused([&] { ops::gather<B>(be, f.weight(7, 4), ids, f.mat(3, 5)); }, "gather", "y", "[3, 4]", "[3, 5]");
    refused([&] { ops::gather<B>(be, f.weight(6, 4), ids, x); }, "gather", "ids", "0 ... 5", "6");
    refused([&] { ops::gather<B>(be, f.weight(6, 4), negative, f.mat(1, 4)); }, "gather", "ids", "0 ... 5", "-1");

    refused([&] { ops::layer_norm<B>(be, x, f.vec(3), f.vec(4), 1e-5f, x); }, "layer_norm", "weight", "[4]", "[3]");
    refused([&] { ops::layer_norm<B>(be, x, f.vec(4), f.vec(5), 1e-5f, x); }, "layer_norm", "bias", "[4]", "[5]");
    refused([&] { ops::layer_norm<B>(be, x, f.vec(4), f.vec(4), 1e-5f, f.mat(4, 3)); }, "layer_norm", "y", "[3, 4]", "[4, 3]");
    refused([&] { ops::rms_norm<B>(be, x, f.vec(0), 1e-5f, x); }, "rms_norm", "weight", "[4]", "[0]");
    refused([&] { ops::rms_norm<B>(be, x, f.vec(4), 1e-5f, f.mat(3, 5)); }, "rms_norm", "y", "[3, 4]", "[3, 5]");

    refused([&] { ops::silu_mul<B>(be, x, f.mat(3, 5), x); }, "silu_mul", "up", "[3, 4]", "[3, 5]");
    refused([&] { ops::silu_mul<B>(be, x, x, f.mat(2, 4)); }, "silu_mul", "y", "[3, 4]", "[2, 4]");
    refused([&] { ops::add_scaled<B>(be, x, {}, f.mat(3, 3)); }, "add_scaled", "x", "[3, 4]", "[3, 3]");
    refused([&] { ops::add_scaled<B>(be, x, f.vec(5), x); }, "add_scaled", "gamma", "[4]", "[5]");
    refused([&] { ops::add_table<B>(be, x, f.mat(6, 5)); }, "add_table", "x", "[any, 4]", "[6, 5]");
    refused([&] { ops::add_table<B>(be, x, f.mat(7, 4)); }, "add_table", "x", "a multiple of 3 rows", "7");
    refused([&] { ops::add_table<B>(be, f.mat(0, 4), x); }, "add_table", "x", "a multiple of 0 rows", "3");
    refused([&] { ops::copy<B>(be, x, f.mat(4, 4)); }, "copy", "y", "[3, 4]", "[4, 4]");

    refused([&] { ops::patchify<B>(be, f.pixels(2, 5, 7), 2, f.mat(11, 12)); }, "patchify", "patches", "[12, 12]", "[11, 12]");
    refused([&] { ops::patchify<B>(be, f.pixels(2, 5, 7), 2, f.mat(12, 11)); }, "patchify", "patches", "[12, 12]", "[12, 11]");
    refused([&] { ops::patchify<B>(be, f.pixels(1, 5, 7), 0, f.mat(1, 1)); }, "patchify", "patch_size", "at least 1", "0");

    refused([&] { ops::rope_table<B>(be, 0, 1e4f, f.vec(4), f.mat(3, 5), f.mat(3, 5)); }, "rope_table", "cos", "[any, 4]", "[3, 5]");
    refused([&] { ops::rope_table<B>(be, 0, 1e4f, f.vec(4), x, f.mat(2, 4)); }, "rope_table", "sin", "[3, 4]", "[2, 4]");
    refused([&] { ops::rope_half<B>(be, f.mat(2, 2), f.mat(2, 2), 1, x); }, "rope_half", "cos", "[3, any]", "[2, 2]");
    refused([&] { ops::rope_half<B>(be, f.mat(3, 2), f.mat(3, 1), 1, x); }, "rope_half", "sin", "[3, 2]", "[3, 1]");
    refused([&] { ops::rope_half<B>(be, f.mat(3, 2), f.mat(3, 2), 2, x); }, "rope_half", "x", "2 heads of at least 4", "[3, 4]");
    refused([&] { ops::rope_half<B>(be, f.mat(3, 1), f.mat(3, 1), 3, x); }, "rope_half", "x", "3 heads of at least 2", "[3, 4]");
    refused([&] { ops::rope_half<B>(be, f.mat(3, 1), f.mat(3, 1), 0, x); }, "rope_half", "x", "0 heads of at least 2", "[3, 4]");
}

TEST_CASE_TEMPLATE("ops/attention: every part of the shape is refused by name", B, Cpu, Dry) {
    Fixture<B>           f;
    auto&                be = f.be;
    const AttentionShape good{.n_heads = 4, .n_kv_heads = 2, .head_dim = 8, .n_sequences = 2};  // q [6, 32], k and v [10, 16]
    const auto           attend = [&](AttentionShape s, Mat<B> q, Mat<B> k, Mat<B> v, Mat<B> y) { return [=, &be] { ops::attention<B>(be, q, k, v, s, y); }; };
    const auto           with = [&](auto set) {
        AttentionShape s = good;
        set(s);
        return attend(s, f.mat(6, 32), f.mat(10, 16), f.mat(10, 16), f.mat(6, 32));
    };
    CHECK_NOTHROW(with([](AttentionShape&) {})());
    refused(with([](AttentionShape& s) { s.head_dim = 0; }), "attention", "head_dim", "1 ... 256", "0");
    refused(with([](AttentionShape& s) { s.head_dim = 257; }), "attention", "head_dim", "1 ... 256", "257");
    refused(with([](AttentionShape& s) { s.n_kv_heads = 0; }), "attention", "n_kv_heads", "a divisor of 4", "0");
    refused(with([](AttentionShape& s) { s.n_kv_heads = 3; }), "attention", "n_kv_heads", "a divisor of 4", "3");
    refused(with([](AttentionShape& s) { s.n_sequences = 0; }), "attention", "n_sequences", "a divisor of the rows of q", "0");
    refused(with([](AttentionShape& s) { s.n_sequences = 4; }), "attention", "n_sequences", "a divisor of the rows of q", "4");
    refused(with([](AttentionShape& s) { s.n_sequences = 3; }), "attention", "k", "rows in n_sequences equal parts", "10");
    refused(with([](AttentionShape& s) { s.window = 2; }), "attention", "window", "0 without causal", "2");
    refused(with([](AttentionShape& s) { s.causal = true, s.q_pos = 3; }), "attention", "k", "at least 6 rows a sequence", "5");
    refused(attend(good, f.mat(6, 31), f.mat(10, 16), f.mat(10, 16), f.mat(6, 32)), "attention", "q", "[any, 32]", "[6, 31]");
    refused(attend(good, f.mat(6, 32), f.mat(10, 15), f.mat(10, 16), f.mat(6, 32)), "attention", "k", "[any, 16]", "[10, 15]");
    refused(attend(good, f.mat(6, 32), f.mat(10, 16), f.mat(8, 16), f.mat(6, 32)), "attention", "v", "[10, 16]", "[8, 16]");
    refused(attend(good, f.mat(6, 32), f.mat(10, 16), f.mat(10, 16), f.mat(6, 16)), "attention", "y", "[6, 32]", "[6, 16]");
    refused(attend(good, f.mat(6, 32), f.mat(0, 16), f.mat(0, 16), f.mat(6, 32)), "attention", "k", "at least one row", "0");
}
