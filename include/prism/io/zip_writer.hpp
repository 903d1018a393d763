// ZipWriter: a zip file of stored entries, written from front to back, whose data can be used where they are mapped.
//
//     ZipWriter zip{[&](std::span<const std::byte> bytes) { out.write(bytes); }};
//     zip.add("weights/data/0", bytes);   // the data begins at a multiple of 64
//     zip.finish();
//
// As PyTorch writes them: checksum and sizes follow the data, local headers have zeros in their place, and the zip64
// records at the end are always there. Source: PKWARE, APPNOTE.TXT; pytorch/pytorch, caffe2/serialize/inline_container.cc.
#pragma once

#include "prism/core/error.hpp"

#include <zlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

class ZipWriter {
public:
    using Write = std::function<void(std::span<const std::byte>)>;
    static constexpr std::uint64_t alignment = 64;

    explicit ZipWriter(Write write) : write_(std::move(write)) {}

    /// Throws what `write` does.
    void add(std::string name, std::span<const std::byte> bytes) {
        Entry entry{std::move(name), at_, bytes.size()};
        const bool          large = entry.bytes >= in_zip64;
        const std::uint64_t begin = at_ + 30 + entry.name.size() + (large ? 20 : 0) + 4;
        const auto          filler = static_cast<std::uint16_t>((alignment - begin % alignment) % alignment);
        put<std::uint32_t>({0x04034b50}), put<std::uint16_t>({version(entry), flags(entry), 0, 0, 0});
        put<std::uint32_t>({0, 0, 0}), put<std::uint16_t>({static_cast<std::uint16_t>(entry.name.size()), static_cast<std::uint16_t>(filler + 4 + (large ? 20 : 0))});
        text(entry.name);
        if (large) put<std::uint16_t>({1, 16}), put<std::uint64_t>({0, 0});
        put<std::uint16_t>({0x4246, filler});
        text(std::string(filler, 'Z'));

        constexpr std::size_t piece = std::size_t{16} << 20;
        for (auto rest = bytes; !rest.empty(); rest = rest.subspan(std::min(piece, rest.size()))) {
            const auto part = rest.first(std::min(piece, rest.size()));
            entry.crc = static_cast<std::uint32_t>(::crc32_z(entry.crc, reinterpret_cast<const Bytef*>(part.data()), part.size()));
            raw(part);
        }
        if (entry.bytes > 0) {
            put<std::uint32_t>({0x08074b50, entry.crc});
            if (large) put<std::uint64_t>({entry.bytes, entry.bytes});
            else put<std::uint32_t>({static_cast<std::uint32_t>(entry.bytes), static_cast<std::uint32_t>(entry.bytes)});
        }
        entries_.push_back(std::move(entry));
    }

    struct Entry {
        std::string   name;
        std::uint64_t at, bytes;
        std::uint32_t crc = 0;
    };
    const std::vector<Entry>& entries() const { return entries_; }

    /// Writes the directory. Nothing may be added after it.
    void finish() {
        const std::uint64_t begin = at_, n = entries_.size();
        for (const Entry& e : entries_) {
            const bool large = e.bytes >= in_zip64, far = e.at >= in_zip64;
            const auto extra = static_cast<std::uint16_t>(large || far ? 4 + (large ? 16 : 0) + (far ? 8 : 0) : 0);
            put<std::uint32_t>({0x02014b50}), put<std::uint16_t>({version(e), version(e), flags(e), 0, 0, 0});
            put<std::uint32_t>({e.crc, clipped(e.bytes), clipped(e.bytes)});
            put<std::uint16_t>({static_cast<std::uint16_t>(e.name.size()), extra, 0, 0, 0});
            put<std::uint32_t>({0, clipped(e.at)});
            text(e.name);
            if (extra > 0) put<std::uint16_t>({1, static_cast<std::uint16_t>(extra - 4)});
            if (large) put<std::uint64_t>({e.bytes, e.bytes});
            if (far) put<std::uint64_t>({e.at});
        }
        const std::uint64_t end = at_;
        put<std::uint32_t>({0x06064b50}), put<std::uint64_t>({44}), put<std::uint16_t>({zip64_version, zip64_version}), put<std::uint32_t>({0, 0});
        put<std::uint64_t>({n, n, end - begin, begin});
        put<std::uint32_t>({0x07064b50, 0}), put<std::uint64_t>({end}), put<std::uint32_t>({1});
        const auto few = static_cast<std::uint16_t>(std::min<std::uint64_t>(n, 0xffff));
        put<std::uint32_t>({0x06054b50}), put<std::uint16_t>({0, 0, few, few}), put<std::uint32_t>({clipped(end - begin), clipped(begin)}), put<std::uint16_t>({0});
    }

private:
    static constexpr std::uint64_t in_zip64 = 0xffffffff;  // a size or place from here on stands in the zip64 fields
    static constexpr std::uint16_t zip64_version = 45;

    static std::uint32_t clipped(std::uint64_t n) { return static_cast<std::uint32_t>(std::min(n, in_zip64)); }
    static std::uint16_t version(const Entry& e) { return e.bytes >= in_zip64 || e.at >= in_zip64 ? zip64_version : 20; }
    /// Names are UTF-8; sizes follow the data where there is any.
    static std::uint16_t flags(const Entry& e) { return e.bytes > 0 ? 0x0808 : 0x0800; }

    void raw(std::span<const std::byte> bytes) { write_(bytes), at_ += bytes.size(); }
    void text(std::string_view s) { raw(std::as_bytes(std::span{s})); }
    template <class T>
    void put(std::initializer_list<T> numbers) {
        raw(std::as_bytes(std::span{numbers.begin(), numbers.size()}));
    }

    Write              write_;
    std::uint64_t      at_ = 0;
    std::vector<Entry> entries_;
};

}  // namespace prism
