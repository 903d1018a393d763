// View: where numbers lie and what shape they have. Owns nothing, costs nothing to copy.
//
//     View<float, host, dyn, dyn> x{data, {n_tokens, d_model}};
//     x(3, 5) = 1;   auto left = x.cols(0, 64);   auto third = x.row(2);
#pragma once

#include "prism/core/error.hpp"

#include <array>
#include <cassert>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>

namespace prism {

/// Memory that the processor reads.
struct host {};
/// Memory that only a device reads; its elements cannot be named on the host.
struct device {};

/// An extent that is known at run time only.
inline constexpr std::size_t dyn = static_cast<std::size_t>(-1);

/// [a, b, c] as text, for messages.
inline std::string to_string(std::span<const std::size_t> shape) {
    std::string s = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (i) s += ", ";
        s += shape[i] == dyn ? std::string("any") : std::to_string(shape[i]);
    }
    return s + "]";
}

/// A row-major window onto memory of space `Space`: rank static, last dimension contiguous, the others strided.
template <class T, class Space, std::size_t... E>
class View {
public:
    static constexpr std::size_t rank = sizeof...(E);
    static_assert(rank >= 1);
    using value_type = T;
    using space = Space;
    using Shape = std::array<std::size_t, rank>;

    constexpr View() = default;

    /// Dense rows.
    constexpr View(T* data, Shape shape) : data_(data), shape_(shape) {
        stride_[rank - 1] = 1;
        for (std::size_t i = rank - 1; i > 0; --i) stride_[i - 1] = stride_[i] * shape_[i];
        check_static();
    }
    /// Strides in elements; the last one has to be 1.
    constexpr View(T* data, Shape shape, Shape stride) : data_(data), shape_(shape), stride_(stride) {
        assert(stride[rank - 1] == 1);
        check_static();
    }
    /// A view of mutable elements is also a view of constant ones, and a static extent may be forgotten.
    template <class U, std::size_t... F>
        requires(sizeof...(F) == rank && std::is_convertible_v<U (*)[], T (*)[]> && ((E == dyn || E == F) && ...))
    constexpr View(const View<U, Space, F...>& other)
        : data_(other.data()), shape_(other.shape()), stride_(other.strides()) {}

    constexpr T*           data() const { return data_; }
    constexpr const Shape& shape() const { return shape_; }
    constexpr const Shape& strides() const { return stride_; }
    constexpr std::size_t  extent(std::size_t i) const { return shape_[i]; }
    constexpr std::size_t  stride(std::size_t i) const { return stride_[i]; }
    constexpr std::size_t  size() const {
        std::size_t n = 1;
        for (std::size_t e : shape_) n *= e;
        return n;
    }
    constexpr bool empty() const { return size() == 0; }
    constexpr bool dense() const {
        for (std::size_t i = rank - 1; i > 0; --i)
            if (stride_[i - 1] != stride_[i] * shape_[i]) return false;
        return true;
    }

    // Rank 2: a matrix.
    constexpr std::size_t rows() const requires(rank == 2) { return shape_[0]; }
    constexpr std::size_t cols() const requires(rank == 2) { return shape_[1]; }
    /// Elements between the starts of two rows.
    constexpr std::size_t ld() const requires(rank == 2) { return stride_[0]; }
    /// `count` rows from row `first` on.
    constexpr auto rows(std::size_t first, std::size_t count) const requires(rank == 2) {
        if (first + count > shape_[0]) out_of_range("rows", first, count, shape_[0]);
        return View<T, Space, dyn, dyn>{data_ + first * stride_[0], {count, shape_[1]}, stride_};
    }
    /// `count` columns from column `first` on; nothing is copied.
    constexpr auto cols(std::size_t first, std::size_t count) const requires(rank == 2) {
        if (first + count > shape_[1]) out_of_range("cols", first, count, shape_[1]);
        return View<T, Space, dyn, dyn>{data_ + first, {shape_[0], count}, stride_};
    }
    constexpr auto row(std::size_t i) const requires(rank == 2) {
        return View<T, Space, dyn>{data_ + i * stride_[0], {shape_[1]}};
    }

    /// The sub-array at index `i` of the first dimension.
    constexpr auto operator[](std::size_t i) const requires(rank > 1) {
        if (i >= shape_[0]) out_of_range("operator[]", i, 1, shape_[0]);
        std::array<std::size_t, rank - 1> shape{}, stride{};
        for (std::size_t k = 1; k < rank; ++k) shape[k - 1] = shape_[k], stride[k - 1] = stride_[k];
        return with_rank<rank - 1>(data_ + i * stride_[0], shape, stride);
    }

    /// One element. Only memory of the host can be read so; indices are checked in debug builds.
    template <class... I>
        requires(sizeof...(I) == rank && std::is_same_v<Space, host>)
    constexpr T& operator()(I... index) const {
        const Shape at{static_cast<std::size_t>(index)...};
        std::size_t offset = 0;
        for (std::size_t k = 0; k < rank; ++k) {
            assert(at[k] < shape_[k]);
            offset += at[k] * stride_[k];
        }
        return data_[offset];
    }

    /// Rank 1: the elements as a span.
    constexpr std::span<T> span() const requires(rank == 1 && std::is_same_v<Space, host>) { return {data_, shape_[0]}; }

private:
    template <std::size_t R>
    static constexpr auto with_rank(T* data, std::array<std::size_t, R> shape, std::array<std::size_t, R> stride) {
        return [&]<std::size_t... K>(std::index_sequence<K...>) {
            return View<T, Space, (static_cast<void>(K), dyn)...>{data, shape, stride};
        }(std::make_index_sequence<R>{});
    }
    [[noreturn]] static void out_of_range(const char* what, std::size_t first, std::size_t count, std::size_t extent) {
        throw ShapeError{"View", what, "at most " + std::to_string(extent), std::to_string(first) + " + " + std::to_string(count)};
    }
    constexpr void check_static() const {
        constexpr Shape fixed{E...};
        for (std::size_t i = 0; i < rank; ++i)
            if (fixed[i] != dyn && fixed[i] != shape_[i]) throw ShapeError{"View", "shape", to_string(fixed), to_string(shape_)};
    }

    T*    data_ = nullptr;
    Shape shape_{};
    Shape stride_ = [] {
        Shape s{};
        s[rank - 1] = 1;
        return s;
    }();
};

/// A matrix of backend `B` that is written, a vector, and a matrix that is only read.
template <class B, class T = float> using Mat = View<T, typename B::space, dyn, dyn>;
template <class B, class T = float> using Vec = View<T, typename B::space, dyn>;
template <class B, class T = const float> using In = View<T, typename B::space, dyn, dyn>;

/// Any extent is fine here.
inline constexpr std::size_t any = dyn;

/// Throws ShapeError{op, argument, expected, found} unless `view` has this shape. `any` matches every extent.
template <class V>
void expect(const char* op, const char* argument, std::array<std::size_t, V::rank> expected, const V& view) {
    for (std::size_t i = 0; i < V::rank; ++i)
        if (expected[i] != any && expected[i] != view.extent(i))
            throw ShapeError{op, argument, to_string(expected), to_string(view.shape())};
}

}  // namespace prism
