// What the tests of io/ share: files made by hand, and a reader that touches every value.
#pragma once

#include "prism/core/tensor.hpp"
#include "prism/io/file.hpp"
#include "support/temp_folder.hpp"

#include <doctest/doctest.h>

#include <zlib.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prism::test {

/// `text` as a file in memory of exactly its size, so that the sanitizers notice a read past its end.
inline std::shared_ptr<const MappedFile> in_memory(std::string_view text, std::string name = "made-up") {
    const auto bytes = std::as_bytes(std::span{text});
    return MappedFile::of({bytes.begin(), bytes.end()}, std::move(name));
}

/// A number's bytes, little-endian.
template <class T>
requires std::is_arithmetic_v<T> std::string le(T value) {
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}
inline std::string u16(std::uint64_t n) { return le(static_cast<std::uint16_t>(n)); }
inline std::string u32(std::uint64_t n) { return le(static_cast<std::uint32_t>(n)); }
inline std::string u64(std::uint64_t n) { return le(n); }

/// Reads every value of every tensor.
inline double sum(const std::vector<TensorInfo>& tensors) {
    double total = 0;
    for (const TensorInfo& t : tensors)
        if (t.dtype != Dtype::other)
            for (const float x : to_floats(t)) total += x;
    return total;
}

/// Same type, shape and bytes, however they are stored.
inline bool same(const TensorInfo& a, const TensorInfo& b) {
    const TensorInfo x = contiguous(a), y = contiguous(b);
    return x.dtype == y.dtype && x.shape == y.shape && (x.bytes() == 0 || std::memcmp(x.data, y.data, x.bytes()) == 0);
}

/// The `use` of every damaged form of `good`: cut at each byte, each byte inverted, some bits of it turned over. It has
/// to succeed or throw a prism::Error. Cuts must not succeed, unless `may_be_cut`.
template <class Use>
void damage(const std::string& good, Use&& use) {
    for (std::size_t n = 0; n < good.size(); ++n) {
        const std::string what = message([&] { use(good.substr(0, n)); });
        INFO("cut to ", n, " of ", good.size(), " bytes");
        CHECK_FALSE(what.empty());
    }
    for (std::size_t at = 0; at < good.size(); ++at)
        for (const int mask : {0xff, 0x01, 0x10, 0x80}) {
            std::string bad = good;
            bad[at] = static_cast<char>(bad[at] ^ mask);
            message([&] { use(bad); });
        }
}

/// One file of a zip archive, and what to lie about.
struct Zipped {
    std::string   name, content;
    std::uint16_t method = 0, flags = 0x0808;
    std::string   local_name = {};       // where it differs
    std::uint64_t lie_about_bytes = 0;   // added to the size
    std::uint32_t lie_about_crc = 0;     // added to the checksum
    std::uint64_t lie_about_offset = 0;  // added to the local header's offset
    bool          zip64 = false;
};

/// An archive as PyTorch writes it: sizes in the directory only, and always a zip64 record.
inline std::string zip(const std::vector<Zipped>& files) {
    std::string out, directory;
    for (const Zipped& f : files) {
        const std::uint64_t at = out.size();
        const auto          crc = static_cast<std::uint32_t>(
            ::crc32(0, reinterpret_cast<const Bytef*>(f.content.data()), static_cast<uInt>(f.content.size())));
        std::string packed = f.content;
        if (f.method == 8) {
            z_stream z{};
            REQUIRE(deflateInit2(&z, 9, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) == Z_OK);
            packed.resize(deflateBound(&z, static_cast<uLong>(f.content.size())));
            z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(f.content.data()));
            z.avail_in = static_cast<uInt>(f.content.size());
            z.next_out = reinterpret_cast<Bytef*>(packed.data());
            z.avail_out = static_cast<uInt>(packed.size());
            REQUIRE(deflate(&z, Z_FINISH) == Z_STREAM_END);
            packed.resize(z.total_out);
            deflateEnd(&z);
        }
        const std::string local = f.local_name.empty() ? f.name : f.local_name;
        out += "PK\x03\x04" + u16(0) + u16(f.flags) + u16(f.method) + u32(0) + u32(0) + u32(0) + u32(0) +
               u16(local.size()) + u16(0) + local + packed;
        // Archives beyond 4 GiB keep these three in an extra field, and 0xffffffff in their place.
        const std::uint64_t bytes = f.content.size() + f.lie_about_bytes, offset = at + f.lie_about_offset;
        const std::string   extra = f.zip64 ? u16(1) + u16(24) + u64(bytes) + u64(packed.size()) + u64(offset) : "";
        const auto          small = [&](std::uint64_t n) { return u32(f.zip64 ? 0xffffffff : n); };
        directory += "PK\x01\x02" + u16(0) + u16(0) + u16(f.flags) + u16(f.method) + u32(0) +
                     u32(crc + f.lie_about_crc) + small(packed.size()) + small(bytes) + u16(f.name.size()) +
                     u16(extra.size()) + u16(0) + u16(0) + u16(0) + u32(0) + small(offset) + f.name + extra;
    }
    const std::uint64_t at = out.size(), n = files.size();
    out += directory;
    out +=
        "PK\x06\x06" + u64(44) + u16(0) + u16(0) + u32(0) + u32(0) + u64(n) + u64(n) + u64(directory.size()) + u64(at);
    out += "PK\x06\x07" + u32(0) + u64(at + directory.size()) + u32(1);
    out += "PK\x05\x06" + u16(0) + u16(0) + u16(n) + u16(n) + u32(directory.size()) + u32(at) + u16(0);
    return out;
}

}  // namespace prism::test
