// fields and visit: one table of parameter names per module, and the walk over it that every reader shares.
//
//     struct Block {
//         Norm norm;  Linear fc;
//         static constexpr auto params = fields(field("norm", &Block::norm), field("fc", &Block::fc));
//     };
//     visit(block, [](const std::string& path, auto& parameter) { ... });   // "norm.weight", "fc.weight", "fc.bias"
#pragma once

#include <concepts>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace prism {

/// A member of a module and the name under which files know it. An empty name adds nothing to the path.
template <class M, class T>
struct Field {
    std::string_view name;
    T M::*           member;
};

template <class M, class T>
constexpr Field<M, T> field(std::string_view name, T M::*member) {
    return {name, member};
}

template <class... F>
constexpr std::tuple<F...> fields(F... f) {
    return {f...};
}

/// A struct that has a table of parameters.
template <class M>
concept Module = requires { std::remove_cvref_t<M>::params; };

namespace detail {

template <class T> inline constexpr bool is_vector = false;
template <class T, class A> inline constexpr bool is_vector<std::vector<T, A>> = true;
template <class T> inline constexpr bool is_variant = false;
template <class... T> inline constexpr bool is_variant<std::variant<T...>> = true;
template <class T> inline constexpr bool is_optional = false;
template <class T> inline constexpr bool is_optional<std::optional<T>> = true;

inline std::string join(const std::string& path, std::string_view name) {
    if (path.empty()) return std::string(name);
    return name.empty() ? path : path + "." + std::string(name);
}

template <class T, class Leaf>
void visit_at(const std::string& path, T& node, Leaf& leaf) {
    using N = std::remove_cvref_t<T>;
    if constexpr (is_vector<N>) {
        for (std::size_t i = 0; i < node.size(); ++i) visit_at(join(path, std::to_string(i)), node[i], leaf);
    } else if constexpr (is_variant<N>) {
        std::visit([&](auto& alternative) { visit_at(path, alternative, leaf); }, node);
    } else if constexpr (is_optional<N>) {
        if (node) visit_at(path, *node, leaf);
    } else if constexpr (std::same_as<N, std::monostate>) {
        // an alternative without parameters
    } else if constexpr (Module<N>) {
        std::apply([&](const auto&... f) { (visit_at(join(path, f.name), node.*(f.member), leaf), ...); }, N::params);
    } else {
        leaf(path, node);
    }
}

}  // namespace detail

/// Calls leaf(path, parameter) for every parameter, depth first in the order of the tables. Lists add their index,
/// variants the alternative that they hold, empty optionals nothing.
template <class M, class Leaf>
void visit(M& module, Leaf&& leaf) {
    detail::visit_at(std::string{}, module, leaf);
}

}  // namespace prism
