// To std::mdspan and back, where the standard library has it (C++23); otherwise this header is empty.
//
//     auto s = prism::as_mdspan(view);                           // layout_stride
#pragma once

#include "prism/core/view.hpp"

#if __has_include(<mdspan>)
#include <mdspan>
#endif

#if defined(__cpp_lib_mdspan)
namespace prism {

/// A strided span of the same elements.
template <class T, std::size_t... E>
auto as_mdspan(View<T, host, E...> v) {
    using Extents = std::dextents<std::size_t, sizeof...(E)>;
    return std::mdspan<T, Extents, std::layout_stride>{v.data(), {Extents{v.shape()}, v.strides()}};
}

}  // namespace prism
#endif
