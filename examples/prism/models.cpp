#include "models.hpp"

#include "files.hpp"
#include "progress.hpp"

#include "prism/model/store_as.hpp"

#include <atomic>
#include <chrono>
#include <utility>

namespace program {

namespace {

using namespace prism;

std::variant<Vlm, Language, Tower> open_parts(Cpu& cpu, const std::filesystem::path& folder, Layout layout,
                                                   const Common& common, std::size_t image_size) {
    if (image_size && layout != Layout::tower)
        throw ConfigError{"image_size", std::to_string(image_size), "no value for a " + std::string(to_string(layout)) + ": only a vision tower alone can run at another size"};
    std::atomic<std::size_t> done{0}, total{0};
    const bool               converted = common.weights != "as-stored";
    PretrainedOptions        options{.vision_dir = common.vision_dir, .llm_dir = common.llm_dir};
    if (converted && is_packed(folder)) PackedModel::open(folder).expect_as_stored(common.weights);
    if (converted) options.load.kept = keep_weights_as(format_from_name(common.weights, all_formats{}));
    options.load.on_progress = [&](std::size_t n, std::size_t all) { done = n, total = all; };
    const Progress progress{!common.quiet, "loading " + folder.string() + (converted ? " as " + common.weights : ""), 100, 1, "%",
                            [&] { return total ? 100 * static_cast<double>(done) / static_cast<double>(total) : 0.0; }};
    if (layout == Layout::tower) return tower_from_pretrained(cpu, folder, image_size, options);
    if (layout == Layout::language_model) {
        auto opened = language_model_from_pretrained(cpu, folder, options);
        return Language{{std::move(opened.llm)}, std::move(opened.tokenizer)};
    }
    return from_pretrained(cpu, folder, options);
}

}  // namespace

const Vlm& Model::vlm() const {
    if (const auto* found = std::get_if<Vlm>(&parts)) return *found;
    throw LoadError{folder.string(), std::string("is a ") + (std::holds_alternative<Tower>(parts) ? "vision tower" : "language model") +
                                         " alone; this command needs a vision-language model"};
}

Cpu open_backend(const Common& common) { return Cpu{{.threads = common.threads, .isa = common.isa.empty() ? best_isa() : isa_from_name(common.isa),
                                                      .compute = common.compute == "fast" ? Compute::fast : Compute::exact}}; }

std::filesystem::path model_folder(const Common& common, Default which) {
    for (const auto& part : {common.vision_dir, common.llm_dir})
        if (!part.empty() && !std::filesystem::is_directory(part)) throw LoadError{part.string(), "is no folder"};
    if (!common.model.empty()) return common.model;
    const std::filesystem::path model = which == Default::acts ? PRISM_SOURCES "/tests/data/reference/vlm/openvla-hf" : PRISM_SOURCES "/examples/shapes/model.prism";
    if (!std::filesystem::exists(model)) throw LoadError{model.string(), "is the model of the repository, and is not there; name one with --model"};
    note(common, which == Default::acts ? "no --model given: using the small policy of the repository, whose weights are random, and so are its actions"
                                        : "no --model given: using the small model of the repository, which knows pictures of coloured shapes and nothing else");
    return model;
}

Model open_model(Cpu& cpu, const Common& common, Default which, std::size_t image_size) {
    const auto     folder = model_folder(common, which);
    const auto     start = std::chrono::steady_clock::now();
    const Layout   layout = layout_of(folder);
    note(common, folder.string() + ": " + (is_packed(folder) ? "packed " : "") + std::string(to_string(layout)));
    Model model{folder, open_parts(cpu, folder, layout, common, image_size)};
    model.load_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return model;
}

}  // namespace program
