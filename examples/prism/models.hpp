// Opening models for the commands.
#pragma once

#include "commands.hpp"

#include "prism/backend/cpu/cpu.hpp"
#include "prism/generate/session.hpp"
#include "prism/model/pretrained.hpp"

#include <filesystem>
#include <optional>
#include <string>
#include <variant>

namespace program {

/// A language model alone, as Chat and Session take it.
struct Decoder {
    prism::LanguageModel<prism::Cpu> llm;
};

using Vlm = prism::Pretrained<prism::Cpu>;
using Tower = prism::PretrainedTower<prism::Cpu>;
struct Language {
    Decoder                         model;
    std::optional<prism::Tokenizer> tokenizer;
};

/// A model of whichever layout its folder has.
struct Model {
    std::filesystem::path              folder;
    std::variant<Vlm, Language, Tower> parts;
    double                             load_s = 0;

    /// The model as one of the kinds. Throws LoadError that says what the command needs instead.
    const Vlm& vlm() const;
};

/// Models of the repository that commands use without --model: the one of the shapes world, and a policy with random weights.
enum class Default { asks, acts };

/// The backend that the options ask for.
prism::Cpu open_backend(const Common& common);

/// The folder of --model, or the repository's, with a note.
std::filesystem::path model_folder(const Common& common, Default which = Default::asks);

/// Opens it, notes its layout, and converts its weights where the options ask for that. `image_size` is of a tower
/// alone; 0 is its own.
Model open_model(prism::Cpu& cpu, const Common& common, Default which = Default::asks, std::size_t image_size = 0);

}  // namespace program
