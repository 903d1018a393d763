// Training on Dry: what backward passes would cost. Products and attention are counted as work, as in forward passes.
#pragma once

#include "prism/backend/dry/dry.hpp"
#include "prism/backend/training.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace prism {

template <>
struct Training<Dry> {
    template <class T> using Matrix = View<T, nowhere, dyn, dyn>;
    template <class T> using Vector = View<T, nowhere, dyn>;
    Dry& be;

    template <Format F>
    void linear_dx(Matrix<const float> dy, const Packed<F, nowhere>& w, Matrix<float> dx, bool add) {
        be.product(dy, w);
        be.moved(dy, dx);
        if (add) be.moved(dx);
    }
    void linear_dw(Matrix<const float> dy, Matrix<const float> x, Matrix<float> dw) {
        be.worked(2 * std::uint64_t{dy.rows()} * dy.cols() * x.cols());
        be.moved(dy, x, dw, dw);
    }
    void column_sums(Matrix<const float> dy, Vector<float> db) { be.moved(dy, db, db); }
    void layer_norm(Matrix<const float> x, Vector<const float>, float, Matrix<const float> dy, Matrix<float> dx, Vector<float>, Vector<float>) { be.moved(x, dy, dx, dx); }
    void rms_norm(Matrix<const float> x, Vector<const float>, float, Matrix<const float> dy, Matrix<float> dx, Vector<float>) { be.moved(x, dy, dx, dx); }
    void activate(Activation, Matrix<const float> z, Matrix<float> dy) { be.moved(z, dy, dy); }
    void silu_mul(Matrix<const float> gate, Matrix<const float> up, Matrix<const float> dy, Matrix<float> dgate, Matrix<float> dup) { be.moved(gate, up, dy, dgate, dup); }
    void scaled(Matrix<const float> branch, Vector<const float>, Matrix<const float> dy, Matrix<float> dbranch, Vector<float>) { be.moved(branch, dy, dbranch); }
    void attention(Matrix<const float> q, Matrix<const float> k, Matrix<const float> v, Matrix<const float> y, const AttentionShape& s, Matrix<const float> dy,
                   Matrix<float> dq, Matrix<float> dk, Matrix<float> dv) {
        be.worked(s.flops(q.rows(), k.rows()) / 2 * 5);  // five products where forward has two
        be.moved(q, k, v, y, dy, dq, dk, dv);
    }
    void   rope(Matrix<const float>, Matrix<const float>, std::size_t, Matrix<float> dx) { be.moved(dx, dx); }
    void   scatter_add(std::span<const std::int32_t>, Matrix<const float> dy, Matrix<float>) { be.moved(dy, dy, dy); }
    void   add_table(Matrix<const float> dy, Matrix<float> dtable) { be.moved(dy, dtable, dtable); }
    void   clear(Matrix<float> x) { be.moved(x); }
    void   dropout(float, std::uint64_t, Matrix<float> x) { be.moved(x, x); }
    double cross_entropy(Matrix<float> logits, std::span<const std::int32_t>, float) { return be.moved(logits, logits), 0; }
    double squared_norm(Vector<const float> x) { return be.moved(x), 0; }
    void   adamw(Vector<float> theta, Vector<const float> grad, Vector<float> m, Vector<float> v, const AdamWStep&) { be.moved(theta, theta, grad, m, m, v, v); }
};

static_assert(TrainingBackend<Dry>);

}  // namespace prism
