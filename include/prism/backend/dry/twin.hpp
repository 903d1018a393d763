// dry_twin: the same model on the dry backend, to size a workspace or to count what a run costs.
//
//     const Cost cost = dry_run([&, twin = dry_twin(vit)](Dry& be, Workspace<Dry>& ws) { twin.forward(be, ws, ...); });
#pragma once

#include "prism/backend/dry/dry.hpp"

namespace prism {

/// The model of the same template and configuration on `Dry`. A model has a member or function `config`, or its default
/// constructor makes the same composition.
// Unconstrained: Clang 14 crashes on `template <Backend> class M`.
template <template <class> class M, class B>
M<Dry> dry_twin(const M<B>& model) {
    if constexpr (requires { M<Dry>{model.config()}; }) return M<Dry>{model.config()};
    else if constexpr (requires { M<Dry>{model.config}; }) return M<Dry>{model.config};
    else return M<Dry>{};
}

/// The dry views of shapes like these.
template <class T, class Space, std::size_t... E>
View<T, nowhere, E...> dry_view(const View<T, Space, E...>& v) {
    return {nullptr, v.shape(), v.strides()};
}

}  // namespace prism
