// LanguageModel: whichever decoder a configuration asks for, behind one set of calls.
#pragma once

#include "prism/lm/llama.hpp"
#include "prism/lm/phi.hpp"

#include <cstdint>
#include <span>
#include <variant>

namespace prism {

using LanguageModelConfig = std::variant<LlamaConfig, PhiConfig>;

/// Llama or Phi, chosen at run time: one branch per call. The calls are those of Llama.
template <Backend B>
struct LanguageModel {
    std::variant<Llama<B>, Phi<B>> decoder;

    static constexpr auto params = fields(field("", &LanguageModel::decoder));

    explicit LanguageModel(const LanguageModelConfig& config) : decoder(make(config)) {}

    LanguageModelConfig config() const {
        return std::visit([](const auto& m) { return LanguageModelConfig{m.config}; }, decoder);
    }
    std::size_t d_model() const {
        return std::visit([](const auto& m) { return m.d_model(); }, decoder);
    }
    std::size_t vocab_size() const {
        return std::visit([](const auto& m) { return m.vocab_size(); }, decoder);
    }
    std::size_t max_positions() const {
        return std::visit([](const auto& m) { return m.config.max_positions; }, decoder);
    }
    KvCache<B> make_cache(B& be, std::size_t capacity, Dtype dtype = Dtype::f32) const {
        return std::visit([&](const auto& m) { return m.make_cache(be, capacity, dtype); }, decoder);
    }
    void embed(B& be, std::span<const std::int32_t> ids, Mat<B> x) const {
        std::visit([&](const auto& m) { m.embed(be, ids, x); }, decoder);
    }
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, std::span<const Segment<B>> batch, Mat<B> x, K keep = {}) const {
        std::visit([&](const auto& m) { m.forward(be, ws, batch, x, keep); }, decoder);
    }
    void logits(B& be, In<B> hidden, Mat<B> out) const {
        std::visit([&](const auto& m) { m.logits(be, hidden, out); }, decoder);
    }
    void logits(B& be, In<B> hidden, std::size_t first, std::size_t count, Mat<B> out) const {
        std::visit([&](const auto& m) { m.logits(be, hidden, first, count, out); }, decoder);
    }

private:
    static std::variant<Llama<B>, Phi<B>> make(const LanguageModelConfig& config) {
        if (const auto* llama = std::get_if<LlamaConfig>(&config)) return Llama<B>{*llama};
        return Phi<B>{std::get<PhiConfig>(config)};
    }
};

}  // namespace prism
