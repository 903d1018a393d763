// What numpy.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/bytes.hpp"
#include "prism/io/numpy.hpp"
#include "prism/io/zip.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

namespace prism {

namespace detail {

inline constexpr std::string_view npy_magic{"\x93NUMPY", 6};

struct NpyType {
    std::string_view code;  // without the sign of the byte order
    Dtype            dtype;
};
/// numpy has no bfloat16; libraries that add one write it as two bytes of void.
inline constexpr std::array npy_types{
    NpyType{"f4", Dtype::f32},    NpyType{"f8", Dtype::f64}, NpyType{"f2", Dtype::f16}, NpyType{"V2", Dtype::bf16},
    NpyType{"i8", Dtype::i64},    NpyType{"i4", Dtype::i32}, NpyType{"i2", Dtype::i16}, NpyType{"i1", Dtype::i8},
    NpyType{"u8", Dtype::u64},    NpyType{"u4", Dtype::u32}, NpyType{"u2", Dtype::u16}, NpyType{"u1", Dtype::u8},
    NpyType{"b1", Dtype::boolean}};

/// The header, a Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
template <class = void>
class NpyHeader {
public:
    std::string              descr;
    bool                     fortran_order = false;
    std::vector<std::size_t> shape;

    NpyHeader(std::string_view text, std::string file, std::uint64_t origin)
        : text_(text), file_(std::move(file)), origin_(origin) {
        bool seen[3] = {};
        need("{");
        while (!accept("}")) {
            const std::string key = quoted();
            need(":");
            const std::array<std::string_view, 3> keys{"descr", "fortran_order", "shape"};
            const auto which = static_cast<std::size_t>(std::find(keys.begin(), keys.end(), key) - keys.begin());
            if (which == keys.size()) fail("the unknown key '" + key + "'");
            if (std::exchange(seen[which], true)) fail("the key '" + key + "' twice");
            if (which == 0) descr = quoted();
            else if (which == 1) fortran_order = boolean();
            else shape = tuple();
            if (!accept(",")) {
                need("}");
                break;
            }
        }
        if (!seen[0] || !seen[1] || !seen[2]) fail("no descr, fortran_order or shape");
        skip_spaces();
        if (at_ != text_.size()) fail("text after the dictionary");
    }

private:
    void skip_spaces() { at_ = std::min(text_.find_first_not_of(" \n", at_), text_.size()); }
    bool accept(std::string_view token) {
        skip_spaces();
        if (!text_.substr(at_).starts_with(token)) return false;
        at_ += token.size();
        return true;
    }
    void need(std::string_view token) {
        if (!accept(token)) fail("no '" + std::string(token) + "'");
    }
    std::string quoted() {
        const char quote = accept("'") ? '\'' : '"';
        if (quote == '"' && !accept("\""))
            fail(text_.substr(at_).starts_with('[') ? "a structured type, which is not read" : "no string");
        const std::size_t end = text_.find(quote, at_);
        if (end == text_.npos) fail("a string that does not end");
        const std::string_view value = text_.substr(at_, end - at_);
        at_ = end + 1;
        return std::string(value);
    }
    bool boolean() {
        if (accept("True")) return true;
        need("False");
        return false;
    }
    std::vector<std::size_t> tuple() {
        std::vector<std::size_t> values;
        need("(");
        while (!accept(")")) {
            values.push_back(number());
            if (values.size() > max_rank) fail("more than " + std::to_string(max_rank) + " dimensions");
            if (!accept(",")) {
                if (values.size() == 1) fail("a number in parentheses, which is no tuple");
                need(")");
                break;
            }
        }
        return values;
    }
    std::size_t number() {
        skip_spaces();
        const std::size_t start = at_;
        std::uint64_t     n = 0;
        for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
            n = 10 * n + static_cast<std::uint64_t>(text_[at_] - '0');
            if (n > max_extent / 16) fail("an extent that is too large");
        }
        if (at_ == start) fail("no whole number");
        accept("L");  // Python 2 wrote its long integers so
        return n;
    }
    [[noreturn]] void fail(const std::string& what) const {
        throw FormatError{file_, origin_ + at_, "the npy header has " + what + " here"};
    }

    std::string_view text_;
    std::string      file_;
    std::uint64_t    origin_;
    std::size_t      at_ = 0;
};

}  // namespace detail

template <class>
TensorInfo read_npy(const std::shared_ptr<const MappedFile>& file, std::string name) {
    ByteReader in{file->bytes(), file->path()};
    if (in.text(detail::npy_magic.size(), "the magic bytes") != detail::npy_magic)
        throw FormatError{file->path(), 0, "this is no npy file"};
    const auto major = in.read<std::uint8_t>("the version"), minor = in.read<std::uint8_t>("the version");
    if (major < 1 || major > 3 || minor != 0)
        in.fail("npy version " + std::to_string(major) + "." + std::to_string(minor) + " is not read; 1.0 to 3.0 are");
    const std::uint64_t header_bytes =
        major == 1 ? in.read<std::uint16_t>("the header length") : in.read<std::uint32_t>("the header length");
    constexpr std::uint64_t max_header_bytes = 10'000;  // numpy's own limit
    if (header_bytes > max_header_bytes)
        in.fail("the header length is " + std::to_string(header_bytes) + ", over the limit of 10000");
    const std::uint64_t     header_at = in.offset();
    const detail::NpyHeader header{in.text(header_bytes, "the header"), file->path(), header_at};

    const char order = header.descr.empty() ? ' ' : header.descr.front();
    const auto code = std::string_view(header.descr).substr(header.descr.empty() ? 0 : 1);
    const auto type = std::ranges::find_if(detail::npy_types, [&](const detail::NpyType& t) { return t.code == code; });
    if (order == '>')
        throw FormatError{file->path(), header_at,
                          "the numbers are big-endian ('" + header.descr + "'); save them with astype('<...')"};
    if (type == detail::npy_types.end() || (order != '<' && order != '|' && order != '='))
        throw FormatError{file->path(), header_at,
                          "elements of the type '" + header.descr + "' are not read; numbers and booleans are"};

    TensorInfo t;
    t.name = std::move(name);
    t.file = file->path();
    t.owner = file;
    t.dtype = type->dtype;
    t.shape = header.shape;
    const auto bits = checked_bits(t.shape, 8 * item_bytes(t.dtype));
    if (!bits || *bits / 8 != in.remaining())
        in.fail(std::string(to_string(t.dtype)) + " " + to_string(t.shape) + " does not take the " +
                std::to_string(in.remaining()) + " bytes that follow");
    t.data = in.take(in.remaining(), "the elements").data();
    if (header.fortran_order && t.shape.size() > 1 && *bits > 0)
        for (std::size_t step = 1; const std::size_t extent : t.shape)
            t.stride.push_back(std::exchange(step, step * extent));
    return t;
}

template <class>
TensorInfo read_npy(const std::filesystem::path& path, FileMode mode) {
    return read_npy(MappedFile::open(path, mode), path.stem().string());
}

template <class>
std::vector<TensorInfo> read_npz(const ZipArchive& zip, std::uint64_t limit_bytes) {
    std::vector<TensorInfo> tensors;
    for (const ZipEntry& entry : zip.entries()) {
        constexpr std::string_view ending = ".npy";
        if (!entry.name.ends_with(ending)) zip.refuse(entry, "is no npy file");
        const auto content = zip.content(entry, entry.deflated ? limit_bytes : entry.bytes);
        if (entry.deflated) limit_bytes -= entry.bytes;
        tensors.push_back(read_npy(content, entry.name.substr(0, entry.name.size() - ending.size())));
    }
    return tensors;
}

template <class>
std::vector<TensorInfo> read_npz(const std::filesystem::path& path, FileMode mode) {
    return read_npz(ZipArchive{MappedFile::open(path, mode)});
}

template <class>
void write_npy(const std::filesystem::path& path, Dtype dtype, const std::vector<std::size_t>& shape,
                      std::span<const std::byte> bytes) {
    const auto type = std::ranges::find_if(detail::npy_types, [&](const detail::NpyType& t) { return t.dtype == dtype; });
    const auto bits = checked_bits(shape, 8 * item_bytes(dtype));
    if (type == detail::npy_types.end())
        throw LoadError{path.string(), "numpy has no type for " + std::string(to_string(dtype))};
    if (!bits || *bits / 8 != bytes.size())
        throw LoadError{path.string(), std::to_string(bytes.size()) + " bytes are not " +
                                           std::string(to_string(dtype)) + " " + to_string(shape)};

    std::string extents;
    for (const std::size_t extent : shape) extents.append(std::to_string(extent)).append(", ");
    extents.resize(extents.size() -
                   std::min<std::size_t>(shape.size(), 2));  // as Python spells tuples: (3,) and (2, 3)
    std::string header = "{'descr': '";
    header.append(item_bytes(dtype) == 1 ? "|" : "<").append(type->code);
    header.append("', 'fortran_order': False, 'shape': (").append(extents).append("), }");
    constexpr std::size_t before = 10, alignment = 64;  // magic, version and length come before the header
    header.resize((before + header.size() + 1 + alignment - 1) / alignment * alignment - before - 1, ' ');
    header += '\n';

    NewFile    out{path};
    const auto length = static_cast<std::uint16_t>(header.size());
    out.write(detail::npy_magic);
    out.write(std::string_view("\x01\x00", 2));
    out.write(std::as_bytes(std::span{&length, 1}));
    out.write(header);
    out.write(bytes);
    out.commit();
}

}  // namespace prism
