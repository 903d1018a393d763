// The words that modules and backends share: activations, what follows a product, how rows attend.
#pragma once

#include "prism/core/view.hpp"
#include "prism/quant/format.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace prism {

/// Element-wise functions, by the names that tell apart what sources mix up.
enum class Activation : std::uint8_t {
    none,
    gelu_erf,    // 0.5 z (1 + erf(z / sqrt 2)); timm's and PyTorch's default "gelu"
    gelu_tanh,   // 0.5 z (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))); "gelu_new", "gelu_pytorch_tanh"
    quick_gelu,  // z sigmoid(1.702 z); OpenAI's CLIP
    silu,        // z sigmoid(z)
};

/// How products take their rows. Weights are what they are in both, but for those in f32 among many rows.
enum class Compute : std::uint8_t {
    exact,  // as in f32 arithmetic: with bf16 weights to 2^-16 of a value at least, with blocks to 2^-16 of the largest of 32
    fast,   // rounded where the processor is faster then: to bf16 for bf16 weights, to int8 for blocks, or to bf16 if more than
            // 32 rows come at once and that is faster; so is attention. With tiles f32 weights are rounded along with more than
            // 32 rows, and so are the products of gradients: training in mixed precision. Bits may depend on which of these a
            // row takes. On a device: to 16 bits with more than 8 rows; f32 weights stay f32.
};

constexpr std::string_view to_string(Activation a) {
    constexpr std::array<std::string_view, 5> names{"none", "gelu_erf", "gelu_tanh", "quick_gelu", "silu"};
    return names[static_cast<std::size_t>(a)];
}

/// What happens to a product before it is written:
///     y = act(x w^T + bias)            y = y + gamma act(x w^T + bias)  with `add`
/// An empty bias is none, an empty gamma is one.
template <class Space>
struct Epilogue {
    View<const float, Space, dyn> bias{};
    Activation                    act = Activation::none;
    bool                          add = false;
    View<const float, Space, dyn> gamma{};
};

/// A matrix of weights whose format is known at run time. Owns nothing.
template <class Space>
struct AnyPacked {
    Dtype            dtype = Dtype::f32;
    const void*      data = nullptr;  // as in Packed
    std::size_t      rows = 0, cols = 0, stride = 0;
    const std::byte* panels = nullptr;
    std::size_t      first = 0;
    bool             partial = false;

    AnyPacked() = default;
    template <Format F>
    AnyPacked(const Packed<F, Space>& w)
        : dtype(F::dtype), data(w.data), rows(w.rows), cols(w.cols), stride(w.stride), panels(w.panels), first(w.first), partial(w.partial) {}
};

/// One of several products with the same rows: y = x w^T + bias.
template <class Space>
struct ProductPart {
    AnyPacked<Space>                   w;
    View<const float, Space, dyn>      bias{};
    View<float, Space, dyn, dyn>       y;
};

/// How the rows of q attend to the rows of k and v. All sequences of a call have the same lengths.
struct AttentionShape {
    std::size_t n_heads = 1, n_kv_heads = 1, head_dim = 1;
    std::size_t n_sequences = 1;      // q has n_sequences * n_q rows, k and v n_sequences * n_kv
    bool        causal = false;       // row i of q sees keys 0 ... q_pos + i
    std::size_t q_pos = 0;            // position of the first row of q among the keys
    std::size_t window = 0;           // with causal: only the last `window` of those; 0 is all
    float       scale = 1;            // of the scores, before softmax
    std::size_t kv_head_stride = 0;   // elements from a key head to the next, whose rows then are head_dim wide; 0: heads side by side in a row

    /// Floating-point operations for so many rows of q and of k: 4 head_dim for each pair of a query and a key it sees.
    std::uint64_t flops(std::size_t q_rows, std::size_t k_rows) const {
        const std::uint64_t n_q = q_rows / n_sequences, n_kv = k_rows / n_sequences;
        std::uint64_t       seen = causal ? 0 : n_q * n_kv;
        if (causal)
            for (std::uint64_t i = 0; i < n_q; ++i) {
                const std::uint64_t all = std::min<std::uint64_t>(q_pos + i + 1, n_kv);
                seen += window ? std::min<std::uint64_t>(all, window) : all;
            }
        return 4 * seen * n_sequences * n_heads * head_dim;
    }
};

/// A parameter where a backend can compute with it, and what keeps it there.
struct Placed {
    const void*                 data = nullptr;
    std::shared_ptr<const void> owner{};
    bool                        panels = false;   // a matrix in panels
    bool                        partial = false;  // as in Packed
};

}  // namespace prism
