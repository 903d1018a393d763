// What checkpoint.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/io/gguf.hpp"
#include "prism/io/json.hpp"
#include "prism/io/numpy.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/io/torch.hpp"
#include "prism/io/zip.hpp"

#include <algorithm>
#include <system_error>
#include <utility>

namespace prism {

template <class>
std::vector<TensorInfo> read_tensors(const std::shared_ptr<const MappedFile>& file) {
    const std::string_view text = detail::as_text(file->bytes());
    if (text.starts_with("GGUF")) {
        const Gguf              gguf{file};
        std::vector<TensorInfo> tensors;
        for (const GgufTensor& t : gguf.tensors()) tensors.push_back(t.info);
        return tensors;
    }
    if (text.starts_with(detail::zip_magic)) {
        const ZipArchive zip{file};
        const bool       npz = !zip.entries().empty() &&
                         std::ranges::all_of(zip.entries(), [](const ZipEntry& e) { return e.name.ends_with(".npy"); });
        return npz ? read_npz(zip) : read_torch_zip(zip);
    }
    constexpr std::size_t header_at = 8;
    if (text.size() > header_at && text[header_at] == '{') return read_safetensors(file).tensors;
    if (text.starts_with(detail::torch_legacy_magic)) return read_torch(file);
    if (text.starts_with("version https://git-lfs"))
        throw FormatError{file->path(), 0,
                          "this is a pointer of Git LFS and not the file itself; fetch it with 'git lfs pull'"};
    throw FormatError{file->path(), 0, "this is no safetensors, torch.save, npz or GGUF file, or it is damaged"};
}

template <class T>
std::map<std::string, std::set<std::string>> parse_shard_index(std::string_view text, const std::string& file) {
    using J = detail::Late<Json, T>;
    J json;
    try {
        json = parse_json<J>(text, file);
    } catch (const FormatError& e) { throw LoadError{file, "byte " + std::to_string(e.byte) + ": " + e.problem}; }
    const auto map = json.is_object() ? json.find("weight_map") : json.end();
    if (map == json.end() || !map->is_object())
        throw LoadError{file, "is no index of shards: an object with an object 'weight_map' is needed"};

    const auto is_plain = [](const std::string& name) {
        return !name.empty() && name != "." && name != ".." &&
               name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
    };
    std::map<std::string, std::set<std::string>> shards;
    for (const auto& [tensor, value] : map->items()) {
        const std::string name = value.is_string() ? value.template get<std::string>() : "";
        if (!is_plain(name))
            throw LoadError{file, tensor, "the name of a file in the same folder", value.dump(-1, ' ', true)};
        shards[name].insert(tensor);
    }
    return shards;
}

template <class>
Checkpoint Checkpoint::open(const std::filesystem::path& path, FileMode mode) {
    std::error_code ignored;
    const auto      file = std::filesystem::is_directory(path, ignored) ? find_in(path) : path;
    if (file.string().ends_with(".index.json")) return open_shards(file, mode);
    return {file.string(), read_tensors(MappedFile::open(file, mode))};
}

template <class>
std::filesystem::path Checkpoint::find_in(const std::filesystem::path& folder) {
    std::error_code ignored;
    for (const char* name : {"model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json",
                             "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"})
        if (std::filesystem::exists(folder / name, ignored)) return folder / name;

    std::error_code                    failed;
    std::vector<std::filesystem::path> preferred, others;
    for (std::filesystem::directory_iterator at{folder, failed}, end; !failed && at != end; at.increment(failed)) {
        const auto ending = at->path().extension();
        if (ending == ".safetensors") preferred.push_back(at->path());
        else if (ending == ".pt" || ending == ".pth" || ending == ".bin") others.push_back(at->path());
    }
    if (failed) throw LoadError{folder.string(), "cannot be read: " + failed.message()};
    const auto& found = preferred.empty() ? others : preferred;
    if (found.empty())
        throw LoadError{folder.string(), "has no file of weights (*.safetensors, *.bin, *.pt, *.pth)"};
    if (found.size() > 1)
        throw LoadError{folder.string(),
                        "has " + std::to_string(found.size()) + " files of weights and no index; name one of them"};
    return found.front();
}

template <class>
Checkpoint Checkpoint::open_shards(const std::filesystem::path& index_path, FileMode mode) {
    const std::string index = index_path.string();
    Checkpoint        all{index, {}};
    std::string       problems;
    for (const auto& [name, wanted] : parse_shard_index(read_file(index_path), index)) {
        const auto path = index_path.parent_path() / name;
        Checkpoint shard{path.string(), read_tensors(MappedFile::open(path, mode))};
        list(problems, name + " lacks", wanted,
             [&](const std::string& tensor) { return shard.find(tensor) != nullptr; });
        std::set<std::string> surplus;
        for (const TensorInfo& t : shard.tensors_)
            if (!wanted.contains(t.name)) surplus.insert(t.name);
        list(problems, name + " has, and the index does not name,", surplus,
             [](const std::string&) { return false; });
        for (TensorInfo& t : shard.tensors_) all.insert(std::move(t));
    }
    if (!problems.empty()) throw LoadError{index, problems};
    return all;
}

template <class Fine>
void Checkpoint::list(std::string& problems, const std::string& what, const std::set<std::string>& names, Fine fine) {
    constexpr std::size_t most = 10;
    std::size_t           n = 0;
    for (const std::string& name : names) {
        if (fine(name)) continue;
        if (n == 0) problems += (problems.empty() ? "" : "; ") + what;
        if (n < most) problems += (n == 0 ? " '" : ", '") + name + "'";
        ++n;
    }
    if (n > most) problems += " and " + std::to_string(n - most) + " more";
}

}  // namespace prism
