// GGUF: the weight files of llama.cpp, metadata and tensors, with the quantised types unpacked to f32.
//
//     const auto file = prism::Gguf::open("model.gguf");
//     const auto n    = file.get("llama.block_count").integer();
//     std::vector<float> w = prism::to_floats(*file.find("blk.0.attn_q.weight"));
//
// Sources: ggml, docs/gguf.md; the Python package gguf, gguf_reader.py and quants.py; ggml/src/ggml-quants.c.
#pragma once

#include "prism/core/dtype.hpp"
#include "prism/core/error.hpp"
#include "prism/core/tensor.hpp"
#include "prism/io/bytes.hpp"
#include "prism/io/file.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace prism {

/// How ggml stores a tensor; the numbers are those of the files.
// clang-format off
enum class GgmlType : std::uint32_t {
    f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q5_0 = 6, q5_1 = 7, q8_0 = 8, q4_k = 12, q5_k = 13, q6_k = 14,
    i8 = 24, i16 = 25, i32 = 26, i64 = 27, f64 = 28, bf16 = 30
};
// clang-format on

struct GgmlLayout {
    GgmlType         type;
    std::string_view name;
    std::size_t      values_per_block, block_bytes;
    Dtype            dtype;  // Dtype::other for the quantised ones
};

inline constexpr std::array ggml_layouts{GgmlLayout{GgmlType::f32, "F32", 1, 4, Dtype::f32},
                                         GgmlLayout{GgmlType::f16, "F16", 1, 2, Dtype::f16},
                                         GgmlLayout{GgmlType::bf16, "BF16", 1, 2, Dtype::bf16},
                                         GgmlLayout{GgmlType::q4_0, "Q4_0", 32, 18, Dtype::other},
                                         GgmlLayout{GgmlType::q4_1, "Q4_1", 32, 20, Dtype::other},
                                         GgmlLayout{GgmlType::q5_0, "Q5_0", 32, 22, Dtype::other},
                                         GgmlLayout{GgmlType::q5_1, "Q5_1", 32, 24, Dtype::other},
                                         GgmlLayout{GgmlType::q8_0, "Q8_0", 32, 34, Dtype::other},
                                         GgmlLayout{GgmlType::q4_k, "Q4_K", 256, 144, Dtype::other},
                                         GgmlLayout{GgmlType::q5_k, "Q5_K", 256, 176, Dtype::other},
                                         GgmlLayout{GgmlType::q6_k, "Q6_K", 256, 210, Dtype::other},
                                         GgmlLayout{GgmlType::i8, "I8", 1, 1, Dtype::i8},
                                         GgmlLayout{GgmlType::i16, "I16", 1, 2, Dtype::i16},
                                         GgmlLayout{GgmlType::i32, "I32", 1, 4, Dtype::i32},
                                         GgmlLayout{GgmlType::i64, "I64", 1, 8, Dtype::i64},
                                         GgmlLayout{GgmlType::f64, "F64", 1, 8, Dtype::f64}};

/// Null for a type that prism does not know.
constexpr const GgmlLayout* ggml_layout(GgmlType type) {
    for (const GgmlLayout& layout : ggml_layouts)
        if (layout.type == type) return &layout;
    return nullptr;
}

namespace detail {

inline float half_at(const std::byte* p) {
    fp16_t h;
    std::memcpy(&h, p, sizeof h);
    return h;
}
inline unsigned byte_at(const std::byte* p) { return std::to_integer<unsigned>(*p); }
inline unsigned low(const std::byte* p) { return byte_at(p) & 15U; }
inline unsigned high(const std::byte* p) { return byte_at(p) >> 4; }

/// 32 values of 4 or 5 bits: y = q * scale + shift with q in 0...15 or 0...31. The fifth bits stand in a word of 32.
template <bool FiveBits, bool HasMinimum>
void decode_32(const std::byte* block, float* y) {
    const float      d = half_at(block), m = HasMinimum ? half_at(block + 2) : 0;
    const std::byte* at = block + (HasMinimum ? 4 : 2);
    std::uint32_t    fifth = 0;
    if constexpr (FiveBits) {
        std::memcpy(&fifth, at, sizeof fifth);
        at += sizeof fifth;
    }
    const int zero = HasMinimum ? 0 : FiveBits ? 16 : 8;
    for (unsigned j = 0; j < 16; ++j) {
        const unsigned q0 = low(at + j) | (fifth >> j & 1U) << 4, q1 = high(at + j) | (fifth >> (j + 16) & 1U) << 4;
        y[j] = static_cast<float>(static_cast<int>(q0) - zero) * d + m;
        y[j + 16] = static_cast<float>(static_cast<int>(q1) - zero) * d + m;
    }
}

inline void decode_q8_0(const std::byte* block, float* y) {
    const float d = half_at(block);
    for (int j = 0; j < 32; ++j) y[j] = static_cast<float>(std::to_integer<std::int8_t>(block[2 + j])) * d;
}

/// The eight groups of 32 in a block of 256 have a scale and a minimum of 6 bits each: y = step * q - shift.
struct GroupOfK {
    float step, shift;
};
inline GroupOfK group_of_k(const std::byte* block, unsigned k) {
    const float      d = half_at(block), dmin = half_at(block + 2);
    const std::byte* packed = block + 4;
    unsigned         scale, minimum;
    if (k < 4) {
        scale = byte_at(packed + k) & 63U, minimum = byte_at(packed + k + 4) & 63U;
    } else {
        scale = low(packed + k + 4) | (byte_at(packed + k - 4) >> 6) << 4;
        minimum = high(packed + k + 4) | (byte_at(packed + k) >> 6) << 4;
    }
    return {d * static_cast<float>(scale), dmin * static_cast<float>(minimum)};
}

template <bool FiveBits>
void decode_k(const std::byte* block, float* y) {
    const std::byte* fifth = block + 16;
    const std::byte* quants = block + (FiveBits ? 48 : 16);
    for (unsigned k = 0; k < 8; ++k) {
        const auto [step, shift] = group_of_k(block, k);
        for (unsigned l = 0; l < 32; ++l) {
            const std::byte* q = quants + 32 * (k / 2) + l;  // two groups share 32 bytes: low halves, then high halves
            unsigned         value = k % 2 == 0 ? low(q) : high(q);
            if constexpr (FiveBits) value |= (byte_at(fifth + l) >> k & 1U) << 4;
            y[32 * k + l] = step * static_cast<float>(value) - shift;
        }
    }
}

/// 256 values of 6 bits in sixteen groups of 16, each with a signed scale of 8 bits.
inline void decode_q6_k(const std::byte* block, float* y) {
    const std::byte *low_bits = block, *high_bits = block + 128, *scales = block + 192;
    const float      d = half_at(block + 208);
    for (unsigned i = 0; i < 256; ++i) {
        const unsigned   n = i / 128, k = i / 32 % 4, l = i % 32;  // half, quarter of the half, place in the quarter
        const std::byte* a = low_bits + 64 * n + 32 * (k % 2) + l;
        const unsigned   q = (k < 2 ? low(a) : high(a)) | (byte_at(high_bits + 32 * n + l) >> 2 * k & 3U) << 4;
        const float      step = d * static_cast<float>(std::to_integer<std::int8_t>(scales[8 * n + 2 * k + l / 16]));
        y[i] = step * static_cast<float>(static_cast<int>(q) - 32);
    }
}

}  // namespace detail

/// Unpacks whole blocks to f32. Throws ShapeError unless `packed` and `values` are the same whole number of blocks.
template <class = void>
void dequantise(GgmlType type, std::span<const std::byte> packed, std::span<float> values) {
    const GgmlLayout* layout = ggml_layout(type);
    if (!layout)
        throw ShapeError{"dequantise", "type", "a type of ggml_layouts", std::to_string(static_cast<unsigned>(type))};
    const std::size_t n = values.size() / layout->values_per_block;
    if (n * layout->values_per_block != values.size() || n * layout->block_bytes != packed.size())
        throw ShapeError{"dequantise", "packed",
                         std::to_string(values.size()) + " values in blocks of " +
                             std::to_string(layout->values_per_block),
                         std::to_string(packed.size()) + " bytes"};
    const auto each = [&](auto decode) {
        for (std::size_t i = 0; i < n; ++i)
            decode(packed.data() + i * layout->block_bytes, values.data() + i * layout->values_per_block);
    };
    switch (type) {
        case GgmlType::q4_0: return each(detail::decode_32<false, false>);
        case GgmlType::q4_1: return each(detail::decode_32<false, true>);
        case GgmlType::q5_0: return each(detail::decode_32<true, false>);
        case GgmlType::q5_1: return each(detail::decode_32<true, true>);
        case GgmlType::q8_0: return each(detail::decode_q8_0);
        case GgmlType::q4_k: return each(detail::decode_k<false>);
        case GgmlType::q5_k: return each(detail::decode_k<true>);
        case GgmlType::q6_k: return each(detail::decode_q6_k);
        default:
            return each([&](const std::byte* p, float* y) { *y = static_cast<float>(read_element(layout->dtype, p)); });
    }
}

/// `info.dtype` is Dtype::other where the type is quantised; `info.data` points at the blocks in any case. The shape is
/// PyTorch's, the fastest dimension last.
struct GgufTensor {
    TensorInfo    info;
    GgmlType      type = GgmlType::f32;
    std::uint64_t bytes = 0;
};

template <class = void>
std::vector<float> to_floats(const GgufTensor& tensor) {
    std::vector<float> values(tensor.info.elements());
    dequantise(tensor.type, {tensor.info.data, static_cast<std::size_t>(tensor.bytes)}, values);
    return values;
}

/// A value of the metadata. It stays in the file until it is asked for; asking for another type than it has throws
/// ConfigError{file, key, value, allowed}.
class GgufValue {
public:
    enum class Type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

    /// One value; bytes that `in` can read are certain to be there afterwards.
    template <class = void>
    GgufValue(ByteReader& in, std::string key) : file_(in.file()), key_(std::move(key)) {
        type_ = read_type(in);
        if (type_ == Type::array) {
            is_array_ = true;
            type_ = read_type(in);
            if (type_ == Type::array) in.fail("'" + key_ + "' is an array of arrays, which is not read");
            n_ = in.read<std::uint64_t>("an array's length");
        }
        if (type_ != Type::text) {
            const auto bytes = checked_product(n_, item_bytes(dtype()));
            if (!bytes) in.fail("'" + key_ + "' has " + std::to_string(n_) + " items, which is too many");
            bytes_ = in.take(*bytes, "a value");
            if (type_ == Type::boolean && std::ranges::any_of(bytes_, [](std::byte b) { return b > std::byte{1}; }))
                in.fail("'" + key_ + "' has a truth value other than 0 and 1");
            return;
        }
        if (n_ > in.remaining() / sizeof(std::uint64_t))
            in.fail("'" + key_ + "' has " + std::to_string(n_) + " strings, which is too many");
        ByteReader start = in;
        for (std::uint64_t i = 0; i < n_; ++i) in.text(in.read<std::uint64_t>("a string's length"), "a string");
        bytes_ = start.take(in.at() - start.at(), "strings");
    }

    bool          is_array() const { return is_array_; }
    Type          type() const { return type_; }  // of the items, in an array
    std::uint64_t size() const { return n_; }

    template <class = void>
    std::int64_t integer() const { return one(integers(), "an integer"); }
    template <class = void>
    double real() const { return one(reals(), "a number"); }
    template <class = void>
    bool flag() const {
        return type_ == Type::boolean ? one(integers(), "true or false") != 0 : wrong("true or false");
    }
    template <class = void>
    std::string_view text() const { return one(texts(), "a string"); }

    /// Of an array, or the one value.
    template <class = void>
    std::vector<std::int64_t> integers() const {
        if (type_ == Type::text || type_ == Type::f32 || type_ == Type::f64) wrong("integers");
        TensorInfo t = tensor();
        if (t.dtype == Dtype::u64) t.dtype = Dtype::i64;  // the same bytes; what is too large comes out negative
        std::vector<std::int64_t> values = to_integers(t);
        if (type_ == Type::u64 && std::ranges::any_of(values, [](std::int64_t v) { return v < 0; }))
            wrong("integers below 2^63");
        return values;
    }
    template <class = void>
    std::vector<double> reals() const {
        if (type_ == Type::text) wrong("numbers");
        std::vector<double> values;
        for (std::size_t i = 0, item = item_bytes(dtype()); i < n_; ++i)
            values.push_back(read_element(dtype(), bytes_.data() + i * item));
        return values;
    }
    /// The texts lie in the file, and live as long as its Gguf.
    template <class = void>
    std::vector<std::string_view> texts() const {
        if (type_ != Type::text) wrong("strings");
        std::vector<std::string_view> values;
        for (ByteReader in{bytes_, file_}; in.remaining() > 0;)
            values.push_back(in.text(in.read<std::uint64_t>("a string's length"), "a string"));
        return values;
    }

private:
    static Type read_type(ByteReader& in) {
        const auto type = in.read<std::uint32_t>("a value's type");
        if (type > static_cast<std::uint32_t>(Type::f64))
            in.fail("the value type " + std::to_string(type) + " is unknown");
        return static_cast<Type>(type);
    }
    Dtype dtype() const {
        constexpr std::array<Dtype, 13> dtypes{Dtype::u8,  Dtype::i8,  Dtype::u16,     Dtype::i16,   Dtype::u32,
                                               Dtype::i32, Dtype::f32, Dtype::boolean, Dtype::other, Dtype::other,
                                               Dtype::u64, Dtype::i64, Dtype::f64};
        return dtypes[static_cast<std::size_t>(type_)];
    }
    TensorInfo tensor() const {
        TensorInfo t;
        t.dtype = dtype(), t.shape = {static_cast<std::size_t>(n_)}, t.data = bytes_.data();
        return t;
    }
    template <class T>
    T one(const std::vector<T>& values, const char* allowed) const {
        if (is_array_) wrong(allowed);
        return values.front();
    }
    template <class = void>
    [[noreturn]] bool wrong(const char* allowed) const {
        constexpr std::array names{"u8",       "i8",       "u16", "i16", "u32", "i32", "f32", "a truth value",
                                   "a string", "an array", "u64", "i64", "f64"};
        const std::string    found = names[static_cast<std::size_t>(type_)];
        throw ConfigError{file_, key_, is_array_ ? "an array of " + std::to_string(n_) + " times " + found : found,
                          allowed};
    }

    std::string                file_, key_;
    Type                       type_{};
    bool                       is_array_ = false;
    std::uint64_t              n_ = 1;
    std::span<const std::byte> bytes_;
};

/// A whole file, checked: every offset and length is inside it, every name and key is there once.
class Gguf {
public:
    /// Throws FormatError.
    template <class = void>
    explicit Gguf(std::shared_ptr<const MappedFile> file) : file_(std::move(file)) {
        ByteReader in{file_->bytes(), file_->path()};
        if (in.text(4, "the magic bytes") != "GGUF") throw FormatError{file_->path(), 0, "this is no GGUF file"};
        version_ = in.read<std::uint32_t>("the version");
        if (version_ != 0 && (version_ & 0xffffU) == 0) in.fail("the file is big-endian");
        if (version_ != 2 && version_ != 3)
            in.fail("GGUF version " + std::to_string(version_) + " is not read; 2 and 3 are");
        const auto n_tensors = in.read<std::uint64_t>("the number of tensors");
        const auto n_pairs = in.read<std::uint64_t>("the number of metadata pairs");
        // Each costs at least its lengths and types, so a larger count is a lie and the loops below stay short.
        constexpr std::uint64_t least_pair_bytes = 13, least_tensor_bytes = 32;
        if (n_pairs > in.remaining() / least_pair_bytes)
            in.fail(std::to_string(n_pairs) + " metadata pairs do not fit into the file");
        if (n_tensors > in.remaining() / least_tensor_bytes)
            in.fail(std::to_string(n_tensors) + " tensors do not fit into the file");

        for (std::uint64_t i = 0; i < n_pairs; ++i) {
            const std::uint64_t at = in.offset();
            std::string         key = read_text(in, "a key");
            GgufValue           value{in, key};
            if (!metadata_.try_emplace(key, std::move(value)).second)
                throw FormatError{file_->path(), at, "the key '" + key + "' is there twice"};
        }
        head_bytes_ = static_cast<std::size_t>(in.offset());
        for (std::uint64_t i = 0; i < n_tensors; ++i) read_tensor(in);
        place_tensors(in);
    }
    template <class = void>
    static Gguf open(const std::filesystem::path& path, FileMode mode = FileMode::map) {
        return Gguf{MappedFile::open(path, mode)};
    }

    const std::string&                                   file() const { return file_->path(); }
    std::uint32_t                                        version() const { return version_; }
    const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
    template <class = void>
    bool has(std::string_view key) const { return metadata_.find(key) != metadata_.end(); }
    /// Throws ConfigError when the key is missing.
    template <class = void>
    const GgufValue& get(std::string_view key) const {
        const auto at = metadata_.find(key);
        if (at == metadata_.end()) throw ConfigError{file(), std::string(key), "", "a value"};
        return at->second;
    }

    /// The same file without its tensors, in memory: what a tokenizer needs of it.
    template <class = void>
    std::shared_ptr<const MappedFile> without_tensors() const {
        const auto             all = file_->bytes().first(head_bytes_);
        std::vector<std::byte> head(all.begin(), all.end());
        std::memset(head.data() + 8, 0, sizeof(std::uint64_t));  // behind magic bytes and version: how many there are
        return MappedFile::of(std::move(head), file_->path());
    }

    const std::vector<GgufTensor>& tensors() const { return tensors_; }
    /// Null when there is none of that name.
    template <class = void>
    const GgufTensor* find(std::string_view name) const {
        const auto at = index_.find(std::string(name));
        return at == index_.end() ? nullptr : &tensors_[at->second];
    }

private:
    static std::string read_text(ByteReader& in, const char* what) {
        return std::string(in.text(in.read<std::uint64_t>(what), what));
    }

    template <class = void>
    void read_tensor(ByteReader& in) {
        const std::uint64_t at = in.offset();
        GgufTensor          t;
        t.info.name = read_text(in, "a tensor's name");
        t.info.file = file_->path();
        const auto refuse = [&](const std::string& problem) {
            throw FormatError{file_->path(), at, "tensor '" + t.info.name + "' " + problem};
        };
        const auto rank = in.read<std::uint32_t>("the number of dimensions");
        if (rank < 1 || rank > 4) refuse("has " + std::to_string(rank) + " dimensions; 1 to 4 are allowed");
        for (std::uint32_t d = 0; d < rank; ++d)
            t.info.shape.push_back(static_cast<std::size_t>(in.read<std::uint64_t>("a dimension")));
        const std::size_t row = t.info.shape.front();  // ggml's fastest dimension comes first
        std::reverse(t.info.shape.begin(), t.info.shape.end());
        t.type = static_cast<GgmlType>(in.read<std::uint32_t>("a tensor's type"));
        const GgmlLayout* layout = ggml_layout(t.type);
        if (!layout) {
            refuse("has the type " + std::to_string(static_cast<std::uint32_t>(t.type)) + ", which is not read");
            return;
        }
        t.info.dtype = layout->dtype;
        const auto bits = checked_bits(t.info.shape, 8 * layout->block_bytes);
        if (!bits) refuse("has the shape " + to_string(t.info.shape) + ", which is too large");
        if (row % layout->values_per_block != 0)
            refuse("has rows of " + std::to_string(row) + ", no multiple of the " +
                   std::to_string(layout->values_per_block) + " of " + std::string(layout->name));
        t.bytes = *bits / 8 / layout->values_per_block;
        offsets_.push_back(in.read<std::uint64_t>("a tensor's offset"));
        if (!index_.try_emplace(t.info.name, tensors_.size()).second) refuse("is there twice");
        tensors_.push_back(std::move(t));
    }

    /// The data begins at the next multiple of the alignment, and every tensor at a multiple from there.
    template <class = void>
    void place_tensors(ByteReader& in) {
        std::uint64_t alignment = 32;
        if (const auto at = metadata_.find("general.alignment"); at != metadata_.end()) {
            if (at->second.is_array() || at->second.type() != GgufValue::Type::u32)
                in.fail("general.alignment is no u32");
            alignment = static_cast<std::uint64_t>(at->second.integer());
            if (!std::has_single_bit(alignment))
                in.fail("general.alignment is " + std::to_string(alignment) + ", which is no power of two");
        }
        if (tensors_.empty()) return;  // such a file may end without padding
        in.take((alignment - in.offset() % alignment) % alignment, "the padding before the data");
        const std::uint64_t data_at = in.offset();
        const auto          data = in.take(in.remaining(), "the data");
        for (std::size_t i = 0; i < tensors_.size(); ++i) {
            GgufTensor&         t = tensors_[i];
            const std::uint64_t offset = offsets_[i];
            const auto          refuse = [&](const std::string& problem) {
                throw FormatError{file_->path(), data_at, "tensor '" + t.info.name + "' " + problem};
            };
            if (offset % alignment != 0)
                refuse("begins at " + std::to_string(offset) + ", no multiple of " + std::to_string(alignment));
            if (offset > data.size() || t.bytes > data.size() - offset)
                refuse("takes " + std::to_string(t.bytes) + " bytes at " + std::to_string(offset) +
                       " of the data, which has " + std::to_string(data.size()));
            t.info.data = data.data() + offset;
            t.info.owner = file_;
            t.info.mapped = file_->mapped();
        }
    }

    std::shared_ptr<const MappedFile>             file_;
    std::uint32_t                                 version_ = 0;
    std::size_t                                   head_bytes_ = 0;  // up to the descriptions of tensors
    std::map<std::string, GgufValue, std::less<>> metadata_;
    std::vector<GgufTensor>                       tensors_;
    std::vector<std::uint64_t>                    offsets_;  // of the tensors, before they are placed
    std::unordered_map<std::string, std::size_t>  index_;
};

/// Whether a file says that it is GGUF.
inline bool is_gguf(const std::filesystem::path& path) {
    std::error_code failed;
    return std::filesystem::is_regular_file(path, failed) && detail::begins_with(path, "GGUF");
}

}  // namespace prism
