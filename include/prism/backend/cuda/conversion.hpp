// Weights into the layout in which the device's products read them (weights.hpp), and rows of them out of it.
//
//     cuda::convert_rows(driver, Dtype::f16, file_bytes, d_out, d_in, Dtype::q8, rows);      // all pointers: device memory
//     cuda::gather(driver, table, ids, n_ids, y);
#pragma once

#include "prism/backend/cuda/driver.hpp"
#include "prism/backend/cuda/kernels/convert.hpp"
#include "prism/backend/cuda/weights.hpp"
#include "prism/quant/format.hpp"
#include "prism/quant/panels.hpp"

#include <cstddef>
#include <cstdint>

namespace prism::cuda {

/// Bytes of a matrix [rows, cols] in rows of WeightRow.
inline std::size_t device_bytes(Dtype dtype, std::size_t rows, std::size_t cols) {
    std::size_t bytes = 0;
    with_format(dtype, all_formats{}, [&]<Format F>(F) { bytes = rows * static_cast<std::size_t>(WeightRow<F>::bytes(static_cast<std::int64_t>(cols))); });
    return bytes;
}

/// Rows of a matrix on a device, however they lie, as kernels of convert.hpp take them.
template <Format F>
Stored stored(const AnyPacked<device>& w) {
    const auto cols = static_cast<std::int64_t>(w.cols), first = static_cast<std::int64_t>(w.first);
    if (w.panels) return {F::dtype, Layout::device, w.panels + first * WeightRow<F>::bytes(cols), WeightRow<F>::bytes(cols), cols};
    return {F::dtype, Layout::file, static_cast<const std::byte*>(w.data), static_cast<std::int64_t>(w.stride * sizeof(typename F::block)), cols};
}

namespace detail {

template <class D>
void convert(D& driver, const Stored& from, std::int64_t rows, Dtype to, std::byte* dst) {
    if (rows == 0 || from.cols == 0) return;
    with_format(to, all_formats{}, [&]<Format To>(To) {
        const ConvertRows<To> kernel{from, rows, dst};
        driver.launch({static_cast<int>(kernel.n_blocks()), 1, 1}, ConvertRows<To>::max_threads, 0, kernel);
    });
}

}  // namespace detail

/// Dense rows [rows, cols] of any format, aligned to 2 bytes, to rows of WeightRow in format `to` at `dst` (aligned to 16;
/// device_bytes). The bits are those of decode and encode; the same format is copied. Throws ConfigError for types that
/// are no format.
template <class D>
void convert_rows(D& driver, Dtype from, const void* src, std::int64_t rows, std::int64_t cols, Dtype to, std::byte* dst) {
    std::int64_t stride = 0;
    with_format(from, all_formats{}, [&]<Format F>(F) { stride = static_cast<std::int64_t>(blocks_per_row<F>(static_cast<std::size_t>(cols)) * sizeof(typename F::block)); });
    detail::convert(driver, {from, Layout::file, static_cast<const std::byte*>(src), stride, cols}, rows, to, dst);
}

/// The same from panels of the processor (aligned to 4), of which row `first` is row 0.
template <class D>
void convert_panels(D& driver, Dtype from, const std::byte* panels, std::int64_t first, std::int64_t rows, std::int64_t cols, Dtype to, std::byte* dst) {
    const auto stride = static_cast<std::int64_t>(panel_bytes(from, static_cast<std::size_t>(cols)));
    detail::convert(driver, {from, Layout::panels, panels, stride, cols, first}, rows, to, dst);
}

/// n values of f32, bf16 or f16 (aligned to 2) as f32.
template <class D>
void convert_values(D& driver, Dtype from, const void* src, std::int64_t n, float* dst) {
    if (n == 0) return;
    driver.launch({static_cast<int>(ceil_div<std::int64_t>(n, ConvertValues::max_threads)), 1, 1}, ConvertValues::max_threads, 0,
                  ConvertValues{from, static_cast<const std::byte*>(src), n, dst});
}

/// y[i] = row ids[i] of w [rows, cols], as f32; NaN for an id that names no row. The ids, y.rows of them, lie in device memory.
template <class D>
void gather(D& driver, const AnyPacked<device>& w, const std::int32_t* ids, Rows<float> y) {
    if (y.rows == 0 || w.cols == 0) return;
    with_format(w.dtype, all_formats{}, [&]<Format F>(F) {
        driver.launch({y.rows, 1, 1}, Gather<F>::max_threads, 0, Gather<F>{stored<F>(w), static_cast<std::int64_t>(w.rows), ids, y});
    });
}

}  // namespace prism::cuda
