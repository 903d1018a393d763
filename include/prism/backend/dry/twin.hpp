// dry_twin: the same model on the dry backend, to size a workspace or to count what a run costs.
//
//     const Cost cost = dry_run([&, twin = dry_twin(vit)](Dry& be, Workspace<Dry>& ws) { twin.forward(be, ws, ...); });
#pragma once

#include "prism/backend/dry/dry.hpp"
#include "prism/core/fields.hpp"

#include <string>
#include <unordered_map>

namespace prism {

/// The model of the same template and configuration on another backend, or on the same one, without values. A model has a
/// member or function `config`, or its default constructor makes the same composition.
// Unconstrained: Clang 14 crashes on `template <Backend> class M`.
template <class To, template <class> class M, class B>
M<To> unbound_twin(const M<B>& model) {
    if constexpr (requires { M<To>{model.config()}; }) return M<To>{model.config()};
    else if constexpr (requires { M<To>{model.config}; }) return M<To>{model.config};
    else return M<To>{};
}

/// The same on `Dry`, with the formats of the weights: scratch depends on whether gate and up projections share theirs.
template <template <class> class M, class B>
M<Dry> dry_twin(const M<B>& model) {
    std::unordered_map<std::string, Dtype> formats;
    M<Dry>                                 twin = unbound_twin<Dry>(model);
    visit(model, [&](const std::string& path, const auto& parameter) { formats[path] = parameter.dtype(); });
    visit(twin, [&](const std::string& path, auto& parameter) {
        if (const auto at = formats.find(path); at != formats.end()) parameter.take({}, at->second);
    });
    return twin;
}

/// The dry views of shapes like these.
template <class T, class Space, std::size_t... E>
View<T, nowhere, E...> dry_view(const View<T, Space, E...>& v) {
    return {nullptr, v.shape(), v.strides()};
}

}  // namespace prism
