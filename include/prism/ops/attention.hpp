// Attention and rotary position embedding.
#pragma once

#include "prism/backend/concept.hpp"

#include <concepts>
#include <string>
#include <type_traits>

namespace prism::ops {

namespace detail {

/// Throws ShapeError unless q and k of so many rows can have heads and sequences of this shape.
inline void expect_heads(const char* op, const AttentionShape& s, std::size_t q_rows, std::size_t k_rows) {
    const auto refuse = [op](const char* argument, const std::string& expected, std::size_t found) { throw ShapeError{op, argument, expected, std::to_string(found)}; };
    if (s.head_dim == 0 || s.head_dim > 256) refuse("head_dim", "1 ... 256", s.head_dim);
    if (s.n_kv_heads == 0 || s.n_heads % s.n_kv_heads != 0) refuse("n_kv_heads", "a divisor of " + std::to_string(s.n_heads), s.n_kv_heads);
    if (s.n_sequences == 0 || q_rows % s.n_sequences != 0) refuse("n_sequences", "a divisor of the rows of q", s.n_sequences);
    if (k_rows % s.n_sequences != 0) refuse("k", "rows in n_sequences equal parts", k_rows);
    if (s.window != 0 && !s.causal) refuse("window", "0 without causal", s.window);
}

template <Backend B, class T>
void expect_attention(const char* op, In<B> q, View<T, typename B::space, dyn, dyn> k, View<T, typename B::space, dyn, dyn> v, const AttentionShape& s, Mat<B> y) {
    const auto refuse = [op](const std::string& expected, std::size_t found) { throw ShapeError{op, "k", expected, std::to_string(found)}; };
    expect_heads(op, s, q.rows(), k.rows());
    expect(op, "q", {any, s.n_heads * s.head_dim}, q);
    expect(op, "k", {any, s.kv_head_stride ? s.head_dim : s.n_kv_heads * s.head_dim}, k);
    expect(op, "v", k.shape(), v);
    expect(op, "y", q.shape(), y);
    const std::size_t n_q = q.rows() / s.n_sequences, n_kv = k.rows() / s.n_sequences;
    if (s.causal && (n_q > n_kv || s.q_pos > n_kv - n_q)) refuse("at least " + std::to_string(s.q_pos + n_q) + " rows a sequence", n_kv);
    if (n_kv == 0 && n_q > 0) refuse("at least one row", n_kv);
}

/// Angles for the rows of x, whose heads are so wide.
template <Backend B>
void expect_angles(const char* op, In<B> cos, In<B> sin, std::size_t head_dim, In<B> x) {
    expect(op, "cos", {x.rows(), any}, cos);
    expect(op, "sin", cos.shape(), sin);
    if (x.cols() % head_dim != 0 || 2 * cos.cols() > head_dim)
        throw ShapeError{op, "q", "heads of " + std::to_string(head_dim) + ", at least " + std::to_string(2 * cos.cols()), to_string(x.shape())};
}

}  // namespace detail

/// y = softmax(scale q k^T) v per head and sequence, without a score matrix in memory.
/// q, y [n_sequences n_q, n_heads head_dim]; k, v [n_sequences n_kv, n_kv_heads head_dim]; query head h reads key head
/// h n_kv_heads / n_heads. k and v are f32 or bf16; with s.kv_head_stride they are [n_sequences n_kv, head_dim] of the first
/// head, and the others lie so far apart. y must not be q, k or v. Throws ShapeError.
template <Backend B, class T = const float>
void attention(B& be, In<B> q, View<T, typename B::space, dyn, dyn> k, std::type_identity_t<View<T, typename B::space, dyn, dyn>> v, const AttentionShape& s, Mat<B> y) {
    detail::expect_attention<B>("attention", q, k, v, s, y);
    using Keys = View<const std::remove_const_t<T>, typename B::space, dyn, dyn>;
    be.attention(q, Keys(k), Keys(v), s, y);
}

/// The heads of x [n, n_heads head_dim] as rows of their own, in f32 or bf16: head h's go to `to` [n, head_dim], h `stride`
/// elements further on. Throws ShapeError.
template <Backend B, class T>
void split_heads(B& be, In<B> x, std::size_t n_heads, std::size_t stride, View<T, typename B::space, dyn, dyn> to) {
    expect("split_heads", "x", {to.rows(), n_heads * to.cols()}, x);
    be.split_heads(x, n_heads, stride, to);
}

/// cos, sin [n, n_angles]: of (first + i) theta^(-j / n_angles), for positions from `first` on. `frequencies` [n_angles]
/// is scratch.
template <Backend B>
void rope_table(B& be, std::size_t first, float theta, Vec<B> frequencies, Mat<B> cos, Mat<B> sin) {
    expect("rope_table", "cos", {any, frequencies.extent(0)}, cos);
    expect("rope_table", "sin", cos.shape(), sin);
    be.rope_table(first, theta, frequencies, cos, sin);
}

/// Rotates the heads of x [n, n_heads head_dim] in place, in halves (Llama's form, "rope_half"): value j of a head pairs
/// with j + n_angles; values from 2 n_angles on stay. cos, sin [n, n_angles].
template <Backend B>
void rope_half(B& be, In<B> cos, In<B> sin, std::size_t n_heads, Mat<B> x) {
    expect("rope_half", "cos", {x.rows(), any}, cos);
    expect("rope_half", "sin", cos.shape(), sin);
    if (n_heads == 0 || x.cols() % n_heads != 0 || 2 * cos.cols() > x.cols() / n_heads)
        throw ShapeError{"rope_half", "x", std::to_string(n_heads) + " heads of at least " + std::to_string(2 * cos.cols()), to_string(x.shape())};
    be.rope(cos, sin, n_heads, x);
}

/// Rotates the heads of q [n, n_heads head_dim] in place, and appends those of k, rotated, and of v [n, n_kv_heads head_dim]
/// to a cache: rope_half of q and k, split_heads of k and v, and one launch on a backend that has one for them. What is in k
/// afterwards depends on the backend. Throws ShapeError.
template <Backend B, class T>
void rope_and_append(B& be, In<B> cos, In<B> sin, Mat<B> q, Mat<B> k, In<B> v, std::size_t n_kv_heads, std::size_t stride,
                     View<T, typename B::space, dyn, dyn> keys, std::type_identity_t<View<T, typename B::space, dyn, dyn>> values) {
    const std::size_t head_dim = keys.cols();
    expect("rope_and_append", "k", {keys.rows(), n_kv_heads * head_dim}, k);
    expect("rope_and_append", "q", {keys.rows(), any}, q);
    expect("rope_and_append", "v", k.shape(), v);
    expect("rope_and_append", "values", keys.shape(), values);
    if constexpr (requires { be.rope_and_append(cos, sin, q, k, v, stride, keys, values); }) {
        detail::expect_angles<B>("rope_and_append", cos, sin, head_dim, q);
        be.rope_and_append(cos, sin, q, k, v, stride, keys, values);
    } else {
        rope_half<B>(be, cos, sin, q.cols() / head_dim, q);
        rope_half<B>(be, cos, sin, n_kv_heads, k);
        split_heads<B>(be, k, n_kv_heads, stride, keys);
        split_heads<B>(be, v, n_kv_heads, stride, values);
    }
}

/// Attention of new tokens to a cache, which they are appended to: rope_and_append of q, k and v to its rows from s.q_pos on, and
/// attention of q to all of it; one launch for few rows on a backend that has one for them. q, y [n, n_heads head_dim];
/// k, v [n, n_kv_heads head_dim]; keys, values [s.q_pos + n, head_dim] of the first head, the others s.kv_head_stride apart.
/// What is in q and k afterwards depends on the backend. y must not be q, k or v. Throws ShapeError.
template <Backend B, class T>
void append_and_attend(B& be, In<B> cos, In<B> sin, Mat<B> q, Mat<B> k, In<B> v, const AttentionShape& s, View<T, typename B::space, dyn, dyn> keys,
                       std::type_identity_t<View<T, typename B::space, dyn, dyn>> values, Mat<B> y) {
    using Keys = View<const T, typename B::space, dyn, dyn>;
    if (!s.causal || s.n_sequences != 1 || s.kv_head_stride == 0) throw ShapeError{"append_and_attend", "shape", "causal, of one sequence and its cache", "another"};
    detail::expect_attention<B>("append_and_attend", In<B>(q), Keys(keys), Keys(values), s, y);
    expect("append_and_attend", "keys", {s.q_pos + q.rows(), any}, keys);
    expect("append_and_attend", "k", {q.rows(), s.n_kv_heads * s.head_dim}, k);
    expect("append_and_attend", "v", k.shape(), v);
    detail::expect_angles<B>("append_and_attend", cos, sin, s.head_dim, q);
    if constexpr (requires { { be.append_and_attend(cos, sin, In<B>(q), In<B>(k), v, s, keys, values, y) } -> std::same_as<bool>; })
        if (be.append_and_attend(cos, sin, In<B>(q), In<B>(k), v, s, keys, values, y)) return;
    const auto next = [&](auto cache) {  // a backend without numbers has no place to count from
        return cache.data() ? cache.rows(s.q_pos, q.rows()) : decltype(cache){nullptr, {q.rows(), s.head_dim}};
    };
    rope_and_append<B>(be, cos, sin, q, k, v, s.n_kv_heads, s.kv_head_stride, next(keys), next(values));
    attention<B>(be, q, Keys(keys), Keys(values), s, y);
}

}  // namespace prism::ops
