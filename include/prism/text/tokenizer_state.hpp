// What a tokenizer consists of, whichever file it came from.
#pragma once

#include "prism/text/added_tokens.hpp"
#include "prism/text/bpe.hpp"
#include "prism/text/decode.hpp"
#include "prism/text/normalize.hpp"
#include "prism/text/pretokenize.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace prism::detail {

struct TokenizerState {
    template <class = void>
    explicit TokenizerState(Bpe model) : bpe(std::move(model)) {}

    Bpe                         bpe;
    AddedTokens                 added;
    Normalizer                  normalizer;
    PreTokenizer                pre_tokenizer;
    std::vector<std::int32_t>   prefix, suffix;  // what the post-processor puts around a text
    std::vector<DecodeStep>     decoder;
    bool                        clean_up = false;  // clean_up_tokenization_spaces
    std::optional<std::int32_t> bos, eos, pad, unk;

    std::optional<std::int32_t> id(std::string_view token) const { return added.find(token, bpe.vocabulary()); }
    std::string_view            token(std::int32_t id) const {
                   const AddedToken* token = added.token(id);
                   return token ? std::string_view(token->content) : bpe.vocabulary().token(id);
    }
    /// Adds a token; `prepare` makes it known to encoding.
    template <class = void>
    std::int32_t add(const AddedToken& token) { return added.add(token, bpe.vocabulary()); }
    template <class = void>
    void prepare() { added.prepare(bpe.vocabulary(), normalizer); }
};

/// The steps of the Llama family: U+2581 for spaces if `escape`, one before the text if `prefix`.
template <class State>
void set_llama_steps(State& state, bool prefix, bool escape = true) {
    if (prefix) state.normalizer.steps.emplace_back(PrependText{escape ? std::string(metaspace) : " "});
    if (escape) state.normalizer.steps.emplace_back(ReplaceText{" ", std::string(metaspace)});
    state.decoder = {ReplaceOut{std::string(metaspace), " "}, ByteFallbackOut{}, FuseOut{}};
    if (prefix) state.decoder.emplace_back(StripOut{" ", 1, 0});
}

/// The steps of the byte-level family.
template <class State>
void set_byte_level_steps(State& state, SplitPattern::Pattern pattern) {
    state.pre_tokenizer.steps.emplace_back(SplitPattern{pattern});
    state.pre_tokenizer.steps.emplace_back(ByteLevelPieces{});
    state.decoder = {ByteLevelOut{}};
}

/// A tokenizer from SentencePiece's vocabulary, wherever that was stored, as transformers' LlamaTokenizerFast has it:
/// each segment between control tokens gets its own dummy prefix. Throws FormatError.
template <class State = TokenizerState>
State sentencepiece_state(const SentencePieceModel& model, const std::string& file) {
    State state{Bpe{model, file}};
    if (model.remove_extra_whitespaces)
        state.normalizer.steps.emplace_back(CollapseSpaces{std::string(model.escape_whitespaces ? metaspace : "")});
    set_llama_steps(state, model.add_dummy_prefix, model.escape_whitespaces);
    for (const ScoredPiece& piece : model.pieces)
        if (piece.type == ScoredPiece::unknown || piece.type == ScoredPiece::control)
            state.add({.content = piece.text, .normalized = false, .special = true});
    const auto named = [&](std::int32_t id) {
        return id >= 0 && static_cast<std::size_t>(id) < model.pieces.size() ? std::optional(id) : std::nullopt;
    };
    state.unk = state.bpe.options().unk;
    state.bos = named(model.bos_id), state.eos = named(model.eos_id), state.pad = named(model.pad_id);
    if (state.bos) state.prefix = {*state.bos};
    state.prepare();
    return state;
}

}  // namespace prism::detail
