// ByteReader: little-endian numbers and runs of bytes from a file that may end too soon or lie about lengths.
//
//     prism::ByteReader in{file->bytes(), file->path()};
//     const auto n    = in.read<std::uint64_t>("the header length");   // FormatError past the end
//     const auto text = in.text(n, "the header");                      // checked before anything is taken
#pragma once

#include "prism/core/dtype.hpp"
#include "prism/core/error.hpp"
#include "prism/core/view.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace prism {

static_assert(std::endian::native == std::endian::little, "weight files are little-endian, and are mapped as they are");

/// Reads forward. `what` names the thing read, for messages.
class ByteReader {
public:
    /// `origin` is where `bytes` start in the file.
    ByteReader(std::span<const std::byte> bytes, std::string file, std::uint64_t origin = 0)
        : bytes_(bytes), file_(std::move(file)), origin_(origin) {}

    std::size_t        at() const { return at_; }
    std::uint64_t      offset() const { return origin_ + at_; }
    std::size_t        remaining() const { return bytes_.size() - at_; }
    const std::string& file() const { return file_; }

    std::span<const std::byte> take(std::uint64_t n, const char* what) {
        if (n > remaining())
            fail(std::string(what) + " needs " + std::to_string(n) + " bytes, and " + std::to_string(remaining()) +
                 " are left");
        const auto taken = bytes_.subspan(at_, static_cast<std::size_t>(n));
        at_ += taken.size();
        return taken;
    }
    template <class T>
    T read(const char* what) {
        T value;
        std::memcpy(&value, take(sizeof value, what).data(), sizeof value);
        return value;
    }
    std::string_view text(std::uint64_t n, const char* what) {
        const auto taken = take(n, what);
        return {reinterpret_cast<const char*>(taken.data()), taken.size()};
    }
    /// Up to the next line feed, which is passed over.
    std::string_view line(const char* what) {
        const auto rest = text(remaining(), what);
        const auto n = rest.find('\n');
        at_ -= rest.size();
        if (n == rest.npos) fail(std::string(what) + " does not end");
        return text(n + 1, what).substr(0, n);
    }

    /// Throws FormatError at the place reached.
    [[noreturn]] void fail(const std::string& problem) const { throw FormatError{file_, offset(), problem}; }

private:
    std::span<const std::byte> bytes_;
    std::string                file_;
    std::uint64_t              origin_;
    std::size_t                at_ = 0;
};

/// a * b, or nothing where that does not fit.
inline std::optional<std::uint64_t> checked_product(std::uint64_t a, std::uint64_t b) {
    std::uint64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
    return product;
}

/// No tensor of a file has more dimensions, or a larger extent.
inline constexpr std::size_t   max_rank = 8;
inline constexpr std::uint64_t max_extent = std::numeric_limits<std::int64_t>::max();

/// Elements times `item_bits`, or nothing where rank, an extent or the product is too large.
inline std::optional<std::uint64_t> checked_bits(std::span<const std::size_t> shape, std::uint64_t item_bits) {
    if (shape.size() > max_rank) return std::nullopt;
    std::optional<std::uint64_t> bits = item_bits;
    for (const std::size_t extent : shape) {
        if (extent > max_extent) return std::nullopt;
        bits = checked_product(*bits, extent);
        if (!bits) return std::nullopt;
    }
    return bits;
}

}  // namespace prism
