// Packed models: one file with weights as kernels read them, settings and tokenizer. Opening it maps it.
//
//     const auto packed = prism::PackedModel::open("openvla-7b.prism");   // headers and tokenizer; no weights are read
//     packed.weights.find("llm_backbone.llm.lm_head.weight")->panels;     // where kernels read them, in the file
//
// The file is a bundle (io/bundle.hpp). Entries that say a dtype are tensors, under their names in the module:
//     "about": {"dtype": "Q4", "shape": [4096, 4096], "layout": "panels" or "rows"}
// the others are the files of the tokenizer, "tokenizer/<name>". Contents: {"panels": {"width", "revision"}, "layout",
// "settings", "tokenizer"}. Panels are those of quant/panels.hpp, which are the same for all instruction sets.
#pragma once

#include "prism/core/tensor.hpp"
#include "prism/io/bundle.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/io/config.hpp"
#include "prism/quant/panels.hpp"
#include "prism/text/tokenizer.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace prism {

/// Which order of bytes PanelLayout stands for, and which blocks. To be raised with every change of either: files are
/// then refused, and packed again. A test holds the bytes of this revision.
inline constexpr std::uint32_t panel_revision = 1;

/// The layout of models that are no ready composition of this library.
inline constexpr std::string_view packed_module = "module";

/// A packed model: what its header says, and where its weights lie.
struct PackedModel {
    std::string                    layout;    // of the folder that it was packed from, in the words of to_string(Layout); or packed_module
    ConfigReader                   settings;  // as model/settings.hpp has them
    Checkpoint                     weights;
    std::optional<TokenizerOrigin> tokenizer;

    /// Throws LoadError when the file cannot be read, FormatError when it is no packed model, is damaged, or is of another
    /// revision: such a file has to be packed again.
    template <class = void>
    static PackedModel open(const std::filesystem::path& path, FileMode mode = FileMode::map) { return read(MappedFile::open(path, mode)); }
    template <class = void>
    static PackedModel read(const std::shared_ptr<const MappedFile>& file);

    /// Throws ConfigError, for weights that are wanted in another format: `asked` says in which, and is empty for none.
    void expect_as_stored(const std::string& asked) const {
        if (!asked.empty()) throw ConfigError{weights.file(), "weights", asked, "as-stored, because a packed file is used as it is; this one holds matrices in " + formats()};
    }
    /// The formats of its matrices: "q8, q4".
    std::string formats() const;  // no template: nvcc takes no generic lambda in one with a default argument
};

/// Bytes that a tensor of at least one value takes in memory and in a packed file, in panels or in rows.
inline std::uint64_t packed_bytes(const TensorInfo& t) {
    const std::uint64_t rows = t.shape.empty() ? 1 : t.shape[0], cols = t.elements() / rows;
    return t.panels ? (rows + panel_width - 1) / panel_width * panel_bytes(t.dtype, static_cast<std::size_t>(cols)) : rows * stored_bytes(t.dtype, cols);
}

/// Whether a path is a file that begins as packed models do.
inline bool is_packed(const std::filesystem::path& path) {
    std::error_code none;
    return std::filesystem::is_regular_file(path, none) && is_bundle(path);
}

namespace detail {

inline constexpr std::string_view packed_tokenizer = "tokenizer/";
inline constexpr std::array       special_roles{"none", "bos", "eos", "pad", "unk"};

/// The types that weights are packed in.
inline std::optional<Dtype> packed_dtype(std::string_view name) {
    for (const Dtype t : {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::q8, Dtype::q4, Dtype::q4m})
        if (name == to_string(t)) return t;
    return std::nullopt;
}

/// A tensor from its entry, every statement checked.
template <class J = Json>
TensorInfo packed_tensor(const std::shared_ptr<const MappedFile>& file, const BundleEntry& entry) {
    const auto refuse = [&](const std::string& problem) { throw FormatError{file->path(), bundle_header_at, "tensor '" + entry.name + "' " + problem}; };
    const auto text = [&](const char* key) {
        const J value = entry.about.value(key, J());
        return value.is_string() ? value.template get<std::string>() : std::string();
    };
    TensorInfo t;
    t.name = entry.name, t.file = file->path();
    const auto        dtype = packed_dtype(text("dtype"));
    const std::string layout = text("layout");
    if (!dtype) refuse("has a dtype that is none of F32, F16, BF16, Q8, Q4 and Q4M");
    if (layout != "rows" && layout != "panels") refuse("has a layout that is neither 'rows' nor 'panels'");
    t.dtype = *dtype, t.panels = layout == "panels";
    const J shape = entry.about.value("shape", J());
    if (!shape.is_array() || shape.size() > max_rank) refuse("has no shape of at most " + std::to_string(max_rank) + " numbers");
    // No format takes less than half a byte a value, so this bounds all that is computed from the shape.
    const std::uint64_t most = 2 * std::uint64_t{entry.bytes.size()};
    std::uint64_t       n = 1;
    for (const J& extent : shape) {
        if (!extent.is_number_unsigned() || extent.template get<std::uint64_t>() == 0) refuse("has " + extent.dump(-1, ' ', true) + " in its shape");
        if (extent.template get<std::uint64_t>() > most / n) refuse("has a shape of more values than its " + std::to_string(entry.bytes.size()) + " bytes can hold");
        n *= extent.template get<std::uint64_t>();
        t.shape.push_back(extent.template get<std::size_t>());
    }
    if (const std::uint64_t needed = packed_bytes(t); needed != entry.bytes.size())
        refuse("has " + std::to_string(entry.bytes.size()) + " bytes, where " + std::string(to_string(t.dtype)) + " " + to_string(t.shape) + " in " + layout + " takes " + std::to_string(needed));
    t.data = entry.bytes.data();
    t.owner = file;
    t.mapped = file->mapped();
    return t;
}

/// What a packed tokenizer was made of.
template <class = void>
TokenizerOrigin packed_origin(const Bundle& bundle, const ConfigReader& contents) {
    TokenizerOrigin origin{.files = {.where = bundle.file->path()}};
    for (const BundleEntry& entry : bundle.entries)
        if (entry.name.starts_with(packed_tokenizer)) {
            const std::string name = entry.name.substr(packed_tokenizer.size());
            origin.files.files.emplace(name, MappedFile::part(bundle.file, entry.bytes, bundle.file->path() + ": " + name));
        }
    for (const ConfigReader& token : contents.object("tokenizer").objects("added")) {
        const std::string role = token.choice("role", {"none", "bos", "eos", "pad", "unk"});
        origin.added.push_back({token.text("content"), static_cast<SpecialRole>(std::find(special_roles.begin(), special_roles.end(), role) - special_roles.begin())});
    }
    return origin;
}

}  // namespace detail

template <class>
PackedModel PackedModel::read(const std::shared_ptr<const MappedFile>& file) {
    const Bundle bundle = read_bundle(file);
    try {
        const ConfigReader contents{bundle.contents, file->path()};
        const auto         panels = contents.object("panels");
        const auto         width = panels.count("width"), revision = panels.count("revision");
        if (width != panel_width || revision != panel_revision)
            throw FormatError{file->path(), detail::bundle_header_at,
                              "its weights lie in panels of " + std::to_string(width) + " rows, revision " + std::to_string(revision) + ", and this prism reads panels of " +
                                  std::to_string(panel_width) + " rows, revision " + std::to_string(panel_revision) + ": pack the model again"};
        std::vector<TensorInfo> tensors;
        for (const BundleEntry& entry : bundle.entries)
            if (!entry.name.starts_with(detail::packed_tokenizer)) tensors.push_back(detail::packed_tensor(file, entry));
        PackedModel packed{contents.text("layout"), contents.object("settings"), Checkpoint{file->path(), std::move(tensors)}, {}};
        if (contents.has("tokenizer")) packed.tokenizer = detail::packed_origin(bundle, contents);
        return packed;
    } catch (const ConfigError& e) {
        throw FormatError{file->path(), detail::bundle_header_at, "in the header: '" + e.key + "' is " + (e.value.empty() ? "missing" : e.value) + "; allowed: " + e.allowed};
    }
}

inline std::string PackedModel::formats() const {
    std::string found;
    for (const Dtype t : {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::q8, Dtype::q4, Dtype::q4m}) {
        const bool there = std::ranges::any_of(weights.tensors(), [&](const TensorInfo& tensor) { return tensor.panels && tensor.dtype == t; });
        if (there) with_format(t, all_formats{}, [&]<Format F>(F) { found += (found.empty() ? "" : ", ") + std::string(F::name); });
    }
    return found;
}

}  // namespace prism
