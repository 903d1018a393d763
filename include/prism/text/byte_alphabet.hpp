// The alphabet in which byte-level vocabularies write bytes: 256 printable characters, one for each byte.
//
//     byte_letter(' ') == 0x120;   letter_byte(0x120) == ' ';
// Source: openai/gpt-2, src/encoder.py, bytes_to_unicode.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace prism::detail {

inline constexpr std::array<char32_t, 256> byte_letters = [] {
    std::array<char32_t, 256> letters{};
    char32_t                  next = 0x100;  // where the bytes go that are no printable character of Latin-1
    for (unsigned byte = 0; byte < 256; ++byte) {
        const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
        letters[byte] = printable ? byte : next++;
    }
    return letters;
}();

constexpr char32_t byte_letter(unsigned char byte) { return byte_letters[byte]; }

/// The byte that a letter of the alphabet stands for.
constexpr std::optional<unsigned char> letter_byte(char32_t letter) {
    constexpr auto bytes = [] {
        std::array<std::int16_t, 0x144> table{};
        table.fill(-1);
        for (unsigned byte = 0; byte < 256; ++byte) table[byte_letters[byte]] = static_cast<std::int16_t>(byte);
        return table;
    }();
    if (letter >= bytes.size() || bytes[letter] < 0) return std::nullopt;
    return static_cast<unsigned char>(bytes[letter]);
}

}  // namespace prism::detail
