// Checkpoint: the tensors of a file or folder by name, whatever its format.
//
//     auto file = prism::Checkpoint::open("prism-clip+7b/checkpoints/latest-checkpoint.pt");
//     file = file.below("model");                                  // "model.projector.x" becomes "projector.x"
//     file.add(prism::Checkpoint::open("vit_large"), "vision_backbone.featurizer");
//     if (const TensorInfo* w = file.find("projector.projector.0.weight")) use(*w);
//
// Opening reads headers only; the values stay in the mapped files until somebody looks at them.
#pragma once

#include "prism/core/error.hpp"
#include "prism/core/tensor.hpp"
#include "prism/io/file.hpp"
#include "prism/io/gguf.hpp"
#include "prism/io/json.hpp"
#include "prism/io/numpy.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/io/torch.hpp"
#include "prism/io/zip.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

namespace prism {

/// The tensors of one file: safetensors, torch.save (zipped or not), npz or GGUF, recognised by its content. Throws
/// FormatError for damage and for any other content.
inline std::vector<TensorInfo> read_tensors(const std::shared_ptr<const MappedFile>& file) {
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

/// The files that an index of shards names, each with its tensors. Throws LoadError unless `text` is JSON of the form
/// {"weight_map": {"tensor": "file", ...}}, where every file is a plain name, so in the folder of the index.
inline std::map<std::string, std::set<std::string>> parse_shard_index(std::string_view text, const std::string& file) {
    Json json;
    try {
        json = parse_json(text, file);
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
        const std::string name = value.is_string() ? value.get<std::string>() : "";
        if (!is_plain(name))
            throw LoadError{file, tensor, "the name of a file in the same folder", value.dump(-1, ' ', true)};
        shards[name].insert(tensor);
    }
    return shards;
}

/// Tensors by name. Copying is cheap: the values are shared.
class Checkpoint {
public:
    Checkpoint() = default;
    /// Tensors that somebody has in hand. Throws LoadError when a name stands twice. `file` is for messages.
    Checkpoint(std::string file, std::vector<TensorInfo> tensors) : file_(std::move(file)) {
        for (TensorInfo& t : tensors) insert(std::move(t));
    }

    /// A file of weights, or a folder that has, in this order of preference:
    ///   model.safetensors.index.json and its shards, model.safetensors,
    ///   pytorch_model.bin.index.json and its shards, pytorch_model.bin,
    ///   open_clip_model.safetensors, open_clip_pytorch_model.bin,
    ///   one *.safetensors, or else one *.pt, *.pth or *.bin.
    /// Throws LoadError when nothing is there or cannot be read, and for an index that does not fit its shards;
    /// FormatError for a damaged file.
    static Checkpoint open(const std::filesystem::path& path, FileMode mode = FileMode::map) {
        std::error_code ignored;
        const auto      file = std::filesystem::is_directory(path, ignored) ? find_in(path) : path;
        if (file.string().ends_with(".index.json")) return open_shards(file, mode);
        return {file.string(), read_tensors(MappedFile::open(file, mode))};
    }

    const std::string&             file() const { return file_; }
    const std::vector<TensorInfo>& tensors() const { return tensors_; }
    /// Bytes of all values; quantised tensors, whose values have no bytes, count nothing.
    std::uint64_t bytes() const {
        std::uint64_t sum = 0;
        for (const TensorInfo& t : tensors_) sum += t.bytes();
        return sum;
    }
    /// Null when there is no tensor of that name. The pointer is good until the next add().
    const TensorInfo* find(std::string_view name) const {
        const auto at = index_.find(name);
        return at == index_.end() ? nullptr : &tensors_[at->second];
    }

    /// Adds the tensors of `other` with "prefix." before their names; an empty prefix leaves them as they are. Throws
    /// LoadError when a name is taken; then nothing is added.
    void add(const Checkpoint& other, const std::string& prefix = {}) {
        Checkpoint sum = *this;
        if (sum.file_.empty()) sum.file_ = other.file_;
        for (TensorInfo t : other.tensors_) {
            if (!prefix.empty()) t.name = prefix + "." + t.name;
            sum.insert(std::move(t));
        }
        *this = std::move(sum);
    }

    /// The tensors whose names start with "prefix.", without it.
    Checkpoint below(const std::string& prefix) const {
        Checkpoint        part;
        const std::string start = prefix + ".";
        part.file_ = file_;
        for (TensorInfo t : tensors_) {
            if (!t.name.starts_with(start)) continue;
            t.name.erase(0, start.size());
            part.insert(std::move(t));
        }
        return part;
    }

private:
    struct Hash {
        using is_transparent = void;
        std::size_t operator()(std::string_view name) const { return std::hash<std::string_view>{}(name); }
    };

    void insert(TensorInfo&& t) {
        if (!index_.try_emplace(t.name, tensors_.size()).second) {
            const TensorInfo& first = *find(t.name);
            throw LoadError{t.file.empty() ? file_ : t.file, t.name, "one tensor of the name",
                            first.file == t.file ? "two" : "another in " + first.file};
        }
        tensors_.push_back(std::move(t));
    }

    /// The file of a folder that holds, or lists, its weights.
    static std::filesystem::path find_in(const std::filesystem::path& folder) {
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

    /// Reads {"weight_map": {tensor: file}} and the files, which have exactly the tensors that the map says they have.
    static Checkpoint open_shards(const std::filesystem::path& index_path, FileMode mode) {
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

    /// Appends "what 'a', 'b' and 3 more" for the names that are not `fine`.
    template <class Fine>
    static void list(std::string& problems, const std::string& what, const std::set<std::string>& names, Fine fine) {
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

    std::string                                                         file_;
    std::vector<TensorInfo>                                             tensors_;
    std::unordered_map<std::string, std::size_t, Hash, std::equal_to<>> index_;
};

}  // namespace prism
