#include "data.hpp"

#include "prism/text/decode.hpp"
#include "prism/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

using prism::DecodeOptions;
using prism::Json;
using prism::Tokenizer;
using prism::test::Ids;

namespace {

std::vector<Tokenizer> all_tokenizers() {
    std::vector<Tokenizer> all;
    for (const char* name : {"llama", "phi"})
        all.push_back(Tokenizer::open(std::filesystem::path(PRISM_TEST_DATA) / "reference/tokenizers" / name));
    const Json cases = prism::read_json(prism::test::tokenizer_cases() / "cases.json");
    for (const Json& row : cases["tokenizers"]) all.push_back(Tokenizer::from_bytes(row["file"].dump(), "cases.json"));
    return all;
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids, const DecodeOptions& options) {
    auto        stream = tokenizer.stream(options);
    std::string text;
    for (const auto id : ids) {
        const std::string part = stream.push(id);
        REQUIRE(prism::unicode::is_utf8(part));  // no character is split
        text += part;
    }
    return text + stream.finish();
}

}  // namespace

TEST_CASE("text/stream: what a stream gives out is the decoding of the whole sequence") {
    std::mt19937 random(3);
    for (const Tokenizer& tokenizer : all_tokenizers())
        for (int i = 0; i < 150; ++i) {
            const Ids ids = prism::test::random_ids(random, tokenizer.size(), random() % 30);
            for (const bool skip : {true, false})
                for (const bool clean_up : {true, false}) {
                    const DecodeOptions options{.skip_special = skip, .clean_up = clean_up};
                    REQUIRE(streamed(tokenizer, ids, options) == tokenizer.decode(ids, options));
                }
        }
}

TEST_CASE("text/stream: a stop string ends the text before it, wherever tokens are cut") {
    std::mt19937 random(4);
    for (const Tokenizer& tokenizer : all_tokenizers())
        for (int i = 0; i < 100; ++i) {
            const Ids         ids = prism::test::random_ids(random, tokenizer.size(), 20);
            const std::string whole = tokenizer.decode(ids);
            if (whole.size() < 4) continue;
            // Any part of the text may be the stop string; cutting through a character is the caller's business.
            const std::size_t at = random() % (whole.size() - 1),
                              n = 1 + random() % std::min<std::size_t>(6, whole.size() - at - 1);
            const std::string stop = whole.substr(at, n);
            auto              stream = tokenizer.stream({.stop = {stop, "", "never in it"}});
            std::string       text;
            for (const auto id : ids) {
                if (stream.stopped()) REQUIRE(stream.push(id).empty());
                else text += stream.push(id);
            }
            text += stream.finish();
            REQUIRE(stream.stopped());
            REQUIRE(text == whole.substr(0, whole.find(stop)));
        }
}

TEST_CASE("text/stream: of several stop strings the first to be complete counts") {
    const Tokenizer tokenizer = Tokenizer::open(std::filesystem::path(PRISM_TEST_DATA) / "reference/tokenizers/llama");
    const auto      until = [&](const char* text, std::vector<std::string> stop) {
        return tokenizer.decode(tokenizer.encode(text), {.stop = std::move(stop)});
    };
    CHECK(until("one two three", {"three", "two"}) == "one ");
    CHECK(until("abcd", {"abcd", "bc"}) == "a");
    CHECK(until("abcd", {"bcd", "abcd"}) == "");
    CHECK(until("abab abac", {"abac"}) == "abab ");
    CHECK(until("ends in a beginni", {"beginning"}) == "ends in a beginni");
}

TEST_CASE("text/stream: text comes out as soon as it is certain") {
    const Tokenizer tokenizer = Tokenizer::open(std::filesystem::path(PRISM_TEST_DATA) / "reference/tokenizers/llama");
    const auto      id = [&](const char* token) { return tokenizer.id(token).value(); };
    auto            stream = tokenizer.stream();
    CHECK(stream.push(id("\xe2\x96\x81")) == "");  // the dummy prefix
    CHECK(stream.push(id("H")) == "H");
    for (const char* byte : {"<0xF0>", "<0x9F>", "<0x98>", "<0x81>"}) CHECK(stream.push(id(byte)) == "");
    CHECK(stream.push(id("H")) == "\xf0\x9f\x98\x81H");
    CHECK(stream.push(id("<0xF0>")) == "");
    CHECK(stream.finish() == "\xef\xbf\xbd");
}

TEST_CASE("text/stream: clean-up does what transformers does, however the text arrives") {
    const Json cases = prism::read_json(prism::test::tokenizer_cases() / "cases.json");
    for (const Json& row : cases["clean_up"])
        for (std::size_t piece = 1; piece < 5; ++piece) {
            const auto             text = row[0].get<std::string>();
            prism::detail::CleanUp clean_up;
            std::string            out;
            for (std::size_t at = 0; at < text.size(); at += piece)
                clean_up.put(std::string_view(text).substr(at, piece), out);
            clean_up.finish(out);
            REQUIRE(out == row[1].get<std::string>());
        }
    prism::detail::CleanUp clean_up;  // short words come out, too
    std::string            out;
    clean_up.put("1 2 3 .", out);
    CHECK(out == "1 2 3");
}

TEST_CASE("text/stream: a stream outlives its tokenizer and does not see what is added later") {
    auto tokenizer = std::make_unique<Tokenizer>(
        Tokenizer::open(std::filesystem::path(PRISM_TEST_DATA) / "reference/tokenizers/llama"));
    auto       stream = tokenizer->stream({.skip_special = false});
    const auto id = tokenizer->add_special("<late>");
    const auto h = tokenizer->id("H").value();
    tokenizer.reset();
    CHECK(stream.push(id) == "");
    CHECK(stream.push(h) + stream.finish() == "H");
}
