// The tokenizer inside a GGUF file.
//
//     auto state = prism::detail::gguf_state(prism::Gguf::open("model.gguf"));
// Source: ggml, docs/gguf.md; llama.cpp, src/llama-vocab.cpp, for which name stands for which pattern.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/gguf.hpp"
#include "prism/text/sentencepiece.hpp"
#include "prism/text/tokenizer_json.hpp"
#include "prism/text/tokenizer_state.hpp"
#include "prism/text/unicode.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::detail {

/// Tokens of a GGUF file with their types, SentencePiece's whatever the model; scores where there are any.
template <class = void>
std::vector<ScoredPiece> gguf_pieces(const Gguf& gguf) {
    const auto fail = [&](const std::string& problem) {
        throw FormatError{gguf.file(), 0, "tokenizer.ggml." + problem};
    };
    const auto                tokens = gguf.get("tokenizer.ggml.tokens").texts();
    std::vector<double>       scores;
    std::vector<std::int64_t> types;
    if (gguf.has("tokenizer.ggml.scores")) scores = gguf.get("tokenizer.ggml.scores").reals();
    if (gguf.has("tokenizer.ggml.token_type")) types = gguf.get("tokenizer.ggml.token_type").integers();
    if (!scores.empty() && scores.size() != tokens.size()) fail("scores are not as many as the tokens");
    if (!types.empty() && types.size() != tokens.size())
        fail("token_type does not speak of as many tokens as there are");
    std::vector<ScoredPiece> pieces(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (!unicode::is_utf8(tokens[i])) fail("tokens: " + std::to_string(i) + " is not UTF-8");
        pieces[i].text = tokens[i];
        if (!scores.empty()) pieces[i].score = static_cast<float>(scores[i]);
        if (!types.empty()) pieces[i].type = static_cast<std::uint8_t>(std::clamp<std::int64_t>(types[i], 0, 255));
    }
    return pieces;
}

/// The byte-level kind ("gpt2"): tokens in the byte alphabet, those of types 3 and 4 plainly.
template <class State = TokenizerState>
State gguf_byte_level_state(const Gguf& gguf, const std::vector<ScoredPiece>& pieces) {
    struct Pre {
        std::string_view      name;
        SplitPattern::Pattern pattern = SplitPattern::gpt2;
        bool                  digits = false, nfc = false, ignore_merges = false;
    };
    static constexpr std::array<Pre, 10> known{{{"default"},
                                                {"gpt-2"},
                                                {"phi-2"},
                                                {"mpt"},
                                                {"olmo"},
                                                {"qwen2", SplitPattern::qwen2, false, true, false},
                                                {"llama-bpe", SplitPattern::llama3, false, false, true},
                                                {"starcoder", SplitPattern::gpt2, true, false, false},
                                                {"refact", SplitPattern::gpt2, true, false, false},
                                                {"command-r", SplitPattern::gpt2, true, false, false}}};
    const auto                           fail = [&](const std::string& problem) {
        throw FormatError{gguf.file(), 0, "tokenizer.ggml." + problem};
    };
    // Files from before this key have GPT-2's pattern more often than any other.
    const std::string_view name = gguf.has("tokenizer.ggml.pre") ? gguf.get("tokenizer.ggml.pre").text() : "default";
    const auto*            pre = std::find_if(known.begin(), known.end(), [&](const Pre& p) { return p.name == name; });
    if (pre == known.end()) fail("pre: '" + std::string(name) + "' is not supported");

    Vocabulary vocab;
    for (std::size_t i = 0; i < pieces.size(); ++i)
        if (!vocab.insert(pieces[i].text, static_cast<std::int32_t>(i)))
            fail("tokens: " + std::to_string(i) + " is empty or stands there twice");
    std::vector<std::array<std::int32_t, 3>> merges;
    for (const std::string_view merge : gguf.get("tokenizer.ggml.merges").texts()) {
        const auto refuse = [&](const std::string& problem) {
            fail("merges: " + std::to_string(merges.size()) + ": " + problem);
        };
        const std::size_t space = merge.find(' ', 1);
        if (space == std::string_view::npos) refuse("'" + std::string(merge) + "' is not two tokens");
        merges.push_back(merge_ids(vocab, merge.substr(0, space), merge.substr(space + 1), refuse));
    }
    State state{Bpe{std::move(vocab), merges, {.ignore_merges = pre->ignore_merges, .byte_level = true}}};
    if (pre->nfc) state.normalizer.steps.emplace_back(unicode::NormalForm::nfc);
    if (pre->digits) state.pre_tokenizer.steps.emplace_back(SplitDigits{true});
    set_byte_level_steps(state, pre->pattern);
    for (const ScoredPiece& piece : pieces)
        if (piece.type == ScoredPiece::control || piece.type == ScoredPiece::user_defined)
            state.add({.content = piece.text, .normalized = false, .special = piece.type == ScoredPiece::control});
    return state;
}

/// The tokenizer that a file's metadata describe. Throws FormatError, or ConfigError for a value that is missing.
template <class State = TokenizerState>
State gguf_state(const Gguf& gguf) {
    const std::string_view   kind = gguf.get("tokenizer.ggml.model").text();
    std::vector<ScoredPiece> pieces = gguf_pieces(gguf);
    const auto flag = [&](const char* key, bool fallback) { return gguf.has(key) ? gguf.get(key).flag() : fallback; };
    const auto named = [&](const char* key) -> std::optional<std::int32_t> {
        if (!gguf.has(key)) return std::nullopt;
        const std::int64_t id = gguf.get(key).integer();
        if (id < 0 || id >= static_cast<std::int64_t>(pieces.size()))
            throw FormatError{gguf.file(), 0,
                              std::string(key) + " is " + std::to_string(id) + ", and no token has that id"};
        return static_cast<std::int32_t>(id);
    };
    const auto make = [&] {
        if (kind == "gpt2") return gguf_byte_level_state<State>(gguf, pieces);
        if (kind != "llama")
            throw FormatError{gguf.file(), 0, "tokenizer.ggml.model '" + std::string(kind) + "' is not supported"};
        const auto         n_bytes = std::count_if(pieces.begin(), pieces.end(),
                                                   [](const ScoredPiece& p) { return p.type == ScoredPiece::byte; });
        SentencePieceModel model{.pieces = pieces, .byte_fallback = n_bytes == 256};
        model.add_dummy_prefix = flag("tokenizer.ggml.add_space_prefix", true);
        model.remove_extra_whitespaces = flag("tokenizer.ggml.remove_extra_whitespaces", false);
        check_pieces(model, gguf.file());
        return sentencepiece_state<State>(model, gguf.file());
    };
    State state = make();
    state.bos = named("tokenizer.ggml.bos_token_id"), state.eos = named("tokenizer.ggml.eos_token_id");
    state.pad = named("tokenizer.ggml.padding_token_id");
    if (const auto unk = named("tokenizer.ggml.unknown_token_id")) state.unk = unk;
    const bool begins =
        kind == "llama" || (gguf.has("tokenizer.ggml.pre") && gguf.get("tokenizer.ggml.pre").text() == "llama-bpe");
    state.prefix.clear(), state.suffix.clear();
    if (state.bos && flag("tokenizer.ggml.add_bos_token", begins)) state.prefix = {*state.bos};
    if (state.eos && flag("tokenizer.ggml.add_eos_token", false)) state.suffix = {*state.eos};
    state.prepare();
    return state;
}

}  // namespace prism::detail
