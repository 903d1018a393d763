// A language model that is the base of training: tables with room for new tokens, and low-rank adapters merged into matrices.
//
//     Checkpoint llm = with_words(Checkpoint::open("llama-2-7b-hf"), words(*tokenizer), seed);
//     llm = with_adapters(be, llm, Checkpoint::open("step-000100....pt").below("model.llm_backbone.llm"), alpha);
// Source: TRI-ML/prismatic-vlms, models/backbones/llm/base_llm.py; huggingface/peft, tuners/lora/layer.py.
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/model/reference_random.hpp"
#include "prism/text/tokenizer.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numbers>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

namespace detail {

/// A table of words, or its bias, with `n` rows: what is too much is cut off, new rows are N(0, 0.02^2), of a bias 0.
template <class = void>
TensorInfo with_rows(const TensorInfo& tensor, std::size_t n, ReferenceRandom& random) {
    if (tensor.shape.empty() || tensor.shape[0] == n) return tensor;
    auto              values = std::make_shared<std::vector<float>>(to_floats(tensor));
    const std::size_t old = values->size(), cols = old / tensor.shape[0];
    values->resize(n * cols, 0.0f);
    for (std::size_t i = old; i < values->size() && tensor.shape.size() > 1; ++i) {
        const double u = (random.next() + 1.0) * 0x1p-32, angle = 2 * std::numbers::pi * random.next() * 0x1p-32;
        (*values)[i] = static_cast<float>(0.02 * std::sqrt(-2 * std::log(u)) * std::cos(angle));
    }
    TensorInfo resized = with_values(tensor, std::move(values));
    resized.shape[0] = n;
    return resized;
}

inline constexpr std::string_view adapter_a = ".lora_A.weight", adapter_b = ".lora_B.weight";

}  // namespace detail

/// Rows of the tables of a model in training: the tokenizer's, rounded up to a multiple of 64.
template <class = void>
std::size_t n_word_rows(const Tokenizer& tokenizer) { return (tokenizer.size() + 63) / 64 * 64; }

/// A language model whose tables of words have `n` rows. New ones are as in the reference, but for their random numbers, which are
/// those of `seed`.
template <class = void>
Checkpoint with_words(const Checkpoint& llm, std::size_t n, std::uint64_t seed) {
    std::vector<TensorInfo> tensors = llm.tensors();
    ReferenceRandom         random{seed};
    for (TensorInfo& t : tensors)
        if (t.name == "model.embed_tokens.weight" || t.name == "lm_head.weight" || t.name == "lm_head.bias") t = detail::with_rows(t, n, random);
    return {llm.file(), std::move(tensors)};
}

/// Whether these tensors are adapters alone, as checkpoints of a run with adapters have them until it ends.
template <class = void>
bool holds_adapters(const Checkpoint& llm) {
    return std::ranges::any_of(llm.tensors(), [](const TensorInfo& t) { return t.name.ends_with(detail::adapter_a) || t.name.ends_with(detail::adapter_b); });
}

/// base with W + alpha / rank B A in place of W wherever `adapters` has "....lora_A.weight" [rank, d_in] and "....lora_B.weight"
/// [d_out, rank]; those matrices are f32. Throws LoadError for an adapter without its other half or its matrix, or of another shape.
template <class B>
Checkpoint with_adapters(B& be, const Checkpoint& base, const Checkpoint& adapters, double alpha) {
    std::vector<TensorInfo> tensors = base.tensors();
    for (const TensorInfo& a : adapters.tensors()) {
        const bool        is_a = a.name.ends_with(detail::adapter_a);
        const std::string module = a.name.substr(0, a.name.size() - std::min(a.name.size(), detail::adapter_a.size()));
        const auto        refuse = [&](const std::string& expected, const TensorInfo* found) { throw LoadError{adapters.file(), a.name, expected, found ? to_string(found->shape) : "nothing"}; };
        if (!is_a) {
            if (!a.name.ends_with(detail::adapter_b)) throw LoadError{adapters.file(), a.name, "an adapter, lora_A or lora_B", to_string(a.shape)};
            if (!adapters.find(module + std::string(detail::adapter_a))) refuse("its lora_A beside it", nullptr);
            continue;
        }
        const TensorInfo* const b = adapters.find(module + std::string(detail::adapter_b));
        const auto              w = std::ranges::find_if(tensors, [&](const TensorInfo& t) { return t.name == module + ".weight"; });
        if (w == tensors.end() || w->shape.size() != 2) throw LoadError{base.file(), "holds no matrix '" + module + ".weight', to which an adapter of " + adapters.file() + " belongs"};
        const std::size_t d_out = w->shape[0], d_in = w->shape[1];
        if (a.shape.size() != 2 || a.shape[0] == 0 || a.shape[1] != d_in) refuse("[rank, " + std::to_string(d_in) + "]", &a);
        const std::size_t rank = a.shape[0];
        if (!b || b->shape != std::vector{d_out, rank}) refuse("a lora_B " + to_string(std::vector{d_out, rank}) + " beside it", b);
        auto                     values = std::make_shared<std::vector<float>>(to_floats(*w));
        const std::vector<float> down = to_floats(a), up = to_floats(*b);
        const auto               factor = static_cast<float>(alpha / static_cast<double>(rank));
        const auto               rows = [&](std::size_t first, std::size_t last) {
            for (std::size_t i = first; i < last; ++i)
                for (std::size_t k = 0; k < rank; ++k) {
                    const float        scaled = factor * up[i * rank + k];
                    float* const       to = values->data() + i * d_in;
                    const float* const from = down.data() + k * d_in;
                    for (std::size_t j = 0; j < d_in; ++j) to[j] += scaled * from[j];
                }
        };
        in_pieces(be, d_out, 16, rows);
        *w = with_values(*w, std::move(values));
    }
    return {base.file(), std::move(tensors)};
}

}  // namespace prism
