#!/usr/bin/env python3
"""Writes unicode_data.hpp, the classes of code points that tokenizers ask for.

Python 3.11 carries Unicode 14.0, the version that the reference tokenizers follow:

    python3.11 make_unicode_data.py > unicode_data.hpp
"""
import sys
import unicodedata

assert unicodedata.unidata_version == "14.0.0", "Unicode 14.0 is needed, this Python has " + unicodedata.unidata_version

LETTER, NUMBER, WORD, CASED, IGNORABLE = 1, 2, 4, 8, 16

# Other_Alphabetic outside the marks: circled and squared letters, which are words and have case though they are symbols.
LETTERLIKE_SYMBOLS = {*range(0x24B6, 0x24EA), *range(0x1F130, 0x1F14A), *range(0x1F150, 0x1F16A), *range(0x1F170, 0x1F18A)}
JOINERS = {0x200C, 0x200D}


def bits(code):
    category = unicodedata.category(chr(code))
    letter = category[0] == "L"
    number = category[0] == "N"
    word = letter or category[0] == "M" or category in ("Nd", "Nl", "Pc") or code in LETTERLIKE_SYMBOLS or code in JOINERS
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


rows = [f"{{0x{first:x}, 0x{last:x}, {current}}}," for first, last, current in ranges()]
print("// Classes of code points, Unicode 14.0. Written by make_unicode_data.py; not for reading and not for editing.")
print("#pragma once\n\n#include <cstdint>\n\nnamespace prism::unicode::detail {\n")
print("/// Bits of a class: letter 1 (L), number 2 (N), word 4 (\\w), cased 8, case-ignorable 16.")
print("struct Range {\n    char32_t     first, last;\n    std::uint8_t bits;\n};\n")
print("// clang-format off\ninline constexpr Range ranges[] = {")
line = "   "
for row in rows:
    if len(line) + 1 + len(row) > 118:
        print(line)
        line = "   "
    line += " " + row
print(line + "\n};\n// clang-format on\n\n}  // namespace prism::unicode::detail")
sys.stderr.write(f"{len(rows)} ranges\n")
