// Where the tokenizer tests find their vocabularies, and how they compare.
#pragma once

#include "support/cases.hpp"
#include "support/temp_folder.hpp"

#include "prism/io/json.hpp"
#include "prism/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace prism::test {

using Ids = std::vector<std::int32_t>;

/// The committed vocabularies and answers.
inline std::filesystem::path tokenizer_cases() { return std::filesystem::path(PRISM_TEST_DATA) / "tokenizers"; }

/// Published vocabularies, which are not committed: the environment variable PRISM_TOKENIZER_DATA, else the folder
/// beside the checkout; none in a fresh clone.
inline std::optional<std::filesystem::path> published_tokenizers() {
    const char*                 named = std::getenv("PRISM_TOKENIZER_DATA");
    const std::filesystem::path folder =
        named && *named ? named : std::filesystem::path(PRISM_SOURCE_DIR) / "../shared/data/tokenizers";
    return std::filesystem::is_directory(folder) ? std::optional(folder) : std::nullopt;
}

/// The Llama-2 vocabulary with Prismatic's <PAD>, where it is there.
inline std::optional<Tokenizer> llama2() {
    const auto folder = published_tokenizers();
    if (!folder) return std::nullopt;
    auto tokenizer = Tokenizer::open(*folder / "llama2-tokenizer.model");
    tokenizer.add_special("<PAD>", SpecialRole::pad);
    return tokenizer;
}

/// One of the tokenizers of cases.json.
inline Tokenizer small_tokenizer(std::string_view name) {
    const Json cases = read_json(tokenizer_cases() / "cases.json");
    for (const Json& row : cases["tokenizers"])
        if (row["name"] == name) return Tokenizer::from_bytes(row["file"].dump(), std::string(name));
    throw Error("no tokenizer " + std::string(name));
}

inline std::string unbase64(std::string_view text) {
    constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string                bytes;
    std::uint32_t              value = 0;
    int                        bits = 0;
    for (const char c : text) {
        const std::size_t digit = digits.find(c);
        if (digit == std::string_view::npos) break;
        value = value << 6 | static_cast<std::uint32_t>(digit);
        if ((bits += 6) >= 8) bytes += static_cast<char>(value >> (bits -= 8) & 0xffU);
    }
    return bytes;
}

/// Every id of a small vocabulary and some that it does not have, in random order.
inline Ids random_ids(std::mt19937& random, std::size_t vocab_size, std::size_t n) {
    std::uniform_int_distribution<std::int32_t> id(-1, static_cast<std::int32_t>(vocab_size) + 1);
    Ids                                         ids(n);
    for (auto& i : ids) i = id(random);
    return ids;
}

}  // namespace prism::test
