// Work is cut over outputs in pieces that do not depend on the number of threads: the bits are the same at any number.
#include "prism/ops/attention.hpp"
#include "prism/ops/linear.hpp"
#include "prism/ops/patchify.hpp"
#include "prism/ops/rows.hpp"
#include "support/arrays.hpp"

#include <doctest/doctest.h>

#include <functional>

using namespace prism;
using namespace prism::test;

TEST_CASE("ops: every operation gives the same bits at 1, 2, 3 and 8 threads") {
    constexpr std::size_t n = 390, d = 192;
    const Array           x = Array::random(n, d, 1), v = Array::random(1, d, 2), w = Array::random(300, d, 3), small = Array::random(3, d, 5);
    const auto            pixels = normal(3 * 70 * 70, 6);
    const AttentionShape  heads{.n_heads = 3, .n_kv_heads = 1, .head_dim = 64, .causal = true, .q_pos = 0, .scale = 0.125f};
    std::vector<bf16_t>   half;
    for (float value : w.values()) half.emplace_back(value);
    const Packed<f32, host>  w32{w.values().data(), 300, d, d};
    const Packed<bf16, host> w16{half.data(), 300, d, d};

    struct Op {
        std::string                    name;
        std::size_t                    rows, cols;
        std::function<void(Cpu&, Mat<Cpu>)> run;
    };
    const std::vector<std::int32_t> ids(n, 7);
    const Op                        all[]{
        {"linear f32", n, 300, [&](Cpu& be, Mat<Cpu> y) { ops::linear<Cpu>(be, x.in(), w32, {}, y, Activation::gelu_erf); }},
        {"linear bf16", n, 300, [&](Cpu& be, Mat<Cpu> y) { ops::linear<Cpu>(be, x.in(), w16, {}, y); }},
        {"linear, few rows", 3, 300, [&](Cpu& be, Mat<Cpu> y) { ops::linear<Cpu>(be, small.in(), w16, {}, y); }},
        {"gather", n, d, [&](Cpu& be, Mat<Cpu> y) { ops::gather<Cpu>(be, w16, ids, y); }},
        {"layer_norm", n, d, [&](Cpu& be, Mat<Cpu> y) { ops::layer_norm<Cpu>(be, x.in(), v.row(), v.row(), 1e-6f, y); }},
        {"rms_norm", n, d, [&](Cpu& be, Mat<Cpu> y) { ops::rms_norm<Cpu>(be, x.in(), v.row(), 1e-6f, y); }},
        {"copy, activate", n, d, [&](Cpu& be, Mat<Cpu> y) { ops::copy<Cpu>(be, x.in(), y), ops::activate<Cpu>(be, Activation::quick_gelu, y); }},
        {"silu_mul", n, d, [&](Cpu& be, Mat<Cpu> y) { ops::silu_mul<Cpu>(be, x.in(), x.in(), y); }},
        {"add_scaled, add_table", n, d, [&](Cpu& be, Mat<Cpu> y) { ops::add_scaled<Cpu>(be, x.in(), v.row(), y), ops::add_table<Cpu>(be, small.in(), y); }},
        {"rope", n, d,
         [&](Cpu& be, Mat<Cpu> y) {
             std::vector<float> frequencies(32);
             Array              cos{n, 32}, sin{n, 32};
             ops::rope_table<Cpu>(be, 3, 1e4f, {frequencies.data(), {32}}, cos.mat(), sin.mat());
             ops::rope_half<Cpu>(be, cos.in(), sin.in(), 3, y);
         }},
        {"attention", n, d, [&](Cpu& be, Mat<Cpu> y) { ops::attention<Cpu>(be, x.in(), x.in().cols(0, 64), x.in().cols(64, 64), heads, y); }},
        {"attention, few rows", 3, d, [&](Cpu& be, Mat<Cpu> y) { ops::attention<Cpu>(be, small.in(), x.in().cols(0, 64), x.in().cols(64, 64), heads, y); }},
        {"patchify", 25, 588, [&](Cpu& be, Mat<Cpu> y) { ops::patchify<Cpu>(be, {pixels.data(), {1, 3, 70, 70}}, 14, y); }},
    };
    for (Isa isa : isas())
        for (const Op& op : all) {
            std::vector<float> one;
            for (std::size_t threads : {1, 2, 3, 8}) {
                Cpu   be{{.threads = threads, .isa = isa}};
                Array y = Array::random(op.rows, op.cols, 9);
                op.run(be, y.mat());
                if (threads == 1) one = y.values();
                CHECK_MESSAGE(y.values() == one, op.name << ", " << to_string(isa) << ", " << threads << " threads");
            }
        }
}
