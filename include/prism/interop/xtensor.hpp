// To xtensor and back, without copies.
//
//     auto a = prism::as_xtensor(view);                          // xt::adapt of a dense view
//     auto v = prism::as_view(tensor);                           // View of an xt::xtensor's rank
#pragma once

#include "prism/core/view.hpp"

#include <cstddef>
#include <type_traits>
#include <utility>

#include <xtensor/xadapt.hpp>
#include <xtensor/xtensor.hpp>

namespace prism {

/// An xtensor expression over a view with dense rows. Throws ShapeError for others.
template <class T, std::size_t... E>
auto as_xtensor(View<T, host, E...> v) {
    if (!v.dense()) throw ShapeError{"as_xtensor", "view", "dense rows", to_string(v.shape()) + " with strides " + to_string(v.strides())};
    return xt::adapt(v.data(), v.size(), xt::no_ownership(), v.shape());
}

namespace detail {

template <class T, class Tensor, std::size_t... I>
auto view_of(T* data, const Tensor& t, std::index_sequence<I...>) {
    return View<T, host, (static_cast<void>(I), dyn)...>{data, {t.shape(I)...}};
}

}  // namespace detail

/// A view of a row-major tensor. The tensor has to outlive it.
template <class T, std::size_t N>
auto as_view(xt::xtensor<T, N>& t) {
    return detail::view_of(t.data(), t, std::make_index_sequence<N>{});
}
template <class T, std::size_t N>
auto as_view(const xt::xtensor<T, N>& t) {
    return detail::view_of(t.data(), t, std::make_index_sequence<N>{});
}

}  // namespace prism
