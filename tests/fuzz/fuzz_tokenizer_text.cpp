// Any bytes as a text: encoding and decoding gives it back, streaming gives what decoding gives, and no control token
// comes from text that is not trusted.
#include "exercise_tokenizer.hpp"

#include <algorithm>
#include <bit>

namespace {

using namespace prism;

/// A byte-level vocabulary of the 256 bytes, a few merges, and control tokens.
Tokenizer byte_level() {
    Json       vocab, merges = Json::array();
    const auto add = [&](const std::string& token) { vocab[token] = vocab.size(); };
    const auto letters = [](std::string_view text) {
        std::string out;
        for (const char c : text) unicode::append(out, detail::byte_letter(static_cast<unsigned char>(c)));
        return out;
    };
    for (unsigned byte = 0; byte < 256; ++byte)
        add(unicode::to_utf8(detail::byte_letter(static_cast<unsigned char>(byte))));
    for (const auto& [left, right] :
         {std::pair{"t", "h"}, {"th", "e"}, {" ", "the"}, {"\n", "\n"}, {"\xc3", "\xa9"}, {"1", "2"}}) {
        merges.push_back({letters(left), letters(right)});
        add(letters(std::string(left) + right));
    }
    const Json added = Json::array({{{"id", 262}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}},
                                    {{"id", 263}, {"content", "  "}, {"special", false}, {"normalized", true}}});
    const Json file{{"added_tokens", added},
                    {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                    {"decoder", {{"type", "ByteLevel"}}},
                    {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
    return Tokenizer::from_bytes(file.dump(), "byte-level");
}

/// A SentencePiece vocabulary with byte fallback.
Tokenizer sentencepiece() {
    const auto field = [](unsigned number, const std::string& bytes) {
        return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
    };
    const auto piece = [&](const std::string& text, unsigned type, float score = 0) {
        std::string body = field(1, text) + "\x15";
        for (unsigned i = 0; i < 4; ++i) body += static_cast<char>(std::bit_cast<std::uint32_t>(score) >> 8 * i);
        return field(1, body + "\x18" + static_cast<char>(type));
    };
    std::string file = piece("<unk>", 2) + piece("<s>", 3) + piece("</s>", 3);
    for (unsigned byte = 0; byte < 256; ++byte) {
        constexpr std::string_view digits = "0123456789ABCDEF";
        file += piece({'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'}, 6);
    }
    float score = 0;
    for (const char* text :
         {"\xe2\x96\x81\xe2\x96\x81", "th", "\xe2\x96\x81the", "he", "\xe2\x96\x81", "t", "h", "e", "a", "aa", "aaa"})
        file += piece(text, 1, score -= 1);
    file += field(2, std::string("\x18\x02\x98\x02\x01", 5));  // BPE, byte_fallback
    file += field(3, std::string("\x20\x00", 2));              // spaces are kept
    return Tokenizer::from_bytes(file, "sentencepiece");
}

void check(const Tokenizer& tokenizer, std::string_view text, const std::string& expected, std::size_t cut) {
    const auto ids = tokenizer.encode(text);
    fuzz::require(tokenizer.decode(ids) == expected);

    auto        stream = tokenizer.stream();
    std::string streamed;
    for (const auto id : ids) {
        const std::string part = stream.push(id);
        fuzz::require(unicode::is_utf8(part));
        streamed += part;
    }
    fuzz::require(streamed + stream.finish() == expected);

    const auto parsed = tokenizer.encode(text, {.add_special = false, .parse_special = true});
    const auto trusted = tokenizer.encode(std::vector<Piece>{{std::string(text), true}}, {.add_special = false});
    fuzz::require(parsed == trusted);

    // Two pieces of a user around the only control token that is meant.
    const std::string        end(tokenizer.token(*tokenizer.eos_id()));
    const std::vector<Piece> pieces{
        {std::string(text.substr(0, cut)), false}, {end, true}, {std::string(text.substr(cut)), false}};
    const auto mixed = tokenizer.encode(pieces, {.add_special = false});
    fuzz::require(std::count(mixed.begin(), mixed.end(), *tokenizer.eos_id()) == 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    static const Tokenizer bytes = [] {
        Tokenizer tokenizer = byte_level();
        tokenizer.add_special("<|end|>", SpecialRole::eos);
        return tokenizer;
    }();
    static const Tokenizer pieces = sentencepiece();
    const std::string_view text(reinterpret_cast<const char*>(data), n);
    const std::string      repaired = unicode::well_formed(text);
    const std::size_t      cut = n == 0 ? 0 : data[0] % n;
    check(bytes, text, repaired, cut);
    std::string spaces = repaired;  // U+2581 in a text is a space
    for (std::size_t at = 0; (at = spaces.find(detail::metaspace, at)) != std::string::npos;)
        spaces.replace(at, 3, " ");
    check(pieces, text, spaces, cut);
    return 0;
}
