// What safetensors.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/bytes.hpp"
#include "prism/io/file.hpp"
#include "prism/io/json.hpp"
#include "prism/io/safetensors.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

namespace prism {

namespace detail {

/// Headers are read into memory, so a file must not make them arbitrarily long; this is the limit of the original.
inline constexpr std::uint64_t max_safetensors_header_bytes = 100'000'000;

struct SafetensorsType {
    std::string_view name;
    std::uint64_t    bits;
    Dtype            dtype;
};

/// The types of the format, in the order in which the original's writer places their tensors.
inline constexpr std::array safetensors_types{SafetensorsType{"U64", 64, Dtype::u64},
                                              SafetensorsType{"I64", 64, Dtype::i64},
                                              SafetensorsType{"F64", 64, Dtype::f64},
                                              SafetensorsType{"C64", 64, Dtype::other},
                                              SafetensorsType{"F32", 32, Dtype::f32},
                                              SafetensorsType{"U32", 32, Dtype::u32},
                                              SafetensorsType{"I32", 32, Dtype::i32},
                                              SafetensorsType{"BF16", 16, Dtype::bf16},
                                              SafetensorsType{"F16", 16, Dtype::f16},
                                              SafetensorsType{"U16", 16, Dtype::u16},
                                              SafetensorsType{"I16", 16, Dtype::i16},
                                              SafetensorsType{"F8_E8M0", 8, Dtype::other},
                                              SafetensorsType{"F8_E4M3", 8, Dtype::f8_e4m3},
                                              SafetensorsType{"F8_E5M2", 8, Dtype::f8_e5m2},
                                              SafetensorsType{"F8_E4M3FNUZ", 8, Dtype::other},
                                              SafetensorsType{"F8_E5M2FNUZ", 8, Dtype::other},
                                              SafetensorsType{"I8", 8, Dtype::i8},
                                              SafetensorsType{"U8", 8, Dtype::u8},
                                              SafetensorsType{"F6_E3M2", 6, Dtype::other},
                                              SafetensorsType{"F6_E2M3", 6, Dtype::other},
                                              SafetensorsType{"F4", 4, Dtype::other},
                                              SafetensorsType{"BOOL", 8, Dtype::boolean}};

/// One tensor of a header, with every statement checked that concerns it alone.
template <class J>
class SafetensorsEntry {
public:
    SafetensorsEntry(const std::string& file, const std::string& name, const J& json) : file_(file), name_(name) {
        if (!json.is_object()) refuse("is described by no object");
        const J&    dtype = member(json, "dtype");
        const auto  type = std::ranges::find_if(safetensors_types, [&](const SafetensorsType& t) {
            return dtype.is_string() && dtype.template get_ref<const std::string&>() == t.name;
        });
        if (type == safetensors_types.end()) refuse("has the unknown dtype " + dtype.dump(-1, ' ', true));
        const auto offsets = numbers(json, "data_offsets");
        if (offsets.size() != 2) refuse("has " + std::to_string(offsets.size()) + " data_offsets, where 2 are needed");
        begin = offsets[0], end = offsets[1];
        if (end < begin) refuse("ends at " + std::to_string(end) + ", before it begins at " + std::to_string(begin));

        info.name = name;
        info.file = file;
        info.dtype = type->dtype;
        info.shape = numbers(json, "shape");
        const auto bits = checked_bits(info.shape, type->bits);
        if (!bits) refuse("has the shape " + to_string(info.shape) + ", which is too large");
        if (*bits % 8 != 0 || *bits / 8 != end - begin)
            refuse("has " + std::to_string(end - begin) + " bytes of data, where " + std::string(type->name) + " " +
                   to_string(info.shape) + " takes " + std::to_string(*bits / 8));
    }

    [[noreturn]] void refuse(const std::string& problem) const {
        throw FormatError{file_, sizeof(std::uint64_t), "tensor '" + name_ + "' " + problem};
    }

    TensorInfo    info;  // all but data and owner
    std::uint64_t begin = 0, end = 0;

private:
    const J& member(const J& json, const char* key) const {
        const auto at = json.find(key);
        if (at == json.end()) refuse(std::string("has no ") + key);
        return *at;
    }
    std::vector<std::size_t> numbers(const J& json, const char* key) const {
        const J& list = member(json, key);
        if (!list.is_array()) refuse(std::string("has a ") + key + " that is no list");
        std::vector<std::size_t> values;
        for (const J& item : list) {
            if (!item.is_number_unsigned())
                refuse(std::string("has ") + item.dump(-1, ' ', true) + " in its " + key +
                       ", where a whole number is needed");
            values.push_back(item.template get<std::size_t>());
        }
        return values;
    }

    std::string file_, name_;
};

template <class T>
std::string safetensors_header(const std::string& file, std::span<const TensorData> tensors, const std::map<std::string, std::string>& metadata,
                               std::vector<const TensorData*>& order) {
    const auto place = [](const TensorData& t) {
        return std::ranges::find_if(safetensors_types, [&](const SafetensorsType& type) { return type.dtype == t.dtype; });
    };
    for (const TensorData& t : tensors) {
        if (t.dtype == Dtype::other) throw LoadError{file, t.name, "an element type of the format", "another"};
        if (t.name == "__metadata__") throw LoadError{file, t.name, "another name", "the one that the format reserves"};
        const auto bits = checked_bits(t.shape, 8 * item_bytes(t.dtype));
        if (!bits || *bits / 8 != t.bytes.size())
            throw LoadError{file, t.name, "the bytes of " + std::string(to_string(t.dtype)) + " " + to_string(t.shape),
                            std::to_string(t.bytes.size()) + " bytes"};
        order.push_back(&t);
    }
    std::ranges::sort(order, {}, [&](const TensorData* t) { return std::tuple{place(*t), std::string_view(t->name)}; });

    using J = Late<nlohmann::ordered_json, T>;
    J header = J::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::uint64_t end = 0;
    for (const TensorData* t : order) {
        if (header.contains(t->name)) throw LoadError{file, t->name, "one tensor of the name", "two"};
        const std::uint64_t begin = std::exchange(end, end + t->bytes.size());
        header[t->name] = {{"dtype", place(*t)->name}, {"shape", t->shape}, {"data_offsets", {begin, end}}};
    }
    std::string text;
    try {
        text = header.dump();
    } catch (const typename J::exception&) {
        throw LoadError{file, "a tensor's name or a piece of metadata is no UTF-8"};
    }
    text.resize((text.size() + 7) / 8 * 8, ' ');  // so that every tensor is aligned for its type
    return text;
}

}  // namespace detail

template <class T>
Safetensors read_safetensors(const std::shared_ptr<const MappedFile>& file) {
    ByteReader in{file->bytes(), file->path()};
    const auto header_bytes = in.read<std::uint64_t>("the header length");
    if (header_bytes > detail::max_safetensors_header_bytes)
        in.fail("the header length is " + std::to_string(header_bytes) + ", over the limit of " +
                std::to_string(detail::max_safetensors_header_bytes));
    const std::uint64_t header_at = in.offset();
    const auto          text = in.text(header_bytes, "the header");
    if (!text.starts_with('{')) throw FormatError{in.file(), header_at, "the header is no JSON object"};

    using J = detail::Late<Json, T>;
    J header;
    try {
        header = parse_json<J>(text, in.file());
    } catch (const FormatError& e) { throw FormatError{in.file(), header_at + e.byte, "in the header: " + e.problem}; }

    Safetensors                              result;
    std::vector<detail::SafetensorsEntry<J>> entries;
    entries.reserve(header.size());
    for (const auto& [name, json] : header.items()) {
        if (name != "__metadata__") {
            entries.emplace_back(in.file(), name, json);
            continue;
        }
        if (!json.is_object()) throw FormatError{in.file(), header_at, "__metadata__ is no object"};
        for (const auto& [key, value] : json.items()) {
            if (!value.is_string()) throw FormatError{in.file(), header_at, "__metadata__ '" + key + "' is no string"};
            result.metadata[key] = value.template get<std::string>();
        }
    }

    std::ranges::stable_sort(entries, {}, [](const auto& entry) { return std::pair{entry.begin, entry.end}; });
    const auto    data = in.take(in.remaining(), "the data");
    std::uint64_t end = 0;
    for (auto& entry : entries) {
        if (entry.begin != end)
            entry.refuse("begins at " + std::to_string(entry.begin) + " of the data, where the one before it ends at " +
                         std::to_string(end));
        if (entry.end > data.size())
            entry.refuse("ends at " + std::to_string(entry.end) + " of the data, which has " +
                         std::to_string(data.size()) + " bytes");
        end = entry.end;
        entry.info.data = data.data() + entry.begin;
        entry.info.owner = file;
        entry.info.mapped = file->mapped();
        result.tensors.push_back(std::move(entry.info));
    }
    if (end != data.size())
        throw FormatError{in.file(), in.offset() - (data.size() - end),
                          std::to_string(data.size() - end) + " bytes follow the last tensor"};
    return result;
}

template <class>
Safetensors read_safetensors(const std::filesystem::path& path, FileMode mode) {
    return read_safetensors(MappedFile::open(path, mode));
}

template <class>
void write_safetensors(const std::filesystem::path& path, std::span<const TensorData> tensors,
                              const std::map<std::string, std::string>& metadata) {
    NewFile out{path};
    write_safetensors([&](std::span<const std::byte> bytes) { out.write(bytes); }, path.string(), tensors, metadata);
    out.commit();
}

}  // namespace prism
