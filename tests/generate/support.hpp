// A small model with one eye, for tests of generation.
#pragma once

#include "prism/backend/cpu/cpu.hpp"
#include "prism/generate/session.hpp"
#include "prism/lm/llama.hpp"
#include "prism/nn/linear.hpp"
#include "prism/ops/patchify.hpp"
#include "support/random_weights.hpp"

#include <atomic>
#include <cstdint>
#include <random>
#include <vector>

namespace prism::test {

inline std::atomic<int> pictures_encoded{0};

/// Pictures [n, 3, 4, 4] become four rows each; 31 words.
template <Backend B>
struct OneEye {
    Linear<B> eye{12, 16};
    Llama<B>  llm{{.vocab_size = 31, .d_model = 16, .d_ff = 40, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 4}};

    static constexpr auto params = fields(field("eye", &OneEye::eye), field("llm", &OneEye::llm));

    std::size_t n_soft_tokens() const { return 4; }
    void        see(B& be, Workspace<B>& ws, std::span<const PixelView<B>> pixels, Mat<B> soft) const {
        if (B::has_numbers) ++pictures_encoded;
        auto   scope = ws.scope();
        Mat<B> patches = ws.mat(soft.rows(), 12);
        ops::patchify<B>(be, pixels[0], 2, patches);
        eye.forward(be, patches, soft);
    }
};

/// A picture of noise as OneEye reads it.
struct Picture {
    std::vector<float>  values;
    std::vector<PixelView<Cpu>> views;

    explicit Picture(unsigned seed) : values(normal(48, seed)), views{{values.data(), {1, 3, 4, 4}}} {}
};

using Ids = std::vector<std::int32_t>;

inline Ids prompt(std::size_t n, unsigned seed) {
    std::mt19937 random{seed};
    Ids          ids(n);
    for (auto& id : ids) id = static_cast<std::int32_t>(random() % 31);
    return ids;
}
inline Ids joined(Ids a, const Ids& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

}  // namespace prism::test
