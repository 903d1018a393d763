// pack: a loaded model into one file, which opens at once.
//
//     auto vlm = prism::from_pretrained(cpu, "openvla-7b", {.load = {.kept = prism::keep_weights_as(prism::Dtype::q4)}});
//     prism::pack("openvla-7b.prism", vlm);
//     auto again = prism::from_pretrained(cpu, "openvla-7b.prism");   // the same bits; nothing is read yet
#pragma once

#include "prism/core/fields.hpp"
#include "prism/io/bundle.hpp"
#include "prism/model/packed.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/model/settings.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

/// A packed file that is about to be written: what it says and where the bytes lie, which stay in the model and in the
/// files of its tokenizer until then. Made by packing() from a model, which has to stay as it is.
struct Packing {
    Json                                           contents;
    std::vector<BundleEntry>                       entries{};
    std::vector<std::shared_ptr<const MappedFile>> files{};
    std::size_t                                    n_tensors = 0;
    std::uint64_t                                  bytes = 0;  // of all entries

    /// Calls write(bytes) with the file, piece by piece. `name` is for messages.
    template <class Write>
    void write(Write&& write, const std::string& name) const {
        write_bundle(std::forward<Write>(write), name, contents, entries);
    }
    /// The file; it appears whole or not at all. Calls on_progress(bytes written). Returns its size. Throws LoadError.
    template <class = void>
    std::uint64_t write(const std::filesystem::path& path, const std::function<void(std::uint64_t)>& on_progress = {}) const {
        NewFile       out{path};
        std::uint64_t done = 0;
        write([&](std::span<const std::byte> piece) {
            out.write(piece);
            done += piece.size();
            if (on_progress) on_progress(done);
        }, path.string());
        out.commit();
        return done;
    }
};

namespace detail {

template <class M>
Packing packing_of(const M& module, std::string_view layout, Json settings, const std::optional<Tokenizer>& tokenizer) {
    using J = Late<Json, M>;
    Packing p{.contents = J{{"panels", {{"width", panel_width}, {"revision", panel_revision}}}, {"layout", layout}, {"settings", std::move(settings)}}};
    const auto add = [&](BundleEntry entry) {
        p.bytes += entry.bytes.size();
        p.entries.push_back(std::move(entry));
    };
    if (tokenizer) {
        const TokenizerOrigin& origin = tokenizer->origin();
        J                      added = J::array();
        for (const auto& [content, role] : origin.added) added.push_back({{"content", content}, {"role", special_roles.at(static_cast<std::size_t>(role))}});
        p.contents["tokenizer"] = J{{"added", std::move(added)}};
        for (const auto& [name, file] : origin.files.files) {
            constexpr std::size_t most = std::size_t{256} << 20;
            if (file->bytes().size() > most) throw LoadError{file->path(), "is too large to be packed as a tokenizer"};
            p.files.push_back(file);
            add({.name = std::string(packed_tokenizer) + name, .about = J::object(), .bytes = file->bytes(), .checked = true});
        }
    }
    visit(module, [&](const std::string& path, const auto& param) {
        if (param.shape().empty()) return;
        const TensorInfo t = param.stored();
        ++p.n_tensors;
        add({.name = path, .about = J{{"dtype", to_string(t.dtype)}, {"shape", t.shape}, {"layout", t.panels ? "panels" : "rows"}},
             .bytes = {t.data, static_cast<std::size_t>(packed_bytes(t))}});
    });
    return p;
}

/// The settings of a tower as it was loaded: the pooling head, which features do not need, may have been left out.
template <Backend B>
VitConfig loaded_config(const Vit<B>& vit) {
    VitConfig config = vit.config;
    config.attention_pool = !vit.attn_pool.latent.shape().empty();
    return config;
}

}  // namespace detail

/// A vision-language model with everything around it.
template <Backend B>
    requires std::same_as<typename B::space, host>
Packing packing(const Pretrained<B>& pretrained) {
    const auto& [layout, model, tokenizer, prompt_style, picture_at, image_token, action_statistics, action_vocabulary, folder] = pretrained;  // where it was found is no part of it
    PrismaticConfig config = model.config;
    for (std::size_t i = 0; i < config.towers.size(); ++i) config.towers[i].vit = detail::loaded_config(model.towers[i]);
    using J = detail::Late<Json, B>;
    J statistics = J::object();
    for (const auto& [dataset, s] : action_statistics) statistics[dataset]["action"] = {{"q01", s.q01}, {"q99", s.q99}, {"mask", s.mask}};
    J settings{{"model", to_json(config)}, {"prompt_style", prompt_style}, {"picture_at", picture_at}, {"action_statistics", std::move(statistics)},
                  {"action_vocabulary", {{"size", action_vocabulary.size}, {"n_bins", action_vocabulary.n_bins}}}};
    if (image_token) settings["image_token"] = *image_token;
    return detail::packing_of(model, to_string(layout), std::move(settings), tokenizer);
}

/// A decoder alone.
template <Backend B>
    requires std::same_as<typename B::space, host>
Packing packing(const LanguageModel<B>& llm, const std::optional<Tokenizer>& tokenizer) {
    return detail::packing_of(llm, to_string(Layout::language_model), to_json(llm.config()), tokenizer);
}
template <Backend B>
Packing packing(const PretrainedLanguageModel<B>& pretrained) {
    return packing(pretrained.llm, pretrained.tokenizer);
}

/// A tower alone.
template <Backend B>
    requires std::same_as<typename B::space, host>
Packing packing(const PretrainedTower<B>& tower) {
    return detail::packing_of(tower.vit, to_string(Layout::tower), detail::Late<Json, B>{{"vit", to_json(detail::loaded_config(tower.vit))}, {"transform", to_json(tower.transform)}}, {});
}

/// A model of your own, with an object of its settings: they come back as PackedModel::settings, and load() takes
/// PackedModel::weights.
template <Module M>
Packing packing_of_module(const M& module, Json settings = Json::object(), const std::optional<Tokenizer>& tokenizer = {}) {
    return detail::packing_of(module, packed_module, std::move(settings), tokenizer);
}

/// Writes any of the ready models into one file; it appears whole or not at all. Returns its size. Throws LoadError.
template <class Model>
std::uint64_t pack(const std::filesystem::path& path, const Model& model) {
    return packing(model).write(path);
}

}  // namespace prism
