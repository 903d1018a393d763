// Tokenizer: text to token ids and back, with the ids that the reference software gives.
//
//     auto tokenizer = prism::Tokenizer::open("llama2-7b");           // or tokenizer.model, tokenizer.json, a .gguf
//     auto ids       = tokenizer.encode("In: What is this?\nOut:");   // 1, 512, 29901, ...
//     auto text      = tokenizer.decode(ids);
//
// While a model writes:
//
//     auto stream = tokenizer.stream({.stop = {"\n"}});
//     while (!stream.stopped()) std::cout << stream.push(next_id());
//     std::cout << stream.finish();
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/file.hpp"
#include "prism/io/gguf.hpp"
#include "prism/io/json.hpp"
#include "prism/text/piece.hpp"
#include "prism/text/sentencepiece.hpp"
#include "prism/text/tokenizer_gguf.hpp"
#include "prism/text/tokenizer_files.hpp"
#include "prism/text/tokenizer_json.hpp"
#include "prism/text/tokenizer_state.hpp"
#include "prism/text/unicode.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace prism {

struct EncodeOptions {
    bool add_special = true;     // BOS and whatever else the post-processor puts around a text
    bool parse_special = false;  // text that spells a control token is that token; never for text from a user
    bool strict = false;         // ill-formed UTF-8 is a FormatError; otherwise it becomes U+FFFD as in Python
};

struct DecodeOptions {
    bool                     skip_special = true;  // leave control tokens out of the text
    std::optional<bool>      clean_up{};           // clean_up_tokenization_spaces; unset: as the tokenizer's files say
    std::vector<std::string> stop{};               // the text ends before the first of these
};

/// What a control token is for.
enum class SpecialRole { none, bos, eos, pad, unk };

/// What a tokenizer was made of: files, and the tokens that were added afterwards, in that order. It is enough to make
/// an equal one.
struct TokenizerOrigin {
    struct Added {
        std::string content;
        SpecialRole role = SpecialRole::none;
        bool        operator==(const Added&) const = default;
    };
    TokenizerFiles     files{};
    std::vector<Added> added{};
};

/// Turns ids into text one by one. Gives out whole characters only, and nothing that later ids could still change, so
/// that all it gives out, joined, is what decode() gives for the whole sequence. Runs of byte tokens are therefore held
/// until they end: one ill-formed byte makes the reference replace the whole run.
class TextStream {
public:
    /// The text that has become certain with this id; often empty.
    std::string push(std::int32_t id) {
        std::string text;
        if (stopped()) return text;
        const std::string_view token = state_->token(id);
        if (token.empty() || (skip_special_ && state_->added.is_special(token))) return text;
        std::string raw;
        decoder_.put(token, raw);
        pass(raw, text);
        return text;
    }
    /// The text that was held back, after the last id.
    std::string finish() {
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
    /// Whether a stop string has come. Ids after it give no text.
    bool stopped() const { return stop_.stopped(); }

private:
    friend class Tokenizer;
    TextStream(std::shared_ptr<const detail::TokenizerState> state, DecodeOptions options)
        : state_(std::move(state)), decoder_(state_->decoder), stop_(std::move(options.stop)),
          skip_special_(options.skip_special) {
        if (options.clean_up.value_or(state_->clean_up)) clean_up_.emplace();
    }
    void pass(const std::string& raw, std::string& text) {
        if (!clean_up_) return stop_.put(raw, text);
        std::string cleaned;
        clean_up_->put(raw, cleaned);
        stop_.put(cleaned, text);
    }

    std::shared_ptr<const detail::TokenizerState> state_;
    detail::Decoder                               decoder_;
    std::optional<detail::CleanUp>                clean_up_;
    detail::StopStrings                           stop_;
    bool                                          skip_special_;
};

/// A vocabulary and the rules around it. A value: copies share what they know. Const methods may run in many threads.
class Tokenizer {
public:
    /// From a folder: tokenizer.json, else tokenizer.model, else vocab.json with merges.txt, and the settings beside
    /// them (tokenizer_config.json, special_tokens_map.json, added_tokens.json) with the effect that they have on the
    /// fast classes of transformers. From a file: tokenizer.json, tokenizer.model or GGUF alone, known by their
    /// contents. Throws LoadError when there is nothing to read, FormatError for what is malformed or of a kind not
    /// known here.
    static Tokenizer open(const std::filesystem::path& folder_or_file) {
        std::error_code none;
        if (std::filesystem::is_directory(folder_or_file, none)) return from({.files = TokenizerFiles::in(folder_or_file)});
        return from_file(MappedFile::open(folder_or_file));
    }

    /// From what another one was made of. Throws the same.
    static Tokenizer from(TokenizerOrigin origin) {
        auto      added = std::exchange(origin.added, {});
        Tokenizer tokenizer{state_of(origin.files), std::move(origin)};
        for (const auto& token : added) tokenizer.add_special(token.content, token.role);
        return tokenizer;
    }

    /// From the bytes of such a file; `name` stands in messages. Throws FormatError.
    static Tokenizer from_bytes(std::string_view bytes, const std::string& name) {
        const auto view = std::as_bytes(std::span{bytes});
        return from_file(MappedFile::of({view.begin(), view.end()}, name));
    }

    /// The ids of a text.
    std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options = {}) const {
        const std::string whole = checked(text, options);
        return around(options, [&](auto& ids) { encode_marked(whole, {}, !options.parse_special, ids); });
    }

    /// The ids of a prompt made of trusted and untrusted text: those of the joined text with `parse_special`, except
    /// that a control token is recognised only where every character of it is trusted. `parse_special` is not looked
    /// at.
    std::vector<std::int32_t> encode(std::span<const Piece> pieces, EncodeOptions options = {}) const {
        std::string whole, marks;
        for (const Piece& piece : pieces) {
            whole += checked(piece.text, options);  // piece by piece: half a character cannot swallow what follows
            marks.resize(whole.size(), piece.trusted ? '\0' : '\1');
        }
        return around(options, [&](auto& ids) { encode_marked(whole, marks, false, ids); });
    }

    /// The text of a sequence. Ids that no token has give nothing.
    std::string decode(std::span<const std::int32_t> ids, DecodeOptions options = {}) const {
        TextStream  text = stream(std::move(options));
        std::string whole;
        for (const std::int32_t id : ids) whole += text.push(id);
        return whole += text.finish();
    }
    TextStream stream(DecodeOptions options = {}) const { return {state_, std::move(options)}; }

    std::optional<std::int32_t> bos_id() const { return state_->bos; }
    std::optional<std::int32_t> eos_id() const { return state_->eos; }
    std::optional<std::int32_t> pad_id() const { return state_->pad; }
    std::optional<std::int32_t> unk_id() const { return state_->unk; }

    /// The id of a token, written as the vocabulary writes it ("\xe2\x96\x81the" in SentencePiece's).
    std::optional<std::int32_t> id(std::string_view token) const { return state_->id(token); }
    /// Empty for an id that no token has. Valid until the next add_special.
    std::string_view token(std::int32_t id) const { return state_->token(id); }
    /// How many tokens there are, added ones included: len(tokenizer) in Python.
    std::size_t size() const {
        return state_->bpe.vocabulary().size() + state_->added.beyond(state_->bpe.vocabulary());
    }

    /// What it was made of. Files that were mapped stay mapped as long as the tokenizer is there.
    const TokenizerOrigin& origin() const { return *origin_; }

    /// Makes `content` a control token and gives it a role: Prismatic adds <PAD> so. A text that is a token already
    /// keeps its id, another one gets the next. Streams that are open keep to what was before. Throws ConfigError when
    /// empty.
    std::int32_t add_special(const std::string& content, SpecialRole role = SpecialRole::none) {
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

private:
    Tokenizer(detail::TokenizerState state, TokenizerOrigin origin)
        : state_(std::make_shared<const detail::TokenizerState>(std::move(state))), origin_(std::make_shared<const TokenizerOrigin>(std::move(origin))) {}

    static Tokenizer from_file(std::shared_ptr<const MappedFile> file) {
        TokenizerOrigin origin{.files = {.where = file->path()}};
        origin.files.files.emplace(TokenizerFiles::alone, std::move(file));
        return from(std::move(origin));
    }

    static detail::TokenizerState state_of(const TokenizerFiles& files) {
        if (const auto file = files.find(TokenizerFiles::alone)) return read(file);
        const detail::TokenizerSettings settings{files};
        // Where the settings speak of a prefix space, transformers converts the SentencePiece file anew.
        const bool no_prefix = settings.known_class().llama && !settings.root().flag("add_prefix_space", true);
        auto       state = [&] {
            if (files.has("tokenizer.json") && !(no_prefix && files.has("tokenizer.model"))) return read(files.find("tokenizer.json"));
            if (files.has("tokenizer.model")) return read(files.find("tokenizer.model"), !no_prefix);
            if (files.has("vocab.json") && files.has("merges.txt")) return detail::vocab_and_merges_state(files, settings);
            throw LoadError{files.where, "holds no tokenizer.json, no tokenizer.model, and not vocab.json with merges.txt"};
        }();
        settings.apply(state);
        return state;
    }

    static detail::TokenizerState read(const std::shared_ptr<const MappedFile>& file, bool dummy_prefix = true) {
        const std::string_view bytes = detail::text_of(*file);
        if (bytes.starts_with("GGUF")) return detail::gguf_state(Gguf{file});
        const std::size_t first = bytes.find_first_not_of(" \t\r\n");
        if (first != std::string_view::npos && bytes[first] == '{')
            return detail::tokenizer_json_state(parse_json(bytes, file->path()), file->path());
        detail::SentencePieceModel model = detail::parse_sentencepiece(bytes, file->path());
        model.add_dummy_prefix &= dummy_prefix;
        return detail::sentencepiece_state(model, file->path());
    }

    /// Well-formed text, as the options ask for it.
    static std::string checked(std::string_view text, const EncodeOptions& options) {
        const std::size_t bad = unicode::first_ill_formed(text);
        if (bad == text.size()) return std::string(text);
        if (options.strict) throw FormatError{"text", bad, "not UTF-8"};
        return unicode::well_formed(text);
    }

    template <class Encode>
    std::vector<std::int32_t> around(const EncodeOptions& options, Encode&& encode_text) const {
        std::vector<std::int32_t> ids;
        if (options.add_special) ids = state_->prefix;
        encode_text(ids);
        if (options.add_special) ids.insert(ids.end(), state_->suffix.begin(), state_->suffix.end());
        return ids;
    }

    /// Appends the ids of a well-formed text. Added tokens are cut out of the raw text, then out of what the normaliser
    /// makes of each part between; the rest is cut into pieces and merged. Marks as in AddedTokens::split.
    void encode_marked(std::string_view text, std::string_view marks, bool all_marked,
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

    std::shared_ptr<const detail::TokenizerState> state_;
    std::shared_ptr<const TokenizerOrigin>        origin_;
};

}  // namespace prism
