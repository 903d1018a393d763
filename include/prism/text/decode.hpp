// From tokens back to text: the steps of a decoder, each a filter that works on a stream.
//
// A decoder maps a list of strings (the tokens) to a list of strings; the text is that list joined. Here strings flow
// through the steps in chunks of whole characters, so that a token's text comes out as soon as nothing that follows can
// change it. Decoding a whole sequence is the same flow, so that both give the same text.
// Source: huggingface/tokenizers, src/decoders/*.rs and src/pre_tokenizers/{byte_level,metaspace}.rs.
#pragma once

#include "prism/text/byte_alphabet.hpp"
#include "prism/text/unicode.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace prism::detail {

inline constexpr std::string_view replacement_utf8 = "\xef\xbf\xbd";

/// Part of a string of the list, from its beginning if `begins`, to its end if `ends`.
struct Chunk {
    std::string_view text;
    bool             begins = true, ends = true;
};

/// The length of the longest end of `text` that is a proper beginning of `pattern`.
inline std::size_t overlap(std::string_view text, std::string_view pattern) {
    for (std::size_t n = std::min(text.size(), pattern.size() - 1); n > 0; --n)
        if (text.ends_with(pattern.substr(0, n))) return n;
    return 0;
}

/// Replaces a pattern, which is not empty, in each string.
struct ReplaceOut {
    std::string pattern, content;
    std::string held{};  // the end of a string that goes on, where the pattern may have begun

    template <class Next>
    void put(Chunk in, Next next) {
        const std::string text = std::exchange(held, {}).append(in.text);
        std::string       out;
        std::size_t       at = 0;
        for (std::size_t found; (found = text.find(pattern, at)) != std::string::npos; at = found + pattern.size())
            out.append(text, at, found - at).append(content);
        const std::size_t keep = in.ends ? 0 : overlap(std::string_view(text).substr(at), pattern);
        out.append(text, at, text.size() - keep - at);
        held = text.substr(text.size() - keep);
        next(Chunk{out, in.begins, in.ends});
    }
    template <class Next>
    void finish(Next) {}
};

/// Joins runs of strings <0xXX>: well-formed ones become text, in others every byte becomes U+FFFD.
struct ByteFallbackOut {
    std::string run{};

    template <class Next>
    void put(Chunk in, Next next) {
        const auto byte = value(in);
        if (byte) {
            run += static_cast<char>(*byte);
            return;
        }
        finish(next);
        next(in);
    }
    template <class Next>
    void finish(Next next) {
        if (run.empty()) return;
        if (unicode::is_utf8(run)) next(Chunk{run});
        else
            for (std::size_t i = 0; i < run.size(); ++i) next(Chunk{replacement_utf8});
        run.clear();
    }
    static std::optional<std::uint8_t> value(Chunk in) {
        const std::string_view t = in.text;
        if (!in.begins || !in.ends || t.size() != 6 || !t.starts_with("<0x") || t[5] != '>') return std::nullopt;
        std::uint8_t byte = 0;
        const auto [end, error] = std::from_chars(t.data() + 3, t.data() + 5, byte, 16);
        return error == std::errc{} && end == t.data() + 5 ? std::optional(byte) : std::nullopt;
    }
};

/// Makes one string of all.
struct FuseOut {
    bool begun = false;

    template <class Next>
    void put(Chunk in, Next next) {
        next(Chunk{in.text, !std::exchange(begun, true), false});
    }
    template <class Next>
    void finish(Next next) {
        next(Chunk{{}, !begun, true});
    }
};

/// Takes up to `start` times `content` off the front of each string, up to `stop` times off its back.
struct StripOut {
    std::string content;
    std::size_t start = 0, stop = 0;
    std::size_t stripped = 0;  // off the front of the current string; `start` once it shows something else
    std::size_t held = 0;      // times `content` at the end of what has come, not yet passed on

    template <class Next>
    void put(Chunk in, Next next) {
        if (in.begins) stripped = held = 0;
        for (; stripped < start && in.text.starts_with(content); ++stripped) in.text.remove_prefix(content.size());
        if (!in.text.empty()) stripped = start;
        if (stop == 0) return next(in);

        std::string text;
        for (; held > 0; --held) text += content;
        text += in.text;
        while (held < stop && text.ends_with(content)) text.resize(text.size() - content.size()), ++held;
        next(Chunk{text, in.begins, in.ends});
    }
    template <class Next>
    void finish(Next) {}
};

/// Turns the byte alphabet into bytes, and these into text with one U+FFFD for each maximal ill-formed part.
struct ByteLevelOut {
    bool        begun = false;
    std::string held{};  // the beginning of a character

    template <class Next>
    void put(Chunk in, Next next) {
        const std::size_t before = held.size();
        for (std::size_t at = 0; at < in.text.size();) {
            const unicode::Char c = unicode::decode(in.text, at);
            const auto          byte = letter_byte(c.code);
            if (!byte) {  // one foreign character, and the string stands for itself
                held.resize(before);
                held += in.text;
                break;
            }
            held += static_cast<char>(*byte);
            at += c.bytes;
        }
        emit(false, next);
    }
    template <class Next>
    void finish(Next next) {
        emit(true, next);
    }

private:
    template <class Next>
    void emit(bool last, Next& next) {
        std::string out;
        std::size_t at = 0;
        while (at < held.size()) {
            const unicode::Char c = unicode::decode(held, at);
            if (c.cut_short && !last) break;
            if (c.valid) out.append(held, at, c.bytes);
            else out += replacement_utf8;
            at += c.bytes;
        }
        held.erase(0, at);
        next(Chunk{out, !std::exchange(begun, true), last});
    }
};

/// Turns the replacement character into a space; in the first string it is dropped, unless nothing was put there.
struct MetaspaceOut {
    std::string replacement;
    bool        prepended = true;
    std::size_t strings = 0;

    template <class Next>
    void put(Chunk in, Next next) {
        strings += in.begins;
        std::string text;
        for (std::size_t at = 0; at < in.text.size();) {
            if (in.text.substr(at).starts_with(replacement)) {
                if (!prepended || strings > 1) text += ' ';
                at += replacement.size();
            } else text += in.text[at++];
        }
        next(Chunk{text, in.begins, in.ends});
    }
    template <class Next>
    void finish(Next) {}
};

/// Where a file names no decoder: the tokens with a space between them.
struct JoinOut {
    bool begun = false;

    template <class Next>
    void put(Chunk in, Next next) {
        if (in.begins && std::exchange(begun, true)) next(Chunk{" "});
        next(in);
    }
    template <class Next>
    void finish(Next) {}
};

using DecodeStep = std::variant<ReplaceOut, ByteFallbackOut, FuseOut, StripOut, ByteLevelOut, MetaspaceOut, JoinOut>;

/// The steps in a row, with what they hold back.
class Decoder {
public:
    template <class = void>
    explicit Decoder(std::vector<DecodeStep> steps) : steps_(std::move(steps)) {}

    /// Appends to `text` what is settled after one more token, and at the end what was held back.
    template <class = void>
    void put(std::string_view token, std::string& text) { run(0, Chunk{token}, text); }
    template <class = void>
    void finish(std::string& text) {
        for (std::size_t i = 0; i < steps_.size(); ++i)
            std::visit([&](auto& step) { step.finish([&](Chunk out) { run(i + 1, out, text); }); }, steps_[i]);
    }

private:
    template <class = void>
    void run(std::size_t i, Chunk chunk, std::string& text) {
        if (i == steps_.size()) {
            text += chunk.text;
            return;
        }
        std::visit([&](auto& step) { step.put(chunk, [&](Chunk out) { run(i + 1, out, text); }); }, steps_[i]);
    }

    std::vector<DecodeStep> steps_;
};

/// clean_up_tokenization_spaces of transformers: takes spaces away before punctuation and English contractions.
/// Source: huggingface/transformers, src/transformers/tokenization_utils_base.py, clean_up_tokenization.
class CleanUp {
public:
    void put(std::string_view in, std::string& text) {
        for (const char c : in) {
            held_ += c;
            word_ = c == ' ' ? 0 : word_ + 1;
            // A replacement spans a space and at most three characters after it, so it ends before three others, and before one
            // that stands in no pattern: spaces alone are taken away, so none comes to stand in one.
            if (word_ >= 3 || std::string_view(" .?!,'ntmsver").find(c) == std::string_view::npos) settled_ = held_.size();
        }
        text += cleaned(held_.substr(0, settled_));
        held_.erase(0, std::exchange(settled_, 0));
    }
    void finish(std::string& text) { text += cleaned(std::exchange(held_, {})); }

private:
    template <class = void>
    static std::string cleaned(std::string text) {
        static constexpr std::array<std::pair<std::string_view, std::string_view>, 10> rules{{{" .", "."},
                                                                                              {" ?", "?"},
                                                                                              {" !", "!"},
                                                                                              {" ,", ","},
                                                                                              {" ' ", "'"},
                                                                                              {" n't", "n't"},
                                                                                              {" 'm", "'m"},
                                                                                              {" 's", "'s"},
                                                                                              {" 've", "'ve"},
                                                                                              {" 're", "'re"}}};
        if (text.find(' ') == std::string::npos) return text;
        for (const auto& [from, to] : rules) {
            std::size_t at = text.find(from);
            if (at == std::string::npos) continue;
            std::string out;
            std::size_t start = 0;
            for (; at != std::string::npos; at = text.find(from, start)) {
                out.append(text, start, at - start).append(to);
                start = at + from.size();
            }
            text = out.append(text, start);
        }
        return text;
    }

    std::string held_;
    std::size_t settled_ = 0, word_ = 0;  // bytes of held_ that are final; characters since the last space
};

/// Ends a text before the first stop string to be complete (of two that end together, before the longer one).
class StopStrings {
public:
    template <class = void>
    explicit StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) { std::erase(strings_, ""); }

    bool stopped() const { return stopped_; }

    void put(std::string_view in, std::string& text) {
        if (stopped_) return;
        held_ += in;
        std::size_t end = std::string::npos, begin = held_.size();
        for (const std::string& stop : strings_) {
            const std::size_t at = held_.find(stop);
            if (at == std::string::npos || at + stop.size() > end) continue;
            begin = at + stop.size() < end ? at : std::min(begin, at);
            end = at + stop.size();
            stopped_ = true;
        }
        if (!stopped_)
            for (const std::string& stop : strings_) begin = std::min(begin, held_.size() - overlap(held_, stop));
        text.append(held_, 0, begin);
        held_.erase(0, stopped_ ? held_.size() : begin);
    }
    void finish(std::string& text) { text += std::exchange(held_, {}); }

private:
    std::vector<std::string> strings_;
    std::string              held_;
    bool                     stopped_ = false;
};

}  // namespace prism::detail
