// Put before every source of this room's tests: opening models is compiled once, in instances_test.cpp.
#pragma once

#include "prism/backend/cpu/cpu.hpp"
#include "prism/model/pretrained.hpp"

namespace prism {

extern template Pretrained<Cpu> from_pretrained(Cpu&, const std::filesystem::path&, const PretrainedOptions&);
extern template PretrainedLanguageModel<Cpu> language_model_from_pretrained(Cpu&, const std::filesystem::path&, const PretrainedOptions&);
extern template PretrainedTower<Cpu> tower_from_pretrained(Cpu&, const std::filesystem::path&, std::size_t, const PretrainedOptions&);
extern template class Loading<Cpu>;

}  // namespace prism
