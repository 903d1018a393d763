// Stage: what Prismatic trains, one after another or one alone. Source: TRI-ML/prismatic-vlms, models/vlms/prismatic.py.
#pragma once

#include "prism/core/dtype.hpp"
#include "prism/core/error.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace prism {

enum class Stage {
    align,          // the projector
    finetune,       // the projector and the language model
    full_finetune,  // the towers as well
};

constexpr std::string_view to_string(Stage stage) {
    constexpr std::array<std::string_view, 3> names{"align", "finetune", "full-finetune"};
    return names[static_cast<std::size_t>(stage)];
}

/// Which parts of a model have gradients. No work is done for those of the others, and nothing of them is kept that no other
/// part needs.
struct TrainedParts {
    bool towers = true, projector = true, llm = true;
};

constexpr TrainedParts parts_of(Stage stage) { return {stage == Stage::full_finetune, true, stage != Stage::align}; }

/// Whether the part that this parameter belongs to (the path of visit) is trained, and so is in the stage's checkpoints.
constexpr bool in_trained_part(Stage stage, std::string_view name) {
    const TrainedParts parts = parts_of(stage);
    return name.starts_with("projector.") ? parts.projector : name.starts_with("vision_backbone.") ? parts.towers : parts.llm;
}

/// What frozen towers see in pictures, kept in memory: see feature_cache.hpp.
struct FeatureCacheOptions {
    std::size_t bytes = 0;           // of features that are kept; 0: no cache
    Dtype       dtype = Dtype::f32;  // or bf16: half the memory, other bits
};

/// Low-rank adapters in place of the language model's parameters: see low_rank.hpp.
struct LoraOptions {
    std::size_t              rank = 0;  // 0: no adapters
    double                   alpha = 16;
    double                   dropout = 0;  // share of the values in front of A that a training pass sets to 0, anew for every layer and micro-step
    std::uint64_t            seed = 0;   // of A, which is uniform within 1 / sqrt(d_in); B is 0 at first
    std::vector<std::string> targets{};  // names of linear layers of a block, "q_proj"; none: all of them
};

}  // namespace prism
