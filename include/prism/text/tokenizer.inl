// What tokenizer.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/file.hpp"
#include "prism/io/gguf.hpp"
#include "prism/io/json.hpp"
#include "prism/text/sentencepiece.hpp"
#include "prism/text/tokenizer.hpp"
#include "prism/text/tokenizer_gguf.hpp"
#include "prism/text/tokenizer_json.hpp"
#include "prism/text/tokenizer_state.hpp"
#include "prism/text/unicode.hpp"

#include <system_error>
#include <utility>

namespace prism {

template <class>
std::string TextStream::push(std::int32_t id) {
    std::string text;
    if (stopped()) return text;
    const std::string_view token = state_->token(id);
    if (token.empty() || (skip_special_ && state_->added.is_special(token))) return text;
    std::string raw;
    decoder_.put(token, raw);
    pass(raw, text);
    return text;
}

template <class>
std::string TextStream::finish() {
    std::string raw, text;
    decoder_.finish(raw);
    pass(raw, text);
    if (clean_up_) {
        std::string cleaned;
        clean_up_->finish(cleaned);
        stop_.put(cleaned, text);
    }
    stop_.finish(text);
    return text;
}

template <class>
TextStream::TextStream(std::shared_ptr<const detail::TokenizerState> state, DecodeOptions options)
    : state_(std::move(state)), decoder_(state_->decoder), stop_(std::move(options.stop)),
      skip_special_(options.skip_special) {
    if (options.clean_up.value_or(state_->clean_up)) clean_up_.emplace();
}

template <class>
void TextStream::pass(const std::string& raw, std::string& text) {
    if (!clean_up_) return stop_.put(raw, text);
    std::string cleaned;
    clean_up_->put(raw, cleaned);
    stop_.put(cleaned, text);
}

template <class>
Tokenizer Tokenizer::open(const std::filesystem::path& folder_or_file) {
    std::error_code none;
    if (std::filesystem::is_directory(folder_or_file, none)) return from({.files = TokenizerFiles::in(folder_or_file)});
    return from_file(MappedFile::open(folder_or_file));
}

template <class>
Tokenizer Tokenizer::from(TokenizerOrigin origin) {
    auto      added = std::exchange(origin.added, {});
    Tokenizer tokenizer{state_of(origin.files), std::move(origin)};
    for (const auto& token : added) tokenizer.add_special(token.content, token.role);
    return tokenizer;
}

template <class>
Tokenizer Tokenizer::from_bytes(std::string_view bytes, const std::string& name) {
    const auto view = std::as_bytes(std::span{bytes});
    return from_file(MappedFile::of({view.begin(), view.end()}, name));
}

template <class>
std::vector<std::int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
    const std::string whole = checked(text, options);
    return around(options, [&](auto& ids) { encode_marked(whole, {}, !options.parse_special, ids); });
}

template <class>
std::vector<std::int32_t> Tokenizer::encode(std::span<const Piece> pieces, EncodeOptions options) const {
    std::string whole, marks;
    for (const Piece& piece : pieces) {
        whole += checked(piece.text, options);  // piece by piece: half a character cannot swallow what follows
        marks.resize(whole.size(), piece.trusted ? '\0' : '\1');
    }
    return around(options, [&](auto& ids) { encode_marked(whole, marks, false, ids); });
}

template <class>
std::string Tokenizer::decode(std::span<const std::int32_t> ids, DecodeOptions options) const {
    TextStream  text = stream(std::move(options));
    std::string whole;
    for (const std::int32_t id : ids) whole += text.push(id);
    return whole += text.finish();
}

template <class>
TextStream Tokenizer::stream(DecodeOptions options) const { return {state_, std::move(options)}; }

template <class>
std::optional<std::int32_t> Tokenizer::bos_id() const { return state_->bos; }

template <class>
std::optional<std::int32_t> Tokenizer::eos_id() const { return state_->eos; }

template <class>
std::optional<std::int32_t> Tokenizer::pad_id() const { return state_->pad; }

template <class>
std::optional<std::int32_t> Tokenizer::unk_id() const { return state_->unk; }

template <class>
std::optional<std::int32_t> Tokenizer::id(std::string_view token) const { return state_->id(token); }

template <class>
std::string_view Tokenizer::token(std::int32_t id) const { return state_->token(id); }

template <class>
std::size_t Tokenizer::size() const {
    return state_->bpe.vocabulary().size() + state_->added.beyond(state_->bpe.vocabulary());
}

template <class>
std::int32_t Tokenizer::add_special(const std::string& content, SpecialRole role) {
    if (content.empty()) throw ConfigError{"content", "''", "the text of a token"};
    auto               state = std::make_shared<detail::TokenizerState>(*state_);
    const std::int32_t id = state->add({.content = content, .normalized = false, .special = true});
    switch (role) {
        case SpecialRole::none: break;
        case SpecialRole::bos: state->bos = id; break;
        case SpecialRole::eos: state->eos = id; break;
        case SpecialRole::pad: state->pad = id; break;
        case SpecialRole::unk: state->unk = id; break;
    }
    state->prepare();
    auto origin = std::make_shared<TokenizerOrigin>(*origin_);
    if (const TokenizerOrigin::Added token{content, role}; origin->added.empty() || origin->added.back() != token) origin->added.push_back(token);
    state_ = std::move(state), origin_ = std::move(origin);
    return id;
}

template <class>
Tokenizer::Tokenizer(detail::TokenizerState state, TokenizerOrigin origin)
    : state_(std::make_shared<const detail::TokenizerState>(std::move(state))), origin_(std::make_shared<const TokenizerOrigin>(std::move(origin))) {}

template <class>
Tokenizer Tokenizer::from_file(std::shared_ptr<const MappedFile> file) {
    TokenizerOrigin origin{.files = {.where = file->path()}};
    if (detail::text_of(*file).starts_with("GGUF")) file = Gguf{file}.without_tensors();  // a model may lie around the vocabulary
    origin.files.files.emplace(TokenizerFiles::alone, std::move(file));
    return from(std::move(origin));
}

template <class>
detail::TokenizerState Tokenizer::state_of(const TokenizerFiles& files) {
    if (const auto file = files.find(TokenizerFiles::alone)) return read(file);
    const detail::TokenizerSettings settings{files};
    auto                            state = [&] {
        if (files.has("tokenizer.json") && !settings.converts(files)) return read(files.find("tokenizer.json"));
        if (files.has("tokenizer.model")) return read(files.find("tokenizer.model"), settings.prefix_space(files));
        if (files.has("vocab.json") && files.has("merges.txt")) return detail::vocab_and_merges_state(files, settings);
        throw LoadError{files.where, "holds no tokenizer.json, no tokenizer.model, and not vocab.json with merges.txt"};
    }();
    settings.apply(state);
    return state;
}

template <class>
detail::TokenizerState Tokenizer::read(const std::shared_ptr<const MappedFile>& file, bool dummy_prefix) {
    const std::string_view bytes = detail::text_of(*file);
    if (bytes.starts_with("GGUF")) {
        const Gguf gguf{file};
        try {
            return detail::gguf_state(gguf);
        } catch (const ConfigError& e) { throw FormatError{file->path(), 0, "no vocabulary that can be used: '" + e.key + "' is " + (e.value.empty() ? "missing" : e.value) + "; allowed: " + e.allowed}; }
    }
    const std::size_t first = bytes.find_first_not_of(" \t\r\n");
    if (first != std::string_view::npos && bytes[first] == '{')
        return detail::tokenizer_json_state(parse_json(bytes, file->path()), file->path());
    detail::SentencePieceModel model = detail::parse_sentencepiece(bytes, file->path());
    model.add_dummy_prefix &= dummy_prefix;
    return detail::sentencepiece_state(model, file->path());
}

template <class>
std::string Tokenizer::checked(std::string_view text, const EncodeOptions& options) {
    const std::size_t bad = unicode::first_ill_formed(text);
    if (bad == text.size()) return std::string(text);
    if (options.strict) throw FormatError{"text", bad, "not UTF-8"};
    return unicode::well_formed(text);
}

template <class Encode>
std::vector<std::int32_t> Tokenizer::around(const EncodeOptions& options, Encode&& encode_text) const {
    std::vector<std::int32_t> ids;
    if (options.add_special) ids = state_->prefix;
    encode_text(ids);
    if (options.add_special) ids.insert(ids.end(), state_->suffix.begin(), state_->suffix.end());
    return ids;
}

template <class>
void Tokenizer::encode_marked(std::string_view text, std::string_view marks, bool all_marked,
                   std::vector<std::int32_t>& ids) const {
    using Stage = detail::AddedTokens::Stage;
    const auto&          state = *state_;
    detail::Bpe::Scratch scratch;
    const auto           found = [&](std::int32_t id) { ids.push_back(id); };
    const bool           keep_marks = state.added.special_after_normalizing() && !marks.empty();
    state.added.split(
        Stage::raw, text, marks, all_marked,
        [&](std::size_t begin, std::size_t end) {
            std::string segment(text.substr(begin, end - begin));
            std::string segment_marks(keep_marks ? marks.substr(begin, end - begin) : std::string_view{});
            state.normalizer(segment, segment_marks);
            state.added.split(
                Stage::normalized, segment, segment_marks, all_marked,
                [&](std::size_t first, std::size_t last) {
                    const auto part = std::string_view(segment).substr(first, last - first);
                    state.pre_tokenizer(part, begin == 0 && first == 0,
                                        [&](std::string_view piece) { state.bpe.encode(piece, scratch, ids); });
                },
                found);
        },
        found);
}

}  // namespace prism
