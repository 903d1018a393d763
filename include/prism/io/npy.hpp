// npy files from and to xtensor arrays.
//
//     xt::xarray<float> golden = prism::to_xarray<float>(prism::read_npy("golden.npy"));
//     prism::write_npy("out.npy", golden);
#pragma once

#include "prism/core/error.hpp"
#include "prism/core/tensor.hpp"
#include "prism/io/numpy.hpp"

#include <xtensor/xarray.hpp>
#include <xtensor/xtensor.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace prism {

/// The Dtype of a C++ type.
template <class T>
constexpr Dtype dtype_of() {
    using V = std::remove_cv_t<T>;
    if constexpr (std::same_as<V, float>) return Dtype::f32;
    else if constexpr (std::same_as<V, double>) return Dtype::f64;
    else if constexpr (std::same_as<V, fp16_t>) return Dtype::f16;
    else if constexpr (std::same_as<V, bf16_t>) return Dtype::bf16;
    else if constexpr (std::same_as<V, bool>) return Dtype::boolean;
    else {
        static_assert(std::integral<V>, "no file has elements of this type");
        constexpr bool is_signed = std::is_signed_v<V>;
        if constexpr (sizeof(V) == 1) return is_signed ? Dtype::i8 : Dtype::u8;
        else if constexpr (sizeof(V) == 2) return is_signed ? Dtype::i16 : Dtype::u16;
        else if constexpr (sizeof(V) == 4) return is_signed ? Dtype::i32 : Dtype::u32;
        else return is_signed ? Dtype::i64 : Dtype::u64;
    }
}

/// A copy of the tensor, of the same shape, row-major. Floats are taken from every readable type; any other T has to be
/// the type of the file. Throws LoadError.
template <class T>
xt::xarray<T> to_xarray(const TensorInfo& tensor) {
    xt::xarray<T> array;
    array.resize(tensor.shape);
    if (tensor.dtype == dtype_of<T>()) {
        const TensorInfo t = contiguous(tensor);
        if (t.bytes() > 0) std::memcpy(array.data(), t.data, t.bytes());
    } else if constexpr (std::same_as<T, float>) {
        std::ranges::copy(to_floats(tensor), array.data());
    } else {
        throw LoadError{tensor.file, tensor.name, std::string(to_string(dtype_of<T>())),
                        std::string(to_string(tensor.dtype))};
    }
    return array;
}

/// The same with the rank known. Throws LoadError when it is another.
template <class T, std::size_t Rank>
xt::xtensor<T, Rank> to_xtensor(const TensorInfo& tensor) {
    if (tensor.shape.size() != Rank)
        throw LoadError{tensor.file, tensor.name, std::to_string(Rank) + " dimensions", to_string(tensor.shape)};
    return to_xarray<T>(tensor);
}

/// A tensor that holds a copy of the array, or of what the expression gives.
template <class E>
TensorInfo to_tensor(const xt::xexpression<E>& expression, std::string name = {}) {
    using T = typename E::value_type;
    const auto values = std::make_shared<const xt::xarray<T>>(expression.derived_cast());
    TensorInfo t;
    t.name = std::move(name);
    t.dtype = dtype_of<T>();
    t.shape.assign(values->shape().begin(), values->shape().end());
    t.data = reinterpret_cast<const std::byte*>(values->data());
    t.owner = values;
    return t;
}

/// Writes an array or expression. Throws LoadError when the disk fails.
template <class E>
void write_npy(const std::filesystem::path& path, const xt::xexpression<E>& expression) {
    const TensorInfo t = to_tensor(expression);
    write_npy(path, t.dtype, t.shape, {t.data, t.bytes()});
}

}  // namespace prism
