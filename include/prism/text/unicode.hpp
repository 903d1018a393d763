// Unicode as tokenizers need it: well-formed UTF-8, classes of code points (Unicode 14.0), lower case, normal forms (9.0).
//
//     for (std::size_t at = 0; at < text.size();) {
//         const auto c = prism::unicode::decode(text, at);   // ill-formed parts come as U+FFFD
//         at += c.bytes;
//     }
#pragma once

#include "prism/text/unicode_data.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include <utf8proc.h>

namespace prism::unicode {

inline constexpr char32_t replacement = 0xfffd;

/// One step through a text.
struct Char {
    char32_t     code;       // U+FFFD for an ill-formed part
    std::uint8_t bytes;      // taken from the text: a character, or one maximal ill-formed part
    bool         valid;      // false for an ill-formed part, whatever `code` is
    bool         cut_short;  // ill-formed only because the text ends here: further bytes could make it a character
};

/// The character at byte `at` of a text that is longer than `at`. Ill-formed parts are cut as Python's decoder and the
/// Unicode Standard (chapter 3, "U+FFFD Substitution of Maximal Subparts") cut them.
constexpr Char decode(std::string_view text, std::size_t at) {
    const auto lead = static_cast<unsigned char>(text[at]);
    if (lead < 0x80) return {lead, 1, true, false};
    const std::uint8_t needed = lead >= 0xc2 && lead <= 0xdf   ? 2
                                : lead >= 0xe0 && lead <= 0xef ? 3
                                : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                               : 0;
    if (needed == 0) return {replacement, 1, false, false};
    // The second byte is narrower where longer forms, surrogates and codes above U+10FFFF would begin.
    unsigned char low = 0x80, high = 0xbf;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
    char32_t code = lead & (0x7fU >> needed);
    for (std::uint8_t i = 1; i < needed; ++i) {
        if (at + i == text.size()) return {replacement, i, false, true};
        const auto next = static_cast<unsigned char>(text[at + i]);
        if (next < low || next > high) return {replacement, i, false, false};
        code = code << 6 | (next & 0x3fU);
        low = 0x80, high = 0xbf;
    }
    return {code, needed, true, false};
}

/// Appends one code point as UTF-8.
inline void append(std::string& text, char32_t code) {
    const auto put = [&text](char32_t byte) { text += static_cast<char>(byte); };
    if (code < 0x80) return put(code);
    if (code < 0x800) put(0xc0 | code >> 6);
    else {
        if (code < 0x10000) put(0xe0 | code >> 12);
        else put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 0x3f));
        put(0x80 | (code >> 6 & 0x3f));
    }
    put(0x80 | (code & 0x3f));
}

inline std::string to_utf8(char32_t code) {
    std::string text;
    append(text, code);
    return text;
}

/// Bytes at the start of `text` that are below 0x80.
inline std::size_t ascii_prefix(std::string_view text) {
    std::size_t at = 0;
    for (std::uint64_t eight; at + sizeof eight <= text.size(); at += sizeof eight) {
        std::memcpy(&eight, text.data() + at, sizeof eight);
        if (eight & 0x8080808080808080U) break;
    }
    while (at < text.size() && static_cast<unsigned char>(text[at]) < 0x80) ++at;
    return at;
}

/// The offset of the first ill-formed byte, or the size of the text when it is well-formed UTF-8.
inline std::size_t first_ill_formed(std::string_view text) {
    for (std::size_t at = 0;;) {
        at += ascii_prefix(text.substr(at));
        if (at == text.size()) return at;
        const Char c = decode(text, at);
        if (!c.valid) return at;
        at += c.bytes;
    }
}

inline bool is_utf8(std::string_view text) { return first_ill_formed(text) == text.size(); }

/// The text with U+FFFD in place of each maximal ill-formed part, as Python's bytes.decode("utf-8", "replace") gives
/// it.
template <class = void>
std::string well_formed(std::string_view text) {
    std::string out(text.substr(0, first_ill_formed(text)));
    for (std::size_t at = out.size(); at < text.size();) {
        const Char c = decode(text, at);
        append(out, c.code);
        at += c.bytes;
    }
    return out;
}

namespace detail {

/// The class bits of a code point; 0 for those in no class.
constexpr unsigned class_bits(char32_t code) {
    const auto* after = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                         [](char32_t c, const Range& range) { return c < range.first; });
    if (after == std::begin(ranges)) return 0;
    const Range& range = *(after - 1);
    return code <= range.last ? range.bits : 0;
}

}  // namespace detail

/// General category L, N; regular expressions' \w; characters that have case; those that casing rules look past.
constexpr bool is_letter(char32_t c) { return detail::class_bits(c) & 1U; }
constexpr bool is_number(char32_t c) { return detail::class_bits(c) & 2U; }
constexpr bool is_word(char32_t c) { return detail::class_bits(c) & 4U; }
constexpr bool is_cased(char32_t c) { return detail::class_bits(c) & 8U; }
constexpr bool is_case_ignorable(char32_t c) { return detail::class_bits(c) & 16U; }

/// Property White_Space: 25 code points.
constexpr bool is_white_space(char32_t c) {
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/// What Python's str.strip takes off an end: White_Space and the four ASCII separators.
constexpr bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1c && c <= 0x1f); }

/// The last character of a text that is not empty; a byte that belongs to none stands alone, as in decode().
constexpr Char decode_last(std::string_view text) {
    std::size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
    const Char c = decode(text, at);
    return at + c.bytes == text.size() ? c : decode(text, text.size() - 1);
}

/// Without the characters of the class at its start, or at its end.
template <class Class>
std::string_view without_leading(std::string_view text, Class in_class) {
    while (!text.empty()) {
        const Char c = decode(text, 0);
        if (!in_class(c.code)) break;
        text.remove_prefix(c.bytes);
    }
    return text;
}
template <class Class>
std::string_view without_trailing(std::string_view text, Class in_class) {
    while (!text.empty()) {
        const Char c = decode_last(text);
        if (!in_class(c.code)) break;
        text.remove_suffix(c.bytes);
    }
    return text;
}

/// Python's str.rstrip() and str.strip().
inline std::string_view rstrip(std::string_view text) { return without_trailing(text, is_python_space); }
inline std::string_view strip(std::string_view text) { return without_leading(rstrip(text), is_python_space); }

/// Python's str.lower(): the full mapping, with the final form of sigma. Ill-formed parts become U+FFFD.
template <class = void>
std::string lower(std::string_view text) {
    const auto  past_ignorable = [](std::string_view rest) { return without_leading(rest, is_case_ignorable); };
    std::string out;
    for (std::size_t at = 0; at < text.size();) {
        const Char c = decode(text, at);
        if (c.code == 0x130) {  // the only character whose lower case is longer: i and a dot above
            out += "i\xcc\x87";
        } else if (c.code == 0x3a3) {
            const std::string_view before = without_trailing(text.substr(0, at), is_case_ignorable);
            const std::string_view after = past_ignorable(text.substr(at + c.bytes));
            const bool             final = !before.empty() && is_cased(decode_last(before).code) &&
                               (after.empty() || !is_cased(decode(after, 0).code));
            append(out, final ? 0x3c2 : 0x3c3);
        } else {
            append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.code))));
        }
        at += c.bytes;
    }
    return out;
}

enum class NormalForm { nfc, nfd, nfkc, nfkd };

/// A well-formed text whose runs of combining marks are in the order of their classes, which is another spelling of the same
/// text. utf8proc orders them by swapping neighbours: of a hundred thousand marks in a row that would take minutes.
template <class = void>
std::string with_sorted_marks(std::string_view text) {
    struct Mark {
        utf8proc_propval_t combining_class;
        std::string_view   bytes;
    };
    std::string       out;
    std::vector<Mark> run;
    const auto        flush = [&] {
        std::ranges::stable_sort(run, {}, &Mark::combining_class);
        for (const Mark& m : run) out += m.bytes;
        run.clear();
    };
    for (std::size_t at = 0; at < text.size();) {
        const Char c = decode(text, at);
        const auto bytes = text.substr(at, c.bytes);
        at += c.bytes;
        const auto combining_class = utf8proc_get_property(static_cast<utf8proc_int32_t>(c.code))->combining_class;
        if (combining_class != 0) {
            run.push_back({combining_class, bytes});
        } else {
            flush();
            out += bytes;
        }
    }
    flush();
    return out;
}

namespace detail {

/// A well-formed text in a normal form, by the tables that utf8proc has.
template <class = void>
std::string normalized_by_utf8proc(std::string_view text, NormalForm form) {
    int options = UTF8PROC_STABLE;
    if (form == NormalForm::nfc || form == NormalForm::nfkc) options |= UTF8PROC_COMPOSE;
    else options |= UTF8PROC_DECOMPOSE;
    if (form == NormalForm::nfkc || form == NormalForm::nfkd) options |= UTF8PROC_COMPAT;
    const std::string sorted = with_sorted_marks(text);
    utf8proc_uint8_t* raw = nullptr;
    const auto        size =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(sorted.data()), static_cast<utf8proc_ssize_t>(sorted.size()),
                     &raw, static_cast<utf8proc_option_t>(options));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(raw, &std::free);
    if (size < 0) throw std::bad_alloc{};  // the text is well-formed, so nothing else can fail
    return {reinterpret_cast<const char*>(raw), static_cast<std::size_t>(size)};
}

/// Whether a normal form of Unicode 9.0 leaves a character alone that one of a later version does not.
constexpr bool is_left_alone(char32_t code) {
    const auto* after = std::upper_bound(std::begin(not_normalized), std::end(not_normalized), code,
                                         [](char32_t c, const auto& range) { return c < range[0]; });
    return after != std::begin(not_normalized) && code <= (*(after - 1))[1];
}

}  // namespace detail

/// A well-formed text in a normal form of Unicode 9.0, whose tables tokenizers 0.19 has. A character that came later is one that
/// nothing combines with, nor moves across, so that what stands before and after it is normalised apart.
template <class = void>
std::string normalized(std::string_view text, NormalForm form) {
    // No character below U+0300 (first byte 0xCC) changes or combines under NFC; none below U+0080 under any form.
    const unsigned char settled = form == NormalForm::nfc ? 0xcc : 0x80;
    if (std::all_of(text.begin(), text.end(), [&](char c) { return static_cast<unsigned char>(c) < settled; }))
        return std::string(text);
    std::string out;
    std::size_t start = 0;
    for (std::size_t at = 0; at < text.size();) {
        const Char c = decode(text, at);
        if (detail::is_left_alone(c.code)) {
            if (start < at) out += detail::normalized_by_utf8proc(text.substr(start, at - start), form);
            out += text.substr(at, c.bytes);
            start = at + c.bytes;
        }
        at += c.bytes;
    }
    if (start < text.size()) out += detail::normalized_by_utf8proc(text.substr(start), form);
    return out;
}

}  // namespace prism::unicode
