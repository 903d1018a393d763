// What the decoders share: running the blocks over a batch, and scoring the vocabulary.
#pragma once

#include "prism/nn/attention.hpp"

#include <cstdint>
#include <span>

namespace prism {

/// x [n, d_model]: embeddings in, the last block's output out. The batch's segments lie one after another in x; their
/// caches grow by what is read. Throws ConfigError when a cache is too small, ShapeError when rows and segments differ.
template <Backend B, class Layers, Keeper K = Forget>
void run_layers(B& be, Workspace<B>& ws, const Layers& layers, std::size_t n_angles, float theta, std::span<const Segment<B>> batch, Mat<B> x,
                K keep = {}) {
    std::size_t n = 0;
    for (const auto& s : batch) {
        if (s.cache) s.cache->reserve(s.n_tokens);
        n += s.n_tokens;
    }
    expect("decoder", "x", {n, any}, x);
    auto               scope = keep.scope(ws);
    const RopeTable<B> rope(be, ws, n_angles, theta, batch);
    for (std::size_t i = 0; i < layers.size(); ++i)
        keep.block(be, ws, "layers", i, x, [&](auto inside) { layers[i].forward(be, ws, i, rope, batch, x, inside); });
    for (const auto& s : batch)
        if (s.cache) s.cache->advance(s.n_tokens);
}

/// logits [n, count] = the scores of `count` rows of the vocabulary from `first` on, for hidden [n, d_model]. `tied` is
/// the embedding that stands in for an absent head.
template <Backend B>
void score_vocabulary(B& be, const Linear<B>& head, const Embedding<B>& tied, In<B> hidden, std::size_t first, std::size_t count,
                      Mat<B> logits) {
    const auto&         weight = head.weight.shape().empty() ? tied.weight : head.weight;
    const auto          whole = head.bias.view();
    Vec<B, const float> bias = whole.empty() ? whole : Vec<B, const float>{whole.data() ? whole.data() + first : nullptr, {count}};
    weight.visit_rows(first, count, [&](const auto& w) { ops::linear<B>(be, hidden, w, bias, logits); });
}

}  // namespace prism
