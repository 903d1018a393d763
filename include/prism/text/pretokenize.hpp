// Pre-tokenisation: a text is cut into pieces that no token spans.
//
//     split_gpt2("it's 3 o'clock", emit);   // it|'s| 3| o|'|clock
// The patterns are regular expressions in the files; here each is a scanner that is written by hand.
#pragma once

#include "prism/text/sentencepiece.hpp"
#include "prism/text/unicode.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace prism::detail {

/// What the three patterns ask of a character.
enum class CharClass : std::uint8_t { letter, number, space, other };

/// A character and its class.
struct ClassedChar {
    char32_t    code = 0;
    std::size_t bytes = 0;
    CharClass   cls = CharClass::other;
};

inline ClassedChar classed(std::string_view text, std::size_t at) {
    const unicode::Char c = unicode::decode(text, at);
    if (c.code < 0x80) {
        const char32_t lower = c.code | 0x20;
        if (lower >= 'a' && lower <= 'z') return {c.code, 1, CharClass::letter};
        if (c.code >= '0' && c.code <= '9') return {c.code, 1, CharClass::number};
        return {c.code, 1, unicode::is_white_space(c.code) ? CharClass::space : CharClass::other};
    }
    const unsigned bits = unicode::detail::class_bits(c.code);
    return {c.code, c.bytes,
            bits & 1U                         ? CharClass::letter
            : bits & 2U                       ? CharClass::number
            : unicode::is_white_space(c.code) ? CharClass::space
                                              : CharClass::other};
}

/// The end of the run of characters of one class that begins at `at`.
inline std::size_t run_end(std::string_view text, std::size_t at, CharClass cls) {
    while (at < text.size()) {
        const ClassedChar c = classed(text, at);
        if (c.cls != cls) break;
        at += c.bytes;
    }
    return at;
}

/// Bytes of a contraction ('s 't 're 've 'm 'll 'd) at `at`, 0 if there is none. Without regard to case, the long s
/// (U+017F) counts as s, as case folding has it.
inline std::size_t contraction(std::string_view text, std::size_t at, bool any_case) {
    if (text[at] != '\'') return 0;
    const std::string_view rest = text.substr(at + 1);
    const auto             letter = [&](std::size_t i) {
        const char c = i < rest.size() ? rest[i] : '\0';
        return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
    };
    switch (letter(0)) {
        case 's':
        case 't':
        case 'm':
        case 'd': return 2;
        case 'r':
        case 'v': return letter(1) == 'e' ? 3 : 0;
        case 'l': return letter(1) == 'l' ? 3 : 0;
        default: return any_case && rest.starts_with("\xc5\xbf") ? 3 : 0;
    }
}

/// The end of a piece of white space that begins at `at`: `\s+(?!\S)|\s+`, the last of the run belongs to what follows.
inline std::size_t space_end(std::string_view text, std::size_t at) {
    const std::size_t end = run_end(text, at, CharClass::space);
    if (end == text.size()) return end;
    const std::size_t last = unicode::decode_last(text.substr(at, end - at)).bytes;
    return end - last == at ? end : end - last;
}

/// GPT-2's pattern: contractions; runs of letters, of numbers, of other signs, each with one space before it; white
/// space.
template <class Emit>
void split_gpt2(std::string_view text, Emit&& emit) {
    for (std::size_t at = 0; at < text.size();) {
        std::size_t end = at + contraction(text, at, false);
        if (end == at) {
            const std::size_t body = at + (text[at] == ' ');
            const CharClass   cls = body < text.size() ? classed(text, body).cls : CharClass::space;
            end = cls == CharClass::space ? space_end(text, at) : run_end(text, body, cls);
        }
        emit(text.substr(at, end - at));
        at = end;
    }
}

/// Qwen2's pattern, and Llama-3's, which differ in how many digits make a piece (1, 3): a word takes any one character
/// before it that is no line end, signs take the line ends after them.
template <class Emit>
void split_qwen2(std::string_view text, std::size_t max_digits, Emit&& emit) {
    const auto line_end = [](char32_t c) { return c == '\r' || c == '\n'; };
    const auto piece_end = [&](std::size_t at) {
        if (const std::size_t n = contraction(text, at, true)) return at + n;
        const ClassedChar c = classed(text, at);
        const std::size_t next = at + c.bytes;
        const bool        ends_line = line_end(c.code);
        if (c.cls == CharClass::letter) return run_end(text, next, CharClass::letter);
        if (c.cls == CharClass::number) {
            std::size_t end = next;
            for (std::size_t n = 1; n < max_digits && end < text.size(); ++n) {
                const ClassedChar digit = classed(text, end);
                if (digit.cls != CharClass::number) break;
                end += digit.bytes;
            }
            return end;
        }
        if (!ends_line && next < text.size() && classed(text, next).cls == CharClass::letter)
            return run_end(text, next, CharClass::letter);
        const std::size_t body = c.code == ' ' ? next : at;
        if (body < text.size() && classed(text, body).cls == CharClass::other) {
            std::size_t end = run_end(text, body, CharClass::other);
            while (end < text.size() && line_end(static_cast<unsigned char>(text[end]))) ++end;
            return end;
        }
        const std::string_view spaces = text.substr(at, run_end(text, at, CharClass::space) - at);
        const std::size_t      last = spaces.find_last_of("\r\n");
        return last == std::string_view::npos ? space_end(text, at) : at + last + 1;
    };
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = piece_end(at);
        emit(text.substr(at, end - at));
        at = end;
    }
}

/// Digits apart from the rest: each a piece, or each run of them.
template <class Emit>
void split_digits(std::string_view text, bool individual, Emit&& emit) {
    std::size_t start = 0;
    bool        in_digits = false;
    for (std::size_t at = 0; at < text.size();) {
        const ClassedChar c = classed(text, at);
        const bool        digit = c.cls == CharClass::number;
        if (at > start && (digit != in_digits || (digit && individual))) {
            emit(text.substr(start, at - start));
            start = at;
        }
        in_digits = digit;
        at += c.bytes;
    }
    if (start < text.size()) emit(text.substr(start));
}

/// The steps of a tokenizer file's pre-tokeniser.
struct SplitPattern {
    enum Pattern : std::uint8_t { gpt2, qwen2, llama3 };
    Pattern pattern = gpt2;
};
struct SplitDigits {
    bool individual = false;
};
struct SplitLiteral {
    std::string delimiter;  // matches and what lies between them are pieces
};
/// A space before a piece that has none.
struct PrefixSpace {};
/// Says that the pieces are read as bytes; always the last step.
struct ByteLevelPieces {};
struct MetaspacePieces {
    enum Prepend : std::uint8_t { always, first, never };
    std::string replacement{metaspace};
    Prepend     prepend = always;
    bool        split = true;
};
using PreTokenizeStep =
    std::variant<SplitPattern, SplitDigits, SplitLiteral, PrefixSpace, ByteLevelPieces, MetaspacePieces>;

class PreTokenizer {
public:
    std::vector<PreTokenizeStep> steps;

    /// Calls emit(piece) for every piece of a segment, none of them empty. `first` says that the segment begins the
    /// whole text.
    template <class Emit>
    void operator()(std::string_view segment, bool first, Emit&& emit) const {
        if (!segment.empty()) run(0, segment, first, emit);
    }

private:
    template <class Emit>
    void run(std::size_t step, std::string_view piece, bool first, Emit& emit) const {
        if (step == steps.size()) return emit(piece);
        const auto next = [&](std::string_view part) { run(step + 1, part, std::exchange(first, false), emit); };
        std::visit([&](const auto& s) { apply(s, piece, first, next); }, steps[step]);
    }

    template <class Next>
    static void apply(const SplitPattern& s, std::string_view piece, bool, Next& next) {
        if (s.pattern == SplitPattern::gpt2) split_gpt2(piece, next);
        else split_qwen2(piece, s.pattern == SplitPattern::llama3 ? 3 : 1, next);
    }
    template <class Next>
    static void apply(const SplitDigits& s, std::string_view piece, bool, Next& next) {
        split_digits(piece, s.individual, next);
    }
    template <class Next>
    static void apply(const SplitLiteral& s, std::string_view piece, bool, Next& next) {
        for (std::size_t at; !piece.empty(); piece.remove_prefix(at)) {
            at = std::min(piece.find(s.delimiter), piece.size());
            if (at == 0) at = s.delimiter.size();
            next(piece.substr(0, at));
        }
    }
    template <class Next>
    static void apply(const PrefixSpace&, std::string_view piece, bool, Next& next) {
        if (piece.starts_with(' ')) next(piece);
        else next(" " + std::string(piece));
    }
    template <class Next>
    static void apply(const ByteLevelPieces&, std::string_view piece, bool, Next& next) {
        next(piece);
    }
    template <class Next>
    static void apply(const MetaspacePieces& s, std::string_view piece, bool first, Next& next) {
        std::string text;
        text.reserve(piece.size() + s.replacement.size());
        for (const char c : piece) c == ' ' ? text += s.replacement : text += c;
        const bool wanted = s.prepend == MetaspacePieces::always || (s.prepend == MetaspacePieces::first && first);
        if (wanted && !text.starts_with(s.replacement)) text.insert(0, s.replacement);
        if (!s.split) return next(text);
        // Each replacement begins a piece.
        for (std::string_view rest = text; !rest.empty();) {
            const std::size_t past = rest.starts_with(s.replacement) ? s.replacement.size() : 0;
            const std::size_t end = std::min(rest.find(s.replacement, past), rest.size());
            next(rest.substr(0, end));
            rest.remove_prefix(end);
        }
    }
};

}  // namespace prism::detail
