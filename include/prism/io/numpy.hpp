// numpy's files: npy, one array, and npz, a zip of named ones. Without xtensor; io/npy.hpp adds that.
//
//     TensorInfo              x  = prism::read_npy("golden.npy");
//     std::vector<TensorInfo> xs = prism::read_npz("weights.npz");
//     prism::write_npy("out.npy", Dtype::f32, {2, 3}, bytes);
//
// Source: numpy/numpy, numpy/lib/_format_impl.py.
#pragma once

#include "prism/core/tensor.hpp"
#include "prism/io/file.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace prism {

class ZipArchive;

/// One array. Column-major ones come with strides; core's contiguous() makes them dense. Throws FormatError for what is
/// no npy file, for big-endian numbers, and for elements that are no numbers (objects, strings, dates, records).
template <class = void>
TensorInfo read_npy(const std::shared_ptr<const MappedFile>& file, std::string name = {});
template <class = void>
TensorInfo read_npy(const std::filesystem::path& path, FileMode mode = FileMode::map);

/// Every array, by its name without ".npy". Stored ones are pointed into, deflated ones inflated, to no more than
/// `limit_bytes` in all; checksums are checked. Throws FormatError.
template <class = void>
std::vector<TensorInfo> read_npz(const ZipArchive& zip, std::uint64_t limit_bytes = std::uint64_t{4} << 30);
template <class = void>
std::vector<TensorInfo> read_npz(const std::filesystem::path& path, FileMode mode = FileMode::map);

/// Writes version 1.0, row-major, with the data aligned to 64 bytes. The file appears whole or not at all. Throws
/// LoadError for bytes that do not match the shape, for types that numpy lacks, and when the disk fails.
template <class = void>
void write_npy(const std::filesystem::path& path, Dtype dtype, const std::vector<std::size_t>& shape,
                      std::span<const std::byte> bytes);

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/io/numpy.inl"
#endif
