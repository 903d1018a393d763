// prism::compiled: what compiled.hpp and compiled_modules.hpp say is compiled already, in their order.
#include "prism/compiled_modules.hpp"

namespace prism {

// Opening models.
template Pretrained<Cpu> from_pretrained(Cpu&, const std::filesystem::path&, const PretrainedOptions&);
template PretrainedLanguageModel<Cpu> language_model_from_pretrained(Cpu&, const std::filesystem::path&, const PretrainedOptions&);
template PretrainedTower<Cpu> tower_from_pretrained(Cpu&, const std::filesystem::path&, std::size_t, const PretrainedOptions&);
template class Loading<Cpu>;

// The models.
template struct Vit<Cpu>;
template struct Vit<Dry>;
template struct Llama<Cpu>;
template struct Llama<Dry>;
template struct LanguageModel<Cpu>;
template struct LanguageModel<Dry>;
template struct Projector<Cpu>;
template struct Projector<Dry>;
template struct Prismatic<Cpu>;
template struct Prismatic<Dry>;
template void Vit<Cpu>::forward(Cpu&, Workspace<Cpu>&, PixelView<Cpu>, Mat<Cpu>, Forget) const;
template void Llama<Cpu>::forward(Cpu&, Workspace<Cpu>&, std::span<const Segment<Cpu>>, Mat<Cpu>, Forget) const;
template void LanguageModel<Cpu>::forward(Cpu&, Workspace<Cpu>&, std::span<const Segment<Cpu>>, Mat<Cpu>, Forget) const;
template void Projector<Cpu>::forward(Cpu&, Workspace<Cpu>&, In<Cpu>, Mat<Cpu>, Forget) const;
template void Vit<Dry>::forward(Dry&, Workspace<Dry>&, PixelView<Dry>, Mat<Dry>, Forget) const;
template void Llama<Dry>::forward(Dry&, Workspace<Dry>&, std::span<const Segment<Dry>>, Mat<Dry>, Forget) const;
template void LanguageModel<Dry>::forward(Dry&, Workspace<Dry>&, std::span<const Segment<Dry>>, Mat<Dry>, Forget) const;
template void Projector<Dry>::forward(Dry&, Workspace<Dry>&, In<Dry>, Mat<Dry>, Forget) const;

// Packing them.
template std::uint64_t pack(const std::filesystem::path&, const Pretrained<Cpu>&);
template std::uint64_t pack(const std::filesystem::path&, const PretrainedLanguageModel<Cpu>&);
template std::uint64_t pack(const std::filesystem::path&, const PretrainedTower<Cpu>&);

// Running them.
template Cost reading_cost(const LanguageModel<Cpu>&, std::size_t, std::size_t);
template Cost seeing_cost(const Prismatic<Cpu>&, std::span<const View<const float, host, dyn, dyn, dyn, dyn>>);
template class Session<Cpu, Prismatic<Cpu>>;
template class Chat<Cpu, Prismatic<Cpu>>;
template class Policy<Cpu>;
template std::vector<Answer> ask_batch(Cpu&, const Pretrained<Cpu>&, std::span<const Question>, const AskBatchOptions&);
template std::vector<Answer> ask_batch(Cpu&, const Prismatic<Cpu>&, const ChatParts&, std::span<const Question>, const AskBatchOptions&);

}  // namespace prism
