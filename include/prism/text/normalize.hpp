// Normalisation: what a tokenizer does to a text before it looks for tokens.
//
//     Normalizer llama{{PrependText{"\xe2\x96\x81"}, ReplaceText{" ", "\xe2\x96\x81"}}};
//     llama(text);   // "Hello world" -> "_Hello_world", where _ is U+2581
#pragma once

#include "prism/text/unicode.hpp"

#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace prism::detail {

/// Put before a text that is not empty.
struct PrependText {
    std::string text;
};
struct ReplaceText {
    std::string pattern, content;
};
/// SentencePiece's remove_extra_whitespaces: no space at either end, no two in a row. At the end, though only there,
/// what spaces will be replaced by counts as one, too.
struct CollapseSpaces {
    std::string replacement;
};

using NormalizeStep = std::variant<PrependText, ReplaceText, CollapseSpaces, unicode::NormalForm>;

class Normalizer {
public:
    std::vector<NormalizeStep> steps;

    /// Rewrites a well-formed text. `marks` is empty, or has one character per byte of the text and follows it through
    /// every change: what comes from marked bytes is marked.
    template <class = void>
    void operator()(std::string& text, std::string& marks) const {
        for (const NormalizeStep& step : steps)
            if (!text.empty()) std::visit([&](const auto& s) { apply(s, text, marks); }, step);
    }
    template <class = void>
    void operator()(std::string& text) const {
        std::string no_marks;
        (*this)(text, no_marks);
    }

private:
    static constexpr char unmarked = '\0';

    static void apply(const PrependText& s, std::string& text, std::string& marks) {
        if (!marks.empty()) marks.insert(0, s.text.size(), unmarked);
        text.insert(0, s.text);
    }

    static void apply(const ReplaceText& s, std::string& text, std::string& marks) {
        std::string out, out_marks;
        out.reserve(text.size() + text.size() / 2);
        for (std::size_t at = 0; at < text.size();) {
            const std::size_t found = std::min(text.find(s.pattern, at), text.size());
            out.append(text, at, found - at);
            if (!marks.empty()) out_marks.append(marks, at, found - at);
            at = found;
            if (found == text.size()) break;
            out += s.content;
            if (!marks.empty()) out_marks.append(s.content.size(), mark_of(marks, found, s.pattern.size()));
            at += s.pattern.size();
        }
        text = std::move(out), marks = std::move(out_marks);
    }

    static void apply(const CollapseSpaces& s, std::string& text, std::string& marks) {
        std::string out, out_marks;
        for (std::size_t at = 0; at < text.size(); ++at) {
            if (text[at] == ' ' && (out.empty() || out.back() == ' ')) continue;
            out += text[at];
            if (!marks.empty()) out_marks += marks[at];
        }
        for (;;) {
            if (out.ends_with(' ')) out.pop_back();
            else if (!s.replacement.empty() && out.ends_with(s.replacement))
                out.resize(out.size() - s.replacement.size());
            else break;
        }
        if (!marks.empty()) out_marks.resize(out.size());
        text = std::move(out), marks = std::move(out_marks);
    }

    template <class = void>
    static void apply(unicode::NormalForm form, std::string& text, std::string& marks) {
        if (marks.empty()) {
            text = unicode::normalized(text, form);
            return;
        }
        // ASCII characters combine with nothing before them, so the runs between them can be normalised one by one.
        std::string out, out_marks;
        for (std::size_t at = 0, end; at < text.size(); at = end) {
            end = at + 1;
            while (end < text.size() && static_cast<unsigned char>(text[end]) >= 0x80) ++end;
            const std::string run = unicode::normalized(std::string_view(text).substr(at, end - at), form);
            out_marks.append(run.size(), mark_of(marks, at, end - at));
            out += run;
        }
        text = std::move(out), marks = std::move(out_marks);
    }

    /// The mark of what several bytes turn into: theirs if any has one.
    static char mark_of(const std::string& marks, std::size_t at, std::size_t bytes) {
        const auto        own = std::string_view(marks).substr(at, bytes);
        const std::size_t marked = own.find_first_not_of(unmarked);
        return marked == std::string_view::npos ? unmarked : own[marked];
    }
};

}  // namespace prism::detail
