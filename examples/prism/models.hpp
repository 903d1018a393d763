// Opening models for the commands, on any backend.
#pragma once

#include "backends.hpp"
#include "files.hpp"
#include "progress.hpp"

#include "prism/generate/session.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/model/store_as.hpp"

#include <atomic>
#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace program {

/// A language model alone, as Chat and Session take it.
template <prism::Backend B>
struct Decoder {
    prism::LanguageModel<B> llm;
};

template <prism::Backend B>
using Vlm = prism::Pretrained<B>;
template <prism::Backend B>
using Tower = prism::PretrainedTower<B>;
template <prism::Backend B>
struct Language {
    Decoder<B>                      model;
    std::optional<prism::Tokenizer> tokenizer;
};

/// A model of whichever layout its folder has.
template <prism::Backend B>
struct Model {
    std::filesystem::path                      folder;
    std::variant<Vlm<B>, Language<B>, Tower<B>> parts;
    double                                     load_s = 0;

    /// The model as one of the kinds. Throws LoadError that says what the command needs instead.
    const Vlm<B>& vlm() const {
        if (const auto* found = std::get_if<Vlm<B>>(&parts)) return *found;
        throw prism::LoadError{folder.string(), std::string("is a ") + (std::holds_alternative<Tower<B>>(parts) ? "vision tower" : "language model") +
                                                    " alone; this command needs a vision-language model"};
    }
};

template <prism::Backend B>
std::variant<Vlm<B>, Language<B>, Tower<B>> open_parts(B& be, const std::filesystem::path& folder, prism::Layout layout, const Common& common, std::size_t image_size) {
    if (image_size && layout != prism::Layout::tower)
        throw prism::ConfigError{"image_size", std::to_string(image_size),
                                 "no value for a " + std::string(to_string(layout)) + ": only a vision tower alone can run at another size"};
    std::atomic<std::size_t> done{0}, total{0};
    const bool               converted = common.weights != "as-stored";
    prism::PretrainedOptions options{.vision_dir = common.vision_dir, .llm_dir = common.llm_dir};
    if (converted && prism::is_packed(folder)) prism::PackedModel::open(folder).expect_as_stored(common.weights);
    if (converted) options.load.kept = prism::keep_weights_as(prism::format_from_name(common.weights, prism::all_formats{}));
    options.load.on_progress = [&](std::size_t n, std::size_t all) { done = n, total = all; };
    const Progress progress{!common.quiet, "loading " + folder.string() + (converted ? " as " + common.weights : ""), 100, 1, "%",
                            [&] { return total ? 100 * static_cast<double>(done) / static_cast<double>(total) : 0.0; }};
    if (layout == prism::Layout::tower) return prism::tower_from_pretrained(be, folder, image_size, options);
    if (layout == prism::Layout::language_model) {
        auto opened = prism::language_model_from_pretrained(be, folder, options);
        return Language<B>{{std::move(opened.llm)}, std::move(opened.tokenizer)};
    }
    return prism::from_pretrained(be, folder, options);
}

/// Opens it, notes its layout, and converts its weights where the options ask for that. `image_size` is of a tower
/// alone; 0 is its own.
template <prism::Backend B>
Model<B> open_model(B& be, const Common& common, Default which = Default::asks, std::size_t image_size = 0) {
    const auto          folder = model_folder(common, which);
    const auto          start = std::chrono::steady_clock::now();
    const prism::Layout layout = prism::layout_of(folder, common.vision_dir);
    note(common, folder.string() + ": " + (prism::is_packed(folder) ? "packed " : "") + std::string(to_string(layout)));
    Model<B> model{folder, open_parts(be, folder, layout, common, image_size)};
    be.wait();
    model.load_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return model;
}

}  // namespace program
