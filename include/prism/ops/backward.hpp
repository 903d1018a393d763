// The gradients of the operations, and the step that follows them. Sources that call them also include the training part
// of their backend: prism/backend/cpu/training.hpp, prism/backend/dry/training.hpp.
//
// Gradients of parameters are always added to (`dw += ...`), and left out where the argument is empty. Gradients of
// activations are written, except where they are that of a residual stream.
#pragma once

#include "prism/backend/training.hpp"
#include "prism/ops/attention.hpp"

#include <cstdint>
#include <span>
#include <string>

namespace prism::ops {

/// dx [n, d_in] = dy [n, d_out] w, or dx += with `add`. w is [d_out, d_in] in any format, in rows or panels. dx must not be
/// dy. Throws ShapeError.
template <TrainingBackend B, Format F>
void linear_dx(B& be, In<B> dy, const Packed<F, typename B::space>& w, Mat<B> dx, bool add = false) {
    expect("linear_dx", "dy", {any, w.rows}, dy);
    expect("linear_dx", "dx", {dy.rows(), w.cols}, dx);
    Training<B>{be}.linear_dx(dy, w, dx, add);
}

/// dw [d_out, d_in] += dy^T x          dy [n, d_out], x [n, d_in]
template <TrainingBackend B>
void linear_dw(B& be, In<B> dy, In<B> x, Mat<B> dw) {
    expect("linear_dw", "x", {dy.rows(), any}, x);
    expect("linear_dw", "dw", {dy.cols(), x.cols()}, dw);
    Training<B>{be}.linear_dw(dy, x, dw);
}

/// db [d] += the sum of the rows of dy [n, d].
template <TrainingBackend B>
void column_sums(B& be, In<B> dy, Vec<B> db) {
    expect("column_sums", "db", {dy.cols()}, db);
    Training<B>{be}.column_sums(dy, db);
}

/// Of layer_norm(x, weight, bias, eps): dx [n, d] += its gradient, because x is the residual stream; dw [d], db [d] += unless
/// empty. dx must not be dy or x.
template <TrainingBackend B>
void layer_norm_backward(B& be, In<B> x, Vec<B, const float> weight, float eps, In<B> dy, Mat<B> dx, Vec<B> dw, Vec<B> db) {
    expect("layer_norm_backward", "weight", {x.cols()}, weight);
    expect("layer_norm_backward", "dy", x.shape(), dy);
    expect("layer_norm_backward", "dx", x.shape(), dx);
    if (!dw.empty()) expect("layer_norm_backward", "dw", {x.cols()}, dw);
    if (!db.empty()) expect("layer_norm_backward", "db", {x.cols()}, db);
    Training<B>{be}.layer_norm(x, weight, eps, dy, dx, dw, db);
}

/// Of rms_norm(x, weight, eps): as layer_norm_backward.
template <TrainingBackend B>
void rms_norm_backward(B& be, In<B> x, Vec<B, const float> weight, float eps, In<B> dy, Mat<B> dx, Vec<B> dw) {
    expect("rms_norm_backward", "weight", {x.cols()}, weight);
    expect("rms_norm_backward", "dy", x.shape(), dy);
    expect("rms_norm_backward", "dx", x.shape(), dx);
    if (!dw.empty()) expect("rms_norm_backward", "dw", {x.cols()}, dw);
    Training<B>{be}.rms_norm(x, weight, eps, dy, dx, dw);
}

/// dy *= act'(z), element by element; z is what the activation was given.
template <TrainingBackend B>
void activate_backward(B& be, Activation act, In<B> z, Mat<B> dy) {
    expect("activate_backward", "dy", z.shape(), dy);
    if (act != Activation::none) Training<B>{be}.activate(act, z, dy);
}

/// Of silu(gate) * up: dgate and dup are written. Either may be dy.
template <TrainingBackend B>
void silu_mul_backward(B& be, In<B> gate, In<B> up, In<B> dy, Mat<B> dgate, Mat<B> dup) {
    expect("silu_mul_backward", "up", gate.shape(), up);
    expect("silu_mul_backward", "dy", gate.shape(), dy);
    expect("silu_mul_backward", "dgate", gate.shape(), dgate);
    expect("silu_mul_backward", "dup", gate.shape(), dup);
    Training<B>{be}.silu_mul(gate, up, dy, dgate, dup);
}

/// Of gamma * branch, layer scale: dbranch = dy gamma; dgamma [d] += the sum over rows of dy branch unless empty. dbranch may
/// be dy or branch.
template <TrainingBackend B>
void scaled_backward(B& be, In<B> branch, Vec<B, const float> gamma, In<B> dy, Mat<B> dbranch, Vec<B> dgamma) {
    expect("scaled_backward", "gamma", {branch.cols()}, gamma);
    expect("scaled_backward", "dy", branch.shape(), dy);
    expect("scaled_backward", "dbranch", branch.shape(), dbranch);
    if (!dgamma.empty()) expect("scaled_backward", "dgamma", {branch.cols()}, dgamma);
    Training<B>{be}.scaled(branch, gamma, dy, dbranch, dgamma);
}

/// Of y = attention(q, k, v, s), heads side by side in f32 rows: dq, dk, dv are written. Probabilities are computed again.
/// dq, dk and dv must be none of the arguments, nor each other. Throws ShapeError.
template <TrainingBackend B>
void attention_backward(B& be, In<B> q, In<B> k, In<B> v, In<B> y, const AttentionShape& s, In<B> dy, Mat<B> dq, Mat<B> dk, Mat<B> dv) {
    const char* const op = "attention_backward";
    const auto        refuse = [&](const char* argument, const std::string& expected, std::size_t found) {
        throw ShapeError{op, argument, expected, std::to_string(found)};
    };
    detail::expect_heads(op, s, q.rows(), k.rows());
    if (s.kv_head_stride != 0) refuse("kv_head_stride", "0: heads side by side", s.kv_head_stride);
    expect(op, "q", {any, s.n_heads * s.head_dim}, q);
    expect(op, "k", {any, s.n_kv_heads * s.head_dim}, k);
    expect(op, "v", k.shape(), v);
    expect(op, "y", q.shape(), y);
    expect(op, "dy", q.shape(), dy);
    expect(op, "dq", q.shape(), dq);
    expect(op, "dk", k.shape(), dk);
    expect(op, "dv", k.shape(), dv);
    const std::size_t n_q = q.rows() / s.n_sequences, n_kv = k.rows() / s.n_sequences;
    if (s.causal && (n_q > n_kv || s.q_pos > n_kv - n_q)) refuse("k", "at least " + std::to_string(s.q_pos + n_q) + " rows a sequence", n_kv);
    if (n_kv == 0 && n_q > 0) refuse("k", "at least one row", n_kv);
    Training<B>{be}.attention(q, k, v, y, s, dy, dq, dk, dv);
}

/// Of rope_half: rotates the heads of dx [n, n_heads head_dim] in place by the opposite angles.
template <TrainingBackend B>
void rope_half_backward(B& be, In<B> cos, In<B> sin, std::size_t n_heads, Mat<B> dx) {
    expect("rope_half_backward", "cos", {dx.rows(), any}, cos);
    expect("rope_half_backward", "sin", cos.shape(), sin);
    if (n_heads == 0 || dx.cols() % n_heads != 0 || 2 * cos.cols() > dx.cols() / n_heads)
        throw ShapeError{"rope_half_backward", "dx", std::to_string(n_heads) + " heads of at least " + std::to_string(2 * cos.cols()), to_string(dx.shape())};
    Training<B>{be}.rope(cos, sin, n_heads, dx);
}

/// Of gather: dw[ids[i]] += dy[i], for dy [n, d] and dw [vocab, d]. Throws ShapeError when an id is no row.
template <TrainingBackend B>
void scatter_add(B& be, std::span<const std::int32_t> ids, In<B> dy, Mat<B> dw) {
    expect("scatter_add", "dy", {ids.size(), dw.cols()}, dy);
    for (std::int32_t id : ids)
        if (id < 0 || static_cast<std::size_t>(id) >= dw.rows())
            throw ShapeError{"scatter_add", "ids", "0 ... " + std::to_string(dw.rows() - 1), std::to_string(id)};
    Training<B>{be}.scatter_add(ids, dy, dw);
}

/// Of add_table: dtable [m, d] += the sum of the n repeats in dy [n m, d].
template <TrainingBackend B>
void add_table_backward(B& be, In<B> dy, Mat<B> dtable) {
    expect("add_table_backward", "dy", {any, dtable.cols()}, dy);
    if (dtable.rows() == 0 || dy.rows() % dtable.rows() != 0)
        throw ShapeError{"add_table_backward", "dy", "a multiple of " + std::to_string(dtable.rows()) + " rows", std::to_string(dy.rows())};
    Training<B>{be}.add_table(dy, dtable);
}

/// The sum of -log softmax(logits)[label] over the rows of logits [n, vocab] whose label is not ignored_label. logits become
/// scale (softmax(logits) - onehot(label)), and zero where the label is ignored. Throws ShapeError when a label is no column.
template <TrainingBackend B>
double cross_entropy(B& be, Mat<B> logits, std::span<const std::int32_t> labels, float scale) {
    expect("cross_entropy", "logits", {labels.size(), any}, logits);
    for (std::int32_t label : labels)
        if (label != ignored_label && (label < 0 || static_cast<std::size_t>(label) >= logits.cols()))
            throw ShapeError{"cross_entropy", "labels", "-100 or 0 ... " + std::to_string(logits.cols() - 1), std::to_string(label)};
    return Training<B>{be}.cross_entropy(logits, labels, scale);
}

/// x = 0
template <TrainingBackend B>
void clear(B& be, Mat<B> x) {
    Training<B>{be}.clear(x);
}

/// x = x mask / (1 - share): each value is dropped with probability `share`, in [0, 1). Which are dropped depends on `key` and
/// the place in x alone, so that backward drops the same. Throws ConfigError.
template <TrainingBackend B>
void dropout(B& be, float share, std::uint64_t key, Mat<B> x) {
    if (!(share >= 0 && share < 1)) throw ConfigError{"dropout", std::to_string(share), "0 <= share < 1"};
    if (share > 0) Training<B>{be}.dropout(share, key, x);
}

/// The sum of the squares of x [n].
template <TrainingBackend B>
double squared_norm(B& be, Vec<B, const float> x) {
    return Training<B>{be}.squared_norm(x);
}

/// theta, m, v [n] after one step with g = clip grad, in f32:
///     theta *= 1 - lr decay;   m += (g - m)(1 - beta1);   v = beta2 v + (1 - beta2) g^2
///     theta -= lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
template <TrainingBackend B>
void adamw(B& be, Vec<B> theta, Vec<B, const float> grad, Vec<B> m, Vec<B> v, const AdamWStep& step) {
    expect("adamw", "grad", theta.shape(), grad);
    expect("adamw", "m", theta.shape(), m);
    expect("adamw", "v", theta.shape(), v);
    Training<B>{be}.adamw(theta, grad, m, v, step);
}

}  // namespace prism::ops
