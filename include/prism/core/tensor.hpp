// TensorInfo: one tensor of a file, where it lies and what keeps it there. What every reader hands out and every
// parameter binds to.
#pragma once

#include "prism/core/dtype.hpp"
#include "prism/core/error.hpp"
#include "prism/core/view.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace prism {

/// Runs body(begin, end) over pieces of [0, n), on threads or not.
using InPieces = std::function<void(std::size_t n, const std::function<void(std::size_t begin, std::size_t end)>& body)>;

/// A tensor as its file stores it. Nothing is read until somebody looks behind `data`.
struct TensorInfo {
    std::string                 name;
    Dtype                       dtype = Dtype::f32;
    std::vector<std::size_t>    shape;             // outermost first; empty for a scalar
    std::vector<std::size_t>    stride;            // in elements; empty: row-major and dense
    const std::byte*            data = nullptr;    // need not be aligned
    std::shared_ptr<const void> owner;             // the mapped file or buffer that `data` points into
    std::string                 file;              // for messages
    bool                        mapped = false;    // `data` lies in a mapped file, whose pages can be read again at any time
    bool                        panels = false;    // a matrix in the panels of quant/panels.hpp instead of in rows
    /// Set where a file has the values in another form: gives this tensor with its values, in memory. `data` is then what the
    /// file has, and not to be read as `dtype`, which is the result's; contiguous() calls it. Throws what reading the file throws.
    std::function<TensorInfo(const InPieces&)> made{};

    std::size_t elements() const {
        std::size_t n = 1;
        for (std::size_t e : shape) n *= e;
        return n;
    }
    /// Bytes of the values, not of the storage that may hold more; 0 for blocks (stored_bytes counts those).
    std::size_t bytes() const { return elements() * item_bytes(dtype); }
};

/// Pages of a mapped file that lie wholly in these bytes are no longer in memory; who looks again has them read again.
inline void release_pages([[maybe_unused]] const std::byte* data, [[maybe_unused]] std::uint64_t bytes) {
#if defined(__linux__)
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE)), begin = std::bit_cast<std::uintptr_t>(data);
    const auto first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
    if (first < last) ::madvise(std::bit_cast<void*>(first), last - first, MADV_DONTNEED);
#endif
}

/// The same tensor with dense rows: itself where it already has them, else gathered into memory of its own.
template <class = void>
TensorInfo contiguous(const TensorInfo& t) {
    if (t.made) return t.made([](std::size_t n, const std::function<void(std::size_t, std::size_t)>& body) { body(0, n); });
    if (t.stride.empty()) return t;
    TensorInfo dense = t;
    dense.stride.clear();
    const std::size_t item = item_bytes(t.dtype), n = t.elements(), rank = t.shape.size();
    auto              bytes = std::make_shared<std::vector<std::byte>>(n * item);
    const bool        runs = rank > 0 && t.stride[rank - 1] == 1;  // the last extent lies together
    const std::size_t run = runs ? t.shape[rank - 1] : 1;
    std::vector<std::size_t> index(rank, 0);
    for (std::size_t i = 0; i < n; i += run) {
        std::size_t at = 0;
        for (std::size_t d = 0; d < rank; ++d) at += index[d] * t.stride[d];
        std::memcpy(bytes->data() + i * item, t.data + at * item, run * item);
        for (std::size_t d = runs ? rank - 1 : rank; d-- > 0;) {
            if (++index[d] < t.shape[d]) break;
            index[d] = 0;
        }
    }
    dense.data = bytes->data();
    dense.owner = std::move(bytes);
    return dense;
}

/// The tensor with other values, dense and f32.
template <class = void>
TensorInfo with_values(TensorInfo tensor, std::shared_ptr<std::vector<float>> values) {
    tensor.dtype = Dtype::f32, tensor.stride.clear(), tensor.mapped = false, tensor.made = nullptr;
    tensor.data = reinterpret_cast<const std::byte*>(values->data());
    tensor.owner = std::move(values);
    return tensor;
}

namespace detail {

inline void expect_numbers(const TensorInfo& t) {
    if (item_bytes(t.dtype) == 0) throw LoadError{t.file, t.name, "a readable element type", t.dtype == Dtype::other ? "another" : std::string(to_string(t.dtype))};
}

}  // namespace detail

/// All values as f32, row-major. Throws LoadError for a type that has no numbers by itself, blocks among them.
template <class = void>
std::vector<float> to_floats(const TensorInfo& tensor) {
    detail::expect_numbers(tensor);
    const TensorInfo   t = contiguous(tensor);
    std::vector<float> values(t.elements());
    if (t.dtype == Dtype::f32) {
        if (!values.empty()) std::memcpy(values.data(), t.data, values.size() * sizeof(float));
        return values;
    }
    const std::size_t item = item_bytes(t.dtype);
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(read_element(t.dtype, t.data + i * item));
    return values;
}

/// All values as 64-bit integers, row-major; fractions are cut off. Throws LoadError for a type that has no numbers and
/// for a value that no such integer has.
template <class = void>
std::vector<std::int64_t> to_integers(const TensorInfo& tensor) {
    detail::expect_numbers(tensor);
    const TensorInfo          t = contiguous(tensor);
    std::vector<std::int64_t> values(t.elements());
    for (std::size_t i = 0; i < values.size(); ++i) {
        const std::byte* p = t.data + i * item_bytes(t.dtype);
        const double     x = read_element(t.dtype, p);
        if (!(x >= -0x1p63 && x < 0x1p63) && t.dtype != Dtype::i64)
            throw LoadError{t.file, t.name, "integers of 64 bits", std::to_string(x)};
        if (item_bytes(t.dtype) == sizeof(std::int64_t) && t.dtype != Dtype::f64) std::memcpy(&values[i], p, sizeof values[i]);
        else values[i] = static_cast<std::int64_t>(x);
    }
    return values;
}

}  // namespace prism
