#include "data.hpp"

#include "prism/text/unicode.hpp"

#include <doctest/doctest.h>

#include <string>
#include <string_view>

namespace unicode = prism::unicode;

TEST_CASE("text/unicode: every code point survives encoding and decoding, and nothing else is well-formed") {
    for (char32_t code = 0; code < 0x110000; code += code < 0x3000 ? 1 : 61) {
        if (code >= 0xd800 && code < 0xe000) continue;
        const std::string   text = unicode::to_utf8(code);
        const unicode::Char c = unicode::decode(text, 0);
        REQUIRE(c.valid);
        REQUIRE(c.code == code);
        REQUIRE(c.bytes == text.size());
        REQUIRE(unicode::decode_last("a" + text).code == code);
        for (std::size_t n = 1; n < text.size(); ++n) REQUIRE(unicode::decode(text.substr(0, n), 0).cut_short);
    }
    for (const std::string_view bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xed\xa0\x80",
                                       "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe2\x28"})
        CHECK_FALSE(unicode::is_utf8(bad));
}

TEST_CASE("text/unicode: ill-formed parts are replaced as Python's decoder does") {
    const std::string r = "\xef\xbf\xbd";
    CHECK(unicode::well_formed("a\xff"
                               "b") == "a" + r + "b");
    CHECK(unicode::well_formed("\xe2\x82") == r);         // one truncated character
    CHECK(unicode::well_formed("\xe2\x82(") == r + "(");  // the rest begins anew
    CHECK(unicode::well_formed("\xf0\x9f\x98\xf0\x9f\x98\x81") == r + "\xf0\x9f\x98\x81");
    CHECK(unicode::well_formed("\xed\xa0\x80") == r + r + r);  // a surrogate
    CHECK(unicode::well_formed("\xc0\x80") == r + r);          // an overlong form
    CHECK(unicode::well_formed(std::string("a\0b", 3)) == std::string("a\0b", 3));
    CHECK(unicode::first_ill_formed("12345678901234567\x80") == 17);
}

TEST_CASE("text/unicode: the classes are those of Unicode 14.0") {
    int letters = 0, numbers = 0, spaces = 0;
    for (char32_t code = 0; code < 0x110000; ++code) {
        letters += unicode::is_letter(code);
        numbers += unicode::is_number(code);
        spaces += unicode::is_white_space(code);
        REQUIRE_FALSE((unicode::is_letter(code) && unicode::is_number(code)));
    }
    CHECK(letters == 131756);
    CHECK(numbers == 1791);
    CHECK(spaces == 25);
    CHECK(unicode::is_word(U'_'));
    CHECK(unicode::is_word(0x301));
    CHECK(unicode::is_word(0x24b6));
    CHECK(unicode::is_word(0x31350));  // of Unicode 15.0, as in the regular expressions that look beside added tokens
    CHECK_FALSE(unicode::is_letter(0x31350));
    CHECK_FALSE(unicode::is_word(0xbd));
    CHECK_FALSE(unicode::is_white_space(0x200b));
}

TEST_CASE("text/unicode: strip and lower do what Python's do") {
    CHECK(unicode::strip(" \t\x1c\xc2\xa0 a b \xe3\x80\x80\n") == "a b");
    CHECK(unicode::strip(" \n") == "");
    CHECK(unicode::rstrip(" a\xe2\x80\x8b") == " a\xe2\x80\x8b");
    CHECK(unicode::rstrip("cost in \xa3") == "cost in \xa3");  // a byte that is no character is no white space
    CHECK(unicode::rstrip("x\xc2\xa0\xbf") == "x\xc2\xa0\xbf");
    const prism::Json cases = prism::read_json(prism::test::tokenizer_cases() / "cases.json");
    for (const prism::Json& row : cases["lower"]) {
        INFO(row.dump());
        CHECK(unicode::lower(row[0].get<std::string>()) == row[1].get<std::string>());
    }
}

TEST_CASE("text/unicode: normal forms compose and decompose") {
    using enum unicode::NormalForm;
    CHECK(unicode::normalized("e\xcc\x81", nfc) == "\xc3\xa9");
    CHECK(unicode::normalized("\xc3\xa9", nfd) == "e\xcc\x81");
    CHECK(unicode::normalized("\xef\xac\x81", nfkc) == "fi");
    CHECK(unicode::normalized("\xef\xac\x81", nfc) == "\xef\xac\x81");
    CHECK(unicode::normalized("\xea\xb0\x80", nfkd) == "\xe1\x84\x80\xe1\x85\xa1");
    CHECK(unicode::normalized("", nfc) == "");
    CHECK(unicode::normalized("a\xcc\x81\xcc\x96\xcc\x80", nfkd) == "a\xcc\x96\xcc\x81\xcc\x80");  // by class, and then as they came
    // U+0C3C (Unicode 14) has a class, U+11938 (13) two parts, U+32FF (12.1) a compatible text: the reference's tables are older.
    CHECK(unicode::normalized("a\xcc\x81\xe0\xb0\xbc\xcc\x96", nfc) == "\xc3\xa1\xe0\xb0\xbc\xcc\x96");
    for (const std::string_view text : {"\xf0\x91\xa4\xb5\xf0\x91\xa4\xb0", "\xf0\x91\xa4\xb8", "\xe3\x8b\xbf"})
        for (const auto form : {nfc, nfd, nfkc, nfkd}) CHECK(unicode::normalized(text, form) == text);
    std::string many = "a", sorted = "a";  // in no time
    for (int i = 0; i < 100'000; ++i) many += "\xcc\x81", sorted += "\xcc\x96";
    for (int i = 0; i < 100'000; ++i) many += "\xcc\x96", sorted += "\xcc\x81";
    CHECK(unicode::normalized(many, nfkd) == sorted);
}
