// from_pretrained: published weights as they are, with everything around them: tokenizer, prompts, transforms.
//
//     auto vlm = prism::from_pretrained(cpu, "prism-dinosiglip+7b");     // a run folder, OpenVLA's, LLaVA's, a packed file
//     vlm.model.see(...);   vlm.tokenizer->encode(...);   vlm.prompts();
#pragma once

#include "prism/io/file.hpp"
#include "prism/model/load.hpp"
#include "prism/model/prismatic.hpp"
#include "prism/text/prompt.hpp"
#include "prism/text/tokenizer.hpp"

#include <array>
#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace prism {

class ConfigReader;
struct PackedModel;

/// The layouts of model folders.
enum class Layout {
    prismatic_run,   // config.json and checkpoints/latest-checkpoint.pt of Prismatic's trainer
    openvla,         // Hugging Face's form of Prismatic and OpenVLA
    llava,           // llava-hf/llava-1.5-*
    language_model,  // a decoder alone
    tower,           // a vision tower alone, in timm's form
};

constexpr std::string_view to_string(Layout layout) {
    constexpr std::array<std::string_view, 5> names{"prismatic-run", "openvla", "llava", "language-model", "timm-tower"};
    return names[static_cast<std::size_t>(layout)];
}

/// The layout of the folder that a model was packed from. Throws LoadError for a model of somebody's own.
template <class = void>
Layout layout_of(const PackedModel& packed);

/// Which layout a folder has, from its config.json, or a packed file had, from its header, or GGUF files have: a decoder, or
/// LLaVA where a tower's file (mmproj) lies in the folder, or is `vision`. Throws LoadError, ConfigError, FormatError.
template <class = void>
Layout layout_of(const std::filesystem::path& folder, const std::filesystem::path& vision = {});

/// How a dataset's actions were normalised: un-normalising maps [-1, 1] to [q01, q99] where `mask` says so.
struct ActionStatistics {
    std::vector<double> q01, q99;
    std::vector<bool>   mask;
};

/// Reads norm_stats of a config.json, or a whole dataset_statistics.json. Throws ConfigError.
template <class = void>
std::map<std::string, ActionStatistics> read_action_statistics(const ConfigReader& c);

/// What OpenVLA's actions need to know of its vocabulary.
struct ActionVocabulary {
    std::size_t size = 32000;  // ids below it; the last bins of it are actions
    std::size_t n_bins = 256;
};

struct PretrainedOptions {
    std::filesystem::path vision_dir = {}, llm_dir = {};  // of a run folder whose towers and language files lie elsewhere; vision_dir of a GGUF, too
    FileMode              mode = FileMode::map;           // copy: cannot fault when a file shrinks while it is in use
    LoadOptions           load = {};                      // see keep_weights_as()
};

/// A vision-language model with what the folder says around it. The tokenizer is missing when no folder has one.
template <Backend B>
struct Pretrained {
    Layout                                  layout;
    Prismatic<B>                            model;
    std::optional<Tokenizer>                tokenizer;
    std::string                             prompt_style;          // a name that prompt_builder_for knows
    std::size_t                             picture_at = 1;        // before which token of a prompt the picture stands
    std::optional<std::int32_t>             image_token{};           // LLaVA: the token that the picture replaces
    std::map<std::string, ActionStatistics> action_statistics{};   // by dataset; OpenVLA
    ActionVocabulary                        action_vocabulary{};
    std::filesystem::path                   tokenizer_folder{};    // where one was looked for

    PromptBuilder prompts() const { return prompt_builder_for(prompt_style); }
};

/// Opens a vision-language model: the folder of a Prismatic run (with vision/<tower>/ and llm/ in it, or named by the
/// options; of a run with adapters at any time, merged), the Hugging Face form of Prismatic, OpenVLA or LLaVA-1.5, LLaVA-1.5 in
/// GGUF (a folder of its two files, or the decoder's with the mmproj file as `vision_dir`), or a file that one of these was packed
/// into. Weights stay in their files and formats, but for types of GGUF that are none of ours: Q4_K becomes q4m (the same four
/// bits), Q5 and Q6 become q8. Throws LoadError, FormatError or ConfigError.
template <Backend B>
Pretrained<B> from_pretrained(B& be, const std::filesystem::path& folder, const PretrainedOptions& options = {});

/// The tokenizer of a model folder of any layout, or of a packed file, as the model uses it, without opening any weights;
/// of a folder or file that holds nothing but a tokenizer, that, with the pad token that Prismatic adds to a tokenizer that
/// has none. Throws LoadError when there is no tokenizer.
template <class = void>
Tokenizer tokenizer_from_pretrained(const std::filesystem::path& path, const PretrainedOptions& options = {});

/// A decoder alone, as Hugging Face stores it, or in GGUF (llama, qwen2, phi2).
template <Backend B>
struct PretrainedLanguageModel {
    LanguageModel<B>         llm;
    std::optional<Tokenizer> tokenizer;
};

template <Backend B>
PretrainedLanguageModel<B> language_model_from_pretrained(B& be, const std::filesystem::path& folder, const PretrainedOptions& options = {});

/// A tower alone, in timm's form (config.json and weights), with its transform.
template <Backend B>
struct PretrainedTower {
    Vit<B>         vit;
    ImageTransform transform;
};

/// `image_size` 0: as the folder says. Another size resamples the position table.
template <Backend B>
PretrainedTower<B> tower_from_pretrained(B& be, const std::filesystem::path& folder, std::size_t image_size = 0, const PretrainedOptions& options = {});

}  // namespace prism

#if !defined(PRISM_COMPILED) || defined(__CUDACC__)  // compiled is opening them on the processor
#include "prism/model/pretrained.inl"
#endif
