// TrainingBackend: what a backend offers beyond Backend so that models can be trained on it. It stands apart, so that running
// a model knows nothing of training: `Training<Cpu>` is in backend/cpu/training.hpp, `Training<Dry>` in backend/dry/training.hpp.
#pragma once

#include "prism/backend/concept.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace prism {

/// Labels of rows that no loss looks at.
inline constexpr std::int32_t ignored_label = -100;

/// One step of AdamW with decoupled decay (Loshchilov & Hutter 2019), in the order of PyTorch's torch/optim/adamw.py.
struct AdamWStep {
    double        lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0;
    std::uint64_t step = 1;  // 1, 2, ...
    float         clip = 1;  // multiplied into every gradient
};

/// The gradients of a backend's operations: Training<B>{be}.linear_dx(...). Arguments have been checked by `ops::`. Every sum
/// has one order, whatever the number of threads.
template <class B>
struct Training;

template <class B>
concept TrainingBackend = Backend<B> && requires(Training<B> train, Mat<B> y, Vec<B> v, In<B> x, Vec<B, const float> c, Packed<f32, typename B::space> w,
                                                 AttentionShape shape, std::span<const std::int32_t> ids, std::span<double> sums) {
    train.linear_dx(x, w, y, true);                     // y (+)= x w
    train.linear_dw(x, x, y);                           // y += first^T second
    train.column_sums(x, v);
    train.layer_norm(x, c, 1e-6f, x, y, v, v);
    train.rms_norm(x, c, 1e-6f, x, y, v);
    train.activate(Activation::silu, x, y);             // y *= act'(x)
    train.silu_mul(x, x, x, y, y);
    train.scaled(x, c, x, y, v);
    train.attention(x, x, x, x, shape, x, y, y, y);
    train.rope(x, x, std::size_t{}, y);                 // by the opposite angles
    train.scatter_add(ids, x, y);                       // y[ids[i]] += x[i]
    train.add_table(x, y);                              // y += sum of the repeats in x
    train.clear(y);
    train.dropout(0.1f, std::uint64_t{}, y);
    { train.cross_entropy(y, ids, 1.0f) } -> std::same_as<double>;
    { train.squared_norm(c) } -> std::same_as<double>;
    train.adamw(v, c, v, v, AdamWStep{});
};

}  // namespace prism
