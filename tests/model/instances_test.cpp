// No tests: what the others here share is compiled in this source.
#include "instances.hpp"

namespace prism {

template Pretrained<Cpu> from_pretrained(Cpu&, const std::filesystem::path&, const PretrainedOptions&);
template PretrainedLanguageModel<Cpu> language_model_from_pretrained(Cpu&, const std::filesystem::path&, const PretrainedOptions&);
template PretrainedTower<Cpu> tower_from_pretrained(Cpu&, const std::filesystem::path&, std::size_t, const PretrainedOptions&);
template class Loading<Cpu>;

}  // namespace prism
