#!/usr/bin/env python3
"""Writes unicode_data.hpp, the classes of code points that tokenizers ask for.

Python 3.11 carries Unicode 14.0, the version that the reference tokenizers' patterns follow:

    python3.11 make_unicode_data.py > unicode_data.hpp

Two lists come from other Pythons, because the reference has other versions where it looks for \\w and where it normalises.
"""
import sys
import unicodedata

assert unicodedata.unidata_version == "14.0.0", "Unicode 14.0 is needed, this Python has " + unicodedata.unidata_version

LETTER, NUMBER, WORD, CASED, IGNORABLE = 1, 2, 4, 8, 16

# Other_Alphabetic outside the marks: circled and squared letters, which are words and have case though they are symbols.
LETTERLIKE_SYMBOLS = {*range(0x24B6, 0x24EA), *range(0x1F130, 0x1F14A), *range(0x1F150, 0x1F16A), *range(0x1F170, 0x1F18A)}
JOINERS = {0x200C, 0x200D}


def spread(ranges):
    return {code for first, last in ranges for code in range(first, last + 1)}


# \w of Unicode 15.0 (Python 3.12) that 14.0 does not assign.
WORDS_OF_15 = spread([
    (0xCF3, 0xCF3), (0xECE, 0xECE), (0x10EFD, 0x10EFF), (0x1123F, 0x11241), (0x11F00, 0x11F10), (0x11F12, 0x11F3A), (0x11F3E, 0x11F42),
    (0x11F50, 0x11F59), (0x1342F, 0x1342F), (0x13440, 0x13455), (0x1B132, 0x1B132), (0x1B155, 0x1B155), (0x1DF25, 0x1DF2A),
    (0x1E030, 0x1E06D), (0x1E08F, 0x1E08F), (0x1E4D0, 0x1E4F9), (0x2B739, 0x2B739), (0x31350, 0x323AF)])

# What Unicode 15.1 (Python 3.13) gives a combining class, or a decomposition or a part in one, and 9.0 (Python 3.6) does not assign.
UNKNOWN_TO_9 = [
    (0x7FD, 0x7FD), (0x898, 0x89F), (0x8CA, 0x8D3), (0x9FE, 0x9FE), (0xC3C, 0xC3C), (0xD3B, 0xD3C), (0xEBA, 0xEBA), (0x1715, 0x1715),
    (0x1ABF, 0x1ACE), (0x1DF6, 0x1DFA), (0x32FF, 0x32FF), (0xA7F2, 0xA7F4), (0xA82C, 0xA82C), (0xAB69, 0xAB69), (0x10781, 0x10785),
    (0x10787, 0x107B0), (0x107B2, 0x107BA), (0x10D24, 0x10D27), (0x10EAB, 0x10EAC), (0x10EFD, 0x10EFF), (0x10F46, 0x10F50),
    (0x10F82, 0x10F85), (0x11070, 0x11070), (0x1133B, 0x1133B), (0x1145E, 0x1145E), (0x11839, 0x1183A), (0x11930, 0x11930),
    (0x11935, 0x11935), (0x11938, 0x11938), (0x1193D, 0x1193E), (0x11943, 0x11943), (0x119E0, 0x119E0), (0x11A34, 0x11A34),
    (0x11A47, 0x11A47), (0x11A99, 0x11A99), (0x11D42, 0x11D42), (0x11D44, 0x11D45), (0x11D97, 0x11D97), (0x11F41, 0x11F42),
    (0x16FF0, 0x16FF1), (0x1E030, 0x1E06D), (0x1E08F, 0x1E08F), (0x1E130, 0x1E136), (0x1E2AE, 0x1E2AE), (0x1E2EC, 0x1E2EF),
    (0x1E4EC, 0x1E4EF), (0x1F16C, 0x1F16C), (0x1FBF0, 0x1FBF9)]


def bits(code):
    category = unicodedata.category(chr(code))
    letter = category[0] == "L"
    number = category[0] == "N"
    word = letter or category[0] == "M" or category in ("Nd", "Nl", "Pc") or code in LETTERLIKE_SYMBOLS | JOINERS | WORDS_OF_15
    text = chr(code)
    # Case properties are not in the module, but the two lower-case forms of sigma tell: it is final when a cased
    # character stands before it and none behind, not counting the case-ignorable ones.
    cased = ("a\u03a3" + text).lower()[1] == "\u03c3"
    ignorable = ("a" + text + "\u03a3").lower()[-1] == "\u03c2" and ("." + text + "\u03a3").lower()[-1] == "\u03c3"
    return LETTER * letter + NUMBER * number + WORD * word + CASED * cased + IGNORABLE * ignorable


def ranges():
    first, current = 0, bits(0)
    for code in range(1, 0x110001):
        now = bits(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else 0
        if now != current:
            if current:
                yield first, code - 1, current
            first, current = code, now


def table(rows):
    line = "   "
    for row in rows:
        if len(line) + 1 + len(row) > 118:
            print(line)
            line = "   "
        line += " " + row
    print(line + "\n};")


rows = [f"{{0x{first:x}, 0x{last:x}, {current}}}," for first, last, current in ranges()]
print("// Classes of code points, Unicode 14.0 (\\w: 15.0; normal forms: 9.0). Written by make_unicode_data.py; not for reading and not for editing.")
print("#pragma once\n\n#include <cstdint>\n\nnamespace prism::unicode::detail {\n")
print("/// Bits of a class: letter 1 (L), number 2 (N), word 4 (\\w), cased 8, case-ignorable 16.")
print("struct Range {\n    char32_t     first, last;\n    std::uint8_t bits;\n};\n")
print("// clang-format off\ninline constexpr Range ranges[] = {")
table(rows)
print("\n/// Characters that normal forms leave alone, first and last of each range: Unicode 9.0, whose tables they are, has not got them.")
print("inline constexpr char32_t not_normalized[][2] = {")
table(f"{{0x{first:x}, 0x{last:x}}}," for first, last in UNKNOWN_TO_9)
print("// clang-format on\n\n}  // namespace prism::unicode::detail")
sys.stderr.write(f"{len(rows)} ranges\n")
