// SentencePiece's model file (tokenizer.model): a Protocol Buffers message, read by hand.
//
//     auto model = prism::detail::parse_sentencepiece(prism::read_file("tokenizer.model"), "tokenizer.model");
// Source: google/sentencepiece, src/sentencepiece_model.proto.
#pragma once

#include "prism/core/error.hpp"
#include "prism/text/unicode.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::detail {

/// U+2581, which SentencePiece writes in place of a space.
inline constexpr std::string_view metaspace = "\xe2\x96\x81";

/// One entry of a SentencePiece vocabulary; its id is its place in the list.
struct ScoredPiece {
    enum Type : std::uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

    std::string  text;
    float        score = 0;
    std::uint8_t type = normal;

    /// Only these are found in a text; the others are made by fallback or by name.
    bool matches() const { return type == normal || type == user_defined || type == unused; }
};

/// What encoding and decoding need of a ModelProto.
struct SentencePieceModel {
    std::vector<ScoredPiece> pieces;
    bool                     byte_fallback = false;
    std::int32_t             unk_id = 0, bos_id = 1, eos_id = 2, pad_id = -1;  // -1: there is none
    bool                     add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;
};

/// The fields of one Protocol Buffers message, in the order in which they stand.
class ProtoReader {
public:
    struct Field {
        std::uint64_t    number = 0;
        unsigned         wire = 0;   // 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes
        std::uint64_t    value = 0;  // of wire types 0, 1 and 5
        std::string_view bytes;      // of wire type 2
        std::uint64_t    at = 0;     // where the field begins in the file

        std::int32_t int32() const { return static_cast<std::int32_t>(static_cast<std::int64_t>(value)); }
        float        real() const { return std::bit_cast<float>(static_cast<std::uint32_t>(value)); }
    };

    ProtoReader(std::string_view bytes, const std::string& file, std::uint64_t offset = 0)
        : bytes_(bytes), file_(&file), offset_(offset) {}

    /// False at the end. Throws FormatError.
    bool next(Field& field) {
        if (at_ == bytes_.size()) return false;
        field = {};
        field.at = offset_ + at_;
        const std::uint64_t key = varint();
        field.number = key >> 3;
        field.wire = key & 7U;
        switch (field.wire) {
            case 0: field.value = varint(); break;
            case 1: field.value = fixed(8); break;
            case 2: field.bytes = take(varint()); break;
            case 5: field.value = fixed(4); break;
            default: fail("wire type " + std::to_string(field.wire) + " is none that proto2 writes here");
        }
        if (field.number == 0) fail("field number 0");
        return true;
    }
    /// The message inside a field.
    ProtoReader message(const Field& field) const {
        const auto inside = static_cast<std::uint64_t>(field.bytes.data() - bytes_.data());
        return {expect(field, 2).bytes, *file_, offset_ + (field.bytes.data() ? inside : 0)};
    }
    const Field& expect(const Field& field, unsigned wire) const {
        if (field.wire != wire)
            throw FormatError{*file_, field.at,
                              "field " + std::to_string(field.number) + " has wire type " + std::to_string(field.wire) +
                                  ", expected " + std::to_string(wire)};
        return field;
    }

private:
    [[noreturn]] void fail(const std::string& problem) const { throw FormatError{*file_, offset_ + at_, problem}; }

    std::string_view take(std::uint64_t n) {
        if (n > bytes_.size() - at_)
            fail("a field of " + std::to_string(n) + " bytes, where " + std::to_string(bytes_.size() - at_) +
                 " are left");
        const auto taken = bytes_.substr(at_, n);
        at_ += n;
        return taken;
    }
    std::uint64_t fixed(std::size_t n) {
        std::uint64_t value = 0;
        const auto    raw = take(n);
        for (std::size_t i = n; i-- > 0;) value = value << 8 | static_cast<unsigned char>(raw[i]);
        return value;
    }
    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 70; shift += 7) {
            if (at_ == bytes_.size()) fail("a varint is cut short");
            const auto byte = static_cast<unsigned char>(bytes_[at_++]);
            if (shift < 64) value |= std::uint64_t{byte & 0x7fU} << shift;
            if (byte < 0x80) return value;
        }
        fail("a varint is longer than ten bytes");
    }

    std::string_view   bytes_;
    const std::string* file_;
    std::uint64_t      offset_;
    std::size_t        at_ = 0;
};

/// Throws FormatError unless the pieces can make a vocabulary: exactly one unknown, texts, types and scores in order.
template <class = void>
void check_pieces(const SentencePieceModel& model, const std::string& file) {
    const auto fail = [&](const std::string& problem) -> void { throw FormatError{file, 0, problem}; };
    if (model.pieces.empty()) fail("no pieces");
    std::size_t unknowns = 0;
    for (std::size_t i = 0; i < model.pieces.size(); ++i) {
        const ScoredPiece& piece = model.pieces[i];
        const std::string  which = "piece " + std::to_string(i);
        if (piece.text.empty()) fail(which + " is empty");
        if (!unicode::is_utf8(piece.text)) fail(which + " is not UTF-8");
        if (std::isnan(piece.score)) fail(which + " has no number for a score");
        if (piece.type < ScoredPiece::normal || piece.type > ScoredPiece::byte)
            fail(which + " has type " + std::to_string(piece.type) + ", which is none of 1 to 6");
        // Every way of cutting a piece in two is looked up; this keeps the work linear in the size of the file.
        if (piece.matches() && piece.text.size() > 1024) fail(which + " is longer than 1024 bytes");
        unknowns += piece.type == ScoredPiece::unknown;
    }
    if (unknowns != 1) fail(std::to_string(unknowns) + " pieces of type UNKNOWN, expected 1");
}

/// Reads a ModelProto. Throws FormatError for one that is malformed, or that no BPE without rewriting rules can encode.
template <class = void>
SentencePieceModel parse_sentencepiece(std::string_view bytes, const std::string& file) {
    SentencePieceModel model;
    std::int32_t       model_type = 1;
    bool               suffix = false, rewrites = false;

    const auto read_piece = [&](ProtoReader in) {
        ScoredPiece piece;
        for (ProtoReader::Field f; in.next(f);) {
            if (f.number == 1) piece.text = in.expect(f, 2).bytes;
            if (f.number == 2) piece.score = in.expect(f, 5).real();
            if (f.number == 3)
                piece.type = static_cast<std::uint8_t>(std::min<std::uint64_t>(in.expect(f, 0).value, 255));
        }
        model.pieces.push_back(std::move(piece));
    };
    const auto read_trainer = [&](ProtoReader in) {
        for (ProtoReader::Field f; in.next(f);) {
            if (f.number == 3) model_type = in.expect(f, 0).int32();
            if (f.number == 24) suffix = in.expect(f, 0).value != 0;
            if (f.number == 35) model.byte_fallback = in.expect(f, 0).value != 0;
            if (f.number == 40) model.unk_id = in.expect(f, 0).int32();
            if (f.number == 41) model.bos_id = in.expect(f, 0).int32();
            if (f.number == 42) model.eos_id = in.expect(f, 0).int32();
            if (f.number == 43) model.pad_id = in.expect(f, 0).int32();
        }
    };
    const auto read_normalizer = [&](ProtoReader in) {
        for (ProtoReader::Field f; in.next(f);) {
            if (f.number == 2) rewrites = !in.expect(f, 2).bytes.empty();
            if (f.number == 3) model.add_dummy_prefix = in.expect(f, 0).value != 0;
            if (f.number == 4) model.remove_extra_whitespaces = in.expect(f, 0).value != 0;
            if (f.number == 5) model.escape_whitespaces = in.expect(f, 0).value != 0;
        }
    };

    ProtoReader in{bytes, file};
    for (ProtoReader::Field f; in.next(f);) {
        if (f.number == 1) read_piece(in.message(f));
        if (f.number == 2) read_trainer(in.message(f));
        if (f.number == 3) read_normalizer(in.message(f));
    }
    check_pieces(model, file);
    if (model_type != 2)
        throw FormatError{file, 0, "model_type is " + std::to_string(model_type) + "; only 2 (BPE) can be read"};
    if (suffix) throw FormatError{file, 0, "treat_whitespace_as_suffix is set, which is not supported"};
    if (rewrites) throw FormatError{file, 0, "a precompiled_charsmap is set, which is not supported"};
    return model;
}

}  // namespace prism::detail
