// LlavaExamples: conversations and pictures in folders, as the loader reads them.
//
//     const prism::LlavaExamples examples{"chat.json", "images/", tokenizer,
//                                         {.format = prism::prompt_format::pure(), .transforms = vlm.transforms()}};
// Any other source of examples has the same members: see ExampleSource.
#pragma once

#include "prism/image/pixel_reader.hpp"
#include "prism/text/tokenizer.hpp"
#include "prism/train/data/batch.hpp"
#include "prism/train/data/conversations.hpp"

#include <concepts>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace prism {

/// Where a loader gets examples from. All is const and called from several threads at once; an example that cannot be
/// used is an ExampleError. `read_picture` fills one [3, S, S] for each of `transforms()`.
template <class S>
concept ExampleSource = requires(const S& source, std::size_t i, PixelReader& reader, std::span<const TowerPixels> towers) {
    { source.sizes() } -> std::convertible_to<std::span<const ExampleSize>>;
    { source.transforms() } -> std::convertible_to<std::span<const ImageTransform>>;
    { source.tokens(i) } -> std::same_as<TokenRow>;
    { source.name(i) } -> std::same_as<std::string>;  // for messages
    source.read_picture(i, reader, towers);
};

namespace detail {

/// The names of examples, for a message.
template <ExampleSource S>
std::string names_of(const S& source, std::span<const std::size_t> examples) {
    std::string names;
    for (const std::size_t i : examples) names.append(names.empty() ? "" : "; ").append(source.name(i));
    return names;
}

}  // namespace detail

struct LlavaOptions {
    PromptFormat                format;
    std::vector<ImageTransform> transforms;         // one a tower
    std::size_t                 max_tokens = 2048;  // llm_max_length: what is longer is cut off
    bool                        captions = false;   // the alignment stage: answers alone
    BadExamples                 bad = BadExamples::refuse;
};

class LlavaExamples {
public:
    /// Throws what ConversationFile::open does. Pictures are looked at when they are read.
    LlavaExamples(const std::filesystem::path& annotations, std::filesystem::path pictures, Tokenizer tokenizer, LlavaOptions options)
        : file_(ConversationFile::open(annotations, {.bad = options.bad, .captions = options.captions})), pictures_(std::move(pictures)),
          tokenizer_(std::move(tokenizer)), options_(std::move(options)) {}

    const ConversationFile&         file() const { return file_; }
    std::span<const ExampleSize>    sizes() const { return file_.sizes(); }
    std::span<const ImageTransform> transforms() const { return options_.transforms; }

    std::string                     name(std::size_t i) const { return file_.path() + ": example " + std::to_string(file_.row(i)); }

    TokenRow tokens(std::size_t i) const {
        const Conversation c = file_[i];
        if (options_.captions) return caption_row(tokenizer_, options_.format, c.turns[1].text, options_.max_tokens);
        return conversation_row(tokenizer_, options_.format, c.turns, c.picture.has_value(), options_.max_tokens);
    }
    void read_picture(std::size_t i, PixelReader& reader, std::span<const TowerPixels> towers) const {
        try {
            reader.read(pictures_ / file_[i].picture.value(), towers);
        } catch (const Error& e) { throw ExampleError{file_.path(), file_.row(i), "image", std::string("cannot be used: ") + e.what()}; }
    }

private:
    ConversationFile      file_;
    std::filesystem::path pictures_;
    Tokenizer             tokenizer_;
    LlavaOptions          options_;
};

}  // namespace prism
