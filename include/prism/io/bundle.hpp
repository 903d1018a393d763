// Bundle: named runs of bytes and a JSON object in one file that is used where it is mapped.
//
//     prism::write_bundle("x.bundle", {{"answer", 42}}, {{{.name = "weights", .about = {{"dtype", "F32"}}, .bytes = bytes}}});
//     const auto bundle = prism::read_bundle(prism::MappedFile::open("x.bundle"));   // bundle.entries[0].bytes: in place
//
// Layout, little-endian: 8 bytes of magic; u32 version; u32 CRC-32 of the header; u64 N; N bytes of JSON, the header:
//     {"contents": {...}, "entries": [{"name", "begin", "end", "about": {...}, "crc32"}, ...]}
// then zeros to a multiple of 4096, then the data, from which `begin` and `end` count. Runs follow each other in the order
// of the list and begin at multiples of 64, those of 64 KiB or more at multiples of 4096; the last one ends the file.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/bytes.hpp"
#include "prism/io/file.hpp"
#include "prism/io/json.hpp"

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zlib.h>

namespace prism {

/// A run of bytes with its name and what its writer says of it, an object.
struct BundleEntry {
    std::string                name;
    Json                       about = Json::object();
    std::span<const std::byte> bytes;
    bool                       checked = false;  // a checksum stands beside it, and reading verifies it: for small runs
};

struct Bundle {
    std::shared_ptr<const MappedFile> file;  // keeps the bytes of the entries
    Json                              contents = Json::object();
    std::vector<BundleEntry>          entries;
};

namespace detail {

/// A byte that is no text, and line ends that a transfer as text would change.
inline constexpr std::string_view bundle_magic{"\x89prism\r\n", 8};
inline constexpr std::uint32_t    bundle_version = 1;
inline constexpr std::uint64_t    bundle_header_at = 24;
inline constexpr std::uint64_t    max_bundle_header_bytes = 100'000'000;
inline constexpr std::uint64_t    bundle_page = 4096;

inline std::uint64_t aligned(std::uint64_t at, std::uint64_t alignment) { return (at + alignment - 1) / alignment * alignment; }
/// Where a run of so many bytes begins when the one before it ends at `end`.
inline std::uint64_t bundle_begin(std::uint64_t end, std::uint64_t bytes) { return aligned(end, bytes < 65536 ? 64 : bundle_page); }

inline std::uint32_t crc32_of(std::span<const std::byte> bytes) {
    return static_cast<std::uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

/// The member of an object in a bundle's header. Throws FormatError where there is none that `fits`.
template <class J, class Fits>
const J& bundle_member(const J& object, const char* key, const std::string& file, const std::string& whose, const char* needed, Fits fits) {
    const auto at = object.is_object() ? object.find(key) : object.end();
    if (!object.is_object() || at == object.end() || !fits(*at))
        throw FormatError{file, bundle_header_at, whose + " needs '" + key + "', " + needed};
    return *at;
}

}  // namespace detail

/// Whether a file begins as a bundle does. Throws LoadError when it cannot be read.
inline bool is_bundle(const std::filesystem::path& path) {
    return detail::begins_with(path, detail::bundle_magic);
}

/// Throws FormatError unless the header is whole and its runs fill the file exactly, and for a file of another version,
/// which has to be written again. Runs without a checksum are not looked at.
template <class T = void>
Bundle read_bundle(const std::shared_ptr<const MappedFile>& file) {
    ByteReader in{file->bytes(), file->path()};
    if (in.text(detail::bundle_magic.size(), "the beginning") != detail::bundle_magic)
        throw FormatError{in.file(), 0, "this is no packed file of prism"};
    if (const auto version = in.read<std::uint32_t>("the version"); version != detail::bundle_version)
        throw FormatError{in.file(), detail::bundle_magic.size(), "this packed file is of version " + std::to_string(version) + ", and version " +
                                                                      std::to_string(detail::bundle_version) + " can be read: pack it again with this prism"};
    const auto crc = in.read<std::uint32_t>("the checksum");
    const auto header_bytes = in.read<std::uint64_t>("the header length");
    if (header_bytes > detail::max_bundle_header_bytes)
        in.fail("the header length is " + std::to_string(header_bytes) + ", over the limit of " + std::to_string(detail::max_bundle_header_bytes));
    const auto text = in.text(header_bytes, "the header");
    if (detail::crc32_of(std::as_bytes(std::span{text})) != crc)
        throw FormatError{in.file(), detail::bundle_header_at, "the header does not match its checksum: the file is damaged"};

    using J = detail::Late<Json, T>;
    J header;
    try {
        header = parse_json<J>(text, in.file());
    } catch (const FormatError& e) { throw FormatError{in.file(), detail::bundle_header_at + e.byte, "in the header: " + e.problem}; }
    const auto is_object = [](const J& json) { return json.is_object(); };
    const auto is_number = [](const J& json) { return json.is_number_unsigned(); };
    Bundle     bundle{.file = file, .contents = detail::bundle_member(header, "contents", in.file(), "the header", "an object", is_object), .entries = {}};
    const J&   list = detail::bundle_member(header, "entries", in.file(), "the header", "a list", [](const J& json) { return json.is_array(); });

    in.take(detail::aligned(in.offset(), detail::bundle_page) - in.offset(), "the padding before the data");
    const auto            data = in.take(in.remaining(), "the data");
    std::uint64_t         end = 0;
    std::set<std::string> names;
    for (const J& json : list) {
        const auto text_of = [](const J& name) { return name.is_string(); };
        BundleEntry       entry{.name = detail::bundle_member(json, "name", in.file(), "an entry", "a string", text_of).template get<std::string>(), .about = {}, .bytes = {}};
        const std::string whose = "entry '" + entry.name + "'";
        const auto        refuse = [&](const std::string& problem) { throw FormatError{in.file(), detail::bundle_header_at, whose + " " + problem}; };
        const auto        number = [&](const char* key) { return detail::bundle_member(json, key, in.file(), whose, "a whole number", is_number).template get<std::uint64_t>(); };
        const std::uint64_t begin = number("begin"), last = number("end");
        entry.about = detail::bundle_member(json, "about", in.file(), whose, "an object", is_object);
        if (!names.insert(entry.name).second) refuse("stands twice in the header");
        if (last < begin) refuse("ends at " + std::to_string(last) + ", before it begins at " + std::to_string(begin));
        if (const auto expected = detail::bundle_begin(end, last - begin); begin != expected)
            refuse("begins at " + std::to_string(begin) + " of the data, where " + std::to_string(expected) + " is its place");
        if (last > data.size()) refuse("ends at " + std::to_string(last) + " of the data, which has " + std::to_string(data.size()) + " bytes");
        end = last;
        entry.bytes = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(last - begin));
        entry.checked = json.contains("crc32");
        if (entry.checked && number("crc32") != detail::crc32_of(entry.bytes)) refuse("does not match its checksum: the file is damaged");
        bundle.entries.push_back(std::move(entry));
    }
    if (end != data.size())
        throw FormatError{in.file(), in.offset() - (data.size() - end), std::to_string(data.size() - end) + " bytes follow the last entry"};
    return bundle;
}

/// Calls write(bytes), in pieces of at most 16 MiB, with such a file. The entries' bytes are written from where they lie.
/// `file` is for messages. Throws LoadError, before the first piece, for a name that stands twice or is no UTF-8.
template <class Write>
    requires std::invocable<Write&, std::span<const std::byte>>
void write_bundle(Write&& write, const std::string& file, const Json& contents, std::span<const BundleEntry> entries) {
    using J = detail::Late<Json, Write>;
    J                     list = J::array();
    std::uint64_t         end = 0;
    std::set<std::string> names;
    for (const BundleEntry& entry : entries) {
        if (!names.insert(entry.name).second) throw LoadError{file, entry.name, "one entry of the name", "two"};
        const std::uint64_t begin = detail::bundle_begin(end, entry.bytes.size());
        end = begin + entry.bytes.size();
        list.push_back({{"name", entry.name}, {"begin", begin}, {"end", end}, {"about", entry.about}});
        if (entry.checked) list.back()["crc32"] = detail::crc32_of(entry.bytes);
    }
    std::string text;
    try {
        text = J{{"contents", contents}, {"entries", std::move(list)}}.dump();
    } catch (const typename J::exception&) {
        throw LoadError{file, "a name or another text to be packed is no UTF-8"};
    }
    const std::uint32_t  numbers[2]{detail::bundle_version, detail::crc32_of(std::as_bytes(std::span{text}))};
    const std::uint64_t  header_bytes = text.size();
    const std::vector<std::byte> zeros(detail::bundle_page);
    const auto pad = [&](std::uint64_t from, std::uint64_t to) { write(std::span(zeros).first(static_cast<std::size_t>(to - from))); };
    write(std::as_bytes(std::span{detail::bundle_magic}));
    write(std::as_bytes(std::span{numbers}));
    write(std::as_bytes(std::span{&header_bytes, 1}));
    write(std::as_bytes(std::span{text}));
    const std::uint64_t data_at = detail::aligned(detail::bundle_header_at + header_bytes, detail::bundle_page);
    pad(detail::bundle_header_at + header_bytes, data_at);
    end = 0;
    for (const BundleEntry& entry : entries) {
        pad(end, detail::bundle_begin(end, entry.bytes.size()));
        end = detail::bundle_begin(end, entry.bytes.size()) + entry.bytes.size();
        for (auto rest = entry.bytes; !rest.empty();) {
            const auto piece = rest.first(std::min<std::size_t>(rest.size(), std::size_t{16} << 20));
            write(piece);
            rest = rest.subspan(piece.size());
        }
    }
}

/// Writes such a file; it appears whole or not at all. Also throws LoadError when the disk fails.
template <class = void>
void write_bundle(const std::filesystem::path& path, const Json& contents, std::span<const BundleEntry> entries) {
    NewFile out{path};
    write_bundle([&](std::span<const std::byte> bytes) { out.write(bytes); }, path.string(), contents, entries);
    out.commit();
}

}  // namespace prism
