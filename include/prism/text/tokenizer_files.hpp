// TokenizerFiles: what a tokenizer is read from, in a folder or elsewhere.
//
//     const auto files = prism::TokenizerFiles::in("llama2-7b");
//     if (files.has("tokenizer.json")) read(*files.find("tokenizer.json"));
#pragma once

#include "prism/io/file.hpp"

#include <array>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>

namespace prism {

/// Files by the names that they have in a folder.
struct TokenizerFiles {
    std::string                                                           where{};  // the folder, for messages
    std::map<std::string, std::shared_ptr<const MappedFile>, std::less<>> files{};

    /// A file that is a tokenizer by itself stands under this name, and is known by its contents.
    static constexpr std::string_view alone = "alone";
    /// What may be read from a folder.
    static constexpr std::array<std::string_view, 7> names{"tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
                                                           "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"};

    /// Those that are there. Throws LoadError for one that cannot be read.
    template <class = void>
    static TokenizerFiles in(const std::filesystem::path& folder) {
        TokenizerFiles  found{.where = folder.string()};
        std::error_code none;
        for (const std::string_view name : names)
            if (std::filesystem::exists(folder / name, none)) found.files.emplace(name, MappedFile::open(folder / name));
        return found;
    }

    bool has(std::string_view name) const { return files.contains(name); }
    /// Null for a file that is not there.
    std::shared_ptr<const MappedFile> find(std::string_view name) const {
        const auto found = files.find(name);
        return found == files.end() ? nullptr : found->second;
    }
    /// The place of a file, which need not be there.
    std::string place(std::string_view name) const { return (std::filesystem::path(where) / name).string(); }
};

namespace detail {

/// The text of a file that lies in memory.
inline std::string_view text_of(const MappedFile& file) { return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}; }

}  // namespace detail

}  // namespace prism
