// Keepers: what a forward pass leaves behind for a backward pass. Inference leaves nothing, and pays nothing.
//
//     block.forward(be, ws, n, x);           // K = Forget
//     block.forward(be, ws, n, x, keep);     // the same forward; `keep` (prism/train/tape.hpp) records what backward reads
#pragma once

#include "prism/core/workspace.hpp"

#include <concepts>
#include <cstddef>

namespace prism {

/// The keeper of inference: every call compiles to nothing.
struct Forget {
    static constexpr bool keeps = false;  // what fused products would lose has to be computed by itself
    static constexpr bool trains = false;  // residual branches, and inputs of adapters, may be dropped at random

    /// The keeper of a part, or of the `i`th of several.
    Forget at(const char*, std::size_t = 0) const { return {}; }
    /// Runs f(keeper), which is forward of the `i`th block on x.
    template <class B, class Fn>
    void block(B&, Workspace<B>&, const char*, std::size_t, In<B>, Fn&& f) const {
        f(Forget{});
    }
    /// Gives back what is taken below; a keeper that keeps does not.
    template <class B>
    [[nodiscard]] auto scope(Workspace<B>& ws) const {
        return ws.scope();
    }
    /// A matrix like h that may be written while h is kept.
    template <class B>
    Mat<B> another(Workspace<B>&, Mat<B> h) const {
        return h;
    }
    static constexpr bool adds() { return false; }  // whether `product` does anything
    /// What training adds to y, to which x W^T of the layer with this weight has just been written or added.
    template <class B>
    void product(B&, Workspace<B>&, const void*, In<B>, Mat<B>) const {}
    /// Records rows that nobody writes again.
    template <class T, class Space, std::size_t... E>
    void operator()(const char*, View<T, Space, E...>) const {}
    /// Records rows that are about to change.
    template <class B>
    void copy(B&, Workspace<B>&, const char*, Mat<B>) const {}
};

template <class K>
concept Keeper = requires {
    { K::keeps } -> std::convertible_to<bool>;
    { K::trains } -> std::convertible_to<bool>;
};

}  // namespace prism
