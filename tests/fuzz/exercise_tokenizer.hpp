// What the tokenizer fuzzers share: a file that loads must also encode and decode.
#pragma once

#include "prism/text/tokenizer.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace prism::fuzz {

/// Ends the program where a property does not hold, so that the fuzzer keeps the input.
inline void require(bool property) {
    if (!property) std::abort();
}

/// Bytes in the role of a file: a tokenizer that can be used, or FormatError (ConfigError where GGUF lacks a value).
inline void exercise_file(std::string_view bytes) {
    static const std::string text = "the robot isn't  here,\n 123 <s> </s> \xf0\x9f\x98\x81 e\xcc\x81 \xe2\x96\x81\t";
    try {
        Tokenizer  tokenizer = Tokenizer::from_bytes(bytes, "fuzz");
        const auto ids = tokenizer.encode(text, {.parse_special = true});
        tokenizer.encode(std::vector<Piece>{{text, true}, {text, false}});
        std::vector<std::int32_t> more = ids;
        for (std::int32_t id = -1; id < 300; ++id) more.push_back(id);
        for (const bool skip : {true, false}) {
            const std::string whole = tokenizer.decode(more, {.skip_special = skip, .clean_up = skip});
            require(unicode::is_utf8(whole));
        }
        tokenizer.add_special("<PAD>", SpecialRole::pad);
        require(tokenizer.id("<PAD>") == tokenizer.pad_id());
    } catch (const FormatError&) {
    } catch (const ConfigError&) {}
}

}  // namespace prism::fuzz
