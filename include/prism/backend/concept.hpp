// Backend: what a value must offer for modules to run on it. `Cpu`, `Cuda` and `Dry` are backends.
#pragma once

#include "prism/backend/types.hpp"
#include "prism/core/buffer.hpp"
#include "prism/core/tensor.hpp"
#include "prism/core/view.hpp"
#include "prism/quant/format.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace prism {

/// The operations of a backend receive arguments that `ops::` has checked, and check nothing. Views are those of its
/// `space`. Every sum is kept in f32.
template <class B>
concept Backend = requires(B& be, Mat<B> y, Vec<B> v, In<B> x, Vec<B, const float> c, View<const float, typename B::space, dyn, dyn, dyn, dyn> pixels,
                           Packed<f32, typename B::space> w, AnyPacked<typename B::space> matrix, std::span<const ProductPart<typename B::space>> parts,
                           Epilogue<typename B::space> after, AttentionShape shape,
                           std::span<const std::int32_t> ids, std::span<float> out, std::span<const float> in, TensorInfo tensor) {
    typename B::space;
    { B::has_numbers } -> std::convertible_to<bool>;
    { be.allocate(std::size_t{}) } -> std::same_as<Buffer<typename B::space>>;
    { be.place(tensor, Dtype::f32) } -> std::same_as<Placed>;  // where the backend can read it: in place, or a copy
    { be.place_matrix(tensor, Dtype::f32, std::size_t{}) } -> std::same_as<Placed>;  // in the layout that its products read
    be.upload(in, v);
    be.download(c, out);
    be.wait();

    be.gemm(x, w, after, y);                                  // y (+)= act(x w^T + bias)
    be.gemm_each(x, parts);                                   // several products with the same rows
    be.gemm_gated(x, matrix, matrix, y);                      // y = silu(x gate^T) (x up^T)
    be.gather(w, ids, y);                                     // y[i] = w[ids[i]]
    be.layer_norm(x, c, c, 1e-6f, y);
    be.rms_norm(x, c, 1e-6f, y);
    be.activate(Activation::silu, y);
    be.silu_mul(x, x, y);                                     // y = silu(first) * second
    be.add_scaled(x, c, y);                                   // y += c * x; an empty c is one
    be.add_table(x, y);                                       // y[i] += x[i mod rows of x]
    be.copy(x, y);
    be.rope_table(std::size_t{}, 1e4f, v, y, y);              // cosines and sines of consecutive positions
    be.rope(x, x, std::size_t{}, y);                          // rotates the heads of y in place
    be.attention(x, x, x, shape, y);                          // keys and values in f32 or bf16
    be.split_heads(x, std::size_t{}, std::size_t{}, y);       // rows of a cache, in f32 or bf16
    be.patchify(pixels, std::size_t{}, y);
};

/// body(begin, end) for [0, n), on all threads where the backend has some.
template <class B, class Body>
void in_pieces(B& be, std::size_t n, std::size_t piece, const Body& body) {
    if constexpr (requires { be.parallel_for(n, piece, body); }) be.parallel_for(n, piece, body);
    else body(0, n);
}

}  // namespace prism
