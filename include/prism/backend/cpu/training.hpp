// Training on Cpu: the gradients of its operations.
//
//     prism::ops::linear_dx<prism::Cpu>(cpu, dy, w, dx);     // needs this header
#pragma once

#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/cpu/training_kernels.hpp"
#include "prism/backend/training.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

namespace prism {

template <>
struct Training<Cpu> {
    template <class T> using Matrix = View<T, host, dyn, dyn>;
    template <class T> using Vector = View<T, host, dyn>;

    Training(Cpu& backend) : be(backend), kernels(cpu::TrainingTables<>::of(backend.isa(), backend.compute() == Compute::fast)) {}

    template <Format F>
    void linear_dx(Matrix<const float> dy, const Packed<F, host>& w, Matrix<float> dx, bool add) {
        product(F::dtype, {.a = dy.data(), .lda = dy.ld(), .m = dy.rows(), .k = w.rows, .w = {w.data, w.stride, w.panels, w.first}, .n = w.cols, .add = add, .y = dx.data(), .ldy = dx.ld()});
    }
    void linear_dw(Matrix<const float> dy, Matrix<const float> x, Matrix<float> dw) {
        product(Dtype::f32, {.a = dy.data(), .lda = dy.ld(), .m = dy.cols(), .k = x.rows(), .w = {x.data(), x.ld(), nullptr, 0}, .n = x.cols(), .across = true, .add = true, .y = dw.data(), .ldy = dw.ld()});
    }

    void column_sums(Matrix<const float> dy, Vector<float> db) {
        rows(dy.rows(), dy.cols(), db, {}, [&](std::size_t i, float* sums, float*) { add_row(dy.row(i).data(), sums, dy.cols()); });
    }
    void layer_norm(Matrix<const float> x, Vector<const float> weight, float eps, Matrix<const float> dy, Matrix<float> dx, Vector<float> dw, Vector<float> db) {
        rows(x.rows(), x.cols(), dw, db, [&](std::size_t i, float* w_sums, float* b_sums) {
            kernels.layer_norm(x.row(i).data(), weight.data(), eps, dy.row(i).data(), dx.row(i).data(), w_sums, b_sums, x.cols());
        });
    }
    void rms_norm(Matrix<const float> x, Vector<const float> weight, float eps, Matrix<const float> dy, Matrix<float> dx, Vector<float> dw) {
        rows(x.rows(), x.cols(), dw, {}, [&](std::size_t i, float* sums, float*) {
            kernels.rms_norm(x.row(i).data(), weight.data(), eps, dy.row(i).data(), dx.row(i).data(), sums, x.cols());
        });
    }
    void activate(Activation act, Matrix<const float> z, Matrix<float> dy) {
        rows(z.rows(), z.cols(), {}, {}, [&](std::size_t i, float*, float*) { kernels.activate(act, z.row(i).data(), dy.row(i).data(), z.cols()); });
    }
    void silu_mul(Matrix<const float> gate, Matrix<const float> up, Matrix<const float> dy, Matrix<float> dgate, Matrix<float> dup) {
        rows(gate.rows(), gate.cols(), {}, {}, [&](std::size_t i, float*, float*) {
            kernels.silu_mul(gate.row(i).data(), up.row(i).data(), dy.row(i).data(), dgate.row(i).data(), dup.row(i).data(), gate.cols());
        });
    }
    void scaled(Matrix<const float> branch, Vector<const float> gamma, Matrix<const float> dy, Matrix<float> dbranch, Vector<float> dgamma) {
        rows(branch.rows(), branch.cols(), dgamma, {}, [&](std::size_t i, float* sums, float*) {
            kernels.scaled(branch.row(i).data(), gamma.data(), dy.row(i).data(), dbranch.row(i).data(), sums, branch.cols());
        });
    }

    /// One piece of work for each key head of each sequence, because dk and dv are sums over the queries. Where those are few
    /// and query heads share them, each query head is a piece, and what they give is added up in order.
    void attention(Matrix<const float> q, Matrix<const float> k, Matrix<const float> v, Matrix<const float> y, const AttentionShape& s, Matrix<const float> dy,
                   Matrix<float> dq, Matrix<float> dk, Matrix<float> dv) {
        using Gradient = cpu::AttendGradient;
        const std::size_t n_q = q.rows() / s.n_sequences, n_kv = k.rows() / s.n_sequences, d = s.head_dim, shared = s.n_heads / s.n_kv_heads;
        const bool        apart = shared > 1 && s.n_sequences * s.n_kv_heads < 16;
        const std::size_t pieces = apart ? s.n_heads : s.n_kv_heads, n_heads = s.n_heads / pieces;  // of a sequence; of a piece
        const std::size_t room = (Gradient::floats(n_q, n_kv, d) + 15) / 16 * 16;  // of a thread, for one piece
        float* const      rooms = memory<float>(be.threads() * room + (apart ? s.n_sequences * s.n_heads * n_kv * 2 * d : 0));
        float* const      sums = rooms + be.threads() * room;  // dk and dv, side by side
        be.count_flops(s.flops(q.rows(), k.rows()) / 2 * 5);
        be.parallel_for(s.n_sequences * pieces, 1, [&](std::size_t task, std::size_t) {
            const std::size_t row = task / pieces * n_q, row_kv = task / pieces * n_kv, at = task % pieces * n_heads * d, at_kv = task % pieces * n_heads / shared * d;
            float* const      sum = sums + (apart ? task * n_kv * 2 * d : 0);
            kernels.attend({q.data() + row * q.ld() + at, k.data() + row_kv * k.ld() + at_kv, v.data() + row_kv * v.ld() + at_kv, y.data() + row * y.ld() + at,
                            dy.data() + row * dy.ld() + at, dq.data() + row * dq.ld() + at, apart ? sum : dk.data() + row_kv * dk.ld() + at_kv,
                            apart ? sum + d : dv.data() + row_kv * dv.ld() + at_kv, q.ld(), k.ld(), v.ld(), y.ld(), dy.ld(), dq.ld(), apart ? 2 * d : dk.ld(), apart ? 2 * d : dv.ld(),
                            n_q, n_kv, n_heads, d, s.causal, s.q_pos, s.window, s.scale},
                           rooms + ThreadPool::place() * room);
        });
        if (!apart) return;
        rows(k.rows(), k.cols(), {}, {}, [&](std::size_t i, float*, float*) {
            for (std::size_t head = 0; head < s.n_heads; ++head) {
                const float* const sum = sums + ((i / n_kv * s.n_heads + head) * n_kv + i % n_kv) * 2 * d;
                const std::size_t  at = head / shared * d;
                if (head % shared == 0) std::copy_n(sum, d, dk.row(i).data() + at), std::copy_n(sum + d, d, dv.row(i).data() + at);
                else add_row(sum, dk.row(i).data() + at, d), add_row(sum + d, dv.row(i).data() + at, d);
            }
        });
    }

    void rope(Matrix<const float> cos, Matrix<const float> sin, std::size_t n_heads, Matrix<float> dx) {
        rows(dx.rows(), dx.cols(), {}, {}, [&](std::size_t i, float*, float*) {
            float* const opposite = cpu::scratch();
            for (std::size_t j = 0; j < sin.cols(); ++j) opposite[j] = -sin(i, j);
            be.kernels().rope(dx.row(i).data(), n_heads, dx.cols() / n_heads, cos.row(i).data(), opposite, cos.cols());
        });
    }

    /// Cut over columns: an id may occur several times.
    void scatter_add(std::span<const std::int32_t> ids, Matrix<const float> dy, Matrix<float> dw) {
        be.parallel_for(dy.cols(), 256, [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = 0; i < ids.size(); ++i) add_row(dy.row(i).data() + begin, dw.row(static_cast<std::size_t>(ids[i])).data() + begin, end - begin);
        });
    }
    void add_table(Matrix<const float> dy, Matrix<float> dtable) {
        rows(dtable.rows(), dy.cols(), {}, {}, [&](std::size_t i, float*, float*) {
            for (std::size_t from = i; from < dy.rows(); from += dtable.rows()) add_row(dy.row(from).data(), dtable.row(i).data(), dy.cols());
        });
    }

    void clear(Matrix<float> x) {
        be.parallel_for(x.rows(), std::max<std::size_t>(1, 65536 / std::max<std::size_t>(1, x.cols())), [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i) std::fill_n(x.row(i).data(), x.cols(), 0.0f);
        });
    }

    /// Value (i, j) stays where 32 bits of a counter-based generator (SplitMix64 at its place) are high enough.
    void dropout(float share, std::uint64_t key, Matrix<float> x) {
        const auto  least = static_cast<std::uint64_t>(static_cast<double>(share) * 0x1p32);
        const float scale = 1 / (1 - share);
        be.parallel_for(x.rows(), std::max<std::size_t>(1, 16384 / std::max<std::size_t>(1, x.cols())), [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i)
                for (std::size_t j = 0; j < x.cols(); ++j) {
                    std::uint64_t z = key + (i * x.cols() + j + 1) * 0x9e3779b97f4a7c15ULL;
                    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
                    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
                    x(i, j) = ((z ^ (z >> 31)) >> 32) < least ? 0 : x(i, j) * scale;
                }
        });
    }

    double cross_entropy(Matrix<float> logits, std::span<const std::int32_t> labels, float scale) {
        double* const losses = memory<double>(labels.size());
        rows(logits.rows(), logits.cols(), {}, {}, [&](std::size_t i, float*, float*) {
            losses[i] = 0;
            if (labels[i] == ignored_label) std::fill_n(logits.row(i).data(), logits.cols(), 0.0f);
            else losses[i] = kernels.cross_entropy(logits.row(i).data(), logits.cols(), static_cast<std::size_t>(labels[i]), scale);
        });
        return sum(losses, labels.size());
    }

    double squared_norm(Vector<const float> x) {
        double* const sums = memory<double>((x.size() + piece - 1) / piece);
        be.parallel_for(x.size(), piece, [&](std::size_t begin, std::size_t end) { sums[begin / piece] = kernels.squares(x.data() + begin, end - begin); });
        return sum(sums, (x.size() + piece - 1) / piece);
    }

    void adamw(Vector<float> theta, Vector<const float> grad, Vector<float> m, Vector<float> v, const AdamWStep& s) {
        const auto   in_f32 = [](double x) { return static_cast<float>(x); };
        const double t = static_cast<double>(s.step);
        const cpu::AdamWFactors factors{in_f32(1 - s.lr * s.decay), in_f32(1 - s.beta1), in_f32(s.beta2), in_f32(1 - s.beta2), in_f32(s.lr / (1 - std::pow(s.beta1, t))),
                                        in_f32(std::sqrt(1 - std::pow(s.beta2, t))), in_f32(s.eps), s.clip};
        be.parallel_for(theta.size(), piece, [&](std::size_t i, std::size_t end) {
            kernels.adamw(theta.data() + i, grad.data() + i, m.data() + i, v.data() + i, end - i, factors);
        });
    }

    Cpu&                        be;
    const cpu::TrainingKernels& kernels;

private:
    static constexpr std::size_t piece = 16384;  // numbers, of a loop over rows or a vector

    /// Memory of the calling thread, until its next operation.
    template <class T>
    static T* memory(std::size_t n) {
        return reinterpret_cast<T*>(cpu::activation_memory(n * sizeof(T)));
    }
    static double sum(const double* x, std::size_t n) {
        double total = 0;
        for (std::size_t i = 0; i < n; ++i) total += x[i];
        return total;
    }
    void add_row(const float* x, float* y, std::size_t n) const { be.kernels().add_scaled(x, nullptr, y, n); }

    /// More threads get smaller tiles; a tile's size changes no bit of its sums.
    void product(Dtype format, const cpu::GradientTile& all) {
        using Tile = cpu::GradientTile;
        if (all.m == 0 || all.n == 0) return;
        be.count_flops(2 * std::uint64_t{all.m} * all.n * all.k);
        const auto  parts = [](std::size_t n, std::size_t of) { return (n + of - 1) / of; };
        std::size_t height = Tile::max_rows, width = Tile::max_cols;
        while (height > 84 && parts(all.m, height) * parts(all.n, width) < 4 * be.threads()) height /= 2;
        while (width > 32 && parts(all.m, height) * parts(all.n, width) < 4 * be.threads()) width /= 2;
        const std::size_t n_down = parts(all.m, height);
        height = parts(parts(all.m, n_down), kernels.tile_rows) * kernels.tile_rows;
        be.parallel_for(n_down * parts(all.n, width), 1, [&](std::size_t piece_of, std::size_t) {
            const std::size_t down = piece_of % n_down * height, begin = piece_of / n_down * width;
            if (down >= all.m) return;
            Tile t = all;
            t.a += all.across ? down : down * all.lda;
            t.m = std::min(height, all.m - down), t.begin = begin, t.end = std::min(begin + width, all.n), t.y += down * all.ldy;
            kernels.products[cpu::index_of(format)](t);
        });
    }

    /// body(i, first, second) for n rows of d numbers, in pieces that depend on n and d alone. first and second are sums of
    /// the piece, one for each column, which are added to a and b in order; null where those are empty.
    template <class Body>
    void rows(std::size_t n, std::size_t d, Vector<float> a, Vector<float> b, Body&& body) {
        const bool        sums = !a.empty() || !b.empty();
        const std::size_t height = std::max<std::size_t>(sums ? 32 : 1, piece / std::max<std::size_t>(1, d)), n_pieces = sums ? (n + height - 1) / height : 0;
        float* const      partial = memory<float>(n_pieces * 2 * d);
        be.parallel_for(n, height, [&](std::size_t begin, std::size_t end) {
            float* const first = sums ? partial + begin / height * 2 * d : nullptr;
            if (sums) std::fill_n(first, 2 * d, 0.0f);
            for (std::size_t i = begin; i < end; ++i) body(i, a.empty() ? nullptr : first, b.empty() ? nullptr : first + d);
        });
        for (std::size_t p = 0; p < n_pieces; ++p) {
            if (!a.empty()) add_row(partial + p * 2 * d, a.data(), d);
            if (!b.empty()) add_row(partial + p * 2 * d + d, b.data(), d);
        }
    }
};

static_assert(TrainingBackend<Cpu>);

}  // namespace prism
