// To Eigen and back, without copies.
//
//     auto m = prism::as_eigen(view);                  // Eigen::Map, row-major
//     prism::View<float, prism::host, prism::dyn, prism::dyn> v = prism::as_view(matrix);
#pragma once

#include "prism/core/view.hpp"

#include <Eigen/Core>

#include <type_traits>

namespace prism {

template <class T>
using EigenRows = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A map onto the rows of a view, strides kept.
template <class T>
auto as_eigen(View<T, host, dyn, dyn> v) {
    using Rows = EigenRows<std::remove_const_t<T>>;
    using Plain = std::conditional_t<std::is_const_v<T>, const Rows, Rows>;
    return Eigen::Map<Plain, Eigen::Unaligned, Eigen::OuterStride<>>(v.data(), static_cast<Eigen::Index>(v.rows()), static_cast<Eigen::Index>(v.cols()),
                                                                     Eigen::OuterStride<>(static_cast<Eigen::Index>(v.ld())));
}

/// A view of a row-major matrix. The matrix has to outlive it.
template <class T>
View<T, host, dyn, dyn> as_view(EigenRows<T>& m) {
    return {m.data(), {static_cast<std::size_t>(m.rows()), static_cast<std::size_t>(m.cols())}};
}
template <class T>
View<const T, host, dyn, dyn> as_view(const EigenRows<T>& m) {
    return {m.data(), {static_cast<std::size_t>(m.rows()), static_cast<std::size_t>(m.cols())}};
}

}  // namespace prism
