// The backward passes of projectors, and of splicing. See nn_backward.hpp for what the arguments are.
#pragma once

#include "prism/fusion/projector.hpp"
#include "prism/fusion/splice.hpp"
#include "prism/train/nn_backward.hpp"

#include <type_traits>
#include <variant>

namespace prism {

template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const LinearProjector<B>& m, Keep<B> kept, In<B> dy, Mat<B> dx, LinearProjector<B>* grads) {
    backward(be, ws, m.linear, kept, "x", dy, dx, part(grads, &LinearProjector<B>::linear));
}

template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const MlpProjector<B>& m, Keep<B> kept, In<B> dy, Mat<B> dx, MlpProjector<B>* grads) {
    using M = MlpProjector<B>;
    auto          scope = ws.scope();
    const Keep<B> first = kept.at("fc1");
    Mat<B>        d = ws.mat(dy.rows(), m.fc2.d_in());
    backward(be, ws, m.fc2, first, "y", dy, d, part(grads, &M::fc2));
    activated_backward(be, ws, m.fc1, Activation::gelu_erf, first, d, dx, part(grads, &M::fc1));
}

template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const FusedMlpProjector<B>& m, Keep<B> kept, In<B> dy, Mat<B> dx, FusedMlpProjector<B>* grads) {
    using M = FusedMlpProjector<B>;
    auto          scope = ws.scope();
    const Keep<B> first = kept.at("fc1"), second = kept.at("fc2");
    Mat<B>        d = ws.mat(dy.rows(), m.fc3.d_in()), wide = ws.mat(dy.rows(), m.fc2.d_in());
    backward(be, ws, m.fc3, second, "y", dy, d, part(grads, &M::fc3));
    activated_backward(be, ws, m.fc2, Activation::gelu_erf, second, d, wide, part(grads, &M::fc2));
    activated_backward(be, ws, m.fc1, Activation::gelu_erf, first, wide, dx, part(grads, &M::fc1));
}

template <TrainingBackend B>
void backward(B& be, Workspace<B>& ws, const Projector<B>& m, Keep<B> kept, In<B> dy, Mat<B> dx, Projector<B>* grads) {
    std::visit([&](const auto& p) { backward(be, ws, p, kept, dy, dx, grads ? std::get_if<std::remove_cvref_t<decltype(p)>>(&grads->kind) : nullptr); }, m.kind);
}

/// Of embed_sequence: d [n, d_model] is added to the rows of the language model's table and to those of dsoft, unless that is
/// empty.
template <TrainingBackend B, class Table>
void embed_sequence_backward(B& be, const Table& table, std::span<const std::int32_t> sequence, In<B> d, Mat<B> dsoft, std::size_t first_soft, Table* grads) {
    for (std::size_t i = 0; i < sequence.size();) {
        const bool  picture = sequence[i] == soft_token;
        std::size_t n = 1;
        while (i + n < sequence.size() && (sequence[i + n] == soft_token) == picture) ++n;
        if (!picture) backward(be, table, sequence.subspan(i, n), d.rows(i, n), grads);
        else if (!dsoft.empty()) ops::add<B>(be, d.rows(i, n), dsoft.rows(first_soft, n));
        if (picture) first_soft += n;
        i += n;
    }
}

}  // namespace prism
