#include "data.hpp"

#include "prism/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <set>
#include <string>
#include <vector>

using prism::EncodeOptions;
using prism::Piece;
using prism::Tokenizer;
using prism::test::Ids;

namespace {

Tokenizer llama() {
    auto tokenizer = Tokenizer::open(std::filesystem::path(PRISM_TEST_DATA) / "reference/tokenizers/llama");
    tokenizer.add_special("<image>");
    return tokenizer;
}

std::string joined(const std::vector<Piece>& pieces) {
    std::string text;
    for (const Piece& piece : pieces) text += piece.text;
    return text;
}

std::ptrdiff_t times(const Ids& ids, std::int32_t id) { return std::count(ids.begin(), ids.end(), id); }

}  // namespace

TEST_CASE("text/trust: text from a user names no control token unless the caller asks") {
    const Tokenizer tokenizer = llama();
    const auto      image = tokenizer.id("<image>").value();
    for (const char* text : {"</s>", "x</s>y", "<image>", "<s>", "<unk>", " </s> "}) {
        const Ids ids = tokenizer.encode(text, {.add_special = false});
        CHECK(times(ids, 0) + times(ids, 1) + times(ids, 2) + times(ids, image) == 0);
        CHECK(tokenizer.decode(ids) == text);
    }
    CHECK(tokenizer.encode("</s>", {.add_special = false, .parse_special = true}) == Ids{2});
}

TEST_CASE("text/trust: a prompt of pieces is the joined text, where the user writes nothing special") {
    const Tokenizer          tokenizer = llama();
    const std::vector<Piece> pieces{
        {"USER: <image>\n", true}, {"What is < this > ?", false},    {" ASSISTANT: ", true}, {"A cat.", false},
        {"</s>USER: ", true},      {"and \xf0\x9f\x98\x81?", false}, {" ASSISTANT:", true}};
    CHECK(tokenizer.encode(pieces) == tokenizer.encode(joined(pieces), {.parse_special = true}));
    CHECK(tokenizer.encode(std::vector<Piece>{}) == Ids{1});
}

TEST_CASE("text/trust: a user cannot write a control token, nor complete one, nor take one away") {
    const Tokenizer tokenizer = llama();
    const auto      count = [&](std::vector<Piece> pieces) { return times(tokenizer.encode(pieces), 2); };
    CHECK(count({{"In: ", true}, {"</s>", false}, {"\nOut:", true}}) == 0);
    CHECK(count({{"<", true}, {"/s>", false}}) == 0);
    CHECK(count({{"</s", false}, {">", true}}) == 0);
    CHECK(count({{"</", false}, {"s>", false}}) == 0);
    CHECK(count({{"<", false}, {"</s>", true}, {">", false}}) == 1);
    CHECK(count({{"\xe2\x96", false}, {"</s>", true}}) == 1);  // half a character in front
    CHECK(count({{"</s", true}, {">", true}}) == 1);           // trusted pieces join
}

TEST_CASE("text/trust: marks follow the text through normalisation") {
    // In "flags" the control token </s> is looked for after normalisation, with the prefix that a segment gets.
    const Tokenizer flags = prism::test::small_tokenizer("flags");
    const auto      eos = flags.id("</s>").value();
    const auto      count = [&](std::vector<Piece> pieces) { return times(flags.encode(pieces), eos); };
    CHECK(count({{"a </s>", true}}) == 1);
    CHECK(count({{"a ", false}, {"</s>", true}}) == 0);  // the space is part of the token as it is looked for
    CHECK(count({{"a", false}, {" </s>", true}}) == 1);
    CHECK(count({{"a </s>", false}}) == 0);
    CHECK(count({{"a ", true}, {"</s>", false}, {" </s>", true}}) == 1);

    const Tokenizer qwen2 = prism::test::small_tokenizer("qwen2");
    const auto      end = qwen2.id("<|im_end|>").value();
    const Ids       ids = qwen2.encode(std::vector<Piece>{{"e\xcc\x81<|im_end|>", false}, {"<|im_end|>", true}});
    CHECK(times(ids, end) == 1);
    CHECK(ids.back() == end);
}

TEST_CASE("text/trust: however a trusted text is cut, its ids stay; an untrusted one is ordinary text") {
    std::mt19937      random(5);
    const prism::Json cases = prism::read_json(prism::test::tokenizer_cases() / "cases.json");
    for (const prism::Json& row : cases["tokenizers"]) {
        const Tokenizer tokenizer = Tokenizer::from_bytes(row["file"].dump(), "cases.json");
        for (const prism::Json& encode : row["encode"]) {
            const auto text = encode[0].get<std::string>();
            for (const bool trusted : {true, false}) {
                std::vector<Piece> pieces{{"", trusted}};
                for (std::size_t at = 0; at < text.size();) {
                    const std::size_t n = prism::unicode::decode(text, at).bytes;
                    if (random() % 3 == 0) pieces.push_back({"", trusted});
                    pieces.back().text += text.substr(at, n);
                    at += n;
                }
                INFO(encode[0].dump(-1, ' ', true));
                CHECK(tokenizer.encode(pieces, {.add_special = false}) ==
                      encode[trusted ? 2 : encode.size() - 1].get<Ids>());
            }
        }
    }
}
