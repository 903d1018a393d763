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

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace prism {

/// The tensors of one file: safetensors, torch.save (zipped or not), npz or GGUF, recognised by its content. Throws
/// FormatError for damage and for any other content.
template <class = void>
std::vector<TensorInfo> read_tensors(const std::shared_ptr<const MappedFile>& file);

/// The files that an index of shards names, each with its tensors. Throws LoadError unless `text` is JSON of the form
/// {"weight_map": {"tensor": "file", ...}}, where every file is a plain name, so in the folder of the index.
template <class = void>
std::map<std::string, std::set<std::string>> parse_shard_index(std::string_view text, const std::string& file);

/// Tensors by name. Copying is cheap: the values are shared.
class Checkpoint {
public:
    Checkpoint() = default;
    /// Tensors that somebody has in hand. Throws LoadError when a name stands twice. `file` is for messages.
    template <class = void>
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
    template <class = void>
    static Checkpoint open(const std::filesystem::path& path, FileMode mode = FileMode::map);

    const std::string&             file() const { return file_; }
    const std::vector<TensorInfo>& tensors() const { return tensors_; }
    /// Bytes of all values; quantised tensors, whose values have no bytes, count nothing.
    std::uint64_t bytes() const {
        std::uint64_t sum = 0;
        for (const TensorInfo& t : tensors_) sum += t.bytes();
        return sum;
    }
    /// Null when there is no tensor of that name. The pointer is good until the next add().
    template <class = void>
    const TensorInfo* find(std::string_view name) const {
        const auto at = index_.find(name);
        return at == index_.end() ? nullptr : &tensors_[at->second];
    }

    /// Adds the tensors of `other` with "prefix." before their names; an empty prefix leaves them as they are. Throws
    /// LoadError when a name is taken; then nothing is added.
    template <class = void>
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
    template <class = void>
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

    template <class = void>
    void insert(TensorInfo&& t) {
        if (!index_.try_emplace(t.name, tensors_.size()).second) {
            const TensorInfo& first = *find(t.name);
            throw LoadError{t.file.empty() ? file_ : t.file, t.name, "one tensor of the name",
                            first.file == t.file ? "two" : "another in " + first.file};
        }
        tensors_.push_back(std::move(t));
    }

    /// The file of a folder that holds, or lists, its weights.
    template <class = void>
    static std::filesystem::path find_in(const std::filesystem::path& folder);

    /// Reads {"weight_map": {tensor: file}} and the files, which have exactly the tensors that the map says they have.
    template <class = void>
    static Checkpoint open_shards(const std::filesystem::path& index_path, FileMode mode);

    /// Appends "what 'a', 'b' and 3 more" for the names that are not `fine`.
    template <class Fine>
    static void list(std::string& problems, const std::string& what, const std::set<std::string>& names, Fine fine);

    std::string                                                         file_;
    std::vector<TensorInfo>                                             tensors_;
    std::unordered_map<std::string, std::size_t, Hash, std::equal_to<>> index_;
};

}  // namespace prism

#if !defined(PRISM_COMPILED)
#include "prism/io/checkpoint.inl"
#endif
