// Conversations: LLaVA's annotation files, rows of {"id", "image", "conversations": [{"from", "value"}, ...]}.
//
//     const auto file = prism::ConversationFile::open("llava_v1_5_mix665k.json");
//     prism::Conversation c = file[17];        // c.picture, c.turns
//
// The file stays mapped and is read once from end to end, row by row; what is kept of a row is where it lies and how long
// it is, so a gigabyte of conversations takes some 30 bytes a row.
// Source of the format: haotian-liu/LLaVA, docs/Finetune_Custom_Data.md.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/file.hpp"
#include "prism/io/json.hpp"
#include "prism/text/prompt.hpp"
#include "prism/text/unicode.hpp"
#include "prism/train/data/samplers.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

/// An example that cannot be used: which file, which row of it, and what of the row. Or several that cannot be used together.
class ExampleError : public Error {
public:
    ExampleError(std::string file, std::size_t index, std::string field, std::string problem)
        : Error(file + ": example " + std::to_string(index) + ": '" + field + "' " + problem), file(std::move(file)), index(index), field(std::move(field)),
          problem(std::move(problem)) {}
    /// Of several rows; `names` says file and row of each, and stands for the file.
    ExampleError(const std::string& names, std::string field, std::string problem)
        : Error(names + ": '" + field + "' " + problem), file(names), field(std::move(field)), problem(std::move(problem)) {}

    std::string file;
    std::size_t index = 0;
    std::string field, problem;
};

struct Turn {
    Role        role;
    std::string text;
};

struct Conversation {
    std::optional<std::string> picture;  // a path relative to the folder of pictures, which it does not leave
    std::vector<Turn>          turns;    // at least one; human first, then alternating
};

/// What to do with an example that cannot be used.
enum class BadExamples { refuse, skip };

struct ConversationOptions {
    BadExamples bad = BadExamples::refuse;
    bool        captions = false;  // rows have a picture and two turns, and the answer is a caption: no <image> in it
};

/// Whether a path out of a file can be followed without leaving the folder that it is relative to.
inline bool stays_in_folder(std::string_view path) {
    if (path.empty() || path.front() == '/' || path.find('\0') != path.npos) return false;
    for (std::size_t at = 0; at <= path.size();) {
        const std::size_t slash = std::min(path.find('/', at), path.size());
        if (path.substr(at, slash - at) == "..") return false;
        at = slash + 1;
    }
    return true;
}

/// Words as Python's str.split() tells them apart.
inline std::size_t count_words(std::string_view text) {
    std::size_t n = 0;
    bool        within = false;
    for (std::size_t at = 0; at < text.size();) {
        const auto c = unicode::decode(text, at);
        const bool word = !unicode::is_python_space(c.code);
        n += word && !within;
        within = word;
        at += c.bytes;
    }
    return n;
}

/// The rows of an annotation file that can be used.
class ConversationFile {
public:
    /// Throws LoadError when the file cannot be read, FormatError where it is no list or a row does not end, ExampleError for
    /// the first row that cannot be used, which may be no object or not be JSON, unless such are skipped, and ConfigError when
    /// no row is left.
    static ConversationFile open(const std::filesystem::path& path, const ConversationOptions& options = {}) {
        return ConversationFile{MappedFile::open(path), options};
    }
    explicit ConversationFile(std::shared_ptr<const MappedFile> file, const ConversationOptions& options = {}) : file_(std::move(file)), options_(options) {
        if (!file_->bytes().empty()) index();
        if (rows_.empty())
            throw ConfigError{file_->path(), "examples", "0", skipped_.empty() ? "at least one" : "at least one; the first one skipped: " + std::string(skipped_.front().what())};
    }

    std::size_t        size() const { return rows_.size(); }
    const std::string& path() const { return file_->path(); }
    /// Sizes of the rows, for a sampler.
    std::span<const ExampleSize> sizes() const { return sizes_; }
    /// Which row of the file example `i` is; more than `i` where rows before it were skipped.
    std::size_t row(std::size_t i) const { return rows_.at(i).row; }
    Conversation operator[](std::size_t i) const { return parsed(rows_.at(i)); }

    std::size_t n_skipped() const { return n_skipped_; }
    /// The first rows that were skipped, and why: at most 100.
    const std::vector<ExampleError>& skipped() const { return skipped_; }

private:
    struct Row {
        std::uint64_t begin, end;  // bytes of the file
        std::size_t   row;
    };

    std::string_view text() const { return {reinterpret_cast<const char*>(file_->bytes().data()), file_->bytes().size()}; }

    /// Finds the rows by their brackets, and reads each. What stands between rows is checked here, rows by the parser.
    void index() {
        const std::string_view all = text();
        std::size_t            at = 0;
        const auto             fail = [&](const char* problem) { throw FormatError{file_->path(), at, problem}; };
        const auto             skip_space = [&] {
            at = std::min(all.find_first_not_of(" \t\r\n", at), all.size());
            return at < all.size() ? all[at] : '\0';
        };
        if (skip_space() != '[') fail("a list of examples is needed, beginning with '['");
        ++at;
        for (std::size_t row = 0; skip_space() != ']'; ++row) {
            if (row > 0 && all[std::min(at, all.size() - 1)] != ',') fail(at == all.size() ? "the list of examples does not end" : "',' or ']' is needed after an example");
            if (row > 0) ++at;
            skip_space();
            const std::size_t end = end_of_value(all, at);
            if (end == at) fail("an example is needed, beginning with '{'");
            if (end == all.npos) fail("the example that begins here does not end");
            add({at, end, row});
            at = end;
        }
        ++at;
        if (skip_space(); at < all.size()) fail("something follows the list of examples");
    }

    /// One past the value that begins at `at`: past the bracket that closes the one there, the quote, or the number or word.
    /// `at` where none begins, and npos where it does not end.
    static std::size_t end_of_value(std::string_view text, std::size_t at) {
        constexpr std::string_view word = "+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        const char                 first = at < text.size() ? text[at] : '\0';
        if (first != '{' && first != '[' && first != '"') return std::min(text.find_first_not_of(word, at), text.size());
        const std::string stops{'"', first, first == '{' ? '}' : ']'};
        std::size_t       depth = 0;
        while ((at = text.find_first_of(stops, at)) != text.npos) {
            if (text[at] == '"') {
                do at = text.find_first_of("\\\"", at + 1);
                while (at != text.npos && text[at] == '\\' && ++at);  // what follows a backslash is passed over
                if (at == text.npos) break;
            } else depth = text[at] == first ? depth + 1 : depth - 1;
            ++at;
            if (depth == 0) return at;
        }
        return text.npos;
    }

    void add(const Row& row) {
        try {
            const Conversation c = parsed(row);
            ExampleSize        size{.picture = c.picture.has_value()};
            for (const Turn& turn : c.turns) size.words += count_words(turn.text);
            rows_.push_back(row), sizes_.push_back(size);
        } catch (const ExampleError& e) {
            if (options_.bad == BadExamples::refuse) throw;
            if (++n_skipped_ <= 100) skipped_.push_back(e);
        }
    }

    Conversation parsed(const Row& row) const {
        const auto refuse = [&](const std::string& field, const std::string& problem) { throw ExampleError{file_->path(), row.row, field, problem}; };
        Json       json;
        try {
            json = parse_json(text().substr(row.begin, row.end - row.begin), file_->path());
        } catch (const FormatError& e) { refuse("JSON", "is wrong at byte " + std::to_string(row.begin + e.byte) + ": " + e.problem); }
        if (!json.is_object()) refuse("example", "is no object");
        const auto text_of = [&](const Json& object, const char* key, const std::string& field) -> const std::string& {
            const auto at = object.find(key);
            if (at == object.end() || !at->is_string()) refuse(field, at == object.end() ? "is missing" : "is no string");
            return at->get_ref<const std::string&>();
        };

        Conversation c;
        if (const auto at = json.find("image"); at != json.end() && !at->is_null()) {
            c.picture = text_of(json, "image", "image");
            if (!stays_in_folder(*c.picture)) refuse("image", "is no path below the folder of pictures");
        }
        const auto turns = json.find("conversations");
        if (turns == json.end() || !turns->is_array()) refuse("conversations", turns == json.end() ? "is missing" : "is no list");
        if (turns->empty()) refuse("conversations", "is empty");
        for (const Json& turn : *turns) {
            const bool        human = c.turns.size() % 2 == 0;
            const std::string field = "conversations." + std::to_string(c.turns.size());
            if (!turn.is_object()) refuse(field, "is no object");
            if (const auto& from = text_of(turn, "from", field + ".from"); from != (human ? "human" : "gpt"))
                refuse(field + ".from", "is '" + from + "', where '" + (human ? "human" : "gpt") + "' is due");
            c.turns.push_back({human ? Role::human : Role::gpt, text_of(turn, "value", field + ".value")});
        }
        if (options_.captions) {
            if (!c.picture) refuse("image", "is missing");
            if (c.turns.size() != 2) refuse("conversations", "has " + std::to_string(c.turns.size()) + " turns, where a caption has 2");
            if (c.turns[1].text.find("<image>") != std::string::npos) refuse("conversations.1.value", "has <image> in a caption");
        }
        return c;
    }

    std::shared_ptr<const MappedFile> file_;
    ConversationOptions               options_;
    std::vector<Row>                  rows_;
    std::vector<ExampleSize>          sizes_;
    std::size_t                       n_skipped_ = 0;
    std::vector<ExampleError>         skipped_;
};

}  // namespace prism
