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

#include "prism/io/file.hpp"
#include "prism/text/decode.hpp"
#include "prism/text/piece.hpp"
#include "prism/text/tokenizer_files.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prism {

namespace detail {
struct TokenizerState;
}

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
    template <class = void>
    std::string push(std::int32_t id);
    /// The text that was held back, after the last id.
    template <class = void>
    std::string finish();
    /// Whether a stop string has come. Ids after it give no text.
    bool stopped() const { return stop_.stopped(); }

private:
    friend class Tokenizer;
    template <class = void>
    TextStream(std::shared_ptr<const detail::TokenizerState> state, DecodeOptions options);
    template <class = void>
    void pass(const std::string& raw, std::string& text);

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
    template <class = void>
    static Tokenizer open(const std::filesystem::path& folder_or_file);

    /// From what another one was made of. Throws the same.
    template <class = void>
    static Tokenizer from(TokenizerOrigin origin);

    /// From the bytes of such a file; `name` stands in messages. Throws FormatError.
    template <class = void>
    static Tokenizer from_bytes(std::string_view bytes, const std::string& name);

    /// The ids of a text.
    template <class = void>
    std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options = {}) const;

    /// The ids of a prompt made of trusted and untrusted text: those of the joined text with `parse_special`, except
    /// that a control token is recognised only where every character of it is trusted. `parse_special` is not looked
    /// at.
    template <class = void>
    std::vector<std::int32_t> encode(std::span<const Piece> pieces, EncodeOptions options = {}) const;

    /// The text of a sequence. Ids that no token has give nothing.
    template <class = void>
    std::string decode(std::span<const std::int32_t> ids, DecodeOptions options = {}) const;
    template <class = void>
    TextStream stream(DecodeOptions options = {}) const;

    template <class = void>
    std::optional<std::int32_t> bos_id() const;
    template <class = void>
    std::optional<std::int32_t> eos_id() const;
    template <class = void>
    std::optional<std::int32_t> pad_id() const;
    template <class = void>
    std::optional<std::int32_t> unk_id() const;

    /// The id of a token, written as the vocabulary writes it ("\xe2\x96\x81the" in SentencePiece's).
    template <class = void>
    std::optional<std::int32_t> id(std::string_view token) const;
    /// Empty for an id that no token has. Valid until the next add_special.
    template <class = void>
    std::string_view token(std::int32_t id) const;
    /// How many tokens there are, added ones included: len(tokenizer) in Python.
    template <class = void>
    std::size_t size() const;

    /// What it was made of. Files that were mapped stay mapped as long as the tokenizer is there.
    const TokenizerOrigin& origin() const { return *origin_; }

    /// Makes `content` a control token and gives it a role: Prismatic adds <PAD> so. A text that is a token already
    /// keeps its id, another one gets the next. Streams that are open keep to what was before. Throws ConfigError when
    /// empty.
    template <class = void>
    std::int32_t add_special(const std::string& content, SpecialRole role = SpecialRole::none);

private:
    template <class = void>
    Tokenizer(detail::TokenizerState state, TokenizerOrigin origin);

    template <class = void>
    static Tokenizer from_file(std::shared_ptr<const MappedFile> file);

    template <class = void>
    static detail::TokenizerState state_of(const TokenizerFiles& files);

    template <class = void>
    static detail::TokenizerState read(const std::shared_ptr<const MappedFile>& file, bool dummy_prefix = true);

    /// Well-formed text, as the options ask for it.
    template <class = void>
    static std::string checked(std::string_view text, const EncodeOptions& options);

    template <class Encode>
    std::vector<std::int32_t> around(const EncodeOptions& options, Encode&& encode_text) const;

    /// Appends the ids of a well-formed text. Added tokens are cut out of the raw text, then out of what the normaliser
    /// makes of each part between; the rest is cut into pieces and merged. Marks as in AddedTokens::split.
    template <class = void>
    void encode_marked(std::string_view text, std::string_view marks, bool all_marked, std::vector<std::int32_t>& ids) const;

    std::shared_ptr<const detail::TokenizerState> state_;
    std::shared_ptr<const TokenizerOrigin>        origin_;
};

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/text/tokenizer.inl"
#endif
