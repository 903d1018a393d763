// Sessions on the device that tests run on.
#pragma once

#include "device.hpp"

#include "prism/generate/session.hpp"
#include "prism/lm/language_model.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace prism::test {

/// A language model has no eyes: a session over it reads text alone.
struct TextOnly {
    LanguageModel<Device> llm;
};

template <class M>
std::vector<float> all_logits(Session<Device, M>& session, const std::vector<std::int32_t>& ids) {
    std::vector<float> out;
    session.all_logits(ids, [&](std::size_t, std::span<const float> logits) { out.insert(out.end(), logits.begin(), logits.end()); });
    return out;
}

}  // namespace prism::test
