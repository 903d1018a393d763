// inspect: what a model folder or file holds, from its headers alone.
#include "files.hpp"

#include "prism/io/checkpoint.hpp"
#include "prism/io/config.hpp"
#include "prism/io/gguf.hpp"
#include "prism/io/numpy.hpp"
#include "prism/model/gguf_files.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/text/tokenizer.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iomanip>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

namespace program {

namespace {

using namespace prism;

struct Entry {
    std::string              name, dtype;
    std::vector<std::size_t> shape;
    std::uint64_t            elements, bytes;
};

struct Contents {
    std::string        layout, architecture;
    std::vector<Entry> tensors{};

    void add(const std::vector<TensorInfo>& infos, const std::string& prefix = {}) {
        for (const TensorInfo& t : infos) tensors.push_back({prefix + t.name, std::string(to_string(t.dtype)), t.shape, t.elements(), t.bytes()});
    }
    void add(const Gguf& gguf, const std::string& prefix = {}) {
        for (const auto& t : gguf.tensors()) tensors.push_back({prefix + t.info.name, std::string(ggml_layout(t.type)->name), t.info.shape, t.info.elements(), t.bytes});
    }
};

std::string architecture_of(const Gguf& gguf) { return gguf.has("general.architecture") ? std::string(gguf.get("general.architecture").text()) : "unknown"; }

/// A folder of files that one may name a model by.
Contents inspect_folder(const std::filesystem::path& folder) {
    const auto has = [&](const char* name) { return std::filesystem::exists(folder / name); };
    if (!has("config.json")) {
        if (has("tokenizer.json") || has("tokenizer.model") || has("vocab.json"))
            return {"tokenizer", std::to_string(Tokenizer::open(folder).size()) + " tokens"};
        if (const auto gguf = gguf_model(folder)) {
            Contents contents{"gguf", ""};
            for (const auto& path : {gguf->language, gguf->vision})
                if (!path.empty()) {
                    const Gguf file = Gguf::open(path);
                    contents.architecture += (contents.architecture.empty() ? "" : " + ") + architecture_of(file);
                    contents.add(file, path.filename().string() + "/");
                }
            return contents;
        }
        Contents contents{"weights", "unknown: no config.json"};
        contents.add(Checkpoint::open(folder).tensors());
        return contents;
    }
    const auto   config = ConfigReader::open(folder / "config.json");
    const Layout layout = layout_of(folder);
    Contents     contents{std::string(to_string(layout)), ""};
    const auto   composed = [](std::string_view vision, std::string_view projector, std::string_view llm) {
        return std::string(vision) + " + " + std::string(projector) + " + " + std::string(llm);
    };
    if (layout == Layout::prismatic_run) {
        if (config.has("model")) {
            const auto m = config.object("model");
            contents.architecture = composed(m.text("vision_backbone_id"), m.text("arch_specifier"), m.text("llm_backbone_id"));
        } else {
            const auto& base = registered_model(config.object("vla").text("base_vlm"));
            contents.architecture = composed(base.vision_backbone_id, base.arch_specifier, base.llm_backbone_id);
        }
        contents.add(Checkpoint::open(folder / "checkpoints" / "latest-checkpoint.pt").tensors());
        if (has("vision"))
            for (const auto& tower : std::filesystem::directory_iterator(folder / "vision"))
                if (tower.is_directory()) contents.add(Checkpoint::open(tower.path()).tensors(), "vision/" + tower.path().filename().string() + "/");
        return contents;
    }
    if (layout == Layout::openvla) contents.architecture = composed(config.text("vision_backbone_id"), config.text("arch_specifier"), config.text("llm_backbone_id"));
    else if (layout == Layout::tower) contents.architecture = config.text("architecture");
    else {
        const auto classes = config.has("architectures") ? config.texts("architectures") : std::vector<std::string>{};
        contents.architecture = classes.empty() ? config.text("model_type") : classes[0];
    }
    contents.add(Checkpoint::open(folder).tensors());
    return contents;
}

std::string architecture_of(const PackedModel& packed) {
    if (packed.layout == packed_module) return "unknown: a model of somebody's own";
    const auto layers = [](const std::string& kind, const auto& config) { return kind + " of " + std::to_string(config.n_layers) + " layers of " + std::to_string(config.d_model); };
    switch (layout_of(packed)) {
        case Layout::language_model: {
            const LanguageModelConfig llm = language_model_settings(packed.settings);
            return std::visit([&](const auto& c) { return layers(std::holds_alternative<PhiConfig>(llm) ? "phi" : "llama", c); }, llm);
        }
        case Layout::tower: {
            const VitConfig vit = vit_settings(packed.settings.object("vit"));
            return layers("vit", vit) + ", patches of " + std::to_string(vit.patch_size) + " px";
        }
        default: break;
    }
    const auto model = packed.settings.object("model");
    return model.text("vision_backbone_id") + " + " + model.text("projector") + " + " + model.text("llm_backbone_id");
}

/// A packed model; bytes are those that its tensors take in the file.
Contents inspect_packed(const std::filesystem::path& path) {
    const PackedModel packed = PackedModel::open(path);
    Contents          contents{"packed-" + packed.layout, architecture_of(packed)};
    for (const TensorInfo& t : packed.weights.tensors()) contents.tensors.push_back({t.name, std::string(to_string(t.dtype)), t.shape, t.elements(), packed_bytes(t)});
    return contents;
}

/// One file, known by its content.
Contents inspect_file(const std::filesystem::path& path) {
    if (is_packed(path)) return inspect_packed(path);
    const auto             file = MappedFile::open(path);
    const std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
    if (text.starts_with("GGUF")) {
        const Gguf gguf{file};
        Contents   contents{"gguf", architecture_of(gguf)};
        contents.add(gguf);
        return contents;
    }
    const bool zip = text.starts_with("PK\x03\x04"), npy = text.starts_with("\x93NUMPY"), json = !text.empty() && text[0] == '{', safetensors = text.size() > 8 && text[8] == '{';
    const auto name = path.filename().string();
    if (json && name.ends_with(".index.json")) {
        Contents contents{"shards", "unknown"};
        contents.add(Checkpoint::open(path).tensors());
        return contents;
    }
    if (json || name.ends_with(".model")) return {"tokenizer", std::to_string(Tokenizer::open(path).size()) + " tokens"};
    Contents contents{safetensors ? "safetensors" : npy ? "npy" : "torch", "unknown"};
    contents.add(npy ? std::vector{read_npy(file)} : read_tensors(file));
    if (zip && std::ranges::all_of(ZipArchive{file}.entries(), [](const ZipEntry& e) { return e.name.ends_with(".npy"); })) contents.layout = "npz";
    return contents;
}

/// 1234567 as "1,234,567".
std::string grouped(std::uint64_t n) {
    const std::string digits = std::to_string(n);
    std::string       text;
    for (std::size_t i = 0; i < digits.size(); ++i) {
        if (i && (digits.size() - i) % 3 == 0) text += ',';
        text += digits[i];
    }
    return text;
}

}  // namespace

void run(const Common& common, const Inspect& args) {
    const Contents contents = std::filesystem::is_directory(args.path) ? inspect_folder(args.path) : inspect_file(args.path);
    std::uint64_t  parameters = 0, bytes = 0;
    Json           tensors = Json::array();
    std::size_t    widest = 0;
    for (const Entry& t : contents.tensors) {
        parameters += t.elements, bytes += t.bytes;
        widest = std::max(widest, t.name.size());
        if (common.json) tensors.push_back({{"name", t.name}, {"dtype", t.dtype}, {"shape", t.shape}, {"bytes", t.bytes}});
    }
    if (common.json)
        return print({{"layout", contents.layout}, {"architecture", contents.architecture}, {"parameters", parameters}, {"tensors", std::move(tensors)}});
    std::cout << "layout        " << contents.layout << "\narchitecture  " << contents.architecture << "\nparameters    " << grouped(parameters) << "\ntensors       "
              << grouped(contents.tensors.size()) << ", " << grouped(bytes) << " bytes\n\n";
    for (const Entry& t : contents.tensors)
        std::cout << std::left << std::setw(static_cast<int>(widest)) << t.name << "  " << std::setw(6) << t.dtype << ' ' << to_string(t.shape) << '\n';
}

}  // namespace program
