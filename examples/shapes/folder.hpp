// The world as files: folders in LLaVA's format, which whatever trains on LLaVA's data reads.
//
//     write_folder("shapes", {.seed = 7, .kind = FolderKind::conversations, .count = 1000});   // chat.json, pictures/*.png
#pragma once

#include "vocabulary.hpp"
#include "world.hpp"

#include "prism/core/error.hpp"
#include "prism/image/write.hpp"
#include "prism/io/file.hpp"
#include "prism/io/json.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ios>
#include <string>
#include <string_view>
#include <utility>

namespace prism::shapes {

enum class FolderKind : std::uint8_t { conversations, captions, corpus, tokenizer, benchmark };

struct FolderOptions {
    std::uint64_t                      seed = 0;
    FolderKind                         kind = FolderKind::conversations;
    Benchmark                          benchmark = Benchmark::vqa;
    Split                              split = Split::train;
    std::uint64_t                      first = 0, count = 0;  // rows; a tokenizer has none
    std::function<void(std::uint64_t)> on_row{};              // gets how many are written
};

namespace detail {

/// A picture is not synced to the disk by itself: the folder counts once chat.json is there, which comes last.
inline void write_picture(const std::filesystem::path& path, const Image& image) {
    const auto    bytes = encode_png(image);
    std::ofstream out{path, std::ios::binary};
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) throw LoadError{path.string(), "cannot be written"};
}

inline Json to_json(const Row& row) {
    Json turns = Json::array();
    for (const prism::Turn& turn : row.turns) turns.push_back({{"from", turn.role == Role::human ? "human" : "gpt"}, {"value", turn.text}});
    return {{"conversations", std::move(turns)}};
}

/// A benchmark's example as a conversation, with what a scorer needs beside it.
inline Json to_json(const Example& e) {
    Row row;
    row.add("<image>\n" + e.question.prompt, e.question.answer);
    Json json = to_json(row);
    json["type"] = to_string(e.question.type), json["question"] = e.question.question, json["answers"] = e.answers;
    if (!e.group.empty()) json["group"] = e.group;
    if (!e.question.choices.empty()) json["choices"] = e.question.choices;
    return json;
}

}  // namespace detail

/// Writes rows first ... first + count - 1: `chat.json` with `pictures/<number>.png`, or `corpus.jsonl` with a document
/// a line, or the tokenizer's files. Throws LoadError when the folder cannot be written.
inline void write_folder(const std::filesystem::path& folder, const FolderOptions& options) {
    using namespace detail;
    std::error_code error;
    std::filesystem::create_directories(folder / (options.kind == FolderKind::corpus || options.kind == FolderKind::tokenizer ? "" : "pictures"), error);
    if (error) throw LoadError{folder.string(), "cannot be created: " + error.message()};
    const auto progress = [&](std::uint64_t n) {
        if (options.on_row) options.on_row(n);
    };
    if (options.kind == FolderKind::tokenizer) {
        for (const auto& [name, text] : tokenizer_files()) {
            NewFile file{folder / name};
            file.write(text), file.commit();
        }
        return;
    }
    if (options.kind == FolderKind::corpus) {
        NewFile file{folder / "corpus.jsonl"};
        for (std::uint64_t i = 0; i < options.count; ++i)
            file.write(Json{{"text", corpus_document(options.seed, options.first + i)}}.dump() + '\n'), progress(i + 1);
        return file.commit();
    }
    NewFile     file{folder / "chat.json"};
    const World world{.seed = options.seed};
    for (std::uint64_t i = 0; i < options.count; ++i) {
        const std::uint64_t  index = options.first + i;
        std::string          id = std::to_string(index);
        Json                 json;
        std::optional<Scene> scene;
        id.insert(0, id.size() < 6 ? 6 - id.size() : 0, '0');
        if (options.kind == FolderKind::benchmark) {
            Example e = example(options.seed, options.benchmark, index);
            json = to_json(e), scene = std::move(e.scene);
        } else {
            Row row = options.kind == FolderKind::captions ? world.caption_row(options.split, index) : world.row(options.split, index);
            json = to_json(row), scene = std::move(row.scene);
        }
        json["id"] = id;
        if (scene) json["image"] = "pictures/" + id + ".png", write_picture(folder / "pictures" / (id + ".png"), draw(*scene));
        file.write((i == 0 ? "[\n" : ",\n") + json.dump());
        progress(i + 1);
    }
    file.write(options.count == 0 ? "[]\n" : "\n]\n");
    file.commit();
}

}  // namespace prism::shapes
