// Stage: what Prismatic trains, one after another or one alone. Source: TRI-ML/prismatic-vlms, models/vlms/prismatic.py.
#pragma once

#include "prism/core/error.hpp"

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

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

}  // namespace prism
