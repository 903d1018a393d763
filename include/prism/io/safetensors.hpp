// safetensors: a JSON header, then the tensors.
//
//     auto [tensors, metadata] = prism::read_safetensors("model.safetensors");   // mapped; nothing is copied
//     prism::write_safetensors("out.safetensors", {{.name = "x", .dtype = Dtype::f32, .shape = {2}, .bytes =
//     as_bytes}});
//
// Layout: u64 N; N bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}, space-padded; data.
// Source: huggingface/safetensors, README.md and safetensors/src/tensor.rs.
#pragma once

#include "prism/core/tensor.hpp"
#include "prism/io/file.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace prism {

struct Safetensors {
    std::vector<TensorInfo>            tensors;  // in the order of their data
    std::map<std::string, std::string> metadata;
};

/// A tensor to be written; `bytes` are its values, row-major.
struct TensorData {
    std::string                name;
    Dtype                      dtype = Dtype::f32;
    std::vector<std::size_t>   shape;
    std::span<const std::byte> bytes;
};

namespace detail {

/// The header of such a file, padded, and in `order` its tensors as they follow. Throws LoadError as write_safetensors does.
template <class = void>
std::string safetensors_header(const std::string& file, std::span<const TensorData> tensors, const std::map<std::string, std::string>& metadata,
                               std::vector<const TensorData*>& order);

}  // namespace detail

/// Throws FormatError unless the header is well formed and its tensors fill the data exactly. The values themselves are
/// not looked at. Types that prism does not compute with are listed as Dtype::other.
template <class = void>
Safetensors read_safetensors(const std::shared_ptr<const MappedFile>& file);

/// Also throws LoadError when the file cannot be read.
template <class = void>
Safetensors read_safetensors(const std::filesystem::path& path, FileMode mode = FileMode::map);

/// Calls write(bytes), piece by piece, with the file that the original writes, byte for byte: tensors by type, widest
/// first, then by name. `file` is for messages. Throws LoadError, before the first piece, for a name that stands twice or
/// is no UTF-8, for bytes that do not match the shape, and for Dtype::other.
template <class Write>
    requires std::invocable<Write&, std::span<const std::byte>>
void write_safetensors(Write&& write, const std::string& file, std::span<const TensorData> tensors,
                       const std::map<std::string, std::string>& metadata = {}) {
    std::vector<const TensorData*> order;
    const std::string              text = detail::safetensors_header(file, tensors, metadata, order);
    const std::uint64_t header_bytes = text.size();
    write(std::as_bytes(std::span{&header_bytes, 1}));
    write(std::as_bytes(std::span{text}));
    for (const TensorData* t : order) write(t->bytes);
}

/// Writes such a file; it appears whole or not at all. Also throws LoadError when the disk fails.
template <class = void>
void write_safetensors(const std::filesystem::path& path, std::span<const TensorData> tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/io/safetensors.inl"
#endif
