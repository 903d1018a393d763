#include "data.hpp"

#include "prism/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

using prism::FormatError;
using prism::Json;
using prism::Tokenizer;

namespace {

// Protocol Buffers, written by hand.
std::string varint(std::uint64_t value) {
    std::string out;
    for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
    return out + static_cast<char>(value);
}
std::string field(unsigned number, unsigned value) { return varint(number << 3) + varint(value); }
std::string field(unsigned number, const std::string& bytes) {
    return varint(number << 3 | 2) + varint(bytes.size()) + bytes;
}
std::string field(unsigned number, float value) {
    const auto  bits = std::bit_cast<std::uint32_t>(value);
    std::string out = varint(number << 3 | 5);
    for (unsigned i = 0; i < 4; ++i) out += static_cast<char>(bits >> 8 * i);
    return out;
}
std::string piece(const std::string& text, float score = 0, unsigned type = 1) {
    return field(1, field(1, text) + field(2, score) + field(3, type));
}
const std::string trainer = field(2, field(3, 2U));

Tokenizer model(const std::string& bytes) { return Tokenizer::from_bytes(bytes, "tokenizer.model"); }

/// The smallest tokenizer.json that loads.
Json small_json() {
    return Json::parse(R"({"added_tokens": [{"id": 3, "content": "<s>", "special": true, "normalized": false}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
}

/// What is wrong with small_json() after a change; empty when it loads.
std::string problem(const std::function<void(Json&)>& change) {
    Json json = small_json();
    change(json);
    try {
        static_cast<void>(
            Tokenizer::from_bytes(json.dump(), "tokenizer.json").encode("ab <s>", {.parse_special = true}));
    } catch (const FormatError& e) {
        CHECK(e.file == "tokenizer.json");
        return e.problem;
    }
    return {};
}

bool names(const std::string& problem, std::string_view what) {
    INFO(problem);
    return problem.find(what) != std::string::npos;
}

}  // namespace

TEST_CASE("text/bad input: a small SentencePiece model loads, one with a flaw does not") {
    const std::string unk = piece("<unk>", 0, 2);
    CHECK(model(unk + piece("a") + trainer).encode("b", {.add_special = false}) == prism::test::Ids{0});
    const auto refused = [](const std::string& bytes) { CHECK_THROWS_AS(model(bytes), FormatError); };
    refused("");
    refused(trainer);                                  // no pieces
    refused(piece("a") + trainer);                     // no unknown
    refused(unk + piece("<x>", 0, 2) + trainer);       // two
    refused(unk + piece("a") + piece("a") + trainer);  // a piece twice
    refused(unk + piece("") + trainer);                // an empty piece
    refused(unk + piece("\xff") + trainer);            // not UTF-8
    refused(unk + piece("a", 0, 7) + trainer);         // an unknown type
    refused(unk + piece("a", 0, 0) + trainer);
    refused(unk + piece("a", std::bit_cast<float>(0x7fc00000U)) + trainer);
    refused(unk + piece(std::string(1025, 'a')) + trainer);
    refused(unk + piece("a"));                                           // the default model type is UNIGRAM
    refused(unk + piece("a") + field(2, field(3, 2U) + field(35, 1U)));  // byte_fallback without bytes
    refused(unk + piece("a") + field(2, field(3, 2U) + field(24, 1U)));  // white space as suffix
    refused(unk + piece("a") + trainer + field(3, field(2, std::string("map"))));
    refused(unk + field(1, 5U) + trainer);                            // a piece that is a number
    refused("\x0a\xff\xff\xff\xff\x0f");                              // a length past the end
    refused("\x0b\x01");                                              // wire type 3
    refused(std::string("\x00\x00", 2));                              // field number 0
    refused("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");  // an endless varint
    // Unknown fields of every wire type are passed over, and the last of a field counts.
    const std::string strange =
        field(99, 7U) + field(98, std::string("x")) + field(97, 1.0f) + varint(96 << 3 | 1) + "12345678";
    CHECK(model(strange + unk + piece("a") + field(2, field(3, 1U) + field(3, 2U))).size() == 2);
}

TEST_CASE("text/bad input: no cut or flipped byte of a model file does harm") {
    const auto  folder = std::filesystem::path(PRISM_TEST_DATA) / "reference/tokenizers/llama";
    std::string whole = prism::read_file(folder / "tokenizer.model");
    const auto  survives = [](const std::string& bytes) {
        try {
            const Tokenizer tokenizer = model(bytes);
            const auto      ids = tokenizer.encode("the robot <0x41> \xf0\x9f\x98\x81");
            static_cast<void>(tokenizer.decode(ids));
        } catch (const prism::Error&) {}
    };
    for (std::size_t n = 0; n < whole.size(); n += n < 300 ? 1 : 17) survives(whole.substr(0, n));
    std::mt19937 random(6);
    for (int i = 0; i < 400; ++i) {
        std::string bytes = whole;
        for (int k = 0; k < 3; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
        survives(bytes);
    }
}

TEST_CASE("text/bad input: tokenizer.json is refused by the name of what is wrong") {
    CHECK(problem([](Json&) {}) == "");
    const auto set = [](const char* place, const char* value) {
        return [=](Json& json) { json[Json::json_pointer(place)] = Json::parse(value); };
    };
    CHECK(names(problem([](Json& json) { json.erase("model"); }), "'model' is missing"));
    CHECK(names(problem(set("/model/type", R"("Unigram")")), "Unigram"));
    CHECK(names(problem(set("/model/type", "7")), "expected a string"));
    CHECK(names(problem(set("/model/vocab", "[]")), "vocab"));
    CHECK(names(problem(set("/model/vocab", "{}")), "vocab"));
    CHECK(names(problem(set("/model/vocab/a", "-1")), "-1"));
    CHECK(names(problem(set("/model/vocab/a", "1.5")), "1.5"));
    CHECK(names(problem(set("/model/vocab/a", "4000000000")), "4000000000"));
    CHECK(names(problem(set("/model/vocab/a", "18446744073709551615")), "18446744073709551615"));
    CHECK(names(problem(set("/model/vocab/a", "1")), "twice"));
    CHECK(names(problem(set("/model/vocab/a", "\"x\"")), "vocab.a"));
    CHECK(names(problem(set("/model/merges", "[\"a c\"]")), "'c' is not in the vocabulary"));
    CHECK(names(problem(set("/model/merges", "[\"b a\"]")), "'ba' is not in the vocabulary"));
    CHECK(names(problem(set("/model/merges", "[\"ab\"]")), "two tokens"));
    CHECK(names(problem(set("/model/merges", "[\"a  b\"]")), "two tokens"));
    CHECK(names(problem(set("/model/merges", "[[\"a\"]]")), "two tokens"));
    CHECK(names(problem(set("/model/merges", "{}")), "expected a list"));
    CHECK(problem(set("/model/merges", "[[\"a\", \"b\"]]")) == "");  // the newer form
    CHECK(names(problem(set("/model/dropout", "0.1")), "dropout"));
    CHECK(names(problem(set("/model/end_of_word_suffix", R"("</w>")")), "end_of_word_suffix"));
    CHECK(names(problem(set("/model/unk_token", R"("<unk>")")), "<unk>"));
    CHECK(names(problem(set("/normalizer", R"({"type": "Lowercase"})")), "Lowercase"));
    CHECK(names(problem(set("/normalizer", R"({"type": "Sequence", "normalizers": [{"type": "Precompiled"}]})")),
                "Precompiled"));
    CHECK(
        names(problem(set("/normalizer", R"({"type": "Replace", "pattern": {"Regex": "(a"}, "content": ""})")), "(a"));
    CHECK(names(problem(set("/normalizer", R"({"type": "Replace", "pattern": {"String": ""}, "content": "b"})")),
                "empty"));
    CHECK(names(problem(set("/normalizer", "3")), "normalizer"));
    CHECK(names(problem(set("/pre_tokenizer", R"({"type": "BertPreTokenizer"})")), "BertPreTokenizer"));
    CHECK(names(
        problem(set("/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "[a"}, "behavior": "Isolated"})")),
        "[a"));
    CHECK(
        names(problem(set("/pre_tokenizer", R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed"})")),
              "Removed"));
    CHECK(names(problem(set("/pre_tokenizer", R"({"type": "Metaspace", "prepend_scheme": "often"})")), "often"));
    CHECK(names(problem(set("/decoder", R"({"type": "WordPiece"})")), "WordPiece"));
    CHECK(names(problem(set("/decoder", R"({"type": "Strip", "content": " ", "start": -1, "stop": 0})")), "start"));
    CHECK(names(
        problem(set("/decoder", R"({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]})")),
        "after Fuse"));
    CHECK(names(problem(set("/post_processor", R"({"type": "BertProcessing"})")), "BertProcessing"));
    CHECK(
        names(problem(set("/post_processor", R"({"type": "TemplateProcessing", "single": [], "special_tokens": {}})")),
              "no place"));
    CHECK(names(problem(set("/post_processor", R"({"type": "TemplateProcessing", "special_tokens": {"x": {"ids": [99]}},
        "single": [{"SpecialToken": {"id": "x"}}, {"Sequence": {"id": "A"}}]})")),
                "99"));
    CHECK(names(problem(set("/added_tokens/0/id", "-3")), "-3"));
    CHECK(names(problem(set("/added_tokens/0/content", "null")), "'content' is missing"));
    CHECK(names(problem(set("/added_tokens/0/special", "1")), "true or false"));
    CHECK(names(problem(set("/added_tokens/1", R"({"id": 3, "content": "x"})")), "twice"));
    // Steps that would blow a text up, each harmless by itself.
    Json steps = Json::array();
    for (int i = 0; i < 12; ++i)
        steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaaaaaaaa"}});
    CHECK(names(problem([&](Json& json) {
                    json["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
                }),
                "longer"));
    CHECK(names(problem([&](Json& json) { json["decoder"] = {{"type", "Sequence"}, {"decoders", steps}}; }), "longer"));

    CHECK_THROWS_AS(Tokenizer::from_bytes("{\"model\": ", "tokenizer.json"), FormatError);
    CHECK_THROWS_AS(Tokenizer::from_bytes("{}", "tokenizer.json"), FormatError);
    CHECK_THROWS_AS(Tokenizer::from_bytes("GGUF\x03", "x.gguf"), FormatError);
}

TEST_CASE("text/bad input: a GGUF without a vocabulary is a malformed one") {
    const auto  u64 = [](std::uint64_t n) { return std::string(reinterpret_cast<const char*>(&n), 8); };
    const std::string empty = std::string("GGUF\x03\0\0\0", 8) + u64(0) + u64(0);
    CHECK_THROWS_AS(Tokenizer::from_bytes(empty, "a.gguf"), FormatError);
}

TEST_CASE("text/bad input: folders say what they lack") {
    const prism::test::TempFolder folder;
    CHECK_THROWS_AS(Tokenizer::open(folder.path()), prism::LoadError);
    CHECK_THROWS_AS(Tokenizer::open(folder.path() / "absent.json"), prism::LoadError);
    folder.write("vocab.json", R"({"a": 0, "b": 1, "ab": 2})");
    CHECK_THROWS_AS(Tokenizer::open(folder.path()), prism::LoadError);
    folder.write("merges.txt", "#version: 0.2\r\na b\r\n\n");
    CHECK(Tokenizer::open(folder.path()).encode("abba") == prism::test::Ids{2, 1, 0});
    folder.write("merges.txt", "a b\nb c\n");
    try {
        Tokenizer::open(folder.path());
        FAIL("no error");
    } catch (const FormatError& e) {
        CHECK(e.byte == 4);
        CHECK(names(e.problem, "'c' is not in the vocabulary"));
    }
    folder.write("merges.txt", "a b");
    for (const char* bad : {"[", R"({"bos_token": 3})", R"({"added_tokens_decoder": {"x": {"content": "y"}}})",
                            R"({"added_tokens_decoder": {"3": {}}})", R"({"tokenizer_class": 1})"}) {
        folder.write("tokenizer_config.json", bad);
        INFO(bad);
        CHECK_THROWS_AS(Tokenizer::open(folder.path()), FormatError);
    }
}

TEST_CASE("text/bad input: no random change of tokenizer.json does harm") {
    std::mt19937 random(8);
    const Json   cases = prism::read_json(prism::test::tokenizer_cases() / "cases.json");
    for (const Json& row : cases["tokenizers"]) {
        const std::string whole = row["file"].dump();
        for (int i = 0; i < 30; ++i) {
            std::string text = whole;
            for (int k = 0; k < 2; ++k) text[random() % text.size()] = static_cast<char>(' ' + random() % 95);
            try {
                const Tokenizer tokenizer = Tokenizer::from_bytes(text, "tokenizer.json");
                const auto      ids =
                    tokenizer.encode("the robot isn't here 123 \xf0\x9f\x98\x81 </s>", {.parse_special = true});
                static_cast<void>(tokenizer.decode(ids));
            } catch (const prism::Error&) {}
        }
    }
}
