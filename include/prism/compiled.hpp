// What the CMake target prism::compiled has compiled already: the kernels, and the ready compositions on the CPU.
//
//     target_link_libraries(app PRIVATE prism::compiled)     # in place of prism::prism
//
// prism.hpp includes this where that target is linked; sources that include single headers include it themselves. Models
// of your own are compiled once in the same way: `extern template struct TwoEyes<prism::Cpu>;` in their header, the same
// without `extern` in one source; both include prism/compiled_modules.hpp, too, which names the parts that are there.
#pragma once

#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/dry.hpp"
#include "prism/compiled_kernels.hpp"
#include "prism/generate/ask_batch.hpp"
#include "prism/generate/chat.hpp"
#include "prism/generate/policy.hpp"
#include "prism/generate/session.hpp"
#include "prism/model/load.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/model/prismatic.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace prism {

// Opening models.
extern template Pretrained<Cpu> from_pretrained(Cpu&, const std::filesystem::path&, const PretrainedOptions&);
extern template PretrainedLanguageModel<Cpu> language_model_from_pretrained(Cpu&, const std::filesystem::path&, const PretrainedOptions&);
extern template PretrainedTower<Cpu> tower_from_pretrained(Cpu&, const std::filesystem::path&, std::size_t, const PretrainedOptions&);
extern template class Loading<Cpu>;

// Packing them: pack.hpp, as far as it takes no more than a declaration.
template <class Model>
std::uint64_t pack(const std::filesystem::path& path, const Model& model);
extern template std::uint64_t pack(const std::filesystem::path&, const Pretrained<Cpu>&);
extern template std::uint64_t pack(const std::filesystem::path&, const PretrainedLanguageModel<Cpu>&);
extern template std::uint64_t pack(const std::filesystem::path&, const PretrainedTower<Cpu>&);

// Running them.
extern template Cost reading_cost(const LanguageModel<Cpu>&, std::size_t, std::size_t);
extern template Cost seeing_cost(const Prismatic<Cpu>&, std::span<const View<const float, host, dyn, dyn, dyn, dyn>>);
extern template class Session<Cpu, Prismatic<Cpu>>;
extern template class Chat<Cpu, Prismatic<Cpu>>;
extern template class Policy<Cpu>;
extern template std::vector<Answer> ask_batch(Cpu&, const Pretrained<Cpu>&, std::span<const Question>, const AskBatchOptions&);
extern template std::vector<Answer> ask_batch(Cpu&, const Prismatic<Cpu>&, const ChatParts&, std::span<const Question>, const AskBatchOptions&);

}  // namespace prism
